"""Turns recordings and reports into MELP's inputs: one rule in one place.

Top to bottom: scaling, `MelpFeatureExtractor` (recordings), sentences, `MelpProcessor` (recordings and reports). What
needs no torch (lead names, units, resampling, quality, files) is in `signal_melp.py`.

Bad input raises a ValueError that names the record, the reason and what to do; nothing is repaired unless asked for.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import cached_file

try:
    from .configuration_melp import MelpConfig, MelpEcgConfig, read_json
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from configuration_melp import MelpConfig, MelpEcgConfig, read_json

try:
    from .formats_melp import LongRecording, is_file, part_of_block, read_crop, read_ecg
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_melp import LongRecording, is_file, part_of_block, read_crop, read_ecg

try:
    from .signal_melp import (
        LEADS,
        LIMB_LEADS,
        MAX_MILLIVOLT,
        MAX_UNTOLD,
        PRINTED_COLUMNS,
        array_block,
        brief,
        canonical_leads,
        derive_limb_leads,
        ecg_quality,
        interpolate_gaps,
        plain_array,
        printed_mask,
        resample_ecg,
        rhythm_strips,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from signal_melp import (
        LEADS,
        LIMB_LEADS,
        MAX_MILLIVOLT,
        MAX_UNTOLD,
        PRINTED_COLUMNS,
        array_block,
        brief,
        canonical_leads,
        derive_limb_leads,
        ecg_quality,
        interpolate_gaps,
        plain_array,
        printed_mask,
        resample_ecg,
        rhythm_strips,
    )

CROPS = ("first", "center", "random")
PRINTED_SECONDS = 10.0  # of the four columns of a printed ECG
MAX_WINDOWS = 10_000  # of a record: 2.4 GB; a day's Holter by tens of seconds has 8,640
TOO_MANY_WINDOWS = (
    f"at most {MAX_WINDOWS:,} are made of a record; raise stride, pass a part of it (start=, seconds=), or use "
    "predict.py --stride, which takes any length, in pieces"
)

# ---------------------------------------------------------------------------------------------------------------------
# Scaling


def scale_minmax(input_values: torch.Tensor, lead_mask: torch.Tensor) -> torch.Tensor:
    """Scales each record to [0, 1] by one minimum and maximum over its present leads; absent leads become 0.

    Samples padded at 0 mV take part, as in the original (its CPSC2018 loader pads, then scales), so padding is not 0
    afterwards. The amplitude is lost: see `scale_millivolt`.

    Args:
        input_values: (batch, leads, samples), any device.
        lead_mask: (batch, leads) bool, True where a lead is present; or (batch, leads, samples), where leads are
            present for a part of the time.
    """
    absent = ~(lead_mask if lead_mask.ndim == 3 else lead_mask[:, :, None])
    low = input_values.masked_fill(absent, math.inf).amin((1, 2), keepdim=True)
    high = input_values.masked_fill(absent, -math.inf).amax((1, 2), keepdim=True)
    return (input_values - low).div_(high - low + 1e-8).masked_fill_(absent, 0.0)


def scale_millivolt(input_values: torch.Tensor, lead_mask: torch.Tensor) -> torch.Tensor:
    """Returns the signal in mV as it is (nothing is clipped); absent leads become 0. Shapes as in `scale_minmax`."""
    return input_values.masked_fill(~(lead_mask if lead_mask.ndim == 3 else lead_mask[:, :, None]), 0.0)


SCALINGS = {"minmax": scale_minmax, "millivolt": scale_millivolt}


def scale_ecg(input_values: torch.Tensor, lead_mask: torch.Tensor, scaling: str = "minmax") -> torch.Tensor:
    """Scales mV (batch, leads, samples) to what the encoder reads; `scaling` is a name in `SCALINGS`."""
    return _one_of("scaling", scaling, SCALINGS)(input_values, lead_mask)


def _one_of(option, value, choices):
    """Returns `choices[value]` (of a dict) or `value`; raises ValueError listing the choices."""
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, not {brief(value)}")
    return choices[value] if isinstance(choices, dict) else value


def _seconds(option, value, least: float = 0.0) -> float:
    """Returns a number of seconds above `least` and finite; raises ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{option} must be a number of seconds, not {brief(value)}")
    if not least <= value < 1e9:
        raise ValueError(f"{option} must be a number of seconds from {least:g} on, not {brief(value)}")
    return float(value)


def _safely(function, name, *arguments, **options):
    """Calls a function; whatever a strange object runs it into becomes a ValueError that names the record."""
    try:
        return function(*arguments, **options)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name}: cannot be used as an ECG: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Printed ECGs


def as_printed(block, layout: str, strips: Sequence[str]):
    """Returns a block of 10 s with NaN where a print has no trace.

    Args:
        block: of 10 s, or of one column's 2.5 s.
        layout, strips: "3x4+II", and the leads that it has for all 10 s (`rhythm_strips`).

    Raises:
        ValueError: naming the record, where it has neither one column's time nor that of all, or lacks a strip.
    """
    name, signal, seconds = block.names[0], block.signal, block.signal.shape[-1] / block.sampling_rate
    if lacking := [lead for lead in strips if lead not in block.leads]:
        raise ValueError(f"{name}: layout {layout!r} has a rhythm strip of {lacking[0]}, which the recording lacks")
    column = PRINTED_SECONDS / len(PRINTED_COLUMNS)
    if abs(seconds - column) <= 0.04 * column:
        if strips:
            raise ValueError(
                f"{name}: {seconds:g} s have no room for the rhythm strip of layout {layout!r}; pass layout='3x4', or "
                f"a dict in which {strips[0]} has {PRINTED_SECONDS:g} s"
            )
        signal = np.tile(signal, len(PRINTED_COLUMNS))  # of which the mask keeps each lead's place
    elif abs(seconds - PRINTED_SECONDS) > 0.04 * PRINTED_SECONDS:
        raise ValueError(
            f"{name}: has {seconds:g} s; layout {layout!r} needs {column:g} s, one column's time of each lead, or "
            f"{PRINTED_SECONDS:g} s: name a part of the recording by start= and seconds="
        )
    signal = np.where(printed_mask(block.leads, signal.shape[-1], strips), signal, np.float32(np.nan))
    return replace(block, signal=signal, done=[*block.done, f"read as a print ({layout})"])


# ---------------------------------------------------------------------------------------------------------------------
# Feature extractor


def crop_start(slack: int, crop: str) -> int:
    """Returns the first sample of a crop of a record that is `slack` samples too long; `crop` is one of `CROPS`."""
    if _one_of("crop", crop, CROPS) == "random":
        return int(torch.randint(slack + 1, ()))
    return slack // 2 if crop == "center" else 0


def stored_config(folder, **options) -> MelpConfig | MelpEcgConfig | None:
    """Returns the configuration that lies beside a processor's files in a folder or Hub repository; None without one.

    `options` may hold more than where to look (`revision`, `token`, `cache_dir`, ...).
    """
    if os.path.isfile(folder):
        return None
    path = _stored_file(folder, "config.json", options)
    values = read_json(Path(path)) if path else {}
    for config_class in (MelpConfig, MelpEcgConfig):
        if values.get("model_type") == config_class.model_type:
            return config_class.from_dict(values)
    return None


def _stored_file(folder, name: str, options: dict) -> str | None:
    """Returns the path of a file of a folder or Hub repository; None where it has none."""
    where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
    options = {name: options[name] for name in where if options.get(name) is not None}
    return cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False, **options)


def check_extractor(extractor: "MelpFeatureExtractor", config: MelpConfig | MelpEcgConfig, folder):
    """Raises ValueError where recordings would be prepared otherwise than for the model of `config`."""
    config = getattr(config, "ecg_config", config)
    pairs = {
        name: (getattr(extractor, name), getattr(config, name)) for name in ("sampling_rate", "duration", "scaling")
    }
    pairs["number of leads"] = (len(extractor.leads), config.num_leads)
    # A configuration has no names: a model reads its leads in the order of `LEADS`, and twelve are all of them.
    pairs["order of leads"] = (extractor.leads, [lead for lead in LEADS if lead in extractor.leads])
    _refuse_contradictions(pairs, folder)


def check_tokenizer(tokenizer, max_text_length: int, config: MelpConfig, folder):
    """Raises ValueError where reports would get other ids, or more of them, than the model of `config` reads."""
    pairs = {name: (getattr(tokenizer, name), getattr(config, name)) for name in _SPECIAL_IDS}
    if len(tokenizer) > config.text_config.vocab_size:
        pairs["vocabulary size"] = (len(tokenizer), config.text_config.vocab_size)
    if max_text_length not in range(config.max_text_length + 1):
        pairs["max_text_length"] = (max_text_length, config.max_text_length)
    _refuse_contradictions(pairs, folder)


_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "cls_token_id")


def _refuse_contradictions(pairs: dict, folder):
    for name, (stored, expected) in pairs.items():
        if stored != expected:
            raise ValueError(
                f"{folder}: the processor's {name} is {stored!r}, but its model has {expected!r}: it would "
                "not read what it was trained on. Take both files from the same model, or correct the wrong one."
            )


class MelpFeatureExtractor(FeatureExtractionMixin):
    """Recordings of any source, rate, unit and lead order to `input_values` (batch, 12, 5000) in the model's order.

    Args:
        sampling_rate: Hz of the model's input.
        duration: its length in seconds. A longer record is cropped (or cut into windows), a shorter one padded at its
            end with 0 mV before scaling.
        scaling: "minmax" (the paper's) or "millivolt"; see `scale_ecg`.
        leads: the rows of the model's input.
        derive_leads: compute absent limb leads when two others are there; without it they stay absent.
        crop: which part of a longer record: "first", "center" or "random" (torch's generator).
        min_duration: seconds below which a record is refused.
    """

    model_input_names = ["input_values", "lead_mask"]
    padding_value = 0.0  # transformers' pipelines ask for it to batch; here all recordings are equally long

    def __init__(
        self,
        sampling_rate: float = 500,
        duration: float = 10.0,
        scaling: str = "minmax",
        leads: Sequence[str] = LEADS,
        derive_leads: bool = True,
        crop: str = "first",
        min_duration: float = 2.0,
        **kwargs,
    ):
        unknown = set(kwargs) - {"feature_extractor_type", "auto_map", "processor_class"}  # what a saved file adds
        if unknown:
            raise TypeError(f"MelpFeatureExtractor has no option {', '.join(sorted(unknown))}")
        _one_of("scaling", scaling, SCALINGS)
        _one_of("crop", crop, CROPS)
        if list(leads) != canonical_leads(leads, "MelpFeatureExtractor"):
            raise ValueError(f"leads must be spelled as in {LEADS}, not {list(leads)}")
        self.sampling_rate = sampling_rate
        self.duration = duration
        self.scaling = scaling
        self.leads = list(leads)
        self.derive_leads = derive_leads
        self.crop = crop
        self.min_duration = min_duration
        kwargs.pop("feature_extractor_type", None)
        super().__init__(**kwargs)

    @classmethod
    def for_model(cls, ecg_config) -> "MelpFeatureExtractor":
        """Returns the extractor that makes what a model of this `MelpEcgConfig` reads."""
        return cls(sampling_rate=ecg_config.sampling_rate, duration=ecg_config.duration, scaling=ecg_config.scaling)

    @classmethod
    def get_feature_extractor_dict(cls, pretrained_model_name_or_path, **kwargs):
        # What is stored is checked here, before the caller's own options: every way of loading passes here.
        values, rest = super().get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)
        if (config := stored_config(pretrained_model_name_or_path, **kwargs)) is not None:
            try:
                extractor = cls(**values)
            except TypeError as error:
                raise ValueError(f"{pretrained_model_name_or_path}: {error}") from error
            check_extractor(extractor, config, pretrained_model_name_or_path)
        return values, rest

    @staticmethod
    def mean_of_windows(embeds: torch.Tensor, window_record: torch.Tensor) -> torch.Tensor:
        """Averages (windows, dim) embeddings of what `stride` cut over each record: (records, dim)."""
        window_record = torch.as_tensor(window_record, device=embeds.device)
        sums = embeds.new_zeros(int(window_record.max()) + 1, embeds.shape[1]).index_add(0, window_record, embeds)
        return sums / window_record.bincount()[:, None]

    def __call__(
        self,
        ecg,
        sampling_rate: float | None = None,
        leads: Sequence[str] | None = None,
        unit: str | None = None,
        crop: str | None = None,
        stride: float | None = None,
        nan_handling: str = "error",
        max_gap_s: float = 0.1,
        derive_leads: bool | None = None,
        quality: bool = False,
        record_names: Sequence[str] | None = None,
        return_tensors: str | None = None,
        start: float = 0.0,
        seconds: float | None = None,
        verify: bool = True,
        layout: str | None = None,
    ) -> BatchFeature:
        """Prepares one record or a batch.

        Args:
            ecg: a path of a file in any format of docs/formats.md (WFDB, DICOM, EDF, XML, ...), FILE#RECORD for
                one record of a stack, or the bytes of a file; an `EcgBlock` of `read_ecg`; a `wfdb.Record` or
                `wfdb.MultiRecord`; a numpy or torch array (leads, samples) or (samples, leads); a dict of lead name
                to samples; a list of any of these; or an array (batch, leads, samples), the fast way. Leads may be
                absent.
            sampling_rate: Hz, for arrays, dicts and files that do not state it; must agree with the header of a file.
            leads: names of the channels of an array, or of a file that does not name them, in its order. "aVR", "AVR",
                "Lead II", "DII", "MDC_ECG_LEAD_V1" are understood; channels known to be none of the twelve (Frank,
                MLII, V7, RESP, ...) are left out.
            unit: V, mV, uV, nV or a multiple of one ("2.5 uV"), for arrays and dicts (default mV, refused where a lead
                then ranges over more than 100 mV: such samples are in digital units) and for files that state no unit
                of voltage.
            crop, derive_leads: override the extractor's own.
            stride: seconds. Instead of cropping, cut each record into windows that start every `stride` seconds, the
                last one ending with the record (up to half a second may stay unused); at most 10,000 per record.
            nan_handling: "error"; "interpolate" for gaps of at most `max_gap_s` seconds; or "mask": what is NaN is
                absent, 0 after scaling, and a lead that is all NaN is an absent lead.
            quality: add `quality`, a dict for each record, of `ecg_quality` (of the part that is used), what was found
                (`record`, `sampling_rate`, `seconds`, `leads`), `derived_leads`, `masked_leads` (absent: rows of
                zeros), `ignored_leads`, and `done`, in words all that was done to the record.
            record_names: what errors and the quality report call the records; otherwise the path or the index.
            return_tensors: "pt", or "np" (as None).
            start, seconds: the part of each recording that is used; of a long file only that part is read.
            verify: refuse a file that contradicts its header's checksums and first samples; False accepts, and says so
                in `done`.
            layout: "3x4", of a printed ECG, in which I, II, III are there from 0 to 2.5 s, aVR, aVL, aVF to 5 s, V1 to
                V3 to 7.5 s, V4 to V6 to 10 s; "3x4+II" with a rhythm strip of II (or of other leads: "3x4+V1+II") for
                all 10 s. A recording of 2.5 s has one column's time of each lead; of one of 10 s only what a print
                shows is used; in a dict the columns' leads may have 2.5 s and the strips 10 s. The rest is absent.

        Returns:
            `input_values` (batch, leads, samples) float32, `lead_mask` (batch, leads) bool, False where a lead is
            absent throughout; with `stride` also
            `window_record` (batch,) int64, the index of the record that a window comes from (`mean_of_windows`).

        Raises:
            ValueError: naming the record, what is wrong with it and what to do.
        """
        _one_of("crop", crop, (None, *CROPS))
        _one_of("nan_handling", nan_handling, ("error", "interpolate", "mask"))
        strips = None if layout is None else rhythm_strips(layout)
        if strips is not None and nan_handling == "interpolate":
            raise ValueError("pass layout= or nan_handling='interpolate', not both: what a print lacks is absent")
        _one_of("return_tensors", return_tensors, (None, "pt", "np"))
        max_gap_s = _seconds("max_gap_s", max_gap_s)
        stride = None if stride is None else _seconds("stride", stride, least=1 / self.sampling_rate)
        if not isinstance(derive_leads, (bool, type(None))):
            raise ValueError(f"derive_leads must be True, False or None, not {brief(derive_leads)}")
        derive = self.derive_leads if derive_leads is None else derive_leads
        if stride is not None and crop is not None:
            raise ValueError("pass crop= or stride=, not both: windows cover the whole record")
        crop = crop or self.crop
        reading = {"start": start, "seconds": seconds, "verify": verify}
        reading |= self._no_more_than_used(stride, crop) if strips is None else {}
        blocks = self._blocks(ecg, sampling_rate, leads, unit, record_names, reading, strips is not None)
        if strips is not None:
            blocks = [as_printed(block, layout, strips) for block in blocks]
            nan_handling = "mask"
        if crop == "random" and stride is None:  # an own crop for each record of an array
            blocks = [
                replace(block, names=[name], signal=signal[None])
                for block in blocks
                for name, signal in zip(block.names, block.signal, strict=True)
            ]
        values, masks, counts, reports = [], [], [], []
        for block in blocks:
            used = self._cut(block, crop, stride)
            filled = self._check(block, used, nan_handling, max_gap_s)
            windows, mask = self._arrange(block, filled, stride, derive)
            values.append(windows.reshape(-1, *windows.shape[2:]))
            masks.append(mask.repeat(windows.shape[1], axis=0))
            counts += [windows.shape[1]] * len(block.names)
            if quality:
                cut = None if stride is None else windows.shape[1]
                facts = crop, cut, nan_handling
                reports += [self._report(block, row, used[row], mask[row], *facts) for row in range(len(mask))]
        signal = torch.from_numpy(np.concatenate(values) if len(values) > 1 else values[0])
        mask = torch.from_numpy(np.concatenate(masks))
        known = mask
        if nan_handling == "mask":
            known = mask[:, :, None] & ~signal.isnan()
            mask = known.any(-1)
        data: dict = {"input_values": scale_ecg(signal, known, self.scaling), "lead_mask": mask}
        if stride is not None:
            data["window_record"] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        if return_tensors != "pt":
            data = {key: value.numpy() for key, value in data.items()}
        if quality:
            data["quality"] = reports
        return BatchFeature(data)

    def _no_more_than_used(self, stride, crop) -> dict:
        """Returns options of `read_crop` or `read_ecg`: of a day's Holter no more is read than is used."""
        if stride is not None:
            return {"longest": MAX_WINDOWS * stride + self.duration}
        return {"duration": self.duration, "place": lambda slack: self.crop_seconds(slack, crop)}

    def _blocks(self, ecg, sampling_rate, leads, unit, record_names, reading, printed):
        """Returns the input as blocks of records of the same shape, in their order."""
        whole = isinstance(ecg, (np.ndarray, torch.Tensor)) and ecg.ndim == 3
        items = ecg if whole or isinstance(ecg, (list, tuple)) else [ecg]
        if not len(items):
            raise ValueError("ecg is an empty batch; pass at least one record")
        if isinstance(record_names, (str, bytes)) or not isinstance(record_names, (Sequence, np.ndarray, type(None))):
            raise ValueError(f"record_names must be a list of names, one per record, not {brief(record_names)}")
        if record_names is not None and len(record_names) != len(items):
            raise ValueError(f"{len(record_names)} record_names for {len(items)} records; pass one per record")
        given = record_names is not None
        names = [str(name) for name in (record_names if given else [f"record {n}" for n in range(len(items))])]
        if whole:
            block = _safely(array_block, names[0], ecg, names, sampling_rate, leads, unit)
            return [part_of_block(block, **reading)]
        said = {"sampling_rate": sampling_rate, "leads": leads, "unit": unit}
        blocks = []
        for item, name in zip(items, names, strict=True):
            is_path = isinstance(item, (str, os.PathLike))
            name = str(item) if is_path and not given else name
            blocks.append(_safely(self._block, name, item, name, **said, reading=reading, printed=printed))
        if leads is not None and all(isinstance(item, Mapping) for item in items):
            raise ValueError(f"{names[0]}: leads= names the channels of arrays; a dict names its own, leave it out")
        return blocks

    def _block(self, item, name, sampling_rate, leads, unit, reading, printed):
        """Returns the block of one record of whatever kind."""
        if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in (1, 2):
            array = plain_array(item, name)
            array = array[None, None] if array.ndim == 1 else array[None]
            return part_of_block(array_block(array, [name], sampling_rate, leads, unit), **reading)
        if isinstance(item, Mapping):
            channels = [plain_array(channel, f"{name}: lead {brief(lead)}") for lead, channel in item.items()]
            longest = max((channel.size for channel in channels), default=0)
            if printed:  # of what stands in each column, `as_printed` keeps the one at its place
                repeats = len(PRINTED_COLUMNS)
                channels = [np.tile(c, repeats) if c.size * repeats == longest else c for c in channels]
            if not channels or {channel.shape for channel in channels} != {(channels[0].size,)}:
                raise ValueError(f"{name}: the leads of a dict must be one-dimensional and equally long")
            block = array_block(np.stack(channels)[None], [name], sampling_rate, list(item), unit)
            return part_of_block(block, **reading)
        if hasattr(item, "ignored_leads"):  # an EcgBlock, of whichever copy of this module
            return part_of_block(item, **reading)
        if is_file(item):
            read = read_crop if "place" in reading else read_ecg
            try:
                return read(item, name, unit, sampling_rate=sampling_rate, leads=leads, **reading)
            except ValueError as error:
                if isinstance(error.__cause__, LongRecording):
                    raise ValueError(f"{name}: {error.__cause__.seconds:g} s: {TOO_MANY_WINDOWS}") from None
                raise
        shape = f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else ""
        raise ValueError(
            f"{name}: cannot read a {type(item).__name__}{shape}; pass a path, a wfdb.Record, a dict of leads or an "
            "array (leads, samples), a list of these, or one array (batch, leads, samples)"
        )

    def crop_seconds(self, slack: float, crop: str) -> float:
        """Returns the seconds before a crop of a record that is `slack` seconds too long."""
        return crop_start(round(slack * self.sampling_rate), crop) / self.sampling_rate

    def _cut(self, block, crop, stride):
        """Returns the part of the signal that is used (a view), half a second longer where it will be resampled."""
        rate, length = block.sampling_rate, block.signal.shape[-1]
        if length < self.min_duration * rate:
            raise ValueError(
                f"{block.names[0]}: {length / rate:g} s is shorter than the {self.min_duration:g} s needed; leave it "
                f"out, or check its sampling rate ({rate:g} Hz)"
            )
        wanted = round(self.duration * rate)
        if stride is not None or length <= wanted:
            return block.signal
        start = crop_start(length - wanted, crop)
        margin = 0 if rate == self.sampling_rate else math.ceil(0.5 * rate)
        return block.signal[..., start : start + wanted + margin]

    def _check(self, block, signal, nan_handling, max_gap_s):
        """Returns the signal, short gaps filled or NaN kept where asked for; refuses what no model should be fed."""
        if nan_handling == "mask":
            low, high = np.fmin.reduce(signal, -1), np.fmax.reduce(signal, -1)  # NaN where all is
            for index in np.flatnonzero(np.isnan(low).all(1)):
                raise ValueError(f"{block.names[index]}: no lead has a value; leave the recording out")
            absent = np.isnan(low)
            low[absent] = high[absent] = 0.0
        else:
            low, high = signal.min(-1), signal.max(-1)  # a NaN is its lead's minimum, an infinity one of the two
        if np.isnan(low).any() and nan_handling == "interpolate":
            signal = signal.copy()
        for index in np.flatnonzero(np.isnan(low).any(1)):
            bad = [lead for lead, value in zip(block.leads, low[index], strict=True) if np.isnan(value)]
            where = f"{block.names[index]}: missing values (NaN) in lead {', '.join(bad)}"
            if nan_handling == "error":
                raise ValueError(f"{where}; leave out the lead or the record, or pass nan_handling='interpolate'")
            try:
                filled = interpolate_gaps(signal[index], int(max_gap_s * block.sampling_rate))
            except ValueError as error:
                raise ValueError(f"{where}: {error}; leave out the lead or the record, or raise max_gap_s") from None
            signal[index], low[index], high[index] = filled, filled.min(-1), filled.max(-1)
        for index in np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)).all(1)):
            raise ValueError(f"{block.names[index]}: infinite values; repair the recording or leave it out")
        peak = np.maximum(-low, high)
        for index, row in np.argwhere(peak >= MAX_MILLIVOLT):
            raise ValueError(
                f"{block.names[index]}: absurd amplitude: lead {block.leads[row]} reaches {peak[index, row]:.3g} mV; "
                "correct its unit (unit=) or gain"
            )
        for index, row in np.argwhere(high - low > MAX_UNTOLD) if block.unit_untold else ():
            raise ValueError(
                f"{block.names[index]}: lead {block.leads[row]} ranges over {high[index, row] - low[index, row]:.3g} "
                "mV, if these are mV: state the unit (unit='uV', '4.88 uV', ...)"
            )
        for index in np.flatnonzero((low == high).all(1)):
            raise ValueError(f"{block.names[index]}: flat, every lead is constant; leave the recording out")
        return signal

    def _arrange(self, block, signal, stride, derive):
        """Returns (records, windows, leads, samples) in mV at the model's rate, NaN or not; (records, leads) bool."""
        size = round(self.duration * self.sampling_rate)
        rows = {lead: row for row, lead in enumerate(block.leads) if lead in self.leads}
        if not rows:
            raise ValueError(f"{block.names[0]}: has only {', '.join(block.leads)}, none of which the model reads")
        resampled = resample_ecg(signal, block.sampling_rate, self.sampling_rate)
        starts, last = [0], resampled.shape[-1] - size
        if stride is not None and last > 0:
            starts = range(0, last + 1, max(1, round(stride * self.sampling_rate)))
            if len(starts) > MAX_WINDOWS:
                raise ValueError(
                    f"{block.names[0]}: stride={stride:g} cuts it into {len(starts):,} windows: {TOO_MANY_WINDOWS}"
                )
            starts = list(starts)
            if last - starts[-1] > 0.5 * self.sampling_rate:
                starts.append(last)

        windows = np.zeros((len(signal), len(starts), len(self.leads), size), dtype=np.float32)
        present = np.zeros((len(signal), len(self.leads)), dtype=bool)
        usable = present.copy()
        for lead, row in rows.items():
            column = self.leads.index(lead)
            for window, start in enumerate(starts):
                piece = resampled[:, row, start : start + size]
                windows[:, window, column, : piece.shape[-1]] = piece
            present[:, column] = ~np.isnan(signal[:, row]).all(-1)
            if derive and lead in LIMB_LEADS:  # false where there is a NaN, too
                usable[:, column] = signal[:, row].min(-1) < signal[:, row].max(-1)
        if derive and not present.all():
            present |= derive_limb_leads(windows, present, usable, self.leads)
        return windows, present

    def _report(self, block, index, signal, mask, crop, windows, nan_handling):
        present = [lead for lead, there in zip(self.leads, mask, strict=True) if there]
        report = {
            "record": block.names[index],
            "sampling_rate": block.sampling_rate,
            "seconds": block.seconds,
            "leads": block.leads,
            "derived_leads": [lead for lead in present if lead not in block.leads],
            "masked_leads": [lead for lead in self.leads if lead not in present],
            "ignored_leads": block.ignored_leads,
        }
        done = list(block.done)
        if block.sampling_rate != self.sampling_rate:
            done.append(f"resampled from {block.sampling_rate:g} to {self.sampling_rate:g} Hz")
        if windows is not None:
            done.append(f"cut into {windows} windows of {self.duration:g} s")
        elif round(self.duration * block.sampling_rate) < round(block.seconds * block.sampling_rate):
            done.append(f"cropped from {report['seconds']:g} to {self.duration:g} s ({crop})")
        if report["seconds"] < self.duration:
            done.append(f"padded from {report['seconds']:g} to {self.duration:g} s with 0 mV")
        if missing := int(np.isnan(signal).sum()):
            verb = "masked" if nan_handling == "mask" else "interpolated"
            done.append(f"{verb} {missing} missing samples")
        for verb in ("derived", "masked", "ignored"):
            if names := report[f"{verb}_leads"]:
                done.append(f"{verb} {', '.join(names)}")
        done.append(f"scaled: {self.scaling}")
        return report | {"done": done, **ecg_quality(signal, block.leads, block.sampling_rate, block.gain)}


# ---------------------------------------------------------------------------------------------------------------------
# Sentences

SENTENCE_SPLITS = ("default", "original")
_SENTENCE_END = re.compile(r"\.(?=\s|$)")  # not the point of 0.48, nor the first ones of "..."


def split_sentences(report: str) -> list[str]:
    """Returns the sentences of a report, each with its full stop; decimals do not split, a tail without one counts."""
    ends = [match.end() for match in _SENTENCE_END.finditer(report)] + [len(report)]
    sentences = (report[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))
    return [sentence for sentence in sentences if sentence]


def sentence_numbers(is_end: Sequence[bool], is_special: Sequence[bool], keep_tail: bool = True) -> list[int]:
    """Returns the sentence of each token, counted from 0; -1 for special tokens.

    A sentence ends with, and includes, a token of `is_end`; one of special tokens only gets no number. What follows
    the last end is a sentence with `keep_tail`, -1 without.
    """
    numbers, start, count = [-1] * len(is_end), 0, 0
    for stop in range(1, len(is_end) + 1):
        if is_end[stop - 1] or (keep_tail and stop == len(is_end)):
            members = [token for token in range(start, stop) if not is_special[token]]
            for token in members:
                numbers[token] = count
            count += bool(members)
            start = stop
    return numbers


# ---------------------------------------------------------------------------------------------------------------------
# Processor


class MelpProcessor(ProcessorMixin):
    """A feature extractor for recordings and a BERT tokenizer, with a [BOS] token, for reports.

    Args:
        feature_extractor: `MelpFeatureExtractor`.
        tokenizer: a fast BERT tokenizer that has bos, sep, cls and pad tokens.
        sentence_split: "default": a sentence ends at a full stop before white space or the end, and what follows the
            last one is a sentence too. "original", for parity: every "." token ends one (also in 0.48), and what
            follows the last one belongs to none.
        max_text_length: tokens of a report including the [CLS] that the model appends, so ids are at most one fewer.
    """

    def __init__(self, feature_extractor, tokenizer, sentence_split: str = "default", max_text_length: int = 128):
        super().__init__(feature_extractor, tokenizer)
        missing = [name for name in ("bos", "sep", "cls", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {' or '.join(missing)} token; set it, for [BOS] with "
                "tokenizer.add_special_tokens({'bos_token': '[BOS]'}), and resize the text model's embeddings"
            )
        if max_text_length < 4:
            raise ValueError(f"max_text_length={max_text_length} has no room for [BOS], a token, [SEP] and [CLS]")
        self.sentence_split = _one_of("sentence_split", sentence_split, SENTENCE_SPLITS)
        self.max_text_length = max_text_length

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # The mixin asks the Auto classes, which know a MELP folder only as remote code; this also works without.
        extractor = MelpFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:  # not there, which it says
            raise
        except Exception as error:
            if _stored_file(pretrained_model_name_or_path, "tokenizer.json", kwargs) is None:
                raise ValueError(
                    f"{pretrained_model_name_or_path} has no tokenizer.json, by which reports are read: copy it from "
                    "where the model came from"
                ) from error
            raise ValueError(f"{pretrained_model_name_or_path} has a malformed tokenizer: {error!r}") from error
        config = stored_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(config, MelpConfig):
            length = (processor_dict or {}).get("max_text_length", config.max_text_length)
            check_tokenizer(tokenizer, length, config, pretrained_model_name_or_path)
        return [extractor, tokenizer]

    @property
    def model_input_names(self) -> list[str]:
        return [*self.feature_extractor.model_input_names, "input_ids", "attention_mask", "sentence_ids"]

    def decode(self, *args, **kwargs) -> str:
        return _joined(super().decode(*args, **kwargs))

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Returns the reports of token ids (batch, tokens), as a tokenizer does; hyphens join what they joined."""
        return [_joined(text) for text in super().batch_decode(*args, **kwargs)]

    def __call__(
        self,
        ecg=None,
        text: str | Sequence[str] | None = None,
        padding: str | bool = "longest",
        return_tensors: str | None = None,
        **ecg_kwargs,
    ) -> BatchFeature:
        """Prepares recordings, reports or both.

        Args:
            ecg: recordings, and `ecg_kwargs` (sampling_rate, leads, unit, quality, ...): see `MelpFeatureExtractor`.
            text: a report or a list of them, raw: lower-casing is the tokenizer's work.
            padding: "longest" (of the batch) or "max_length".
            return_tensors: "pt", or "np" (as None).

        Returns:
            For `ecg` what the feature extractor returns; for `text` `input_ids` ([BOS], report, [SEP], cut to
            `max_text_length` - 1), `attention_mask` and `sentence_ids` (-1: in no sentence), (batch, tokens) int64.

        Raises:
            ValueError: see the feature extractor; an empty report, naming its index.
            TypeError: an option that neither part has.
        """
        if ecg is None and text is None:
            raise ValueError("pass ecg=, text= or both")
        if ecg is None and ecg_kwargs:
            raise TypeError(f"{', '.join(sorted(ecg_kwargs))}: no option of MelpProcessor without ecg=")
        data: dict = {}
        if ecg is not None:
            data |= self.feature_extractor(ecg, return_tensors=return_tensors, **ecg_kwargs)
        if text is not None:
            data |= self._encode(text, padding, return_tensors)
        return BatchFeature(data)

    def _encode(self, text, padding, return_tensors):
        padding = _one_of("padding", "longest" if padding is True else padding, ("longest", "max_length"))
        _one_of("return_tensors", return_tensors, (None, "pt", "np"))
        texts = [text] if isinstance(text, str) else list(text)
        for index, report in enumerate(texts):
            if not isinstance(report, str) or not report.strip():
                raise ValueError(f"text {index} is {report!r}, not a report; leave it out together with its recording")
        if not texts:
            raise ValueError("text is an empty list; pass at least one report")

        tokenizer, room = self.tokenizer, self.max_text_length - 3
        special = set(tokenizer.all_special_ids)
        period = tokenizer.convert_tokens_to_ids(".")
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # the cut comes below
        )
        rows = []
        for report, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids, keep_tail = ids[:room], self.sentence_split == "default"
            if keep_tail:
                ends = {match.end() for match in _SENTENCE_END.finditer(report)}
                is_end = [stop in ends for _, stop in offsets[:room]]
            else:
                is_end = [token == period for token in ids]
            numbers = sentence_numbers(is_end, [token in special for token in ids], keep_tail)
            rows.append(([tokenizer.bos_token_id, *ids, tokenizer.sep_token_id], [-1, *numbers, -1]))

        width = self.max_text_length - 1 if padding == "max_length" else max(len(ids) for ids, _ in rows)
        shape = (len(rows), width)
        data = {
            "input_ids": torch.full(shape, tokenizer.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "sentence_ids": torch.full(shape, -1),
        }
        for row, (ids, numbers) in enumerate(rows):
            data["input_ids"][row, : len(ids)] = torch.tensor(ids)
            data["attention_mask"][row, : len(ids)] = 1
            data["sentence_ids"][row, : len(ids)] = torch.tensor(numbers)
        return data if return_tensors == "pt" else {key: value.numpy() for key, value in data.items()}


def _joined(text: str) -> str:
    # BERT's tokens do not know that there was no space: "pre - excitation".
    return re.sub(r"(?<=\w) ([-/]) (?=\w)", r"\1", text)


def with_bos(tokenizer):
    """Returns a BERT tokenizer with [BOS], which the report decoder starts with, as its last id."""
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    return tokenizer


MelpFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
MelpProcessor.register_for_auto_class("AutoProcessor")
