"""What a small text tower learns from a pretrained sentence encoder."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tiny import REPORTS, tiny_model
from transformers import BertConfig, BertModel

from melp.training.stages.language import LanguageStage, Phrases, train_tokenizer
from melp.training.stages.recipes import LanguageRecipe
from melp.training.teacher import Teacher, draw_phrases, teaching_loss
from train import train

SIZES = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
STUDENT = SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.06}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A sentence encoder that knows words which no report has."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer([*REPORTS, "auricular quivering of a failing heart"], 200)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=1, **SIZES)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(tmp_path, **fields) -> LanguageRecipe:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(REPORTS * 6))
    fields = {"config": STUDENT, "vocab_size": 200, "batch_size": 2, "output": str(tmp_path / "run")} | fields
    return LanguageRecipe(text=str(text), **fields)


@pytest.mark.slow
def test_a_tower_takes_over_words_that_no_report_has(teacher, tmp_path):
    tokenizer = LanguageStage(recipe(tmp_path, teacher=teacher), Accelerator(cpu=True)).tokenizer
    assert tokenizer.tokenize("auricular quivering") == ["auricular", "quivering"]
    alone = LanguageStage(recipe(tmp_path), Accelerator(cpu=True)).tokenizer
    assert len(alone.tokenize("auricular quivering")) > 2


@pytest.mark.slow
def test_reports_without_words_are_no_phrases(teacher, tmp_path):
    text = tmp_path / "odd.txt"
    text.write_text("\n".join([*REPORTS, "sinus rhythm. . ", ". normal ecg.", "..."] * 3))
    fields = {"config": STUDENT, "vocab_size": 200, "teacher": teacher, "output": str(tmp_path / "run")}
    stage = LanguageStage(LanguageRecipe(text=str(text), **fields), Accelerator(cpu=True))
    assert all(stage.phrases.ids)


def test_words_start_where_the_teacher_has_them(teacher):
    source = Teacher(teacher, 32)
    words = [word for word in source.words() if len(word) > 3]
    embeddings, _ = source.word_embeddings(words, spread=0.06)
    assert embeddings.std().item() == pytest.approx(0.06, rel=1e-3)
    wanted = source.embed(words)
    wanted = wanted - wanted.mean(dim=0)
    alike = F.normalize(wanted, dim=-1) @ F.normalize(wanted, dim=-1).t()
    kept = F.normalize(embeddings, dim=-1) @ F.normalize(embeddings, dim=-1).t()
    assert (alike - kept).abs().mean() < 0.05, "the components left out tell little"


def test_a_phrase_is_read_as_the_model_reads_a_text():
    model = tiny_model()
    tokenizer = train_tokenizer(REPORTS, 60)
    phrases = ["sinus rhythm", "no sign of atrial fibrillation"]
    inputs = Phrases(tokenizer(phrases, add_special_tokens=False), torch.zeros(2, 32)).inputs(
        torch.arange(2), tokenizer, model.config.max_text_length
    )
    text = model.text_model
    states = text(**{**inputs, "attention_mask": inputs["attention_mask"]}).last_hidden_state[:, -1]
    ids = inputs["input_ids"][:, :-1]
    model.config.cls_token_id = tokenizer.cls_token_id
    _, wanted = model._encode_text(ids, (ids != tokenizer.pad_token_id).long())
    assert torch.allclose(states, wanted, atol=1e-5)


@pytest.mark.slow
def test_training_brings_the_tower_to_its_teacher(teacher, tmp_path):
    run = recipe(tmp_path, teacher=teacher, max_steps=30, warmup_steps=2, learning_rate=3e-3, eval_every=30)
    stage = LanguageStage(run, Accelerator(cpu=True))
    chosen = torch.arange(64)
    with torch.no_grad():
        before = stage.teaching_loss(chosen).item()
    train(run)
    trained = BertModel.from_pretrained(tmp_path / "run" / "model", add_pooling_layer=False).eval()
    stage.model.bert.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert stage.teaching_loss(chosen).item() < 0.7 * before


def test_phrases_repeat_with_the_seed_and_vary():
    texts, words = ["atrial fibrillation.", "sinus rhythm"], ["heart", "slow", "left"]
    drawn = [draw_phrases(texts, words, 40, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(drawn[0]) and {"sinus rhythm", "atrial fibrillation"} <= set(drawn[0]) and len(set(drawn[0])) > 20


def test_the_loss_is_nothing_for_a_perfect_student():
    targets = F.normalize(torch.randn(6, 8), dim=-1)
    assert teaching_loss(3 * targets, targets).item() == pytest.approx(0, abs=1e-6)
    assert teaching_loss(-targets, targets).item() == pytest.approx(2, abs=1e-5)


def test_what_cannot_be_learned_from_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="narrower than the student's 64"):
        Teacher(teacher, 64)
    with pytest.raises(ValueError, match="leave one of them out"):
        recipe(tmp_path, teacher=teacher, text_model=teacher)
