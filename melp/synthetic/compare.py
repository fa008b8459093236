"""Compares simulated with real recordings, lead by lead: quantiles, noise by frequency, and a picture.

    python -m melp.prepare ptbxl --root RAW --output data/ptbxl
    python -m melp.synthetic.compare data/ptbxl --label normal --picture simulated.png

Real recordings are a prepared folder's training split (PTB-XL: folds 1 to 8, whose statistics shaped the simulator).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from melp.data.signals import real_signals, simulated_signals
from melp.files import write_atomically
from melp.sources import parse_source
from melp.synthetic.heart import LEADS
from melp.synthetic.measure import BANDS, BEFORE, measurements, noise_bands

QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
_WAVES = ("R", "Q", "S", "ST", "T", "P+", "P-")


def measured(signals, name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns `{measurement: values}`, averaged beats (n, 12, 500) and noise (n, 12, bands)."""
    rows, beats, noise = [], [], []
    for signal in tqdm(signals, desc=name, unit=" records"):
        result = measurements(signal.astype(float))
        if result is not None:
            rows.append(result[0])
            beats.append(result[1])
            noise.append(noise_bands(signal))
    if not rows:
        raise ValueError(f"no {name} recording has three beats that can be averaged")
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}, np.stack(beats), np.stack(noise)


def quantile_table(real: dict[str, np.ndarray], simulated: dict[str, np.ndarray], names: list[str]) -> str:
    """Returns lines of both kinds' quantiles."""
    lines = []
    for name in names:
        cells = [
            " ".join(f"{value:8.2f}" for value in np.quantile(values[name], QUANTILES)) for values in (real, simulated)
        ]
        lines.append(f"{name:14s} | {cells[0]} | {cells[1]}")
    return "\n".join(lines)


def delineated(folder_signals, limit: int) -> dict[str, np.ndarray]:
    """Returns PR, QRS and QT in ms by NeuroKit2's wavelet delineator in lead II, medians of each recording."""
    import neurokit2

    from melp.synthetic.heart import SAMPLING_RATE as rate

    intervals: dict[str, list[float]] = {"PR": [], "QRS": [], "QT": []}
    for count, signal in enumerate(folder_signals):
        if count == limit:
            break
        lead = neurokit2.ecg_clean(signal[1].astype(float), sampling_rate=rate)
        try:
            _, peaks = neurokit2.ecg_peaks(lead, sampling_rate=rate)
            _, waves = neurokit2.ecg_delineate(lead, peaks, sampling_rate=rate, method="dwt")
        except (ValueError, IndexError, ZeroDivisionError):  # too few beats for the delineator
            continue
        p, r_on, r_off, t = (
            np.array(waves[f"ECG_{key}"], float) for key in ("P_Onsets", "R_Onsets", "R_Offsets", "T_Offsets")
        )
        for name, values in (("PR", r_on - p), ("QRS", r_off - r_on), ("QT", t - r_on)):
            if np.isfinite(values).any():
                intervals[name].append(1000 * float(np.nanmedian(values)) / rate)
    return {name: np.array(values) for name, values in intervals.items()}


def picture(real: np.ndarray, simulated: np.ndarray, path: Path) -> None:
    """Draws the averaged beats' quantiles by lead, and a few single ones, real above simulated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = 2 * (np.arange(real.shape[2]) - BEFORE)
    figure, axes = pyplot.subplots(4, 12, figsize=(30, 11), sharex=True, sharey="col")
    for row, (name, beats) in enumerate((("real", real), ("simulated", simulated))):
        bands = np.quantile(beats, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        for lead in range(12):
            spread, single = axes[row, lead], axes[2 + row, lead]
            spread.fill_between(times, bands[0, lead], bands[4, lead], alpha=0.2)
            spread.fill_between(times, bands[1, lead], bands[3, lead], alpha=0.3)
            spread.plot(times, bands[2, lead], linewidth=1)
            spread.set_title(f"{name} {LEADS[lead]}", fontsize=9)
            single.plot(times, beats[:: max(len(beats) // 8, 1), lead].T, linewidth=0.6)
            single.set_title(f"{name} {LEADS[lead]}, single", fontsize=9)
    figure.supxlabel("ms from the R peak")
    figure.supylabel("mV")
    figure.tight_layout()
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=60, format=path.suffix[1:] or "png"))
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m melp.synthetic.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="prepared folder of real recordings")
    parser.add_argument("--split", default="train", help="of the folder")
    parser.add_argument("--label", choices=("all", "normal"), default="all", help="which recordings are compared")
    parser.add_argument("--records", type=int, default=600, help="recordings of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated patients")
    parser.add_argument("--delineate", type=int, default=0, help="recordings for NeuroKit2's intervals (slow)")
    parser.add_argument("--picture", help="PNG file to write")
    options = parser.parse_args(arguments)
    if options.records < 1:
        parser.error(f"--records must be 1 or more, not {options.records}")
    normal = options.label == "normal"
    try:
        parse_source(options.data)
        real, real_beats, real_noise = measured(
            real_signals(options.data, options.split, normal, options.records), "real"
        )
        simulated, beats, noise = measured(simulated_signals(options.seed, normal, options.records), "simulated")
    except (ValueError, OSError) as error:
        sys.exit(f"melp.synthetic.compare: {error}")
    header = " ".join(f"{f'{100 * q:.0f}%':>8s}" for q in QUANTILES)
    print(f"{len(real_beats):,} real, {len(beats):,} simulated recordings ({options.label})\n")
    print(f"{'':14s} | {f'real {header}':>44s} | {header}   simulated")
    print(quantile_table(real, simulated, [name for name in real if name.split()[-1] not in LEADS]))
    for wave in _WAVES:
        print(f"\n{wave}, mV")
        print(quantile_table(real, simulated, [f"{wave} {lead}" for lead in LEADS]))
    print("\nroot mean square by frequency, microvolts: 10%, 50%, 90% real | simulated")
    for row in (LEADS.index(lead) for lead in ("II", "V1", "V4")):
        for column, (low, high) in enumerate(BANDS):
            cells = [
                " ".join(f"{value:7.1f}" for value in np.quantile(values[:, row, column], (0.1, 0.5, 0.9)))
                for values in (real_noise, noise)
            ]
            print(f"{LEADS[row]:3s} {low:5.1f} to {high:5.1f} Hz | {cells[0]} | {cells[1]}")
    if options.delineate:
        print(f"\nNeuroKit2, lead II, ms: {header} real | simulated")
        kinds = [
            delineated(real_signals(options.data, options.split, normal, options.delineate), options.delineate),
            delineated(simulated_signals(options.seed, normal, options.delineate), options.delineate),
        ]
        print(quantile_table(*kinds, ["PR", "QRS", "QT"]))
    if options.picture:
        picture(real_beats, beats, Path(options.picture))
        print(f"\n{options.picture}: averaged beats, real and simulated")


if __name__ == "__main__":
    main()
