"""Pictures of results, each a function that returns a matplotlib figure; `save` writes it as PNG and SVG.

Many classes are many small panels, not many lines: a panel is read at first sight, a legend of 28 colours is not.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import precision_recall_curve, roc_curve

from melp.evaluation.metrics import ClassFigures, calibration_error, reliability

BLUE, ORANGE, GREY, LIGHT = "#1f5fa8", "#d9730d", "#8a8a8a", "#d5d5d5"
MODEL_COLOURS = (BLUE, GREY, ORANGE, "#2a8f5c", "#8a4fae", "#b03050")
MAX_MAPPED = 4000  # recordings in a map: more would take minutes and hide each other
MIN_MAPPED = 5  # recordings that differ: fewer have no neighbourhoods to show


class NotDrawable(ValueError):
    """A picture of which there is nothing to show; the message is the reason."""


def save(figure: Figure, path: Path):
    """Writes `path`.png and `path`.svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.set_layout_engine("none")  # arranged once, which takes most of the time
    with matplotlib.rc_context({"svg.hashsalt": "melp"}):  # the same picture gives the same file
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _panels(count: int, size: float = 1.9, columns: int = 7, title: str = "", below: float = 0.55):
    """Makes a figure with `count` square panels and room for a title above and a line below, in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    height = size * rows + below + 0.55
    figure = Figure(figsize=(max(size * columns + 0.7, 5.2), height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (below + 0.5) / height))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=11)
    return figure, list(axes[:count])


def _caption(figure: Figure, entries: Sequence[tuple[str, str]], note: str = "", dots: bool = False):
    """Draws a legend at the bottom, (name, colour) of each line (or kind of dot) drawn, and a note under it."""
    style = {"marker": "o", "lw": 0} if dots else {"lw": 1.8}
    handles = [matplotlib.lines.Line2D([], [], color=colour, **style) for _, colour in entries]
    columns = max(1, min(len(entries), int(figure.get_figwidth() / 1.15)))
    place = (0.5, 0.2 / figure.get_figheight() if note else 0)
    names = [name for name, _ in entries]
    figure.legend(handles, names, loc="lower center", bbox_to_anchor=place, ncols=columns, frameon=False, fontsize=8)
    figure.text(0.5, 0.1 / figure.get_figheight(), note, ha="center", va="bottom", fontsize=8)


def _wrapped(label: str, width: int = 22) -> str:
    if len(label) <= width:
        return label
    middle = min((i for i, c in enumerate(label) if c == " "), key=lambda i: abs(i - len(label) / 2), default=None)
    return label if middle is None else label[:middle] + "\n" + label[middle + 1 :]


def _curves(scored: dict[str, ClassFigures], metric: str, curve, title: str, xlabel: str, ylabel: str) -> Figure:
    model = next(iter(scored.values()))
    shown = [index for index, row in enumerate(model.rows) if row[metric] is not None]
    if not shown:
        raise NotDrawable("no class has both positives and negatives")
    figure, axes = _panels(len(shown), title=title)
    colours = list(zip(scored, cycle(MODEL_COLOURS), strict=False))
    for axis, index in zip(axes, shown, strict=True):
        for name, colour in reversed(colours):
            one = scored[name]
            if one.rows[index][metric] is not None:
                across, up = curve(one.targets[:, index], one.scores[:, index])
                style = "default" if metric == "auroc" else "steps-pre"
                axis.plot(across, up, color=colour, lw=1.3, clip_on=False, drawstyle=style)
        row = model.rows[index]
        axis.set_title(f"{_wrapped(row['label'])}\n{row[metric]:.2f}, n={row['positives']}", fontsize=7)
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        if metric == "auroc":
            axis.plot((0, 1), (0, 1), color=LIGHT, lw=0.8, zorder=0)
        else:
            axis.axhline(row["prevalence"], color=LIGHT, lw=0.8, zorder=0)
    _caption(figure, [*colours, ("chance", LIGHT)], f"{xlabel} (across) against {ylabel} (up)")
    return figure


def roc(scored: dict[str, ClassFigures]) -> Figure:
    """Draws a ROC curve per class, a line per model; the title has the first model's AUROC and its positives."""
    title = "ROC by class (AUROC, positives)"
    return _curves(scored, "auroc", lambda t, s: roc_curve(t, s)[:2], title, "1 - specificity", "sensitivity")


def precision_recall(scored: dict[str, ClassFigures]) -> Figure:
    """Draws a precision-recall curve per class; chance is the prevalence."""

    def curve(target, score):
        precision, recall, _ = precision_recall_curve(target, score)
        # The last point (recall 0, precision 1) stands for no prediction: the first real one goes back to recall 0.
        return np.append(0.0, recall[-2::-1]), np.append(precision[-2], precision[-2::-1])

    return _curves(scored, "auprc", curve, "Precision and recall by class (AUPRC, positives)", "recall", "precision")


def reliability_diagram(targets: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draws the observed share against the stated probability over all classes, and how many fall into each bin."""
    rows = reliability(targets, probabilities)
    figure = Figure(figsize=(4.6, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot((0, 1), (0, 1), color=LIGHT, lw=1)
    stated, observed = [row["probability"] for row in rows], [row["observed"] for row in rows]
    upper.plot(stated, observed, "o-", color=BLUE, ms=5)
    upper.set(ylabel="observed share of positives", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    error = calibration_error(targets, probabilities)
    upper.set_title(f"Reliability: calibration error {error:.3f}", fontsize=11)
    upper.text(0.98, 0.03, "below the line: too sure", ha="right", fontsize=8, color=GREY)
    lower.bar(stated, [row["count"] for row in rows], width=0.05, color=BLUE)
    lower.set(xlabel="stated probability", ylabel="count", yscale="log", ylim=(0.8, None))
    lower.minorticks_off()
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def coverage(rows: Sequence[dict]) -> Figure:
    """Draws of each finding the coverage with and without it, and the share of "cannot say".

    Args:
        rows: of the task `calibration`.

    Raises:
        NotDrawable: when there is no row.
    """
    if not rows:
        raise NotDrawable("no finding has enough positives")
    figure = Figure(figsize=(8.2, 0.26 * len(rows) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(rows))[::-1]
    kinds = (("coverage_with", BLUE, 0.12, left), ("coverage_without", ORANGE, -0.12, left))
    for key, colour, shift, axis in (*kinds, ("cannot_say", GREY, 0.0, right)):
        value, low, high = (np.array([row[key + end] for row in rows]) for end in ("", "_low", "_high"))
        bounds = np.abs([value - low, high - value])
        axis.errorbar(value, places + shift, xerr=bounds, fmt="o", color=colour, ms=3.5, lw=1, capsize=1.5)
    left.vlines([row["coverage"] for row in rows], places - 0.45, places + 0.45, color=LIGHT, lw=2, zorder=0)
    left.set_yticks(places, [f"{row['label']} ({row['positives']:,})" for row in rows], fontsize=7)
    left.set(ylim=(-0.7, len(rows) - 0.3), xlabel="coverage (grey: as stated)", xlim=(None, 1.01))
    right.set(xlabel='share of "cannot say"', xlim=(0, 1))
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    entries = (("with the finding: not called absent", BLUE), ("without it: not called present", ORANGE))
    handles = [matplotlib.lines.Line2D([], [], color=colour, marker="o", lw=0) for _, colour in entries]
    figure.legend(
        handles, [name for name, _ in entries], loc="outside upper center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def similarity(names: Sequence[str], embeddings: np.ndarray) -> Figure:
    """Draws the cosine similarity of the findings' text embeddings (classes, width), L2-normalised."""
    cosines, count = embeddings @ embeddings.T, len(names)
    side = max(3.2, 0.24 * count)
    figure = Figure(figsize=(side + 2.6, side + 2.0), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xticks(range(count), names, rotation=90, fontsize=7)
    axis.set_yticks(range(count), names, fontsize=7)
    axis.set_title("Similarity of findings (cosine of their prompts)", fontsize=11)
    figure.colorbar(image, ax=axis, shrink=0.6)
    if count <= 12:
        for row in range(count):
            for column in range(count):
                value = cosines[row, column]
                colour = "white" if abs(value) > 0.6 else "black"
                axis.text(
                    column,
                    row,
                    f"{round(float(value), 2) + 0.0:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=colour,
                )
    return figure


def embedding_map(embeddings: np.ndarray, targets: np.ndarray, classes: Sequence[str], seed: int = 0) -> Figure:
    """Draws a t-SNE of the recordings' embeddings, a panel per finding: recordings with it in colour, others grey.

    The twelve findings with the most positives are shown, and at most `MAX_MAPPED` recordings, drawn by the seed.

    Raises:
        NotDrawable: with fewer than `MIN_MAPPED` recordings that differ.
    """
    if len(embeddings) > MAX_MAPPED:
        chosen = np.sort(np.random.default_rng(seed).choice(len(embeddings), MAX_MAPPED, replace=False))
        embeddings, targets = embeddings[chosen], targets[chosen]
    # t-SNE of equal points divides by their spread, and crashes on the NaN.
    if (distinct := len(np.unique(np.round(embeddings, 6), axis=0))) < MIN_MAPPED:
        raise NotDrawable(f"a map needs {MIN_MAPPED} recordings that differ, there are {distinct}")
    embeddings = embeddings - embeddings.mean(axis=0)
    reduced = PCA(min(50, *embeddings.shape), random_state=seed).fit_transform(embeddings)
    perplexity = min(30, (len(reduced) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(reduced)
    counts = targets.sum(axis=0)
    shown = [index for index in np.argsort(-counts, kind="stable")[:12] if counts[index]]
    figure, axes = _panels(max(len(shown), 1), size=2.3, columns=4, title="Map of recordings (t-SNE), by finding")
    for axis, index in zip(axes, shown, strict=False):
        has = targets[:, index].astype(bool)
        size = np.clip(3000 / len(points), 1, 9)
        axis.scatter(*points[~has].T, s=size, color=LIGHT, lw=0)
        axis.scatter(*points[has].T, s=1.6 * size, color=ORANGE, lw=0)
        axis.set_title(f"{_wrapped(classes[index], 26)} ({counts[index]})", fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _caption(
        figure,
        [("with the finding", ORANGE), ("without", LIGHT)],
        "in brackets: positives; distances mean little",
        dots=True,
    )
    return figure


def robustness(conditions: Sequence) -> Figure:
    """Draws the macro AUROC with its interval in each condition, a panel per kind; the band is the clean one.

    Each condition has `kind`, `name` and `models`: of each model `value`, `low` and `high`; the one of kind "clean" is
    the band.
    """
    clean = next(row for row in conditions if row.kind == "clean")
    kinds = [kind for kind in dict.fromkeys(row.kind for row in conditions) if kind != "clean"]
    by_kind = {kind: [row for row in conditions if row.kind == kind] for kind in kinds}
    names = list(clean.models)
    band = clean.models[names[0]]
    colours = dict(zip(names, cycle((ORANGE, *MODEL_COLOURS[3:])), strict=False))
    widths = [len(rows) + 0.6 for rows in by_kind.values()]
    figure = Figure(figsize=((0.54 + 0.08 * len(names)) * sum(widths) + 1.6, 4.2), layout="constrained")
    below = 0.08 if len(names) > 1 else 0
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    axes = figure.subplots(1, len(kinds), sharey=True, width_ratios=widths, squeeze=False).ravel()
    for axis, (kind, rows) in zip(axes, by_kind.items(), strict=True):
        axis.axhspan(band["low"], band["high"], color=BLUE, alpha=0.12, lw=0)
        axis.axhline(band["value"], color=BLUE, lw=1)
        axis.axhline(0.5, color=LIGHT, lw=1)
        line = "o-" if kind in ("leads", "rate", "duration") else "o"
        for number, (name, colour) in enumerate(colours.items()):
            values = np.array([[row.models[name][key] for key in ("value", "low", "high")] for row in rows])
            places = np.arange(len(rows)) + 0.16 * (number - (len(names) - 1) / 2)
            bounds = np.abs(values[:, 1:] - values[:, :1]).T
            axis.errorbar(places, values[:, 0], yerr=bounds, fmt=line, color=colour, ms=4, lw=1, capsize=2)
        axis.set_xticks(range(len(rows)), [row.name for row in rows], rotation=40, ha="right")
        axis.tick_params(labelsize=7)
        axis.set_xlim(-0.5, len(rows) - 0.5)
        axis.set_title(kind, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("zero-shot macro AUROC")
    figure.suptitle("Robustness (blue: as recorded, with its 95% interval; grey: chance)", fontsize=10)
    if len(names) > 1:
        _caption(figure, list(colours.items()))
    return figure


def faithfulness(shares: Sequence[float], curves: Mapping[str, Mapping[str, Mapping]]) -> Figure:
    """Draws deletion and insertion curves by attribution, a row of two panels per source of recordings.

    Args:
        shares: of the time, removed or all that is left.
        curves: source -> attribution -> `deletion`, `insertion` (shares,), and `score`, `blank`, their ends.
    """
    figure = Figure(figsize=(8.0, 3.2 * len(curves) + 0.5), layout="constrained")
    panels = figure.subplots(len(curves), 2, sharey="row", squeeze=False)
    colours = ("#0072b2", "#56b4e9", "#e69f00", "#f0a0c0", "#d55e00", "#009e73", "#7a3b9a", GREY)  # Okabe and Ito
    names = list(next(iter(curves.values())))
    for (left, right), (source, by_method) in zip(panels, curves.items(), strict=True):
        for (name, curve), colour in zip(by_method.items(), cycle(colours), strict=False):
            style = {"color": colour, "lw": 1.5, "ls": "--" if name == "random" else "-"}
            ends = (curve["score"], curve["blank"])
            for axis, values, (first, last) in (
                (left, curve["deletion"], ends),
                (right, curve["insertion"], ends[::-1]),
            ):
                axis.plot([0, *shares, 1], [first, *values, last], **style)
        left.set(ylabel=f"mean score, {source}"[:40], xlabel="share of the time removed, strongest first")
        right.set(xlabel="share of the time left, the strongest")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_title("Deletion (lower is better)", fontsize=10)
    panels[0, 1].set_title("Insertion (higher is better)", fontsize=10)
    handles = [matplotlib.lines.Line2D([], [], color=colour, lw=1.5) for _, colour in zip(names, cycle(colours))]
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def subgroups(rows: Sequence[dict], comparison_models: Mapping[str, str] | None = None) -> Figure:
    """Draws the macro AUROC of each subgroup with its interval, and that of the rest; a panel per column.

    Args:
        rows: of `melp.evaluation.subgroups.subgroup_rows`; those without a figure are left out.
        comparison_models: the names of further models, and the columns that have their figures.

    Raises:
        NotDrawable: when no group has a figure.
    """
    shown, comparison_models = {}, comparison_models or {}
    for row in rows:
        if row["auroc"] is not None:
            shown.setdefault(row["column"], []).append(row)
    if not shown:
        raise NotDrawable("no subgroup has a class that can be measured in it and in the rest")
    counts = [len(part) for part in shown.values()]
    figure = Figure(figsize=(6.4, 0.36 * sum(counts) + 0.7 * len(counts) + 1.0), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, height_ratios=[n + 0.8 for n in counts], squeeze=False)
    for axis, (column, part) in zip(panels.ravel(), shown.items(), strict=True):
        places = np.arange(len(part))[::-1]
        value, low, high = (np.array([row[key] for row in part]) for key in ("auroc", "auroc_low", "auroc_high"))
        axis.errorbar(value, places, xerr=np.abs([value - low, high - value]), fmt="o", color=BLUE, ms=5, capsize=2)
        axis.plot([row["auroc_rest"] for row in part], places, "|", color=GREY, ms=12, mew=1.8)
        for key, colour in zip(comparison_models.values(), cycle(MODEL_COLOURS[2:]), strict=False):
            axis.plot([row[key] for row in part], places, "s", color=colour, ms=4)
        labels = [f"{row['group']} ({row['records']:,})" + " *" * row["difference"]["holds"] for row in part]
        axis.set_yticks(places, labels, fontsize=8)
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_title(column, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("macro AUROC; * the difference from the rest holds")
    entries = [
        ("model", BLUE),
        ("the rest, model", GREY),
        *zip(comparison_models, cycle(MODEL_COLOURS[2:]), strict=False),
    ]
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, marker="o" if colour != GREY else "|", lw=0)
        for _, colour in entries
    ]
    figure.legend(
        handles, [name for name, _ in entries], loc="outside upper center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def performance_profile(scores: dict[str, dict[str, float]], what: str = "AUROC") -> Figure:
    """Draws the share of figures in which a model falls short of the best model by at most so much.

    Args:
        scores: model -> unit -> figure, larger being better; the units that all models have count.
        what: the name of the figure.
    """
    tasks = set.intersection(*(set(figures) for figures in scores.values()))
    if not tasks:
        raise NotDrawable("the models have no figure in common")
    best = {task: max(figures[task] for figures in scores.values()) for task in tasks}
    short = {name: np.sort([best[task] - figures[task] for task in tasks]) for name, figures in scores.items()}
    limit = 1.1 * max(values.max() for values in short.values()) or 0.1
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(short.items(), cycle(MODEL_COLOURS), strict=False):
        shares = np.arange(1, len(values) + 1) / len(values)
        x, y = np.concatenate([[0], values, [limit]]), np.concatenate([[0], shares, [1]])
        axis.step(x, y, where="post", color=colour, lw=1.8, label=name)
    axis.set(xlabel=f"{what} short of the best model", ylabel="share of figures", xlim=(0, limit), ylim=(0, 1.03))
    axis.set_title(f"Performance profile over {len(tasks)} figures (up and left is better)", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
