"""Fits `normal_beat.csv`: means and covariance of the normal beat's spline coefficients.

    python -m melp.prepare ptbxl --root RAW --output data/ptbxl
    python -m melp.synthetic.fit data/ptbxl --output normal_beat.csv

Of every recording labelled NORM alone in the training split, the averaged beat is written as splines over P, QRS and
ST-T (`heart.Beat`). Kept are the coefficients' mean, 24 principal components with their sizes, and the deviation of
what these leave: a Gaussian, from which no recording can be told.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from melp.data.signals import real_signals
from melp.files import write_atomically
from melp.sources import parse_source
from melp.synthetic.heart import EIGHT, KNOTS, LEADS, P_WINDOW, SAMPLING_RATE, splines
from melp.synthetic.measure import measurements, qrs_limits

COMPONENTS = 24
_WEIGHTS = {"qrs": 1.0, "stt": 3.0, "p": 6.0}  # of the small waves against QRS in the components


def coefficients(signal: np.ndarray) -> np.ndarray | None:
    """Returns (224,) spline coefficients in mV of a recording's averaged beat, None where it is not fit for it."""
    result = measurements(signal)
    if result is None:
        return None
    values, beat = result
    usual = 50 < values["QRS"] < 105 and values["RR variation"] < 0.12 and 300 < values["QT"] < 450
    if not usual or not 78 < values["P peak to QRS"] < 175:
        return None
    eight = beat[[LEADS.index(lead) for lead in EIGHT]]
    onset = qrs_limits(beat)[0]
    offset, t_end = onset + round(values["QRS"] / 2), onset + round(values["QT"] / 2) + 12
    middle, half = onset - round(values["P peak to QRS"] / 2), round(P_WINDOW * SAMPLING_RATE / 2)
    if t_end > beat.shape[1] - 5 or middle - half < 0:
        return None
    parts = [
        ("qrs", onset - 5, offset + 7, 0.05),
        ("stt", offset + 2, t_end + 1, 0.05),
        ("p", middle - half, middle + half + 1, 0.2),
    ]
    fitted = []
    for name, start, end, ridge in parts:
        basis = splines(KNOTS[name], end - start)
        stop = min(end, onset) if name == "p" else end  # P ends where QRS begins
        known, target = basis[:, : stop - start], eight[:, start:stop]
        size = len(basis)
        fitted.append(np.linalg.solve(known @ known.T + ridge**2 * np.eye(size), known @ target.T).T.ravel())
    return np.concatenate(fitted)


def gaussian(rows: np.ndarray) -> np.ndarray:
    """Returns mean, residual deviation and components of coefficients (n, 224), (2 + COMPONENTS, 224)."""
    weights = np.concatenate([np.full(8 * KNOTS[name], weight) for name, weight in _WEIGHTS.items()])
    weighted = rows * weights
    usual = (np.abs(weighted - weighted.mean(0)) < 6 * weighted.std(0)).all(1)
    mean, weighted = rows[usual].mean(0), weighted[usual]
    weighted = weighted - weighted.mean(0)
    scores, sizes, directions = np.linalg.svd(weighted, full_matrices=False)
    kept = slice(0, COMPONENTS)
    left = weighted - (scores[:, kept] * sizes[kept]) @ directions[kept]
    components = directions[kept] * sizes[kept, None] / np.sqrt(len(weighted))
    return np.vstack([mean, left.std(0) / weights, components / weights])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m melp.synthetic.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="prepared folder of PTB-XL")
    parser.add_argument("--split", default="train", help="of the folder; folds 1 to 8 for the table in use")
    parser.add_argument("--output", required=True, help="CSV file to write")
    options = parser.parse_args(arguments)
    try:
        parse_source(options.data)
        signals = tqdm(real_signals(options.data, options.split, True, 10**9), desc="fit", unit=" records")
        rows = [row for signal in signals if (row := coefficients(signal.astype(float))) is not None]
        if len(rows) < 10 * COMPONENTS:
            raise ValueError(f"{len(rows)} normal beats are too few: {10 * COMPONENTS} are needed.")
    except (ValueError, OSError) as error:
        sys.exit(f"melp.synthetic.fit: {error}")
    names = [f"{wave}{knot}_{lead}" for wave in _WEIGHTS for lead in EIGHT for knot in range(KNOTS[wave])]
    lines = [names, *([round(1000 * value) for value in row] for row in gaussian(np.stack(rows)))]
    write_atomically(Path(options.output), "".join(",".join(map(str, line)) + "\n" for line in lines))
    print(f"{options.output}: the Gaussian of {len(rows):,} normal beats, in microvolts")


if __name__ == "__main__":
    main()
