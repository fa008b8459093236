"""The towers as ONNX: written by torch's exporter, quantised by onnxruntime, compared with PyTorch."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from melp.files import explaining_full_disk, replacing_folder
from melp.markdown import table
from melp.models import load_model, load_processor
from modeling_melp import MelpModel

ECG_FILE, TEXT_FILE = "ecg_model.onnx", "text_model.onnx"
SIMULATED = 16  # recordings, where none are named
TEXTS = (
    "sinus rhythm. normal ecg.",
    "atrial fibrillation with rapid ventricular response.",
    "sinus bradycardia. first degree av block. left axis deviation.",
    "acute inferior myocardial infarction.",
    "complete right bundle branch block.",
    "left ventricular hypertrophy with repolarisation abnormality.",
)


class EcgTower(torch.nn.Module):
    """`input_values` (batch, leads, samples) to what texts are compared with, and to the features of probes."""

    outputs = ("ecg_embeds", "probe_embeds")

    def __init__(self, model):
        super().__init__()
        self.tower = getattr(model, "ecg_model", model)

    def forward(self, input_values: torch.Tensor):
        outputs = self.tower(input_values)
        return F.normalize(outputs.rhythm_embeds, dim=-1), outputs.probe_embeds


class TextTower(torch.nn.Module):
    """`input_ids` and `attention_mask` (batch, tokens) to the embedding that recordings are compared with."""

    outputs = ("text_embeds",)

    def __init__(self, model: MelpModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        return (self.model.get_text_features(input_ids, attention_mask).pooler_output,)


def export(
    model: str,
    output: Path,
    int8: bool = False,
    recordings: list[str] | None = None,
    data: str | None = None,
    split: str = "test",
    limit: int = 64,
) -> Iterator[str]:
    """Writes the files and compares them with PyTorch; gives the lines to print.

    Raises:
        ValueError: where a package is missing, the output is taken, or as loading the model or recordings does.
    """
    check_packages()
    output = Path(output)
    if output.exists() and any(path.suffix not in (".onnx", ".data") for path in output.iterdir()):
        raise ValueError(f"{output} holds other files: give another --output.")
    source, processor = load_model(model).eval(), load_processor(model)
    inputs, about = compared_recordings(processor, recordings, data, split, limit)
    rows = []
    with explaining_full_disk(output), replacing_folder(output) as folder:
        jobs = [(ECG_FILE, EcgTower(source), {"input_values": inputs})]
        if isinstance(source, MelpModel):
            texts = processor(text=list(TEXTS), return_tensors="pt")
            jobs.append(
                (TEXT_FILE, TextTower(source), {name: texts[name] for name in ("input_ids", "attention_mask")})
            )
        for name, tower, batch in jobs:
            path = write_onnx(tower, batch, folder / name)
            rows.append([path.name, *compare(tower, batch, path)])
            if int8:
                path = quantise(path)
                rows.append([path.name, *compare(tower, batch, path)])
    yield f"Compared with PyTorch on {about}{' and ' + str(len(TEXTS)) + ' texts' if len(jobs) > 1 else ''}:"
    yield ""
    header = ["file", "MB", "largest difference", "rank correlation of similarities"]
    yield table(header, [[name, f"{size:.1f}", f"{worst:.2g}", f"{rank:.5f}"] for name, size, worst, rank in rows])
    yield f"\nWritten to {output}."


def check_packages(*more: str):
    """Raises ValueError where a package is missing that writes or runs ONNX."""
    for package in ("onnx", "onnxscript", "onnxruntime", *more):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install 'melp[onnx]'.")


def compared_recordings(processor, recordings, data, split: str, limit: int) -> tuple[torch.Tensor, str]:
    """Returns `input_values` (recordings, leads, samples) to compare on, and where they come from."""
    extractor = getattr(processor, "feature_extractor", processor)
    if recordings:
        inputs = torch.cat([extractor(path, return_tensors="pt")["input_values"] for path in recordings])
        return inputs, f"{len(inputs)} recordings"
    if data is None:
        from melp.synthetic import corpus

        drawn = [corpus.read(item) for item in corpus.plan(records=SIMULATED).to_pylist()]
        inputs = [
            extractor(
                (record.signal - np.reshape(record.baseline, (-1, 1))) / np.reshape(record.gain, (-1, 1)),
                sampling_rate=record.sampling_rate,
                leads=list(record.leads),
                return_tensors="pt",
            )["input_values"]
            for record in drawn
        ]
        return torch.cat(inputs), f"{len(inputs)} simulated recordings"
    from melp.data.batches import MelpCollator, prepare_inputs
    from melp.data.prepared import get_split, load_prepared

    rows = get_split(load_prepared(data), split, data)
    batch = MelpCollator(extractor, text=False)(rows.__getitems__(range(min(limit, len(rows)))))
    inputs = prepare_inputs(batch, "cpu", extractor.scaling)["input_values"]
    return inputs, f"{len(inputs)} recordings of {data}"


def write_onnx(tower: torch.nn.Module, batch: dict[str, torch.Tensor], path: Path) -> Path:
    """Exports a tower; all axes but those of leads and samples are free."""
    free = torch.export.Dim.DYNAMIC  # an axis that turns out to be fixed is an error
    axes = {name: {0: free} if name == "input_values" else {0: free, 1: free} for name in batch}
    example = {name: value[:2] for name, value in batch.items()}
    model = getattr(tower, "model", None) or tower.tower
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # of plain matrix products, which every runtime has, and int8 takes
    try:
        with warnings.catch_warnings(), _errors_only("onnxscript"), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower.eval(),
                (),
                path,
                kwargs=example,
                dynamo=True,
                external_data=False,
                input_names=list(batch),
                output_names=list(tower.outputs),
                dynamic_shapes=axes,
                verbose=False,
            )
    finally:
        model.set_attn_implementation(attention)
    return path


def quantise(path: Path) -> Path:
    """Writes a file again with the weights of its matrix products in 8 bits, a scale per column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes that the exporter of torch 2.9 has noted of weights that it then turned
    target = path.with_name(path.stem + "_int8.onnx")
    with _errors_only():  # it recommends a preparation that torch's exporter has done
        quantize_dynamic(
            model, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )
    return target


@contextlib.contextmanager
def _errors_only(name: str | None = None):
    """Lets a library say nothing but errors for as long as it works, and what comes after it say all."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def open_session(path: Path, threads: int = 0):
    """Opens a file on the CPU; 0 threads: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(tower: torch.nn.Module, batch: dict[str, torch.Tensor], path: Path) -> tuple[float, float, float]:
    """Returns a file's MB, its largest difference from PyTorch, and the rank correlation of similarities."""
    from scipy.stats import spearmanr

    session = open_session(path)
    names = {value.name for value in session.get_inputs()}
    feed = {name: value.numpy() for name, value in batch.items() if name in names}
    with torch.no_grad():
        expected = [value.numpy() for value in tower(**batch)]
    outputs = session.run(list(tower.outputs), feed)
    worst = max(float(np.abs(one - other).max()) for one, other in zip(outputs, expected, strict=True))
    pairs = np.triu_indices(len(expected[0]), k=1)
    ranks = spearmanr(*((embeds @ embeds.T)[pairs] for embeds in (outputs[0], expected[0]))).statistic
    return path.stat().st_size / 1e6, worst, float(ranks) if np.isfinite(ranks) else 1.0
