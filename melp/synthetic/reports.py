"""Words for what a recording shows: `wordings.yaml`, drawn and filled in."""

import re
from functools import cache
from pathlib import Path

import numpy as np

from melp.synthetic.findings import FINDINGS
from melp.synthetic.heart import LEADS
from melp.synthetic.patients import Recording
from melp.synthetic.simulator import Truth
from melp.yaml_file import read_yaml

USUAL = 4  # wordings at the head of a finding's list that reports use most
PLAIN_HEDGES = 7  # hedges of a cart


@cache
def wordings() -> dict:
    """Returns the table of `wordings.yaml`."""
    return read_yaml(Path(__file__).with_name("wordings.yaml"), aliases=True)


@cache
def general_findings() -> dict[str, frozenset[str]]:
    """Returns `{family: findings that make its sentence true}`; a family may be named by its `Finding.family`."""
    families = {}
    for name, entry in wordings()["general"].items():
        named = set(entry["findings"])
        named |= {finding for finding, about in FINDINGS.items() if about.family in named}
        left_out = {"abnormal qrs", "abnormal q waves", "u waves", "early repolarisation"}
        families[name] = frozenset((named & set(FINDINGS)) - left_out)
    return families


# Beside what, a finding or a family of findings (`Finding.family`), nobody would say "no X", though X has no label.
_RELATED = {
    "st elevation": "repolarisation, infarction",
    "st depression": "repolarisation, infarction",
    "t wave inversion": "repolarisation, infarction",
    "myocardial infarction": "repolarisation, abnormal q waves, abnormal qrs, ventricular aneurysm",
    "ischaemia": "repolarisation, infarction",
    "bundle branch block": "incomplete right bundle branch block, incomplete left bundle branch block, "
    "nonspecific intraventricular conduction disturbance, ventricular pre-excitation, ventricular pacing, "
    "dual chamber pacing, idioventricular rhythm, abnormal qrs",
    "av block": "ventricular pre-excitation, atrial fibrillation, atrial flutter, junctional rhythm, "
    "ventricular pacing, idioventricular rhythm, dual chamber pacing, junctional escape beats, "
    "ventricular escape beats",
    "premature complexes": "ventricular bigeminy, ventricular trigeminy, atrial bigeminy, atrial trigeminy, "
    "junctional escape beats, ventricular escape beats, paroxysmal supraventricular tachycardia",
    "hypertrophy": "voltage criteria for left ventricular hypertrophy, high voltage",
    "long qt": "prolonged st segment, electrolyte disturbance",
    "atrial fibrillation": "atrial flutter",
}


@cache
def denying(name: str) -> frozenset[str]:
    """Returns the findings beside which a text of `negated` is not true: the denied ones, and those related."""
    named = {part.strip() for part in _RELATED.get(name, "").split(",")}
    related = {finding for finding, about in FINDINGS.items() if finding in named or about.family in named}
    return frozenset(related) | general_findings().get(name, frozenset([name]))


@cache
def unclear_beside(family: str) -> list[str]:
    """Returns the findings beside which a family's words may be true though it has no finding: a slow fibrillation."""
    return wordings()["general"][family].get("beside", [])


@cache
def plain_wordings(name: str) -> list[str]:
    """Returns a cart's words for a finding: the usual ones, but none that holds the name of another finding."""
    others = [other for other in FINDINGS if other not in name]
    return [text for text in wordings()["findings"][name][:USUAL] if not any(other in text for other in others)]


@cache
def short_wordings() -> dict[str, list[str]]:
    """Returns `{finding or family: its wordings}` without measured numbers and places."""
    table = wordings()
    named = table["findings"] | {name: entry["wordings"] for name, entry in table["general"].items()}
    plain = {}
    for name, texts in named.items():
        texts = (re.sub(r" ?\{(response|conduction|stage|strain|few)\} ?", " ", text).strip() for text in texts)
        plain[name] = [text for text in texts if "{" not in text]
    return plain


def statements_in_words(statements: list[str], descriptions: dict[str, str], rng: np.random.Generator) -> str:
    """Returns a report that states PTB-XL's statements in the corpus's words.

    A statement of several findings (PACE: of the atrium, the ventricle, or both) takes their family's words; one that
    the corpus lacks takes its description.
    """
    names: dict[str, list[str]] = {}
    for name, finding in FINDINGS.items():
        if finding.statement in statements:
            names.setdefault(finding.statement, []).append(name)
    said = []
    for members in names.values():
        families = (family for family, findings in general_findings().items() if set(members) <= findings)
        name = members[0] if len(members) == 1 else next(families, members[0])
        said.append(_draw_statement(rng, short_wordings()[name]))
    said += [descriptions[statement] for statement in statements if statement not in names]
    return " ".join(f"{sentence}." for sentence in said)


def _draw(rng: np.random.Generator, texts: list[str], first: float = 1.6) -> str:
    """Draws one of the texts, the first ones more often."""
    return texts[int(len(texts) * rng.random() ** first)]


def _draw_statement(rng: np.random.Generator, texts: list[str]) -> str:
    """Draws one of a statement's texts: half the time one of the first four, otherwise any of the rest."""
    usual, rest = texts[:USUAL], texts[USUAL:]
    return _draw(rng, rest if rest and rng.random() < 0.5 else usual, 1.0)


def _where(levels: np.ndarray, threshold: float) -> str:
    """Names the region whose `levels` (12,) reach the threshold, or come nearest to it."""
    high = {lead for lead, level in zip(LEADS, levels, strict=True) if level >= threshold}
    regions = {
        "inferior": {"II", "III", "aVF"},
        "anterior": {"V1", "V2", "V3", "V4"},
        "lateral": {"I", "aVL", "V5", "V6"},
    }
    reached = {name for name, leads in regions.items() if len(high & leads) > 1}
    if {"anterior", "lateral"} <= reached:
        return "diffuse" if "inferior" in reached else "anterolateral"
    if {"inferior", "lateral"} <= reached:
        return "inferolateral"
    nearest = max(regions, key=lambda name: levels[[LEADS.index(lead) for lead in regions[name]]].mean())
    return next((name for name in ("inferior", "anterior", "lateral") if name in reached), nearest)


def _fill(name: str, wording: str, recording: Recording, truth: Truth, rng: np.random.Generator) -> str:
    """Fills in a wording's placeholders."""
    if "{" not in wording:
        return wording
    rate = truth.heart_rate
    response = "rapid" if rate > 100 else "slow" if rate < 60 else "controlled"
    ratio = f"{recording.ratio}:1" if recording.ratio else "variable"
    level, threshold = {
        "st elevation": (truth.st, 0.1),
        "st depression": (-truth.st, 0.05),
    }.get(name, (-truth.t, 0.1))
    wall = name.removesuffix(" infarction")
    stage = recording.stages.get(wall, "old")
    strain = recording.findings & {"nonspecific ischaemia", "st depression", "t wave inversion"}
    few = int(truth.premature.sum()) < 3
    return wording.format(
        where=_where(level, threshold) if "{where}" in wording else "",
        response=f" with {response} ventricular response",
        conduction=f" with {ratio} a-v block",
        few=("occasional" if few else "frequent"),
        strain=" with secondary repolarization abnormality" if strain else "",
        stage=_draw(rng, wordings()["stages"][stage], 1.5),
        rate=f"{rate:.0f}",
        pr=f"{(truth.pr_interval or 0) / 1000:.2f}",
        qtc=f"{truth.qtc_interval / 1000:.2f}",
        qrs=f"{truth.qrs_duration:.0f}",
    )


def _statements(
    recording: Recording, truth: Truth, labels: list[str], rng: np.random.Generator, plain: bool
) -> list[str]:
    """Writes sentences for the findings: each in its own words, now and then a family's, now and then left out."""
    table = wordings()
    several = sum(not FINDINGS[name].primary for name in labels) > 1
    measured = {"left axis deviation", "right axis deviation", "clockwise rotation", "counterclockwise rotation"}
    measured |= {"poor r wave progression", "st depression", "t wave inversion"}
    crowded = len(labels) > 4
    sentences = []
    for name in labels:
        finding = FINDINGS[name]
        omitted = 0.0 if plain else 0.45 if name in measured and crowded else 0.10
        if several and not finding.primary and rng.random() < omitted:
            continue
        text = _draw(rng, plain_wordings(name)) if plain else _draw_statement(rng, table["findings"][name])
        text = _fill(name, text, recording, truth, rng)
        if finding.family not in ("rhythm", "normal") and rng.random() < (0.05 if plain else 0.10):
            hedges = table["hedges"][:PLAIN_HEDGES] if plain else table["hedges"]
            text = f"{_draw(rng, hedges)} {text}"
        sentences.append(text)
    for name, members in general_findings().items():
        if not plain and members & set(labels) and rng.random() < 0.22:
            entry = table["general"][name]["wordings"]
            sentences.append(_fill(name, _draw_statement(rng, entry), recording, truth, rng))
    return sentences


def _absent(labels: list[str], rng: np.random.Generator) -> list[str]:
    """Writes sentences about what is not there, and what is there no longer."""
    table, present = wordings(), set(labels)
    sentences = []
    draw = rng.random()
    if draw < 0.16:
        candidates = [name for name in table["negated"] if not denying(name) & present]
        if candidates:
            name = candidates[rng.integers(len(candidates))]
            sentences.append(_draw(rng, table["negated"][name]))
    elif draw < 0.22:
        names = [name for name in FINDINGS if name not in present and FINDINGS[name].family != "normal"]
        name = names[rng.integers(len(names))]
        plain = [text for text in table["findings"][name] if "{" not in text and "," not in text]
        if plain and FINDINGS[name].family in ("rhythm", "conduction", "repolarisation"):
            template = table["earlier"][rng.integers(len(table["earlier"]))]
            sentences.append(template.format(finding=plain[0]))
    return sentences


def _summary(labels: list[str], rng: np.random.Generator) -> str:
    """Returns the closing sentence, or "" where the report has none."""
    closing = wordings()["closing"]
    if all(FINDINGS[name].minor for name in labels):
        return closing["minor"][int(np.searchsorted([0.35, 0.6, 0.75], rng.random()))]
    return closing["abnormal"][int(np.searchsorted([0.4, 0.55, 0.62], rng.random()))]


def report(
    recording: Recording, truth: Truth, labels: list[str], rng: np.random.Generator, plain: bool = False
) -> str:
    """Returns a report of one to six sentences in lower-case ASCII; a `plain` one is a cart's."""
    table = wordings()
    sentences = _statements(recording, truth, labels, rng, plain)
    if len(sentences) > 5:  # a reader of many findings names the most important
        keep = np.sort(rng.permutation(len(sentences))[:5])
        sentences = [sentences[index] for index in keep]
    if len(sentences) > 1 and sentences[1].startswith("with "):
        sentences[:2] = [f"{sentences[0]} {sentences[1]}"]
    sentences = [re.sub(r"^with ", "", sentence) for sentence in sentences]
    if not plain:
        if rng.random() < 0.2:
            rng.shuffle(sentences)
        sentences += _absent(labels, rng)
    noise = recording.recorder.noise
    noisy = noise.burst or noise.motion or noise.wander > 0.07
    if rng.random() < (0.3 if noisy else 0.01):
        artefact = table["artefacts"][rng.integers(len(table["artefacts"]))]
        sentences.append(artefact.format(lead=LEADS[rng.integers(6, 12)].lower()))
    sentences = sentences[:5]
    summary = "" if "normal ecg" in labels else _summary(labels, rng)
    closing = [summary] if summary else []
    if len(sentences) + len(closing) < 6 and rng.random() < 0.08:
        closing.insert(rng.integers(len(closing) + 1), table["distractors"][rng.integers(len(table["distractors"]))])
    text = ". ".join(sentences + closing) + "."
    if len(text.split()) >= 4:
        return text
    return f"{text[:-1]}. {'ventricular rate' if summary else 'rate'} {truth.heart_rate:.0f} bpm."
