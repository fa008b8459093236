"""The stages of training: what each learns from, its model, its losses, its validation and what it leaves behind.

The loop in `train.py` knows none of this; it asks a stage for rows, a collate function and a dict of named losses.
"""

import copy
import math
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from configuration_melp import MelpConfig
from data import MelpCollator, get_split, load_prepared, prepare_inputs, with_reports
from losses_melp import beat_loss, contrastive_loss
from modeling_melp import MelpModel
from prepare import prepare
from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos
from recipe import Recipe, check_names, load_recipe

CORPUS = "runs/corpus"


class Stage:
    """What every stage has: a recipe, an accelerator and the prepared folder it learns from."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        with accelerator.main_process_first():
            self.data = self.data_folder(recipe)
        splits = load_prepared(self.data)
        self.rows = with_reports(get_split(splits, "train", self.data))
        self.held_out = with_reports(splits["validation"]) if "validation" in splits else self.rows.select([])
        if len(self.rows) == 0:
            raise ValueError(f"{self.data} has no report to learn from in its split 'train'.")

    @staticmethod
    def data_folder(recipe: Recipe) -> Path:
        """The recipe's prepared folder, or the embedded synthetic corpus, made where it is not there yet."""
        if recipe.data is not None:
            return Path(recipe.data)
        folder = Path(f"{CORPUS}-{recipe.corpus_records}-{recipe.corpus_seed}")
        return prepare("synthetic", folder, records=recipe.corpus_records, seed=recipe.corpus_seed)

    @property
    def unwrapped(self):
        """The model without what Accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    def mean_over_batches(self, losses_of, batch_size: int) -> dict[str, float]:
        """Mean of a dict of losses over the held-out rows, one process's share each; `val_` is put before the names.

        A last batch of one row, which has no contrastive loss, joins the batch before it.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        bounds = list(range(0, len(self.held_out), batch_size)) + [len(self.held_out)]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        batches = [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False) if b - a > 1]
        sums, count = {}, 0
        with torch.no_grad():
            for batch in DataLoader(self.held_out, batch_sampler=batches[rank::world], collate_fn=self.eval_collate):
                for name, value in losses_of(batch).items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                count += 1
        counted = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).sum().item()
        if counted == 0:
            return {}
        names = sorted(sums) if count else self.loss_names
        totals = torch.tensor([sums.get(name, 0.0) for name in names], device=self.accelerator.device)
        totals = self.accelerator.reduce(totals, "sum") / counted
        return {f"val_{name}": value for name, value in zip(names, totals.tolist(), strict=True)}

    def after_step(self):
        """Called after each optimizer step."""

    def extra_metrics(self) -> dict[str, float]:
        return {}


# ---------------------------------------------------------------------------------------------------- language stage


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing BERT WordPiece tokenizer of the texts' most frequent words, with [BOS] as its last id.

    Rarer words are spelled by characters. The library's own WordPiece trainer breaks ties differently in every run,
    which would make no two trainings alike.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter()
    for text, count in Counter(texts).items():
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += count
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["mask_token"] = "[MASK]"
    characters = sorted({character for word in words for character in word})
    tokens = dict.fromkeys([*special.values(), *characters, *("##" + character for character in characters)])
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if len(tokens) < vocab_size - 1:
            tokens.setdefault(word)
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoders.WordPiece()
    return with_bos(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


class LanguageStage(Stage):
    """Masked-language pretraining of the text tower on the reports (paper, section 3.2); leaves a BERT folder."""

    loss_names = ["loss"]

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        super().__init__(recipe, accelerator)
        self.rows, self.held_out = self.rows.select_columns(["report"]), self.held_out.select_columns(["report"])
        if recipe.text_model is not None:
            if recipe.config:
                raise ValueError(
                    "config has no effect beside text_model, whose sizes are given: leave one of them out."
                )
            self.tokenizer = with_bos(AutoTokenizer.from_pretrained(recipe.text_model))
            self.model = AutoModelForMaskedLM.from_pretrained(recipe.text_model, dtype=torch.float32)
            self.model.resize_token_embeddings(len(self.tokenizer))
        else:
            check_names(recipe.config, BertConfig().to_dict(), "the BERT configuration")
            self.tokenizer = train_tokenizer(self.rows["report"], recipe.vocab_size)
            sizes = {"vocab_size": len(self.tokenizer), "pad_token_id": self.tokenizer.pad_token_id}
            self.model = BertForMaskedLM(BertConfig(**(sizes | recipe.config)))
        self.mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=recipe.mlm_probability)
        self.eval_collate = self.collate

    def describe(self) -> str:
        return (
            f"{len(self.rows):,} reports, {self.unwrapped.num_parameters():,} parameters, {len(self.tokenizer)} tokens"
        )

    def collate(self, rows: list[dict]) -> dict:
        limit = min(self.unwrapped.config.max_position_embeddings, 512)
        encoded = self.tokenizer([row["report"] for row in rows], truncation=True, max_length=limit)
        return dict(self.mask([{"input_ids": ids} for ids in encoded["input_ids"]]))

    def losses(self, batch: dict, model=None) -> dict[str, torch.Tensor]:
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        return {"loss": (model or self.model)(**batch).loss}

    def validate(self) -> dict[str, float]:
        # Not the wrapped model: processes may have different numbers of held-out batches.
        metrics = self.mean_over_batches(lambda batch: self.losses(batch, self.unwrapped), self.recipe.batch_size)
        if metrics:
            metrics["val_perplexity"] = math.exp(metrics["val_loss"])
        return metrics

    def save(self, folder: Path):
        self.unwrapped.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @staticmethod
    def next_command(output: Path) -> str:
        return f"accelerate launch train.py recipes/demo.yaml --text-model {output / 'model'}"


# -------------------------------------------------------------------------------------------------- multi-scale stage


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


class MelpStage(Stage):
    """The three losses at 1 : 2 : 0.2 (paper, section 3); leaves a MELP model folder."""

    loss_names = ["caption_loss", "contrastive_loss", "local_loss", "loss"]

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        super().__init__(recipe, accelerator)
        columns = ["report", "signal", "leads", "gain", "baseline"]
        self.rows, self.held_out = self.rows.select_columns(columns), self.held_out.select_columns(columns)
        if recipe.model is not None:
            if recipe.config or recipe.text_model:
                raise ValueError("config and text_model have no effect beside model: leave them out.")
            self.model = MelpModel.from_pretrained(recipe.model, dtype=torch.float32)
            self.processor = MelpProcessor.from_pretrained(recipe.model)
        elif recipe.text_model is not None:
            self.model, self.processor = new_model(recipe)
        else:
            raise ValueError(
                "the multi-scale stage needs --model (a MELP folder to go on from) or --text-model (a BERT folder or "
                "Hub id, such as the language stage's output)."
            )
        self.model.freeze_text_layers()
        self.config = self.model.config
        self.collate = MelpCollator(self.processor, crop="random", sentence_augmentation=recipe.sentence_augmentation)
        self.eval_collate = MelpCollator(self.processor)

    def describe(self) -> str:
        return f"{len(self.rows):,} pairs, {self.unwrapped.num_parameters():,} parameters"

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The named losses of the global batch: negatives and the mean over tokens span all processes."""
        config, accelerator = self.config, self.accelerator
        lead_dropout = self.recipe.lead_dropout if self.model.training else 0.0
        batch = prepare_inputs(batch, accelerator.device, config.ecg_config.scaling, lead_dropout)
        outputs = self.model(**batch, return_loss=False)

        num_tokens = batch["attention_mask"][:, 1:].sum().float()
        mean_tokens = accelerator.reduce(num_tokens, "mean")
        losses = {
            "contrastive_loss": contrastive_loss(
                gather(outputs.ecg_embeds), gather(outputs.text_embeds), self.unwrapped.logit_scale.exp()
            ),
            # DDP averages the gradients of the processes, so each weighs its mean by its share of the tokens.
            "caption_loss": outputs.caption_loss * (num_tokens / mean_tokens),
            "local_loss": beat_loss(
                gather(outputs.beat_embeds),
                *self._gather_sentences(outputs),
                attention_scale=config.beat_attention_scale,
                similarity_scale=config.sentence_similarity_scale,
                logit_scale=config.local_logit_scale,
            ),
        }
        losses["loss"] = (
            config.contrastive_loss_weight * losses["contrastive_loss"]
            + config.caption_loss_weight * losses["caption_loss"]
            + config.local_loss_weight * losses["local_loss"]
        )
        return losses

    def _gather_sentences(self, outputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Sentence embeddings and mask of all processes, padded to the report with most sentences among them."""
        embeds, mask = outputs.sentence_embeds, outputs.sentence_mask
        if self.accelerator.num_processes > 1:
            longest = self.accelerator.gather(torch.tensor([mask.shape[1]], device=mask.device)).max().item()
            missing = longest - mask.shape[1]
            embeds = torch.nn.functional.pad(embeds, (0, 0, 0, missing))
            mask = torch.nn.functional.pad(mask, (0, missing))
            mask = self.accelerator.gather(mask)
        return gather(embeds), mask

    def after_step(self):
        self.unwrapped.clamp_logit_scale()

    def extra_metrics(self) -> dict[str, float]:
        return {"logit_scale": self.unwrapped.logit_scale.exp().item()}

    def validate(self) -> dict[str, float]:
        """Mean losses over the held-out pairs, each process on batches of its own."""
        model = self.unwrapped

        def losses_of(batch):
            batch = prepare_inputs(batch, self.accelerator.device, self.config.ecg_config.scaling)
            outputs = model(**batch, return_loss=True)
            return {name: outputs[name] for name in self.loss_names}

        return self.mean_over_batches(losses_of, self.recipe.batch_size)

    def save(self, folder: Path):
        """Weights in bfloat16 (the temperature in float32), configuration, code, processor and tokenizer."""
        model = copy.deepcopy(self.unwrapped).to(torch.bfloat16)
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

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
    config = MelpConfig(
        **recipe.config,
        text_config=text_config,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
    )
    model = MelpModel(config)
    model.text_model.load_state_dict(text_model.state_dict())
    extractor = MelpFeatureExtractor.for_model(config.ecg_config)
    return model, MelpProcessor(extractor, tokenizer, max_text_length=config.max_text_length)


STAGES = {"language": LanguageStage, "melp": MelpStage}
