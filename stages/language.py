"""Language stage: masked-language pretraining of the text tower."""

import math
from collections import Counter
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from processing_melp import with_bos
from recipe import Recipe, check_names
from stages.stage import Stage


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
