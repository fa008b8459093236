"""A recording on ECG paper with its report, the drafted one, and where the model looked for each sentence."""

import numpy as np
from matplotlib.figure import Figure

from processing_melp import LEADS

MM = 1 / 25.4  # inches
SPEED, GAIN = 25.0, 10.0  # mm/s, mm/mV
LEAD_SPACING = 15.0  # mm between two leads' baselines
LINE = 5.0  # mm per line of text
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:cyan", "tab:olive", "tab:pink")


def ecg_picture(
    signal: np.ndarray,
    present: np.ndarray,
    sampling_rate: float,
    title: str,
    sentences: list[str],
    draft: str,
    attention: np.ndarray,
) -> Figure:
    """Draws at 25 mm/s and 10 mm/mV, in true size when printed.

    Args:
        signal: (12, samples) millivolts, in the model's lead order; present: (12,) bool.
        sentences: of the report, each in a colour of its own.
        attention: (sentences, frames), rows that sum to 1: how much of each sentence's beats was read from a frame.
            It is where the beat queries attend in the encoder's output, whose frames have themselves seen the whole
            recording: it says where the model looked, not what decided.
    """
    seconds = signal.shape[1] / sampling_rate
    lines = len(sentences) + 1 + len(draft) // 110
    paper = LEAD_SPACING * (len(LEADS) + 1)
    width, height = seconds * SPEED + 30, paper + LINE * (2 * len(sentences) + lines + 4)
    figure = Figure(figsize=(width * MM, height * MM), dpi=100)
    axes = figure.add_axes([20 / width, 1 - (paper + 10) / height, seconds * SPEED / width, paper / height])
    _paper(axes, seconds, paper)
    time = np.arange(signal.shape[1]) / sampling_rate
    for row, lead in enumerate(LEADS):
        baseline = paper - LEAD_SPACING * (row + 1)
        label = lead if present[row] else f"{lead} (absent)"
        axes.text(-0.05, baseline, label, ha="right", va="center", fontsize=7)
        if present[row]:
            axes.plot(time, baseline + GAIN * (signal[row] - np.median(signal[row])), color="black", linewidth=0.6)
    axes.set_title(title, fontsize=9, loc="left")
    top = 1 - (paper + 14) / height
    for index, (sentence, weights) in enumerate(zip(sentences, attention, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        strip = figure.add_axes(
            [20 / width, top - 2 * LINE * (index + 0.5) / height, seconds * SPEED / width, LINE / height]
        )
        strip.fill_between(
            np.linspace(0, seconds, len(weights)), weights / max(weights.max(), 1e-12), color=colour, linewidth=0
        )
        strip.set(xlim=(0, seconds), ylim=(0, 1))
        strip.set_axis_off()
        strip.text(0, 1.15, sentence, color=colour, fontsize=8)
    text = f"Drafted: {draft}\nBands: frames that the beats behind each sentence of the report were read from."
    figure.text(20 / width, 4 / height, text, fontsize=8, va="bottom", wrap=True)
    return figure


def _paper(axes, seconds: float, height: float):
    """Draws millimetre squares, every fifth line darker."""
    for every, colour, width in ((1, "#f6d5d5", 0.25), (5, "#e58f8f", 0.5)):
        axes.vlines(np.arange(0, seconds + 1e-9, every / SPEED), 0, height, color=colour, linewidth=width)
        axes.hlines(np.arange(0, height + 1e-9, every), 0, seconds, color=colour, linewidth=width)
    axes.set(xlim=(0, seconds), ylim=(0, height), xticks=[], yticks=[])
