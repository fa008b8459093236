"""Recipes: YAML file and command line become one dataclass; a mistake in either is named before anything starts."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from melp.training.recipe import RANGES
from melp.training.stages.recipes import (
    PRETRAINING_RANGES,
    RECIPES,
    EcgRecipe,
    LanguageRecipe,
    MelpRecipe,
    Pretraining,
    load_recipe,
    parse_recipe_options,
    recipe_parser,
)
from melp.yaml_file import read_yaml

REPO = Path(__file__).resolve().parent.parent.parent


def written(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rat": 1e-4}, "did you mean 'learning_rate'"),
        ({"batch_size": "many"}, "'batch_size' is 'many'; it must be of type int"),
        ({"batch_size": True}, "must be of type int"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"learning_rate": -1}, "learning_rate is -1.0; it must be at least 0, and finite"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"adam_beta1": 3}, "adam_beta1 is 3.0; it must be at least 0 and below 1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0.0; it must be above 0"),
        ({"seed": 2**32}, "seed is 4294967296; it must be from 0 to 4294967295"),
        ({"lead_dropout": 7}, "lead_dropout is 7.0; it must be from 0 to 1"),
        ({"stage": "ecg", "lead_dropout": -0.1}, "lead_dropout is -0.1; it must be from 0 to 1"),
        ({"text_learning_rate": 2}, "text_learning_rate is 2.0; it must be from 0 to 1"),
        ({"data": "a,b", "data_weights": "1, inf"}, "a positive number for each of the 2 folders"),
        ({"stage": "language", "mlm_probability": 5}, "mlm_probability is 5.0; it must be from 0 to 1"),
        ({"stage": "language", "sequence_length": -3}, "sequence_length is -3; it must be at least 8"),
        ({"stage": "ecg", "pretraining": {"mask_time_prob": 1}}, "pretraining.mask_time_prob is 1.0; .* below 1"),
        ({"stage": "ecg", "pretraining": {"num_codevector_groups": 0}}, "num_codevector_groups is 0; .* at least 1"),
        ({"config": 3}, "must be of type dict"),
        ({"stage": "ecgs"}, "stage is 'ecgs'; it must be one of language, ecg, melp"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; it must be one of no, bf16, fp16"),
        ({"resume": "yes"}, "resume is 'yes'; it must be one of auto"),
        ({"vocab_size": 300}, "vocab_size is a setting of the stage language, not of the stage melp"),
        ({"pretraining": {}}, "pretraining is a setting of the stage ecg, not of the stage melp"),
        ({"stage": "language", "lead_dropout": 0.1}, "of the stage ecg and the stage melp, not of the stage language"),
        ({"stage": "language", "push_to_hub": "me/bert"}, "push_to_hub is for MELP models"),
        ({"stage": "ecg", "pretraining": {"mask_tim_prob": 0.5}}, "did you mean 'mask_time_prob'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(written(tmp_path / "recipe.yaml", **values))


def test_every_number_of_a_recipe_has_its_range():
    for kinds, ranges in ((RECIPES.values(), RANGES), ([Pretraining], PRETRAINING_RANGES)):
        hints = {name: hint for kind in kinds for name, hint in typing.get_type_hints(kind).items()}
        numbers = {name for name, hint in hints.items() if {int, float} & {hint, *typing.get_args(hint)}}
        assert ranges.keys() == numbers


@pytest.mark.parametrize("stage, kind", [("language", LanguageRecipe), ("ecg", EcgRecipe), ("melp", MelpRecipe)])
def test_a_recipe_has_the_fields_of_its_stage_and_repeats_itself(tmp_path, stage, kind):
    recipe = load_recipe(written(tmp_path / "recipe.yaml", stage=stage, learning_rate="1e-5", resume="auto"))
    assert type(recipe) is kind and recipe.learning_rate == 1e-5 and recipe.stage == stage
    recipe.save(tmp_path / "saved.yaml")
    again = load_recipe(tmp_path / "saved.yaml")
    assert again.resume is None and vars(again) == vars(recipe) | {"resume": None}


def test_recipes_of_the_repository_are_valid():
    for path in (REPO / "recipes").glob("*.yaml"):
        assert load_recipe(path, {"max_steps": 7}).max_steps == 7


def without_reason(text: str) -> list[str]:
    """Returns the lines of a recipe that have no reason.

    A line's reason is a comment at its end. Where several lines share one, it is a comment on a line of its own above
    them: it holds for the lines down to the next that is blank, has a comment of its own, or is indented less. What
    stands above a recipe's first setting says what the recipe is for, and is no line's reason.
    """
    lacking, begun, shared = [], False, -1
    for line in text.splitlines():
        setting, _, reason = line.partition("#")
        depth = len(setting) - len(setting.lstrip())
        if setting.strip():
            begun, shared = True, shared if 0 <= shared <= depth and not reason.strip() else -1
            lacking += [line] if shared < 0 and not reason.strip() else []
        else:
            shared = depth if begun and reason.strip() else -1
    return lacking


@pytest.mark.parametrize("path", sorted((REPO / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_line_of_a_recipe_has_its_reason(path):
    assert without_reason(path.read_text()) == []


def test_a_line_without_a_reason_is_found():
    header = "# A recipe.\n"
    lines = "stage: melp # the last\nconfig: # of a new model\n  # for two cores\n  a: 1\n  b: 2\n"
    assert without_reason(header + lines) == []
    assert without_reason(header + "stage: melp\nseed: 0 # the first\n") == ["stage: melp"]
    assert without_reason(header + lines + "c: 3\nd: 4 # often\ne: 5\n") == ["c: 3", "e: 5"]
    assert without_reason(header + lines + "  c: 3 # as told\n  d: 4\n") == ["  d: 4"]
    assert without_reason(header + lines + "\n  c: 3 #\n") == ["  c: 3 #"]


def test_options_take_precedence_and_have_the_types_of_the_fields():
    command = "recipe.yaml --shared-positives --contrastive sigmoid --accumulation-steps 4 --learning-rate 1e-3"
    command += " --no-local-loss-gather --measure-peak false --data a,b --seed=2"
    parser = recipe_parser()
    parser.add_argument("recipe", nargs="?")
    values = parse_recipe_options(parser, [*command.split(), "--config", "{ecg_config: {hidden_size: 8}}"])
    assert values == {
        "recipe": "recipe.yaml", "shared_positives": True, "contrastive": "sigmoid", "accumulation_steps": 4,
        "learning_rate": 1e-3, "local_loss_gather": False, "measure_peak": False, "data": "a,b", "seed": 2,
        "config": {"ecg_config": {"hidden_size": 8}},
    }  # fmt: skip


def test_sizes_of_a_recipe_are_for_a_new_model(tmp_path):
    config = {"decoder_num_hidden_layers": 1, "ecg_config": {"hidden_size": 8}}
    path = written(tmp_path / "recipe.yaml", config=config)
    assert load_recipe(path).config == config
    assert load_recipe(path, {"model": "some/model"}).config == {}
    assert load_recipe(path, {"ecg_model": "some/tower"}).config == {"decoder_num_hidden_layers": 1}
    assert load_recipe(path, {"model": "some/model", "config": {"a": 1}}).config == {"a": 1}


WRONG = [
    (["--help"], "settings of language and melp"),
    (["--learning-rat", "1"], "there is no option --learning-rat: did you mean --learning-rate?"),
    (["recipes/melp.yaml", "--batch-size", "many"], "invalid int value: 'many'"),
    (["recipes/melp.yaml", "--batch-size", "-1"], "batch_size is -1; it must be at least 1"),
    (["recipes/melp.yaml", "--learning-rate", "-1"], "learning_rate is -1.0; it must be at least 0, and finite"),
    (["recipes/melp.yaml", "--printed-layout", "0.6", "--lead-subsets", "0.5"], "together at most 1"),
    (["recipes/small.yaml", "--data-weights", "3, nan"], "a positive number for each of the 2 folders"),
    (["recipes/ecg.yaml", "--data", "one,two"], "the ecg stage learns from one folder"),
    (["recipes/melp.yaml", "--config", "3"], "'3' is no mapping"),
    (["recipes/melp.yaml", "--config", "{a: [}"], "'{a: [}' is no mapping"),
    (["recipes/ecg.yaml", "--text-model", "me/bert"], "text_model is a setting of the stage language and"),
    (["recipes/melp.yaml", "--data", "./nowhere"], "./nowhere is neither on this disk nor a Hub id"),
    (["recipes/nowhere.yaml"], "recipes/nowhere.yaml does not exist"),
    (["recipes"], "recipes is no file"),
    (["recipes/language.yaml", "--text", "/dev/null"], "/dev/null is neither a file nor a folder"),
    (["recipes/ecg.yaml", "--data", "docs"], "docs is not a prepared folder"),
    (["recipes/ecg.yaml", "--ecg-model", "docs"], "docs is no model folder: it has no config.json"),
    (["recipes/melp.yaml"], "the multi-scale stage needs --model"),
    (["recipes/melp.yaml", "--dry-run"], "the multi-scale stage needs --model"),
    (["recipes/melp.yaml", "--model", "a/b", "--text-model", "a/b"], "no effect where model is given"),
    (["recipes/ecg.yaml", "--ecg-model", "a/b", "--config", "{hidden_size: 8}"], "no effect where ecg_model is given"),
    (["recipes/ecg.yaml", "--select-metric", "val_los"], "'val_los'; this stage's validation has val_loss"),
    (["recipes/ecg.yaml", "--push-to-hub", "bad id!"], "bad id!"),
    (["recipes/ecg.yaml", "--output", "README.md"], "README.md is a file: name another --output"),
    (["--push-to-hub", "bad id!"], "bad id!"),
]
RUN = """
import contextlib, io, json, sys
import train
for arguments, _ in json.loads(sys.argv[1]):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            train.main(arguments)
    except SystemExit as end:
        print(json.dumps(["torch" in sys.modules, printed.getvalue() + str(end)]))
"""


def test_help_and_wrong_arguments_do_not_wait_for_torch():
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", RUN, json.dumps(WRONG)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, message), (with_torch, printed) in zip(WRONG, answers, strict=True):
        assert not with_torch and message in printed, (arguments, printed)


# -------------------------------------------------------------------------------------------------------- YAML files


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 10_000 + "]" * 10_000, "nested more than 50 levels deep"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"has an alias \(\*a\)"),
        ("a: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("a: [1", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        ("#" * 2_000_000, "at most 1,000,000 are read"),
    ],
)
def test_a_malicious_yaml_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_yaml(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match="pipe.yaml is no file"):
        read_yaml(tmp_path / "pipe.yaml")
