"""Recordings, real and simulated, that the simulator is fitted to and compared on."""

import numpy as np

from melp.synthetic import corpus
from melp.synthetic.heart import SAMPLES


def real_signals(folder: str, split: str, normal: bool, limit: int):
    """Yields (12, 5000) mV recordings of a prepared folder, spread over the split; `normal`: labelled NORM alone."""
    from melp.data.batches import decode
    from melp.data.prepared import get_split, label_sets, load_prepared

    rows = get_split(load_prepared(folder), split, folder)
    if normal:
        classes = label_sets(rows).get("superclass")
        if classes is None:
            raise ValueError(f"{folder} has no label set superclass: --label normal needs PTB-XL, or use --label all.")
        wanted = [classes.index("NORM")]
        rows = rows.select([index for index, labels in enumerate(rows["superclass"]) if labels == wanted])
    step = max(len(rows) // limit, 1)
    for index in range(0, len(rows), step):
        signal = np.zeros((12, SAMPLES), np.float32)
        if decode(rows[index], signal).all():
            yield signal


def simulated_signals(seed: int, normal: bool, limit: int):
    """Yields (12, 5000) mV simulated recordings; `normal`: with the finding "normal ecg"."""
    count = 0
    for item in corpus.plan(records=20 * limit, seed=seed, variety="full").to_pylist():
        signal, _, record = corpus.simulated(item)
        if not normal or "normal ecg" in record.labels["findings"]:
            yield signal
            count += 1
        if count == limit:
            return
