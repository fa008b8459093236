"""Rates of predict.py on files, beside encoding alone, and of melp.search."""

import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from melp.benchmark.case import new_case
from melp.benchmark.model import read_model_config
from melp.predict.predictor import Predictor
from melp.predict.reading import Reading, Recordings, read_all
from modeling_melp import MelpEcgModel
from processing_melp import MelpFeatureExtractor
from signal_melp import LEADS

FILES = 64  # different ones; the list repeats them


def measure_predict(options) -> list[dict]:
    """Encodes prepared arrays, and predicts as many WFDB files from a warm cache, in turns; the median of each."""
    import wfdb

    device, random = torch.device(options.device), np.random.default_rng(0)
    config = read_model_config(options).ecg_config
    with tempfile.TemporaryDirectory() as folder:
        MelpEcgModel(config).save_pretrained(folder)
        MelpFeatureExtractor.for_model(config).save_pretrained(folder)
        predictor = Predictor(folder, device, embeddings=True, batch_size=options.batch_size)
        for number in range(FILES):
            signal = random.standard_normal((5000, 12)).cumsum(0) / 50
            units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
            wfdb.wrsamp(f"r{number:03d}", p_signal=signal, write_dir=folder, **units)
        paths = [str(path) for path in sorted(Path(folder).glob("*.hea"))]
        rates = _rates(predictor, paths, options)
    dtype, medians = str(predictor.model.dtype).removeprefix("torch."), [float(np.median(way)) for way in rates]
    cases = []
    for way, rate in zip(("encode arrays", "predict.py on WFDB files"), medians, strict=True):
        others = {"way": way, "times_encode": rate / medians[0]}
        cases.append(new_case("predict", device, dtype, options.batch_size, rate, **others))
    return cases


def _rates(predictor: Predictor, paths: list[str], options) -> tuple[list[float], list[float]]:
    """Measures recordings per second of both ways, once per turn."""
    ecg = torch.rand(options.batch_size, 12, 5000, device=predictor.model.device, dtype=predictor.model.dtype)

    @torch.inference_mode()
    def encode():
        for _ in range(batches):
            predictor.model(ecg)[0].flatten()[0].item()  # waits for a GPU

    batches = 1
    encode()  # warms up
    started = time.perf_counter()
    encode()
    # A turn takes a quarter of the time, so that there are two of each at least.
    batches = max(2, round(options.seconds / 4 / (time.perf_counter() - started)))
    count = batches * options.batch_size
    listed = pa.chunked_array([pa.array((paths * (count // len(paths) + 2))[: count + options.batch_size])])
    recordings = Recordings(listed, predictor.extractor, Reading(), keep_block=False)
    rates, until = ([], []), time.perf_counter() + options.seconds
    while len(rates[1]) < 2 or time.perf_counter() < until:
        started = time.perf_counter()
        encode()
        rates[0].append(count / (time.perf_counter() - started))
        rows = predictor.predict(read_all(recordings, range(len(listed)), num_workers=1))
        list(islice(rows, options.batch_size))  # a long run starts its worker once
        started = time.perf_counter()
        list(islice(rows, count))
        rates[1].append(count / (time.perf_counter() - started))
    return rates


def measure_search(options) -> list[dict]:
    """Searches a million embeddings for the ten nearest patients: exactly, and by faiss where it is installed."""
    from melp.search.index import Index

    random, rows = np.random.default_rng(0), 1_000_000
    embeddings = random.standard_normal((rows, 256), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = pa.array([str(number) for number in range(rows)])
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), 256)
    index, cases = Index(pa.table({"embedding": values, "path": names, "patient": names})), []
    for way in ("exact", "faiss"):
        if way == "faiss":
            try:
                index.use_faiss()
            except ImportError:
                break
        seconds = []
        for query in embeddings[:5].copy():
            started = time.perf_counter()
            index.hits(query, 10)
            seconds.append(time.perf_counter() - started)
        others = {"way": way, "search_seconds": float(np.median(seconds)), "embeddings": rows}
        cases.append(new_case("search", torch.device("cpu"), "float32", 1, 1 / np.median(seconds), **others))
    return cases
