"""Multi-scale stage: ECG tower, text tower and report decoder aligned by the three losses."""

import contextlib
import copy
import hashlib
import json
import math
import re
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from transformers import AutoModel, AutoTokenizer

from configuration_melp import MelpConfig
from data import MelpCollator, label_matrix, label_sets, prepare_inputs
from evaluation.metrics import macro, score_classes
from evaluation.zero_shot import PROMPTS, class_embeddings, load_prompts
from losses_melp import beat_loss, contrastive_loss, sigmoid_contrastive_loss
from modeling_melp import MelpAttention, MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, split_sentences, with_bos
from recipe import Recipe, check_names, load_recipe
from stages.stage import Stage
from training.embeddings import embedding_metrics, rankme, recall
from training.randomness import random_state, set_random_state

SIGMOID_START = (math.log(10), -10.0)  # logarithm of the scale, and bias (SigLIP, section 3.2)
EMBEDDINGS = ("ecg_embeds", "text_embeds", "beat_embeds", "sentence_embeds")


class _Gather(torch.autograd.Function):
    """Every process's rows, in the order of the ranks, with the gradient of all processes' losses."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """(batch, ...) of this process to (world * batch, ...); equally many rows a process."""
    return _Gather.apply(tensor) if dist.is_initialized() and dist.get_world_size() > 1 else tensor


@contextlib.contextmanager
def attention_weights(attention: MelpAttention):
    """Collects the weights of an attention, (batch, heads, queries, keys) a call, which fused kernels do not give."""
    found, config = [], attention.config
    implementation, config._attn_implementation = config._attn_implementation, "eager"
    handle = attention.register_forward_hook(lambda module, inputs, outputs: found.append(outputs[1]))
    try:
        yield found
    finally:
        handle.remove()
        config._attn_implementation = implementation


def _pad_sentences(embeds, mask, sentences: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = sentences - mask.shape[1]
    return F.pad(embeds, (0, 0, 0, missing)), F.pad(mask, (0, missing))


def _join(parts: list[tuple]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The micro-batches' embeddings as those of one batch, with gradients of their own; sentence mask, report ids."""
    sentences = max(mask.shape[1] for _, mask, _ in parts)
    padded = [_pad_sentences(embeds["sentence_embeds"], mask, sentences) for embeds, mask, _ in parts]
    embeds = {name: [part[name] for part, _, _ in parts] for name in EMBEDDINGS}
    embeds["sentence_embeds"] = [embeds for embeds, _ in padded]
    embeds = {name: torch.cat(values).requires_grad_() for name, values in embeds.items()}
    return embeds, torch.cat([mask for _, mask in padded]), torch.cat([report_ids for _, _, report_ids in parts])


def _propagated(outputs, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """A scalar whose gradient at the embeddings is the one given."""
    gradients["sentence_embeds"] = gradients["sentence_embeds"][:, : outputs.sentence_mask.shape[1]]
    return sum((outputs[name].float() * gradient).sum() for name, gradient in gradients.items())


def _caption_tokens(batch: dict) -> torch.Tensor:
    return batch["attention_mask"][:, 1:].sum()


def _same(report_ids: torch.Tensor) -> torch.Tensor:
    """(batch, batch) bool: which reports say the same."""
    return report_ids[:, None] == report_ids[None]


def add_logit_bias(model: MelpModel, start: str | None):
    """Gives the model the sigmoid loss's bias, as the run that `start` comes from left it, or at SigLIP's values.

    It is a parameter in training and its checkpoints only: a saved model has the same weights whatever the loss.
    """
    notes = Path(start or ".") / "training.json"
    stored = json.loads(notes.read_text()).get("logit_bias") if start and notes.exists() else None
    bias = SIGMOID_START[1] if stored is None else stored
    model.logit_bias = torch.nn.Parameter(torch.tensor(bias))
    if stored is None:
        torch.nn.init.constant_(model.logit_scale, SIGMOID_START[0])


def report_id(report: str) -> int:
    """The same for reports that say the same: case, punctuation, spaces and the order of sentences do not matter."""
    sentences = (" ".join(re.findall(r"\w+", sentence.lower())) for sentence in split_sentences(report))
    digest = hashlib.blake2b(". ".join(sorted(sentences)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class PairCollator(MelpCollator):
    """Also says which pairs have the same report: `report_ids` (batch,), of the whole reports."""

    def __call__(self, rows: list[dict]) -> dict:
        return super().__call__(rows) | {"report_ids": torch.tensor([report_id(row["report"]) for row in rows])}


class MelpStage(Stage):
    """The three losses at 1 : 2 : 0.2 (paper, section 3); leaves a MELP model folder."""

    loss_names = ["caption_loss", "contrastive_loss", "local_loss", "loss"]

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        super().__init__(recipe, accelerator)
        self.labelled = self.held_out
        if recipe.select_metric == "val_auroc":
            known = yaml.safe_load(PROMPTS.read_text())
            self.prompted = [name for name in label_sets(self.labelled) if name in known]
            if not self.prompted:
                raise ValueError(
                    f"select_metric is val_auroc, and no label set of {self.data} has prompts: use another."
                )
        columns = ["record", "report", "signal", "leads", "gain", "baseline"]
        self.rows, self.held_out = self.rows.select_columns(columns), self.held_out.select_columns(columns)
        if recipe.model is not None:
            if recipe.config or recipe.text_model or recipe.ecg_model:
                raise ValueError("config, text_model and ecg_model have no effect beside model: leave them out.")
            self.model = MelpModel.from_pretrained(recipe.model, dtype=torch.float32)
            self.processor = MelpProcessor.from_pretrained(recipe.model)
        elif recipe.text_model is not None:
            self.model, self.processor = new_model(recipe)
        else:
            raise ValueError(
                "the multi-scale stage needs --model (a MELP folder to go on from) or --text-model (a BERT folder or "
                "Hub id, such as the language stage's output)."
            )
        if recipe.contrastive == "sigmoid":
            add_logit_bias(self.model, recipe.model)
        self.model.freeze_text_layers()
        self.config = self.model.config
        self.collate = PairCollator(self.processor, crop="random", sentence_augmentation=recipe.sentence_augmentation)
        self.eval_collate = PairCollator(self.processor)
        self.embeds = {}  # of the last step, over all processes: what `extra_metrics` describes

    def describe(self) -> str:
        return f"{len(self.rows):,} pairs, {self.unwrapped.num_parameters():,} parameters"

    def compile(self):
        self.unwrapped.ecg_model.compile()  # reports differ in length, ECGs do not

    # ------------------------------------------------------------------------------------------------------- losses

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The named losses of the global batch: negatives and the mean over tokens span all processes."""
        (share,) = self.shares([_caption_tokens(batch)])
        outputs, report_ids = self._forward(self.model, batch)
        losses = self.pair_losses(outputs, outputs.sentence_mask, report_ids)
        # DDP averages the gradients of the processes, so each weighs its mean by its share of the tokens.
        return self.sum_losses(losses | {"caption_loss": outputs.caption_loss * share})

    def _inputs(self, batch: dict) -> tuple[dict, torch.Tensor]:
        """A model's inputs, leads masked in training, and the ids of the reports."""
        lead_dropout = self.recipe.lead_dropout if self.model.training else 0.0
        batch = prepare_inputs(batch, self.accelerator.device, self.config.ecg_config.scaling, lead_dropout)
        return batch, batch.pop("report_ids")

    def _forward(self, model, batch: dict):
        inputs, report_ids = self._inputs(batch)
        return model(**inputs, return_loss=False), report_ids

    def pair_losses(self, embeds, sentence_mask, report_ids, alone=False) -> dict[str, torch.Tensor]:
        """The losses over pairs, of all processes' embeddings.

        Args:
            embeds: this process's `EMBEDDINGS`, by name.
            sentence_mask: (batch, sentences); report_ids: (batch,).
            alone: of this process's rows only, in validation.
        """
        model, config = self.unwrapped, self.config
        share = (lambda tensor: tensor) if alone else gather
        ecg_embeds, text_embeds = share(embeds["ecg_embeds"]), share(embeds["text_embeds"])
        self.embeds = {"ecg": ecg_embeds.detach(), "text": text_embeds.detach()}
        positives = local_positives = None
        if self.recipe.shared_positives:
            local_positives = _same(report_ids)
            positives = local_positives if alone else _same(self.accelerator.gather(report_ids))
        if self.recipe.contrastive == "sigmoid":
            scale, bias = model.logit_scale.exp(), model.logit_bias
            contrastive = sigmoid_contrastive_loss(ecg_embeds, text_embeds, scale, bias, positives)
        else:
            contrastive = contrastive_loss(ecg_embeds, text_embeds, model.logit_scale.exp(), positives)
        beats, sentences = embeds["beat_embeds"], embeds["sentence_embeds"]
        if self.recipe.local_loss_gather and not alone:
            beats, (sentences, sentence_mask) = gather(beats), self._gather_sentences(sentences, sentence_mask)
            local_positives = positives
        local = beat_loss(
            beats,
            sentences,
            sentence_mask,
            local_positives,
            attention_scale=config.beat_attention_scale,
            similarity_scale=config.sentence_similarity_scale,
            logit_scale=config.local_logit_scale,
        )
        return {"contrastive_loss": contrastive, "local_loss": local}

    def sum_losses(self, losses: dict) -> dict[str, torch.Tensor]:
        config = self.config
        weights = {
            "contrastive_loss": config.contrastive_loss_weight,
            "caption_loss": config.caption_loss_weight,
            "local_loss": config.local_loss_weight,
        }
        return losses | {"loss": sum(weight * losses[name] for name, weight in weights.items())}

    def _gather_sentences(self, embeds, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Sentence embeddings and mask of all processes, padded to the report with most sentences among them."""
        if self.accelerator.num_processes > 1:
            longest = self.accelerator.gather(torch.tensor([mask.shape[1]], device=mask.device)).max().item()
            embeds, mask = _pad_sentences(embeds, mask, longest)
            mask = self.accelerator.gather(mask)
        return gather(embeds), mask

    def backward(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """The losses of one large batch, in the memory of its micro-batches (Gao et al., GradCache, arXiv 2101.06983).

        Embeddings of all micro-batches are made without a graph; the losses over pairs give their gradients; then each
        micro-batch is run again with the same random numbers and these gradients are propagated into it. The caption
        loss, a mean over tokens, simply accumulates.
        """
        if len(batches) == 1:
            return super().backward(batches)
        states, parts = [], []
        for batch in batches:
            states.append(random_state(self.accelerator.device))
            parts.append(self._embed(batch))
        embeds, sentence_mask, report_ids = _join(parts)
        losses = self.pair_losses(embeds, sentence_mask, report_ids)
        losses["caption_loss"] = torch.zeros_like(losses["local_loss"])
        scalars = self._loss_parameters
        gradients = torch.autograd.grad(self.sum_losses(losses)["loss"], [*embeds.values(), *scalars])
        sizes = [len(ids) for _, _, ids in parts]
        of_embeds = zip(*(gradient.split(sizes) for gradient in gradients[: len(embeds)]), strict=True)

        shares = self.shares([_caption_tokens(batch) for batch in batches])
        for index, (batch, gradient) in enumerate(zip(batches, of_embeds, strict=True)):
            last = index == len(batches) - 1
            set_random_state(states[index], self.accelerator.device)
            with self.synchronised(last):
                outputs, _ = self._forward(self.model, batch)
                caption_loss = outputs.caption_loss * shares[index]
                surrogate = self.config.caption_loss_weight * caption_loss
                surrogate = surrogate + _propagated(outputs, dict(zip(embeds, gradient, strict=True)))
                if last:  # the processes exchange these gradients with the others
                    pairs = zip(scalars, gradients[len(embeds) :], strict=True)
                    surrogate = surrogate + sum(scalar * gradient for scalar, gradient in pairs)
                self.accelerator.backward(surrogate)
            losses["caption_loss"] = losses["caption_loss"] + caption_loss.detach()
        return {name: value.detach() for name, value in self.sum_losses(losses).items()}

    @property
    def _loss_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that only the losses over pairs use."""
        model = self.unwrapped
        return [model.logit_scale] + ([model.logit_bias] if self.recipe.contrastive == "sigmoid" else [])

    @torch.no_grad()
    def _embed(self, batch: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Embeddings, sentence mask and report ids, without captions: what is drawn at random is as in a forward."""
        inputs, report_ids = self._inputs(batch)
        ecg = self.unwrapped(input_values=inputs["input_values"], lead_mask=inputs["lead_mask"])
        text = self.unwrapped(**{name: inputs[name] for name in ("input_ids", "attention_mask", "sentence_ids")})
        embeds = {name: (ecg if name in ecg else text)[name].float() for name in EMBEDDINGS}
        return embeds, text.sentence_mask, report_ids

    def after_step(self):
        self.unwrapped.clamp_logit_scale()

    def extra_metrics(self) -> dict[str, float]:
        metrics = {"logit_scale": self.unwrapped.logit_scale.exp().item()}
        if self.recipe.contrastive == "sigmoid":
            metrics["logit_bias"] = self.unwrapped.logit_bias.item()
        return metrics | embedding_metrics(self.embeds["ecg"], self.embeds["text"])

    def bounds(self) -> dict[str, float]:
        bounds = {"max_logit_scale": math.exp(self.config.max_logit_scale)}
        if self.recipe.contrastive == "softmax":
            bounds["chance_loss"] = math.log(len(self.embeds["ecg"]))
        return bounds

    # --------------------------------------------------------------------------------------------------- validation

    def validate(self) -> dict[str, float]:
        """Mean losses over the held-out pairs, each process on batches of its own; retrieval and RankMe over all.

        Recall counts a report that says the same as the ECG's own. The zero-shot AUROC of `val_auroc` is measured
        where the best model is chosen by it, and alone uses labels.
        """
        found = []

        def losses_of(batch):
            outputs, report_ids = self._forward(self.unwrapped, batch)
            losses = self.pair_losses(outputs, outputs.sentence_mask, report_ids, alone=True)
            found.append((outputs.ecg_embeds, outputs.text_embeds, report_ids))
            return self.sum_losses(losses | {"caption_loss": outputs.caption_loss})

        metrics = self.mean_over_batches(losses_of, self.recipe.batch_size)
        if not metrics:
            return {}
        rows = [row for batch in self.held_out_batches(self.recipe.batch_size) for row in batch]
        rows, ecg, text, ids = self._gather_uneven(rows, found)
        metrics["val_recall"] = recall(ecg, text, ids)
        metrics["val_rankme"] = rankme(ecg)
        metrics |= {f"val_{name}": value for name, value in embedding_metrics(ecg, text).items()}
        if self.recipe.select_metric == "val_auroc":
            metrics["val_auroc"] = self._zero_shot_auroc(ecg.cpu().numpy()[rows.argsort().cpu().numpy()])
        return metrics

    def _gather_uneven(self, rows: list[int], found: list[tuple]) -> list[torch.Tensor]:
        """Row numbers, embeddings and report ids of all processes, which may have different numbers of them."""
        device, width = self.accelerator.device, self.config.projection_dim
        none = (torch.empty(0, width, device=device),) * 2 + (torch.empty(0, dtype=torch.long, device=device),)
        parts = [torch.cat(column) for column in zip(none, *found, strict=True)]
        parts = [torch.tensor(rows, dtype=torch.long, device=device), *parts]
        padded = [self.accelerator.pad_across_processes(part, pad_index=-1) for part in parts]
        gathered = [self.accelerator.gather(part) for part in padded]
        real = gathered[0] >= 0
        return [part[real] for part in gathered]

    def _zero_shot_auroc(self, ecg_embeds) -> float:
        """Mean over the label sets that have prompts, as the paper chose its checkpoint."""
        values = []
        for label_set in self.prompted:
            targets, rows = label_matrix(self.labelled, label_set)
            classes = label_sets(self.labelled)[label_set]
            texts = class_embeddings(self.unwrapped, self.processor, load_prompts(PROMPTS, label_set, classes))
            values.append(macro(score_classes(targets, ecg_embeds[rows] @ texts.T, classes)))
        return sum(values) / len(values)

    @torch.no_grad()
    def pictures(self, count: int) -> dict:
        """The first held-out ECGs with their reports, drafts and attended beats."""
        from training.pictures import ecg_picture  # needs matplotlib, which training without pictures does not

        rows = list(self.held_out.select(range(min(count, len(self.held_out)))))
        if not rows:
            return {}
        collated = self.eval_collate(rows)
        signals, present = collated["input_values"].numpy(), collated["lead_mask"].numpy()
        inputs, _ = self._inputs(collated)
        model, extractor = self.unwrapped, self.processor.feature_extractor
        with attention_weights(model.ecg_model.beat_pooler.attention) as weights:
            outputs = model(**inputs, return_loss=False)
        over_time = outputs.sentence_attentions.float() @ weights[0].float().mean(dim=1)  # (rows, sentences, frames)
        ids = model.generate(input_values=inputs["input_values"], lead_mask=inputs["lead_mask"])
        drafts = self.processor.batch_decode(ids, skip_special_tokens=True)
        figures = {}
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            sentences = split_sentences(row["report"])[: int(outputs.sentence_mask[index].sum())]  # those not cut off
            figures[f"ecg-{index}"] = ecg_picture(
                signals[index],
                present[index],
                extractor.sampling_rate,
                row["record"],
                sentences,
                draft,
                over_time[index, : len(sentences)].cpu().numpy(),
            )
        return figures

    # --------------------------------------------------------------------------------------------------------- output

    def save(self, folder: Path):
        """Weights in bfloat16 (the temperature in float32), configuration, code, processor and tokenizer."""
        model = copy.deepcopy(self.unwrapped).to(torch.bfloat16)
        if self.recipe.contrastive == "sigmoid":
            del model.logit_bias  # ranking does not depend on it: it goes to `notes`, for a run that goes on from here
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def notes(self) -> dict:
        return {"logit_bias": self.unwrapped.logit_bias.item()} if self.recipe.contrastive == "sigmoid" else {}

    @staticmethod
    def next_command(output: Path) -> str:
        data = Stage.data_folder(load_recipe(output / "recipe.yaml"))
        return f"python evaluate.py zero-shot --model {output / 'model'} --data {data}"


def new_model(recipe: Recipe) -> tuple[MelpModel, MelpProcessor]:
    """A model whose text tower is the recipe's, its vocabulary extended by [BOS], and everything else drawn."""
    check_names(recipe.config, MelpConfig().to_dict(), "the model's configuration")
    tokenizer = with_bos(AutoTokenizer.from_pretrained(recipe.text_model))
    text_model = AutoModel.from_pretrained(recipe.text_model, add_pooling_layer=False, dtype=torch.float32)
    text_model.resize_token_embeddings(len(tokenizer))
    text_config = text_model.config.to_dict()
    del text_config["dtype"]  # the whole model has one
    sizes = dict(recipe.config)
    ecg_model = None
    if recipe.ecg_model is not None:
        if "ecg_config" in sizes:
            raise ValueError("config's ecg_config has no effect beside ecg_model, whose sizes are given.")
        ecg_model = MelpEcgModel.from_pretrained(recipe.ecg_model, dtype=torch.float32)
        sizes["ecg_config"] = ecg_model.config.to_dict() | {"token_dim": text_config["hidden_size"]}
        for name in ("dtype", "architectures", "auto_map"):  # the whole model's are its own
            sizes["ecg_config"].pop(name, None)
    config = MelpConfig(
        **sizes,
        text_config=text_config,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
    )
    model = MelpModel(config)
    model.text_model.load_state_dict(text_model.state_dict())
    if ecg_model is not None:
        load_ecg_tower(model.ecg_model, ecg_model)
    extractor = MelpFeatureExtractor.for_model(config.ecg_config)
    return model, MelpProcessor(extractor, tokenizer, max_text_length=config.max_text_length)


def load_ecg_tower(ecg_model: MelpEcgModel, source: MelpEcgModel):
    """Weights of a pretrained tower; where the token pooler's width is another text tower's, its own stay."""
    weights = ecg_model.state_dict()
    for name, value in source.state_dict().items():
        if value.shape == weights[name].shape or not name.startswith("token_pooler."):
            weights[name] = value
    ecg_model.load_state_dict(weights)
