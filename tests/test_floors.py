"""The floors of this repository: who may import whom, read off every import statement, those inside functions too."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# From the ground up. A package stands for its modules, unless one is named on a floor of its own.
FLOORS = (
    ("hub files", ()),  # *_melp.py: they travel with a model, and know nothing of this repository
    (
        "ground",
        (
            *("melp", "melp.command_line", "melp.drawing", "melp.files", "melp.markdown", "melp.models"),
            *("melp.names", "melp.notice", "melp.sources", "melp.versions", "melp.yaml_file"),
        ),
    ),
    ("databases", ("melp.databases", "melp.synthetic")),
    ("data", ("melp.prepare", "melp.data", "melp.duplicates")),
    (
        "measures",
        ("melp.evaluation", "melp.convert", "melp.hub"),
    ),
    ("training", ("melp.training",)),
    ("predictions", ("melp.explain", "melp.predict", "melp.search")),
    ("tasks", ("melp.evaluation.tasks", "melp.app", "melp.benchmark", "melp.calibrate", "melp.export")),
    ("doors", ()),  # whatever can be run: train.py and its like, `__main__`, the `command` that both of them call
)
HUB_FILES, DOORS = 0, len(FLOORS) - 1


def modules() -> dict[str, Path]:
    """Every module of the repository beside its tests, by its dotted name."""
    named = {path.stem: path for path in REPO.glob("*.py")}
    for path in REPO.glob("melp/**/*.py"):
        parts = path.relative_to(REPO).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()


def is_door(name: str) -> bool:
    """Whether a module can be run as a command, or is the `command` that such modules share."""
    guarded = any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(MODULES[name].read_text()).body
    )
    return guarded or name.endswith(".command")


DOOR_NAMES = {name for name in MODULES if is_door(name)}


def floor_of(name: str) -> int:
    """The number of a module's floor; its own name, or that of the nearest package, says it."""
    if name in DOOR_NAMES:
        return DOORS
    if name.endswith("_melp"):
        return HUB_FILES
    floors = {package: number for number, (_, packages) in enumerate(FLOORS) for package in packages}
    parts = name.split(".")
    named = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    known = next(package for package in named if package in floors)
    assert known != "melp" or name == "melp", f"{name} has no floor: give it one in {Path(__file__).name}"
    return floors[known]


def imports(name: str, path: Path) -> set[str]:
    """Modules of the repository that a file imports."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])]).strip(".")
            # `from package import name` is of the module `name`, where there is one.
            within = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            imported |= {module if module in MODULES else base for module in within}
    return {module for module in imported if module in MODULES} - {name}


@pytest.fixture(scope="module")
def imported_by() -> dict[str, set[str]]:
    return {name: imports(name, path) for name, path in MODULES.items()}


def test_what_is_imported_is_seen(imported_by):
    """Inside functions, by one-dot imports and by `from package import module`."""
    assert "processing_melp" in imported_by["melp.models"] and "configuration_melp" in imported_by["modeling_melp"]
    assert {"melp.evaluation.settings", "melp.evaluation.tasks"} <= imported_by["melp.evaluation.command"]
    assert floor_of("melp.evaluation.tasks.report") > floor_of("melp.training.stages.base") > floor_of("melp.data")


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_downward(name, imported_by):
    floor = floor_of(name)
    upward = {module: FLOORS[floor_of(module)][0] for module in imported_by[name] if floor_of(module) > floor}
    assert not upward, f"{name}, on the floor of {FLOORS[floor][0]}, imports from above"


def test_doors_are_seen():
    assert {"train", "evaluate", "predict", "app", "melp.app.command", "melp.search.__main__"} <= DOOR_NAMES
    assert {"melp.synthetic.compare", "melp.calibrate.rules", "melp.evaluation.tables"} <= DOOR_NAMES
    assert not {"melp.search.index", "melp.training.run", "modeling_melp"} & DOOR_NAMES


@pytest.mark.parametrize("name", sorted(DOOR_NAMES))
def test_no_library_imports_a_door(name, imported_by):
    importers = {module for module, imported in imported_by.items() if name in imported}
    assert importers <= DOOR_NAMES


def test_there_is_no_circle(imported_by):
    try:
        TopologicalSorter(imported_by).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in MODULES if floor_of(name) == HUB_FILES])
def test_hub_files_stand_alone(name):
    """They import each other and, wherever they do, what every user of transformers has."""
    top_level = [
        node for node in ast.parse(MODULES[name].read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    needed = {
        (module or "").partition(".")[0]
        for node in top_level
        for module in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert needed <= {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
