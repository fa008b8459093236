"""Rates of the model: encoding, training, drafting, and the beat loss alone."""

import functools
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from configuration_melp import MelpConfig
from losses_melp import beat_loss
from melp.benchmark.case import new_case
from melp.models import read_config
from melp.training.cpu_kernels import use_cpu_kernels
from melp.training.device import count_flops, matrix_peak, peak_memory, seconds_per_call
from modeling_melp import MelpModel

REPORT_TOKENS = (20, 41)  # reports of the usual length, about 30 tokens with [BOS] and [SEP]
SENTENCE_TOKENS = 8
DRAFT_TOKENS = 32
BEATS, SENTENCES, DIM = 13, 4, 256  # of the beat loss; the original's class has 13 beats


def random_batch(config: MelpConfig, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Returns ECGs and reports of `REPORT_TOKENS` tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*REPORT_TOKENS, (batch_size,), generator=generator)
    width = int(lengths.max())
    position = torch.arange(width).expand(batch_size, -1)
    ids = torch.randint(5, config.text_config.vocab_size - 1, (batch_size, width), generator=generator)
    ids[:, 0] = config.bos_token_id
    mask = position < lengths[:, None]
    ids = ids.masked_fill(position == lengths[:, None] - 1, config.eos_token_id).masked_fill(
        ~mask, config.pad_token_id
    )
    words = (position > 0) & (position < lengths[:, None] - 1)
    batch = {
        "input_values": torch.rand(batch_size, config.ecg_config.num_leads, 5000, generator=generator),
        "input_ids": ids,
        "attention_mask": mask.long(),
        "sentence_ids": ((position - 1) // SENTENCE_TOKENS).masked_fill(~words, -1),
    }
    return {name: value.to(device) for name, value in batch.items()}


def encode_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Encodes ECGs as `evaluate.py` and users do: weights in `dtype`, no gradient."""
    model = model.eval().to(dtype)
    ecg = batch["input_values"].to(dtype)

    def call():
        with torch.no_grad():  # not inference_mode, which torch's FLOP counter cannot follow
            model.ecg_model(ecg)

    return call


def train_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Computes three losses and their gradients as `train.py` does: float32 weights, autocast below float32."""
    model.train()
    model.freeze_text_layers()
    device_type = batch["input_values"].device.type
    if device_type == "cpu":
        use_cpu_kernels(model)

    def call():
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return call


def generate_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Drafts `DRAFT_TOKENS` tokens: greedy, with the cache."""
    model = model.eval().to(dtype)
    ecg = batch["input_values"].to(dtype)

    def call():
        model.generate(ecg, max_new_tokens=DRAFT_TOKENS, min_new_tokens=DRAFT_TOKENS, do_sample=False)

    return call


CASES = {"encode": encode_case, "train": train_case, "generate": generate_case}


def read_model_config(options) -> MelpConfig:
    """Returns the configuration of `--config`; the defaults are the paper's size."""
    return read_config(options.config) if options.config else MelpConfig()


def measure_model(task: str, dtype_name: str, options) -> list[dict]:
    device = torch.device(options.device)
    dtype = getattr(torch, dtype_name)
    model = MelpModel(read_model_config(options)).to(device)
    batch = random_batch(model.config, options.batch_size, device)
    call = CASES[task](model, batch, dtype)
    # The FLOPs of a draft, whose tokens come one by one, say nothing: it waits for memory.
    flops = None if task == "generate" else count_flops(model, call)
    if options.compile:
        model.ecg_model.compile()
    seconds = seconds_per_call(call, device, options.seconds)
    others = {"compiled": options.compile}
    if flops:
        peak = matrix_peak(device, dtype, options.seconds / 5)
        others |= {
            "tflops": flops / seconds / 1e12,
            "peak_tflops": peak / 1e12,
            "share_of_peak": flops / seconds / peak,
        }
    return [new_case(task, device, dtype_name, options.batch_size, options.batch_size / seconds, **others)]


# ---------------------------------------------------------------------------------------------------------- beat loss


def looped_beat_loss(beat_embeds: torch.Tensor, sentence_embeds: torch.Tensor, sentence_mask: torch.Tensor):
    """Computes the beat loss one report after the other, as the original does."""
    columns = []
    for sentences, mask in zip(sentence_embeds, sentence_mask, strict=True):
        sentences = sentences[mask].expand(len(beat_embeds), -1, -1)  # (ecgs, sentences, dim)
        attention = (beat_embeds @ sentences.transpose(1, 2)).softmax(dim=-1)  # (ecgs, beats, sentences)
        context = (4.0 * attention).softmax(dim=1).transpose(1, 2) @ beat_embeds
        columns.append(10.0 * (5.0 * F.cosine_similarity(sentences, context, dim=-1)).logsumexp(dim=-1))
    logits = torch.stack(columns, dim=1)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2


def measure_local_loss(way: str, batch_size: int, options) -> list[dict]:
    device = torch.device(options.device)
    beats = torch.randn(batch_size, BEATS, DIM, device=device, requires_grad=True)
    sentences = torch.randn(batch_size, SENTENCES, DIM, device=device, requires_grad=True)
    mask = torch.ones(batch_size, SENTENCES, dtype=torch.bool, device=device)
    loss = {"melp": beat_loss, "loop": looped_beat_loss}[way]
    before = peak_memory(device)
    seconds = seconds_per_call(lambda: loss(beats, sentences, mask).backward(), device, options.seconds)
    others = {"way": way, "milliseconds": 1e3 * seconds, "own_memory_gb": peak_memory(device) - before}
    return [new_case("local-loss", device, "float32", batch_size, batch_size / seconds, **others)]


# --------------------------------------------------------------------------------------------------------------- ONNX


def measure_onnx(options) -> list[dict]:
    """Measures the ECG tower by PyTorch and by onnxruntime, in float32 and with 8-bit weights, in one process."""
    from melp.export.onnx import ECG_FILE, EcgTower, check_packages, open_session, quantise, write_onnx

    check_packages()
    device = torch.device("cpu")
    model = MelpModel(read_model_config(options)).eval()
    ecg = random_batch(model.config, options.batch_size, device)["input_values"]
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(EcgTower(model), {"input_values": ecg.repeat(2, 1, 1)}, Path(folder) / ECG_FILE)
        files = {"float32": path, "int8": quantise(path)}
        sessions = {name: open_session(path, torch.get_num_threads()) for name, path in files.items()}
        megabytes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    feed = {"input_values": ecg.numpy()}
    calls = {"PyTorch, float32": encode_case(model, {"input_values": ecg}, torch.float32)}
    calls |= {f"ONNX, {name}": functools.partial(session.run, None, feed) for name, session in sessions.items()}
    weights = sum(parameter.numel() for parameter in model.ecg_model.parameters()) * 4 / 1e6
    cases = []
    for way, call in calls.items():
        seconds = seconds_per_call(call, device, options.seconds / len(calls))
        dtype_name = way.split(", ")[1]
        size = weights if way.startswith("PyTorch") else megabytes[dtype_name]
        others = {"way": way, "megabytes": size}
        cases.append(
            new_case("encode", device, dtype_name, options.batch_size, options.batch_size / seconds, **others)
        )
        cases[-1]["times_pytorch"] = cases[-1]["per_second"] / cases[0]["per_second"]
    return cases
