"""Writes a page of results from a template, so that no number in it can drift from its run.

    python -m melp.evaluation.tables --store demo-zero-shot results/zero-shot    # docs/results/demo-zero-shot.json
    python -m melp.evaluation.tables             # docs/results.md from docs/results/page.md and the stored results
    python -m melp.evaluation.tables --page docs/evidence.md    # another page, from docs/evidence/
    python -m melp.evaluation.tables --check     # fails where the page is not what the command would write

In the template stand, between double braces: `figure RUN METRIC`, a figure with its interval; `value RUN METRIC`,
without; `difference RUN METRIC`, a paired difference and whether it holds; `class RUN LABEL COLUMN`, a figure of a
class; `table RUN TITLE`, a table as evaluate.py printed it; `records RUN` and `patients RUN`; `command RUN`, what made
it. RUN is the name of a stored results.json. `passport FILE` is the table of a findings.json: AUROC with fewer leads,
less time, and from prints; FILE is named as runs are: `../../findings` is the one of the root. `adapted RUN` is what
`python -m melp.calibrate --adapt` printed, where RUN keeps the findings.json that it wrote. `text FILE` is a file
beside the runs, as it is.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from melp.evaluation.calibration import adaptation_table, passport_table
from melp.evaluation.results import difference, with_bounds
from melp.files import write_atomically

_FIELD = re.compile(r"\{\{(.+?)\}\}")
# Of results.json: what a page can show. Settings name places of the machine; predictions are not in it.
_KEPT = ("task", "model", "database", "label_set", "split", "against", "records", "patients", "metrics", "classes")
_KEPT += ("groups", "subgroups", "notes", "tables", "fingerprints", "command", "adapted")


def store(folder: Path, output: Path):
    """Keeps the results.json of an evaluation, without what belongs to the machine.

    Raises:
        ValueError: where the folder has none.
    """
    results = _read(folder / "results.json" if folder.is_dir() else folder)
    kept = {name: results[name] for name in _KEPT if name in results}
    write_atomically(output, json.dumps(kept, indent=1) + "\n")


def fill(template: str, runs: Path) -> str:
    """Returns a template with its fields replaced by figures of the stored results.

    Raises:
        ValueError: naming a field that is not known, or whose run, metric, class or table there is not.
    """
    return _FIELD.sub(lambda match: _value(match[1].strip(), runs), template)


def _value(field: str, runs: Path) -> str:
    kind, run, *names = shlex.split(field)
    if kind == "text":
        return (runs / run).read_text(encoding="utf-8").strip()
    results = _read(runs / f"{run}.json")
    try:
        match kind, names:
            case ("figure", [metric]):
                return with_bounds(results["metrics"][metric], digits=_digits(metric))
            case ("value", [metric]):
                return f"{results['metrics'][metric]['value']:.{_digits(metric)}f}"
            case ("difference", [metric]):
                return difference(results["metrics"][metric])
            case ("class", [label, column]):
                row = next(row for row in results["classes"] if row["label"] == label)
                return with_bounds(row, column) if isinstance(row[column], float) else f"{row[column]:,}"
            case ("table", [title]):
                return results["tables"][title]
            case ("records" | "patients", []):
                return f"{results[kind]:,}"
            case ("passport", []):
                return passport_table(results["findings"])
            case ("adapted", []):
                return adaptation_table(results["adapted"]["measured"])
            case ("command", []):
                return results["command"]
    except (KeyError, StopIteration) as error:
        raise ValueError(f"{{{{{field}}}}}: {run}.json has no such figure ({error or names[0]}).") from error
    raise ValueError(f"{{{{{field}}}}} is no field; see `python -m melp.evaluation.tables --help`.")


def _digits(metric: str) -> int:
    return 1 if metric.endswith(("rank", "rankme")) else 3


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): name an output folder of evaluate.py.") from error


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.evaluation.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="page to write (docs/results.md)")
    parser.add_argument("--store", nargs=2, metavar=("RUN", "DIR"), help="keep the results of DIR as RUN")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the page is another")
    options = parser.parse_args(arguments)
    runs = options.page.with_suffix("")
    try:
        if options.store:
            run, folder = options.store
            runs.mkdir(parents=True, exist_ok=True)
            store(Path(folder), runs / f"{run}.json")
            return
        text = fill((runs / "page.md").read_text(encoding="utf-8"), runs)
        if not options.check:
            write_atomically(options.page, text)
        elif options.page.read_text(encoding="utf-8") != text:
            raise ValueError(f"{options.page} is not what its results say: python -m melp.evaluation.tables")
    except (ValueError, OSError) as error:
        sys.exit(f"melp.evaluation.tables: {error}")


if __name__ == "__main__":
    main()
