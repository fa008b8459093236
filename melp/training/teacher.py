"""Teaches a smaller text tower what a pretrained sentence encoder knows of words.

A tower that has read the corpus alone knows its words and no other: a question in other words means nothing to it. The
teacher (a sentence-transformers model of BERT's kind) has read far more. The tower takes over its words, starts from
its embeddings, and learns to place a phrase where the teacher does (Reimers and Gurevych, arXiv 2004.09813).
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from configuration_melp import check_bert
from melp.models import load_whole, model_folder

PHRASE_TOKENS = 48  # longer ones are cut
WORD = re.compile("[a-z]{2,}")


class Teacher:
    """A sentence encoder: the mean of a BERT's last hidden states.

    Args:
        source: folder, ID or ID@REVISION.
        width: of the student; embeddings are reduced to it by the principal components of the teacher's words.

    Raises:
        ValueError: where the source holds no BERT, or one narrower than the student.
    """

    def __init__(self, source: str | Path, width: int):
        folder = model_folder(source)
        check_bert(AutoConfig.from_pretrained(folder), f"{source}: ")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = load_whole(AutoModel, source, dtype=torch.bfloat16, add_pooling_layer=False).eval()
        if self.model.config.hidden_size < width:
            raise ValueError(f"{source} is {self.model.config.hidden_size} wide, narrower than the student's {width}.")
        self.width = width

    def words(self) -> list[str]:
        """Returns its whole words of letters, in the order of its vocabulary: BERT's has frequent words first."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [word for word, _ in vocabulary if WORD.fullmatch(word)]

    @torch.no_grad()
    def embed(self, texts: list[str], batch_size: int = 128) -> torch.Tensor:
        """Returns L2-normalised embeddings: (texts, the teacher's width)."""
        rows: list[torch.Tensor | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            encoded = self.tokenizer(
                [texts[index] for index in places],
                padding=True,
                truncation=True,
                max_length=PHRASE_TOKENS,
                return_tensors="pt",
            )
            hidden_states = self.model(**encoded).last_hidden_state.float()
            mask = encoded["attention_mask"][..., None]
            means = F.normalize((hidden_states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
            for index, mean in zip(places, means, strict=True):
                rows[index] = mean
        return torch.stack(rows)

    def word_embeddings(self, tokens: list[str], spread: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a student's word embeddings, (tokens, width) of standard deviation `spread`.

        A token starts as the teacher's embedding of it as a text, in the coordinates of their principal components
        (about zero, not the mean): the second value, (the teacher's width, width), which `targets` takes.
        """
        embeddings = self.embed([token.removeprefix("##") for token in tokens])
        basis = torch.linalg.eigh(embeddings.t() @ embeddings).eigenvectors[:, -self.width :]
        reduced = (embeddings - embeddings.mean(dim=0)) @ basis
        return reduced * (spread / reduced.std()), basis

    def targets(self, phrases: list[str], basis: torch.Tensor) -> torch.Tensor:
        """Returns what a student with this basis is to make of phrases: (phrases, width), L2-normalised."""
        return F.normalize(self.embed(phrases) @ basis, dim=-1)


def draw_phrases(texts: list[str], words: list[str], count: int, generator: torch.Generator) -> list[str]:
    """Draws phrases to learn from: texts, words in a row, and texts with words replaced, left out or put in.

    Each of the texts needs a word.
    """

    def draw(choices: list[str]) -> str:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    phrases = []
    for _ in range(count):
        kind = chance()
        phrase = draw(texts).rstrip(".").split()
        if kind < 0.25:
            phrase = [draw(words) for _ in range(1 + int(5 * chance()))]
        elif kind < 0.65:
            for _ in range(1 + int(2 * chance())):
                place, change = int(len(phrase) * chance()), chance()
                if change < 0.6:
                    phrase[place] = draw(words)
                elif change < 0.8:
                    phrase.insert(place, draw(words))
                elif len(phrase) > 1:
                    phrase.pop(place)
        phrases.append(" ".join(phrase))
    return phrases


def teaching_loss(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compares a student's (phrases, width) with the teacher's: each with its own, and the likeness of every two."""
    states = F.normalize(states.float(), dim=-1)
    alike = (states @ states.t() - targets @ targets.t()).square().mean()
    return (1 - (states * targets).sum(dim=1)).mean() + 4 * alike
