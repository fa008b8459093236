"""Writes the parts of the app's page as HTML: paper, findings, quality, hits. All text from a file is escaped."""

import base64
import json
from html import escape

import numpy as np

from melp.app.kept import Recording
from melp.predict.pictures import all_leads
from signal_melp import EcgBlock

FIRST = 10  # findings that are shown before the rest is unfolded
SIGNS = {"present": "●", "cannot say": "◐", "absent": "○"}
LAYOUTS = ("3x4", "6x2", "12x1")
SECONDS = 10.0


def trace_of(block: EcgBlock, name: str, start: float = 0.0, leads: tuple[str, ...] | None = None) -> dict:
    """Returns a trace for the viewer: microvolts about each lead's median, as base64 of int16, -32768 for a gap.

    The viewer draws a lead about its median anyway, and an electrode's offset can be more than int16 holds.
    """
    signal, names, derived = all_leads(block)
    rows = {}
    for row, lead in zip(signal, names, strict=True):
        if leads is None or lead in leads:
            level = np.nanmedian(row) if np.isfinite(row).any() else 0.0
            microvolts = np.clip((row - level) * 1000, -32767, 32767).round()
            microvolts = np.where(np.isnan(row), -32768, microvolts).astype("<i2")
            rows[lead] = base64.b64encode(microvolts.tobytes()).decode()
    return {"name": name, "rate": block.sampling_rate, "start": start, "leads": rows, "derived": derived}


def paper(traces: list[dict], label: str, layouts=LAYOUTS, identity: str = "ecg", **others) -> str:
    """Returns the viewer of traces; `identity` is the id that evidence names."""
    data = json.dumps({"traces": traces, "seconds": SECONDS, "layouts": list(layouts), "label": label, **others})
    return f'<melp-ecg id="{identity}" data="{escape(data)}"></melp-ecg>'


def title(recording: Recording, identifiers: bool) -> str:
    badge = '<span class="badge">Simulated, no patient</span>' if recording.simulated else ""
    shown = ""
    if identifiers and recording.identifiers:
        pairs = (
            f"<dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(v)}</dd>" for k, v in recording.identifiers.items()
        )
        shown = f'<dl class="facts">{"".join(pairs)}</dl>'
    return f'<h2 class="record">{escape(recording.name.removesuffix(" (simulated)"))} {badge}</h2>{shown}'


def quality(facts: dict) -> str:
    """Returns what is doubtful about a recording, and what was done to it."""
    warnings = [*facts["warnings"], *([f"flat: {', '.join(facts['flat_leads'])}"] if facts["flat_leads"] else [])]
    if warnings:
        said = "".join(f"<li>⚠ {escape(warning)}</li>" for warning in warnings)
        said = f'<ul class="warnings">{said}</ul>'
    else:
        said = '<p class="good">✓ Nothing doubtful about the signal.</p>'
    done = "".join(f"<li>{escape(step)}</li>" for step in facts["done"])
    numbers = f"{facts['seconds']:g} s, {facts['sampling_rate']:g} Hz, {len(facts['leads'])} leads"
    if facts["peak_to_peak_mv"] is not None:
        numbers += f", {facts['peak_to_peak_mv']:.2f} mV from peak to peak"
    return (
        f'<section class="card"><h3>Quality</h3>{said}<p>{numbers}</p>'
        f"<h4>What was done to the signal</h4><ul>{done}</ul></section>"
    )


def findings(answer: dict, heading: str = "Findings") -> str:
    """Returns the findings; a click on one asks for its evidence."""
    rows = answer["findings"]
    calibrated = any(row["verdict"] for row in rows)
    hint = "Select a finding to see its evidence on the ECG."
    if not calibrated:
        hint = f"<b>Not calibrated</b>: similarities, not probabilities; their order is a hint. {hint}"
    order = {"present": 0, "cannot say": 1, None: 2, "absent": 3}
    rows = sorted(rows, key=lambda row: order[row["verdict"]]) if calibrated else rows
    first = [row for row in rows if row["verdict"] == "present"] if calibrated else rows[:FIRST]
    first = first or rows[:3]
    rest = [row for row in rows if row not in first]
    body = _table(first, calibrated)
    if rest:
        body += f"<details><summary>{len(rest)} more findings</summary>{_table(rest, calibrated)}</details>"
    body += _left_out(answer)
    return f'<section class="card"><h3>{heading}</h3><p class="hint">{hint}</p>{body}</section>'


def _left_out(answer: dict) -> str:
    """Returns the findings that are not said, which else would pass for absent."""
    names = answer.get("left_out")
    said = "Left out, since calibration does not show that leads like these tell them: "
    return f'<p class="hint">{said}{escape(", ".join(names))}.</p>' if names else ""


def _table(rows: list[dict], calibrated: bool) -> str:
    columns = ("Verdict", "Finding", "Probability", "Rests on") if calibrated else ("Finding", "Similarity")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    said = "".join(_row(row, calibrated) for row in rows)
    return f'<table class="findings"><thead><tr>{head}</tr></thead><tbody>{said}</tbody></table>'


def _row(row: dict, calibrated: bool) -> str:
    """Returns a line of a table; in one of calibrated findings, another finding says that it is not."""
    name = escape(row["label"])
    button = f'<button type="button" class="ask" data-evidence="{name}">{name}</button>'
    number, share = f"{row['score']:.3f}", max(0.0, row["score"])
    if not calibrated:
        return f'<tr><th scope="row">{button}</th><td>{_bar(share)}{number}</td></tr>'
    if row["verdict"] is None and row["probability"] is None:
        return f'<tr><td>not calibrated</td><th scope="row">{button}</th><td colspan="2">similarity {number}</td></tr>'
    verdict = row["verdict"] or "cannot say"
    basis = row["rests_on"]
    rests = ""
    if basis is not None:
        many = "" if basis["positives"] is None else f", {basis['positives']:,} with it"
        rests = f"AUROC {basis['auroc']:.2f} ({basis['low']:.2f} to {basis['high']:.2f}){many}, "
        rests += escape(basis["setting"])
    said = f'<span class="verdict {verdict.replace(" ", "-")}">{SIGNS[verdict]} {verdict}</span>'
    number = "" if row["probability"] is None else f"{row['probability']:.0%}"
    return (
        f'<tr><td>{said}</td><th scope="row">{button}</th><td>{_bar(row["probability"] or 0)}{number}</td>'
        f'<td class="rests">{rests}</td></tr>'
    )


def _bar(share: float) -> str:
    return f'<span class="bar" aria-hidden="true"><span style="width:{min(1.0, share) * 100:.0f}%"></span></span>'


def report(draft: dict | None) -> str:
    """Returns the drafted report, a button per sentence."""
    from processing_melp import split_sentences

    sentences = split_sentences(draft["generated_text"]) if draft else []
    said = "".join(
        f'<button type="button" class="sentence" data-evidence="{text}">{text}</button> '
        for text in (escape(sentence.strip()) for sentence in sentences)
        if text.strip(" .")
    )
    return (
        '<section class="card"><h3>Drafted report</h3><p class="hint">It can be wrong in every sentence, and is for a '
        "physician to check. Select a sentence to see its evidence.</p>"
        f'<p class="draft">{said or "(empty)"}</p></section>'
    )


def evidence(facts: dict, identity: str = "ecg") -> str:
    """Returns the evidence for a text, which tints the paper with that id, and its faithfulness in words."""
    said = facts["faithfulness"]["sentence"]
    faithful = facts["faithfulness"].get("faithful")
    mark = "✓ faithful" if faithful else "✗ not shown to be faithful"
    small = {name: facts[name] for name in ("spans", "leads")}
    where = ", ".join(f"{span['start_s']:.1f} to {span['end_s']:.1f} s" for span in facts["spans"])
    leads = sorted(facts["leads"], key=lambda lead: -facts["leads"][lead])[:3]
    return (
        f'<melp-evidence target="{identity}" data="{escape(json.dumps(small))}"></melp-evidence>'
        f'<section class="card evidence" role="status"><h3>Evidence for “{escape(facts["text"])}”</h3>'
        f"<p><b>{mark}</b>: {escape(said)}.</p>"
        + (f"<p>Marked in blue: {where}; most in {', '.join(leads)}.</p>" if where else "")
        + "</section>"
    )


def changes(compared: dict) -> str:
    """Returns by how much findings changed."""
    number = "{:.0%}" if compared["change_of"] == "probability" else "{:.3f}"
    signed = "{:+.0%}" if compared["change_of"] == "probability" else "{:+.3f}"
    rows = ""
    for row in compared["findings"][:FIRST]:
        first, second = (row[name][compared["change_of"]] for name in ("first", "second"))
        verdicts = [row[name]["verdict"] for name in ("first", "second")]
        turned = f"{verdicts[0]} → {verdicts[1]}" if verdicts[0] != verdicts[1] else (verdicts[0] or "")
        arrow = "▲" if row["change"] > 0 else "▼"
        rows += (
            f'<tr><th scope="row">{escape(row["label"])}</th><td>{number.format(first)}</td>'
            f"<td>{number.format(second)}</td><td>{arrow} {signed.format(row['change'])}</td><td>{turned}</td></tr>"
        )
    rates = " and ".join("unknown" if rate is None else f"{rate:.0f}/min" for rate in compared["heart_rates"])
    of = "probability" if compared["change_of"] == "probability" else "similarity (not calibrated)"
    return (
        f'<section class="card"><h3>What changed</h3><p class="hint">By {of}, most first. Heart rates: {rates}.</p>'
        '<table class="findings"><thead><tr><th scope="col">Finding</th><th scope="col">First</th>'
        '<th scope="col">Second</th><th scope="col">Change</th><th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{_left_out(compared)}</section>"
    )


def hits(shown: list[tuple[dict, EcgBlock | None]]) -> str:
    """Returns hits as small ECGs, each with a button that opens it in Read."""
    if not shown:
        return '<p class="hint">Nothing found.</p>'
    said = ""
    for number, (hit, block) in enumerate(shown):
        name = escape(hit["record"])
        picture = '<p class="hint">Its file is no longer readable.</p>'
        if block is not None:
            lead = next((lead for lead in ("II", "V5", "I", "V1") if lead in block.leads), block.leads[0])
            trace, label = trace_of(block, hit["record"], leads=(lead,)), f"Lead {lead} of {hit['record']}"
            picture = paper([trace], label, (lead,), f"hit-{number}", plain=True)
        said += (
            f'<li class="card"><h4>{number + 1}. {name} '
            f'<span class="hint">similarity {hit["similarity"]:.3f}</span></h4>'
            f'{picture}<button type="button" class="ask" data-open="{number}">Open {name} in Read</button></li>'
        )
    return f'<ol class="hits">{said}</ol>'


def batch_table(rows: list[dict], rejected: list[tuple[str, str]], calibrated: bool) -> str:
    """Returns a line per recording."""
    said = ""
    for row in rows[:500]:
        names = zip(row["findings"], row["similarities"], row["probabilities"], strict=True)
        top = "; ".join(f"{n} {f'{p:.0%}' if p is not None else f'{s:.3f}'}" for n, s, p in list(names)[:3])
        doubts = "; ".join(row["warnings"]) or "none"
        said += f'<tr><th scope="row">{escape(row["record"])}</th><td>{escape(top)}</td><td>{escape(doubts)}</td></tr>'
    for name, reason in rejected[:500]:
        said += f'<tr class="rejected"><th scope="row">{escape(name)}</th><td colspan="2">✗ {escape(reason)}</td></tr>'
    kind = "Most probable" if calibrated else "Most similar (not calibrated)"
    return (
        f'<p role="status">{len(rows):,} read, {len(rejected):,} rejected.</p><table class="findings batch">'
        f'<thead><tr><th scope="col">Recording</th><th scope="col">{kind}</th><th scope="col">Doubts</th></tr></thead>'
        f"<tbody>{said}</tbody></table>"
    )


def problem(text: str) -> str:
    """Returns an error as the page shows it."""
    return f'<div class="problem" role="alert"><b>Not done.</b> {escape(text)}</div>'
