"""A run of `python -m melp.explain`: recordings in; a table, sheets and JSON out."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from explain_melp import Evidence
from melp.explain import explain_recording, queries
from melp.explain.beats import find_beats
from melp.explain.options import Options
from melp.explain.sheets import draw_evidence, leads_in_words
from melp.files import write_atomically
from melp.models import load_model, load_processor, model_folder
from melp.names import name_hash
from melp.notice import NOTICE
from melp.predict.options import Reading
from melp.predict.paths import list_recordings
from melp.predict.predictor import choose_findings
from melp.predict.reading import Item, Recordings, picture_name
from modeling_melp import MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, split_sentences
from signal_melp import EcgBlock

FORMS = ("png", "svg", "pdf")
LAYOUTS = ("3x4", "12x1")


def load(source: str) -> tuple[MelpModel, MelpProcessor]:
    """Loads a whole model and its processor.

    Raises:
        ValueError: as `melp.models.load_model`, or where the model has no text tower.
    """
    model = load_model(source).eval()
    if not isinstance(model, MelpModel):
        raise ValueError(f"{source} has no text tower: evidence needs a whole MELP model.")
    return model, load_processor(source)


def read_items(source: str, extractor: MelpFeatureExtractor, reading: Reading) -> Iterable[Item]:
    """Reads the recordings that a path names, or FOLDER#RECORD of a prepared folder; their first windows are used.

    Raises:
        ValueError: where a prepared folder has no such recording; of files that cannot be read, the item says why.
    """
    folder, _, record = source.rpartition("#")
    if (Path(folder) / "dataset_dict.json").is_file():
        return [_prepared_item(folder, record, extractor, source)]
    recordings = Recordings(list_recordings([source]), extractor, reading, keep_block=True)
    return (recordings[index] for index in range(len(recordings)))


def _prepared_item(folder: str, record: str, extractor: MelpFeatureExtractor, source: str) -> Item:
    from melp.data.prepared import ALL, find_record, get_split, load_prepared
    from melp.data.stored import STORED_RATE

    try:
        row = find_record(get_split(load_prepared(folder), ALL, folder), record)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    stored = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1).astype(np.float32)
    gain, baseline = (np.asarray(row[name], dtype=np.float32)[:, None] for name in ("gain", "baseline"))
    signal = ((stored - baseline) / gain)[None, :, : round(extractor.duration * STORED_RATE)]
    block = EcgBlock([record], signal, list(row["leads"]), STORED_RATE, [])
    inputs = extractor(block, quality=True)
    values, mask, quality = (inputs[name] for name in ("input_values", "lead_mask", "quality"))
    return Item(source, values=values, lead_mask=mask, starts=[0.0], quality=quality[0], blocks=[block])


def draft_of(model: MelpModel, processor: MelpProcessor, inputs: dict[str, torch.Tensor]) -> str:
    """Returns the report that the model drafts."""
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False)
    return processor.batch_decode(ids, skip_special_tokens=True)[0]


def texts_of(options: Options, draft: str | None) -> list[str] | dict[str, Sequence[str]]:
    """Returns what is explained: findings with their prompts, or sentences of the given report, or of the draft."""
    if options.findings is not None:
        findings = choose_findings(str(model_folder(options.model)), options.findings, None)
        return {finding.name: finding.prompts for finding in findings}
    return list(dict.fromkeys(split_sentences(draft if options.report is None else options.report)))


def run(options: Options):
    """Explains every recording, or reports on the beat queries; on the screen, and in the output folder.

    Raises:
        ValueError: naming the option or model that cannot be used, or, at the end, each recording that could not be
            read.
    """
    model, processor = load(options.model)
    print(NOTICE)
    failed, reports = [], []
    for source in options.sources:
        for item in read_items(source, processor.feature_extractor, options.reading):
            if item.error:
                failed.append(f"{item.path}: {item.error}")
            elif options.beats:
                reports.append(_report_queries(options, model, item))
            else:
                _explain_item(options, model, processor, item)
    if reports:
        print("\n" + queries.summary(reports))
        if options.output is not None:
            queries.write_summary(reports, options.output)
    if failed:
        raise ValueError("\n".join(failed))


def _report_queries(options: Options, model: MelpModel, item: Item) -> queries.QueryReport:
    report = queries.measure_item(model, item)
    print("\n" + queries.as_text(item, report))
    if options.output is not None:
        files = queries.write(item, report, options.model, options.output)
        print(f"  written to {options.output}: {', '.join(files)}")
    return report


def _explain_item(options: Options, model: MelpModel, processor: MelpProcessor, item: Item):
    inputs = {
        "input_values": torch.as_tensor(item.values[:1]),
        "lead_mask": torch.as_tensor(item.lead_mask[:1]),
    }
    wants_draft = options.findings is None and options.report is None
    draft = draft_of(model, processor, inputs) if wants_draft else None
    texts = texts_of(options, draft)
    rate = model.config.ecg_config.sampling_rate
    beats = find_beats(inputs["input_values"][0].numpy(), rate, inputs["lead_mask"][0].numpy())
    evidence = explain_recording(model, processor, inputs, texts, options.method, beats)
    print("\n" + as_text(item, draft, evidence, beats))
    if options.output is not None:
        files = write(options, item, draft, evidence, beats, rate)
        print(f"  written to {options.output}: {', '.join(files)}")


# ------------------------------------------------------------------------------------------------------------- output


def seconds_of(spans: Sequence[tuple[float, float, float]], start: float = 0.0) -> str:
    """Returns "3.2-3.6, 7.0-7.4 s" for spans."""
    return ", ".join(f"{start + first:.1f}-{start + last:.1f}" for first, last, _ in spans) + " s" if spans else "-"


def beats_of(evidence: Evidence) -> list[int]:
    """Returns the numbers, from 1 on, of the beats whose middle or most of which is shown."""
    shown = []
    for number, beat in enumerate(evidence.beats, 1):
        covered = sum(
            max(0.0, min(stop, beat["end"]) - max(start, beat["start"])) for start, stop, _ in evidence.spans
        )
        at_peak = any(start <= beat["time"] < stop for start, stop, _ in evidence.spans)
        if at_peak or covered > 0.5 * (beat["end"] - beat["start"]):
            shown.append(number)
    return shown


def as_text(item: Item, draft: str | None, evidence: list[Evidence], beats: Sequence[float]) -> str:
    """Returns a recording's evidence for the screen: text, score, leads and seconds, and the test below each."""
    lines = [f"{item.record}  ({item.path})", "-" * min(len(item.record) + len(item.path) + 4, 100)]
    if draft is not None:
        lines += textwrap.wrap(f"draft, to be checked: {draft or '(empty)'}", 112, initial_indent="  ")
    method = evidence[0].method if evidence else "-"
    lines.append(f"  {len(beats)} beats found; evidence by {method}; scores are similarities, no probabilities")
    width = min(48, max([4, *(len(one.text) for one in evidence)]))
    leads = [leads_in_words(one) for one in evidence]
    wide = max([5, *map(len, leads)])
    lines.append(f"  {'text':{width}}  score  {'leads':{wide}}  seconds")
    for one, where in zip(evidence, leads, strict=True):
        text = textwrap.shorten(one.text, width, placeholder="...")
        lines.append(f"  {text:{width}}  {one.score:5.2f}  {where:{wide}}  {seconds_of(one.spans, item.starts[0])}")
        numbers = beats_of(one)
        said = one.sentence + (f"; beats {', '.join(map(str, numbers))}" if numbers else "")
        lines += textwrap.wrap(said, 108, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def as_json(options: Options, item: Item, draft: str | None, evidence: list[Evidence], beats) -> dict:
    """Returns all of a recording's evidence as JSON has it; times are from the start of the part that was read."""
    return {
        "notice": NOTICE,
        "record": item.record,
        "model": options.model,
        "start_s": item.starts[0],
        "draft": draft,
        "beats_s": [round(beat, 3) for beat in beats],
        "leads": list(evidence[0].leads) if evidence else [],
        "evidence": [one.to_json() for one in evidence],
    }


def write(
    options: Options, item: Item, draft: str | None, evidence: list[Evidence], beats: Sequence[float], rate: float
) -> list[str]:
    """Writes JSON and, in each layout and form, the sheets of a recording; returns the names of the files."""
    options.output.mkdir(parents=True, exist_ok=True)
    name = picture_name(item.path, name_hash(item.path))
    content = json.dumps(as_json(options, item, draft, evidence, beats), indent=1, allow_nan=False)
    write_atomically(options.output / f"{name}.json", content + "\n")
    files = [f"{name}.json"]
    for layout in LAYOUTS:
        for number, sheet in enumerate(draw_evidence(item, evidence, layout, rate), 1):
            stem = f"{name}-{layout}" + (f"-{number}" if number > 1 else "")
            for form in FORMS:
                write_atomically(
                    options.output / f"{stem}.{form}", lambda path, s=sheet, f=form: s.savefig(path, format=f)
                )
            files.append(f"{stem}.{{{','.join(FORMS)}}}")
    return files
