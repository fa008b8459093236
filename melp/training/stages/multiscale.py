"""Multi-scale stage: ECG tower, text tower and report decoder aligned by the three losses."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModel

from configuration_melp import MelpConfig
from explain_melp import attention_weights
from losses_melp import beat_loss, contrastive_loss, label_loss, sigmoid_contrastive_loss
from melp.data.batches import MelpCollator, augment_signals, prepare_inputs
from melp.data.prepared import label_matrix, label_sets
from melp.evaluation.metrics import macro, rankme, score_classes
from melp.evaluation.prompts import PROMPTS, class_embeddings, load_prompts
from melp.models import load_processor, load_whole
from melp.names import report_hash
from melp.training.embeddings import embedding_metrics, recall
from melp.training.label_texts import ABSENT, PRESENT, draw_text, label_targets, label_texts
from melp.training.recipe import check_names
from melp.training.stages.base import Stage
from melp.training.stages.joint import JointStage, gather, pad_second
from melp.training.stages.language import load_bert
from melp.training.stages.recipes import MelpRecipe
from melp.yaml_file import read_yaml
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, split_sentences

SIGMOID_START = (math.log(10), -10.0)  # logarithm of the scale, and bias (SigLIP, section 3.2)
EMBEDDINGS = ("ecg_embeds", "text_embeds", "beat_embeds", "sentence_embeds")


def _same(report_ids: torch.Tensor) -> torch.Tensor:
    """Returns (batch, batch) bool: which reports say the same."""
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


class PairCollator(MelpCollator):
    """Also says which pairs have the same report: `report_ids` (batch,), of the whole reports."""

    def __call__(self, rows: list[dict]) -> dict:
        return super().__call__(rows) | {"report_ids": torch.tensor([report_hash(row["report"]) for row in rows])}


class LabelledPairCollator(PairCollator):
    """Also draws a text for each label that some of the batch's recordings have and some lack.

    `label_input_ids` and `label_attention_mask` (texts, tokens), `label_targets` (batch, texts); see `label_texts`.
    """

    def __call__(self, rows: list[dict]) -> dict:
        batch = super().__call__(rows)
        targets = torch.from_numpy(np.stack([row["label_targets"] for row in rows]))
        tells = ((targets == PRESENT).any(dim=0) & (targets == ABSENT).any(dim=0)).nonzero()[:, 0].tolist()
        names = list(label_texts())
        texts = [draw_text(names[column]) for column in tells] or [draw_text(names[0])]
        encoded = self.processor(text=texts, return_tensors="pt")
        inputs = {f"label_{name}": encoded[name] for name in ("input_ids", "attention_mask")}
        return batch | inputs | {"label_targets": targets[:, tells or [0]]}


class RowsWithTargets:
    """Rows of a dataset, each with its `label_targets`; everything else is the dataset's."""

    def __init__(self, rows: Dataset, targets: np.ndarray):
        self.rows, self.targets = rows, targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[dict]:
        pairs = zip(self.rows.__getitems__(indices), self.targets[indices], strict=True)
        return [row | {"label_targets": targets} for row, targets in pairs]

    def __getattr__(self, name: str):
        if name == "rows":  # asked for before __init__, where a copy is unpickled in a loader process
            raise AttributeError(name)
        return getattr(self.rows, name)


class MelpStage(JointStage):
    """The three losses at 1 : 2 : 0.2 (paper, section 3), and the label loss; leaves a MELP model folder."""

    loss_names = ["caption_loss", "contrastive_loss", "local_loss", "loss"]  # of a validation, which has no label loss

    def __init__(self, recipe: MelpRecipe, accelerator: Accelerator):
        self.targets: list[np.ndarray] = []  # of each folder's rows, for the label loss
        self.labelled: Dataset | None = None  # the first folder's held-out rows
        check_names(recipe.config, MelpConfig().to_dict(), "the model's configuration")  # before any data is made
        super().__init__(recipe, accelerator)
        if recipe.label_loss_weight and accelerator.is_fsdp2:
            raise ValueError("label_loss_weight needs whole weights in each process: train without FSDP.")
        if recipe.select_metric == "val_auroc":
            known = read_yaml(PROMPTS, aliases=True)
            self.prompted = [name for name in label_sets(self.labelled) if name in known]
            if not self.prompted:
                raise ValueError(
                    f"select_metric is val_auroc, and no label set of {self.folders[0]} has prompts: use another."
                )
        columns = ["record", "report", "signal", "leads", "gain", "baseline"]
        self.rows, self.held_out = self.rows.select_columns(columns), self.held_out.select_columns(columns)
        if recipe.label_loss_weight:
            self.rows = RowsWithTargets(self.rows, np.concatenate(self.targets))
        if recipe.model is not None:
            self.model, self.processor = load_whole(MelpModel, recipe.model), load_processor(recipe.model)
        else:
            self.model, self.processor = new_model(recipe)
        if recipe.contrastive == "sigmoid":
            add_logit_bias(self.model, recipe.model)
        self.model.freeze_text_layers()
        self.config = self.model.config
        collator = LabelledPairCollator if recipe.label_loss_weight else PairCollator
        self.collate = collator(self.processor, crop="random", sentence_augmentation=recipe.sentence_augmentation)
        self.eval_collate = PairCollator(self.processor)
        self.embeds = {}  # of the last step, over all processes: what `extra_metrics` describes

    def _load_source(self, folder: Path, splits) -> tuple[Dataset, Dataset]:
        rows, held_out = super()._load_source(folder, splits)
        if self.labelled is None:
            self.labelled = held_out
        if self.recipe.label_loss_weight:
            self.targets.append(label_targets(rows))
        return rows, held_out

    def describe(self) -> str:
        """Returns the data and the model in words."""
        return f"{len(self.rows):,} pairs, {self.unwrapped.num_parameters():,} parameters"

    def lengths(self) -> list[int] | None:
        """Returns the words of each report, where batches are to be of similar length."""
        if not self.recipe.bucket_by_length:
            return None
        return [len(report.split()) for report in self.rows.select_columns(["report"])["report"]]

    def compile(self):
        self.unwrapped.ecg_model.compile()  # reports differ in length, ECGs do not

    # ------------------------------------------------------------------------------------------------------- losses

    @property
    def weights(self) -> dict[str, float]:
        weights = {name: getattr(self.config, name + "_weight") for name in self.loss_names if name != "loss"}
        label_loss_weight = self.recipe.label_loss_weight
        return weights | ({"label_loss": label_loss_weight} if label_loss_weight else {})

    def _inputs(self, batch: dict) -> tuple[dict, torch.Tensor]:
        """Returns a model's inputs, leads masked in training, and the ids of the reports."""
        names = ("lead_dropout", "lead_subsets", "printed_layout") if self.model.training else ()
        masking = {name: getattr(self.recipe, name) for name in names}
        if self.recipe.signal_augmentation and self.model.training:
            batch = batch | {"input_values": augment_signals(batch["input_values"], self.recipe.signal_augmentation)}
        batch = prepare_inputs(batch, self.accelerator.device, self.config.ecg_config.scaling, **masking)
        return batch, batch.pop("report_ids")

    def forward(self, batch: dict, model) -> tuple:
        inputs, report_ids = self._inputs(batch)
        labels = {name: inputs.pop(name) for name in list(inputs) if name.startswith("label_")}
        outputs = model(**inputs, return_loss=False)
        if labels:
            outputs["label_loss"] = self._label_loss(outputs, **labels)
        return outputs, self._facts(inputs, outputs.sentence_mask, report_ids)

    def _label_loss(self, outputs, label_input_ids, label_attention_mask, label_targets) -> torch.Tensor:
        model = self.unwrapped
        texts = model.get_text_features(label_input_ids, label_attention_mask).pooler_output
        return label_loss(outputs.ecg_embeds, texts, model.logit_scale.exp(), label_targets)

    @staticmethod
    def _facts(inputs: dict, sentence_mask, report_ids) -> dict[str, torch.Tensor]:
        """Returns `sentence_mask` (batch, sentences), `report_ids` (batch,), and the tokens to caption."""
        targets = inputs["attention_mask"][:, 1:].sum()[None]
        return {"sentence_mask": sentence_mask, "report_ids": report_ids, "targets": targets}

    def embed(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Leaves captions and labels out, in which nothing is drawn at random."""
        inputs, report_ids = self._inputs(batch)
        ecg = self.unwrapped(input_values=inputs["input_values"], lead_mask=inputs["lead_mask"])
        text = self.unwrapped(**{name: inputs[name] for name in ("input_ids", "attention_mask", "sentence_ids")})
        embeddings = {name: (ecg if name in ecg else text)[name].float() for name in EMBEDDINGS}
        return embeddings, self._facts(inputs, text.sentence_mask, report_ids)

    def embeddings(self, outputs) -> dict[str, torch.Tensor]:
        return {name: outputs[name].float() for name in EMBEDDINGS}

    def own_losses(self, outputs, target_share, row_share) -> dict[str, torch.Tensor]:
        losses = {"caption_loss": outputs.caption_loss * target_share}
        if "label_loss" in outputs:
            losses["label_loss"] = outputs["label_loss"] * row_share
        return losses

    def joint_losses(self, embeddings, facts, alone=False) -> dict[str, torch.Tensor]:
        """Computes the losses over pairs of all processes; `alone`: of this process only, in validation."""
        model, config = self.unwrapped, self.config
        share = (lambda tensor: tensor) if alone else gather
        sentence_mask, report_ids = facts["sentence_mask"], facts["report_ids"]
        ecg_embeds, text_embeds = share(embeddings["ecg_embeds"]), share(embeddings["text_embeds"])
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
        beats, sentences = embeddings["beat_embeds"], embeddings["sentence_embeds"]
        if self.recipe.local_loss_gather and not alone:
            beats, (sentences, sentence_mask) = gather(beats), self._gather_sentences(sentences, sentence_mask)
            local_positives = positives
        local = beat_loss(beats, sentences, sentence_mask, local_positives, **config.beat_loss_scales)
        return {"contrastive_loss": contrastive, "local_loss": local}

    def _gather_sentences(self, embeds, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Joins sentence embeddings and masks of all processes, padded to the report with most sentences."""
        if self.accelerator.num_processes > 1:
            longest = self.accelerator.gather(torch.tensor([mask.shape[1]], device=mask.device)).max().item()
            embeds, mask = pad_second(embeds, longest), self.accelerator.gather(pad_second(mask, longest))
        return gather(embeds), mask

    def joint_parameters(self) -> list[torch.nn.Parameter]:
        model = self.unwrapped
        return [model.logit_scale] + ([model.logit_bias] if self.recipe.contrastive == "sigmoid" else [])

    def rate_of(self, parameter: str) -> float:
        """Returns a parameter's share of the learning rate: a pretrained text tower can keep more of what it knows."""
        return self.recipe.text_learning_rate if "text_model." in parameter else 1.0

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
        """Measures mean losses over the held-out pairs, each process on its batches; retrieval and RankMe over all.

        Recall counts a report that says the same as the ECG's own. The zero-shot AUROC of `val_auroc` is measured
        where the best model is chosen by it, and alone uses labels.
        """
        embedded = []

        def losses_of(batch):
            outputs, facts = self.forward(batch, self.unwrapped)
            losses = self.joint_losses(self.embeddings(outputs), facts, alone=True)
            embedded.append((outputs.ecg_embeds, outputs.text_embeds, facts["report_ids"]))
            return self.sum_losses(losses | self.own_losses(outputs, 1.0, 1.0))

        metrics = self.mean_over_batches(losses_of, self.recipe.batch_size)
        if not metrics:
            return {}
        rows = [row for batch in self.held_out_batches(self.recipe.batch_size) for row in batch]
        rows, *parts = self._gather_uneven(rows, embedded)
        order = rows.argsort()
        ecg, text, ids = (part[order] for part in parts)
        metrics["val_recall"] = recall(ecg, text, ids)
        metrics["val_rankme"] = rankme(ecg.float().cpu().numpy())
        metrics |= {f"val_{name}": value for name, value in embedding_metrics(ecg, text).items()}
        if self.recipe.select_metric == "val_auroc":
            metrics["val_auroc"] = self._zero_shot_auroc(ecg.cpu().numpy())
        return metrics

    def _gather_uneven(self, rows: list[int], embedded: list[tuple]) -> list[torch.Tensor]:
        """Joins row numbers, embeddings and report ids of all processes, which may have different numbers of them."""
        device, width = self.accelerator.device, self.config.projection_dim
        none = (torch.empty(0, width, device=device),) * 2 + (torch.empty(0, dtype=torch.long, device=device),)
        parts = [torch.cat(column) for column in zip(none, *embedded, strict=True)]
        parts = [torch.tensor(rows, dtype=torch.long, device=device), *parts]
        padded = [self.accelerator.pad_across_processes(part, pad_index=-1) for part in parts]
        gathered = [self.accelerator.gather(part) for part in padded]
        real = gathered[0] >= 0
        return [part[real] for part in gathered]

    def _zero_shot_auroc(self, ecg_embeds) -> float:
        """Averages over the label sets that have prompts, as the paper chose its checkpoint."""
        values = []
        for label_set in self.prompted:
            targets, rows = label_matrix(self.labelled, label_set)
            classes = label_sets(self.labelled)[label_set]
            texts = class_embeddings(self.unwrapped, self.processor, load_prompts(PROMPTS, label_set, classes))
            values.append(macro(score_classes(targets, ecg_embeds[rows] @ texts.T, classes)))
        return sum(values) / len(values)

    @torch.no_grad()
    def pictures(self) -> dict:
        """Draws the first held-out ECGs with their reports, drafts and attended beats."""
        if not self.recipe.sample_pictures:
            return {}
        from melp.training.pictures import ecg_picture  # needs matplotlib, which training without pictures does not

        rows = list(self.held_out.select(range(min(self.recipe.sample_pictures, len(self.held_out)))))
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
        """Saves weights in bfloat16 (the temperature in float32), configuration, code, processor and tokenizer."""
        model = copy.deepcopy(self.unwrapped).to(torch.bfloat16)
        if self.recipe.contrastive == "sigmoid":
            del model.logit_bias  # ranking does not depend on it: it goes to `notes`, for a run that starts from here
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def notes(self) -> dict:
        return {"logit_bias": self.unwrapped.logit_bias.item()} if self.recipe.contrastive == "sigmoid" else {}

    @staticmethod
    def next_command(output: Path, recipe: MelpRecipe) -> str:
        """Returns the command of an evaluation."""
        data = Stage.data_folders(recipe)[0]
        return f"python evaluate.py zero-shot --model {output / 'model'} --data {data}"


def new_model(recipe: MelpRecipe) -> tuple[MelpModel, MelpProcessor]:
    """Makes a model whose text tower is the recipe's, its vocabulary extended by [BOS], and everything else drawn."""
    text_model, tokenizer = load_bert(recipe.text_model, AutoModel, add_pooling_layer=False)
    text_config = text_model.config.to_dict()
    del text_config["dtype"]  # the whole model has one
    text_config["_name_or_path"] = ""  # a place of this machine
    sizes, width = dict(recipe.config), {"token_dim": text_config["hidden_size"]}
    ecg_model = None
    if recipe.ecg_model is not None:
        ecg_model = load_whole(MelpEcgModel, recipe.ecg_model)
        sizes["ecg_config"] = ecg_model.config.to_dict() | width
        for name in ("dtype", "architectures", "auto_map"):  # the whole model's are its own
            sizes["ecg_config"].pop(name, None)
    else:
        sizes["ecg_config"] = width | sizes.get("ecg_config", {})
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
    """Loads a pretrained tower's weights; where the token pooler's width is another text tower's, its own stay."""
    weights = ecg_model.state_dict()
    for name, value in source.state_dict().items():
        if value.shape == weights[name].shape or not name.startswith("token_pooler."):
            weights[name] = value
    ecg_model.load_state_dict(weights)
