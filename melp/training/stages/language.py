"""Language stage: masked-language pretraining of the text tower."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset, load_from_disk
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from configuration_melp import MelpConfig, check_bert
from melp.data.prepared import get_split
from melp.files import write_atomically
from melp.markdown import Markdown, table
from melp.models import load_whole, model_folder
from melp.sources import fetch, parse_source
from melp.training.label_texts import label_texts
from melp.training.recipe import check_names
from melp.training.stages.base import Stage
from melp.training.stages.recipes import LanguageRecipe
from melp.training.teacher import PHRASE_TOKENS, WORD, Teacher, draw_phrases, teaching_loss
from processing_melp import with_bos

PAPER_WIDTH = 768  # of both towers
HELD_OUT_SHARE = 0.05  # of the documents, where a source has no validation split
# What a token of a packed sequence is: [CLS] before a document, a word's first token, a later one of it, [SEP] after.
FIRST, START, INSIDE, LAST, PADDING = range(5)
PHRASES, PHRASES_PER_STEP, TEACHING_WEIGHT = 20_000, 128, 4.0  # of a teacher


def train_tokenizer(texts: list[str], vocab_size: int, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Makes a lower-casing BERT WordPiece tokenizer of the texts' most frequent words, with [BOS] as its last id.

    Where room is left, `words` follow in their order. Rarer words are spelled by characters. The library's own
    WordPiece trainer breaks ties differently in every run, which would make no two trainings alike.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter()
    for text, count in Counter(texts).items():
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += count
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["mask_token"] = "[MASK]"
    characters = sorted({character for word in (*counts, *words) for character in word})
    tokens = dict.fromkeys([*special.values(), *characters, *("##" + character for character in characters)])
    frequent = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    for word in (*frequent, *words):
        if len(tokens) < vocab_size - 1:
            tokens.setdefault(word)
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoders.WordPiece()
    return with_bos(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def load_bert(source: str, kind, **options) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads a text tower: `kind` of model in float32, and its tokenizer, its vocabulary extended by [BOS].

    Args:
        options: of `load_whole`.

    Raises:
        ValueError: where the folder or Hub id is malformed, no BERT or of absurd sizes (no weight is then read), or
            lacks weights.
    """
    folder = model_folder(source)
    check_bert(AutoConfig.from_pretrained(folder), f"{source}: ")
    tokenizer = with_bos(AutoTokenizer.from_pretrained(folder))
    model = load_whole(kind, source, **options)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


class Phrases:
    """Phrases to learn from a teacher: token ids, and `targets` (phrases, width)."""

    def __init__(self, encoded, targets: torch.Tensor):
        self.ids, self.targets = encoded["input_ids"], targets

    def inputs(self, chosen: torch.Tensor, tokenizer, max_text_length: int) -> dict[str, torch.Tensor]:
        """Returns a BERT's inputs for [BOS] phrase [SEP] and [CLS], each token seeing those before it."""
        begin, end, last = (tokenizer.convert_tokens_to_ids(token) for token in ("[BOS]", "[SEP]", "[CLS]"))
        longest = min(PHRASE_TOKENS, max_text_length - 3)  # beside the special tokens
        rows = [torch.tensor([begin, *self.ids[index][:longest], end]) for index in chosen.tolist()]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        ids = F.pad(ids, (0, 1), value=last)
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & (ids != tokenizer.pad_token_id)[:, None]
        position_ids = torch.arange(length)
        position_ids[-1] = max_text_length - 1
        return {"input_ids": ids, "attention_mask": seen[:, None], "position_ids": position_ids[None]}


class LanguageStage(Stage):
    """Masked-language pretraining of the text tower (paper, section 3.2); leaves a BERT folder.

    Rows are sequences that several documents share. Attention and positions keep to a document, so that each is read
    as if it stood alone: packing saves the padding and changes nothing else.
    """

    def __init__(self, recipe: LanguageRecipe, accelerator: Accelerator):
        check_names(recipe.config, BertConfig().to_dict(), "the BERT configuration")  # before any data is made
        super().__init__(recipe, accelerator)
        self.phrases: Phrases | None = None
        if recipe.text_model is not None:
            self.model, self.tokenizer = load_bert(recipe.text_model, AutoModelForMaskedLM, drawn=("cls.",))
        else:
            teacher = recipe.teacher and Teacher(recipe.teacher, BertConfig(**recipe.config).hidden_size)
            words = teacher.words() if teacher else ()
            self.tokenizer = train_tokenizer(self.rows["text"], recipe.vocab_size, words)
            sizes = {"vocab_size": len(self.tokenizer), "pad_token_id": self.tokenizer.pad_token_id}
            config = BertConfig(**(sizes | recipe.config))
            check_bert(config, "config.")
            self.model = BertForMaskedLM(config)
            if teacher:
                self._learn_from(teacher)
        self._check_length()
        self.num_documents = len(self.rows)
        self.rows = pack(self.rows, self.tokenizer, recipe.sequence_length)
        self.held_out = pack(self.held_out, self.tokenizer, recipe.sequence_length)
        # Whole words are always replaced by [MASK]: the library has no random words of several tokens.
        replaced = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if recipe.whole_word_mask else {}
        self.mask = DataCollatorForLanguageModeling(
            self.tokenizer, whole_word_mask=recipe.whole_word_mask, mlm_probability=recipe.mlm_probability, **replaced
        )
        self.eval_collate = self._mask

    def _learn_from(self, teacher: Teacher):
        """Starts from the teacher's words, and prepares the phrases that each step learns a few of."""
        if self.accelerator.num_processes > 1:
            raise ValueError("A teacher is learned from in one process: start train.py without accelerate launch.")
        embeddings, generator = self.model.get_input_embeddings(), torch.Generator().manual_seed(self.recipe.seed)
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        words, basis = teacher.word_embeddings(tokens, self.model.config.initializer_range)
        with torch.no_grad():
            embeddings.weight.copy_(words)
        sentences = {sentence.strip() for text in self.rows["text"] for sentence in text.split(". ")}
        sentences = {sentence for sentence in sentences if sentence.strip(". ")}
        texts = sorted({text for texts in label_texts().values() for text in texts})
        texts += sorted(sentences)[:: max(1, len(sentences) // len(texts))]  # as many again
        phrases = draw_phrases(texts, [token for token in tokens if WORD.fullmatch(token)], PHRASES, generator)
        self.phrases = Phrases(self.tokenizer(phrases, add_special_tokens=False), teacher.targets(phrases, basis))

    def _check_length(self):
        positions, length = self.model.config.max_position_embeddings, self.recipe.sequence_length
        if length > positions:
            raise ValueError(f"sequence_length is {length}; it must be at most the model's positions, {positions}.")

    def load_rows(self) -> tuple[Dataset, Dataset]:
        """Returns documents in a column `text`: `recipe.text`, and the reports of `recipe.data` if both are given."""
        recipe = self.recipe
        sources = [read_texts(name.strip(), recipe.text_column) for name in (recipe.text or "").split(",") if name]
        if recipe.data is not None or not sources:
            sources.append(tuple(only_text(part, "report") for part in super().load_rows()))
        parts = zip(*(hold_out(*source, recipe.seed) for source in sources), strict=True)
        return tuple(concatenate_datasets(part) for part in parts)

    def describe(self) -> str:
        """Returns the data and the model in words."""
        tokens = f"{len(self.rows):,} sequences of up to {self.recipe.sequence_length} tokens"
        parameters = f"{self.unwrapped.num_parameters():,} parameters"
        return f"{self.num_documents:,} documents in {tokens}, {parameters}, a vocabulary of {len(self.tokenizer):,}"

    def collate(self, rows: list[dict]) -> dict:
        """Returns masked sequences, and which of the teacher's phrases are learned beside them."""
        batch = self._mask(rows)
        if self.phrases is not None:
            batch["phrases"] = torch.randint(len(self.phrases.targets), (PHRASES_PER_STEP,))
        return batch

    def _mask(self, rows: list[dict]) -> dict:
        """Returns masked `input_ids`, `labels`, `position_ids` and `documents` (0 for padding): (batch, tokens)."""
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        marks = torch.full((len(rows), length), PADDING)
        for index, row in enumerate(rows):
            ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            marks[index, : len(row["marks"])] = torch.tensor(row["marks"])
        starts, place = marks == FIRST, torch.arange(length).expand_as(marks)
        # The collator takes tokens that touch for one word.
        offsets = torch.stack([(marks == INSIDE).long(), torch.ones_like(marks)], dim=-1)
        special = (marks != START) & (marks != INSIDE)
        inputs, labels = self.mask.torch_mask_tokens(ids, special_tokens_mask=special, offset_mapping=offsets)
        return {
            "input_ids": inputs,
            "labels": labels,
            "position_ids": place - torch.where(starts, place, 0).cummax(dim=1).values,
            "documents": starts.cumsum(dim=1) * (marks != PADDING),
        }

    def logits(self, batch: dict, model) -> torch.Tensor:
        """Returns (batch, tokens, vocabulary), each document attending to itself."""
        documents = batch["documents"]
        mask = documents[:, None, :, None] == documents[:, None, None, :]
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask).logits

    def loss_sum(self, batch: dict, model) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums the cross entropy over the masked tokens; returns it and their number."""
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        masked = batch["labels"] != -100
        logits = self.logits(batch, model)[masked].float()
        return F.cross_entropy(logits, batch["labels"][masked], reduction="sum"), masked.sum()

    def num_targets(self, batch: dict) -> torch.Tensor:
        """Counts the masked tokens, over which `losses` is a mean."""
        return (batch["labels"] != -100).sum()

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        chosen = batch.pop("phrases", None)
        loss, count = self.loss_sum(batch, self.model)
        loss = loss / count.clamp(min=1)
        if chosen is None:
            return {"loss": loss}
        taught = self.teaching_loss(chosen)
        return {
            "masked_loss": loss.detach(),
            "teaching_loss": taught.detach(),
            "loss": loss + TEACHING_WEIGHT * taught,
        }

    def teaching_loss(self, chosen: torch.Tensor) -> torch.Tensor:
        """Compares the states after some phrases with the teacher's embeddings, read as `MelpModel` reads a text."""
        device = self.accelerator.device
        length = min(MelpConfig().max_text_length, self.unwrapped.config.max_position_embeddings)
        inputs = self.phrases.inputs(chosen, self.tokenizer, length)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        states = self.unwrapped.base_model(**inputs).last_hidden_state[:, -1]
        return teaching_loss(states, self.phrases.targets[chosen].to(device))

    def validate(self) -> dict[str, float]:
        """Measures loss and perplexity of the held-out documents' masked tokens, the same ones each time."""
        device = self.accelerator.device
        sums = torch.zeros(2, device=device)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.recipe.seed)
            for batch in self.held_out_loader():
                # Not the wrapped model: processes may have different numbers of held-out batches.
                sums += torch.stack(self.loss_sum(batch, self.unwrapped))
        loss, count = self.accelerator.reduce(sums, "sum").tolist()
        return {"val_loss": loss / count, "val_perplexity": math.exp(loss / count)} if count else {}

    def save(self, folder: Path):
        """Saves a BERT with its tokenizer, and shows what it guesses for masked words."""
        self.unwrapped.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        guesses = self.fill_in_table()
        write_atomically(Path(self.recipe.output) / "fill-in.md", guesses)
        print("\n" + guesses)

    @torch.no_grad()
    def fill_in_table(self, examples: int = 8, guesses: int = 5) -> str:
        """Returns a Markdown table of held-out documents with one word masked, and what the model takes it for."""
        tokenizer, model = self.tokenizer, self.unwrapped
        training = model.training
        model.eval()
        rows = []
        generator = torch.Generator().manual_seed(self.recipe.seed)
        for ids, marks in itertools.islice(self._documents_with_words(generator), examples):
            words = self._whole_words(ids, marks)
            place = words[int(torch.randint(len(words), (), generator=generator))]
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            logits = model(input_ids=torch.tensor([masked], device=model.device)).logits[0, place].float()
            best = logits.softmax(dim=-1).topk(guesses)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            named = ", ".join(f"{tokenizer.decode([token])} {share:.0%}" for token, share in pairs)
            text = tokenizer.decode(masked[1:-1][max(0, place - 13) : place + 12])
            # On a screen, [MASK] reads better than with its brackets escaped.
            rows.append([Markdown(text.replace("|", "/")), tokenizer.decode([ids[place]]), named])
        model.train(training)
        return table(["text", "masked", "guesses"], rows, numeric=False) + "\n"

    def _documents_with_words(self, generator: torch.Generator):
        """Yields token ids and marks of held-out documents with a word to mask, sequences in random order."""
        for index in torch.randperm(len(self.held_out), generator=generator).tolist():
            row = self.held_out[index]
            bounds = [i for i, mark in enumerate(row["marks"]) if mark == FIRST] + [len(row["marks"])]
            for start, end in itertools.pairwise(bounds):
                document = row["input_ids"][start:end], row["marks"][start:end]
                if self._whole_words(*document):
                    yield document

    def _whole_words(self, ids: list[int], marks: list[int]) -> list[int]:
        """Returns the places of the words of letters that are one token."""
        whole = [i for i, mark in enumerate(marks) if mark == START and marks[i + 1] != INSIDE]
        return [i for i in whole if self.tokenizer.convert_ids_to_tokens(ids[i]).isalpha()]

    @staticmethod
    def next_command(output: Path, recipe: LanguageRecipe) -> str:
        """Returns the command of the multi-scale stage, and that of the ECG stage, which can come between."""
        model = output / "model"
        data = f" --data {Stage.data_folders(recipe)[0]}" if recipe.data or not recipe.text else " --data DIR"
        melp = recipe_for_width(model)
        ecg = melp.replace("melp.yaml", "ecg.yaml").replace("demo.yaml", "demo-ecg.yaml")
        return (
            f"accelerate launch train.py {melp} --text-model {model}{data}\n"
            f"or first, to initialise the ECG tower:\n    accelerate launch train.py {ecg}{data}"
        )


def recipe_for_width(model: Path) -> str:
    """Returns the multi-scale recipe whose sizes go with this tower: the paper's, or the demo's."""
    wide = json.loads((model / "config.json").read_text())["hidden_size"] == PAPER_WIDTH
    return f"recipes/{'melp' if wide else 'demo'}.yaml"


def read_texts(source: str, column: str) -> tuple[Dataset, Dataset | None]:
    """Reads documents, and those of a validation split, from a text file (one per line), datasets folder or Hub id.

    Raises:
        ValueError: where it holds no document, or no such column.
    """
    parsed = parse_source(source)
    path = fetch(source, "dataset") if parsed.file else parsed.path
    if path is not None and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not UTF-8 ({error}): convert it, with iconv for example.") from error
        documents = [line.strip() for line in lines if line.strip()]
        splits = {"train": Dataset.from_dict({"text": documents})}
        column = "text"
    else:
        stored = path and any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
        name = parsed.repo_id if path is None else str(path)
        splits = load_from_disk(name) if stored else load_dataset(name, revision=parsed.revision)
        splits = {"train": splits} if isinstance(splits, Dataset) else splits
    train = get_split(splits, "train", source)
    if column not in train.column_names:
        names = ", ".join(train.column_names)
        raise ValueError(f"{source} has no column {column!r}, only {names}: name its texts with --text-column.")
    if len(train) == 0:
        raise ValueError(f"{source} holds no document.")
    return only_text(train, column), only_text(splits["validation"], column) if "validation" in splits else None


def only_text(texts: Dataset, column: str) -> Dataset:
    """Keeps one column, named `text`, of the same type whatever the source."""
    texts = texts.select_columns([column])
    texts = texts if column == "text" else texts.rename_column(column, "text")
    return texts.cast(Features({"text": Value("string")}), keep_in_memory=True)


def hold_out(train: Dataset, held_out: Dataset | None, seed: int) -> tuple[Dataset, Dataset]:
    """Returns documents to learn from and to hold out: a share of them where there is no validation split."""
    if held_out:
        return train, held_out
    if len(train) < 2:
        raise ValueError("one document cannot be learnt from and held out: give more text, one document per line.")
    size = max(1, round(HELD_OUT_SHARE * len(train)))
    split = train.train_test_split(test_size=size, seed=seed, keep_in_memory=True)
    return split["train"], split["test"]


def pack(texts: Dataset, tokenizer, length: int) -> Dataset:
    """Packs documents, each in [CLS] and [SEP], into sequences of at most `length` tokens, in the order of the texts.

    Longer documents are cut. Columns: `input_ids`, and `marks`, which tell documents and words apart.
    """

    def packed(batch: dict) -> dict:
        ids, marks = [], []
        encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)
        for index, tokens in enumerate(encoded["input_ids"]):
            words = encoded.word_ids(index)
            kinds = [INSIDE if i and words[i] == words[i - 1] else START for i in range(len(words))]
            for first in range(0, len(tokens), length - 2):
                piece = slice(first, first + length - 2)
                if not ids or len(ids[-1]) + len(tokens[piece]) + 2 > length:
                    ids.append([])
                    marks.append([])
                ids[-1] += [tokenizer.cls_token_id, *tokens[piece], tokenizer.sep_token_id]
                marks[-1] += [FIRST, *kinds[piece], LAST]
        return {"input_ids": ids, "marks": marks}

    features = Features({"input_ids": List(Value("int32")), "marks": List(Value("int8"))})
    # In memory: the texts of a prepared folder may lie where nothing can be written.
    return texts.map(
        packed, batched=True, batch_size=10_000, remove_columns=["text"], features=features, keep_in_memory=True
    )
