"""Findings that an English ECG report states, by phrases and negation.

How a report is read:

- It is cut into sentences, these at ";", " - ", "but", "however" and "although", and what remains into clauses at
  commas. Negation reaches to the end of its clause, and over the commas of a list that continues with "or" or "nor"
  ("no st elevation, t wave inversion or q waves").
- Negated is what follows "no", "not", "without", "absence of", "negative for", "rule out" or "has replaced", and what
  stands before "is absent", "not seen", "no longer present", "ruled out" or "resolved" in the clause. "rule out" asks
  for an exclusion, so it states nothing.
- Uncertain statements count as findings, whatever the doubt ("possible", "probable", "consider", "cannot rule out",
  "not excluded"): a cart prints them when its criteria are met, if barely.
- Of overlapping phrases the longest counts: "incomplete right bundle branch block" is not the complete one, "sinus
  rhythm with slow rate" is bradycardia. A finding that is stated once is stated, though another clause may negate it.

Phrases are those of carts and of their readers, in English; a report in other words or another language states
nothing.
"""

import re
from collections.abc import Sequence

import numpy as np

from processing_melp import split_sentences

# In the patterns: hyphens inside words have become blanks.
_PREMATURE = r"(?:complex(?:es)?|beats?|contractions?|depolari[sz]ations?)"
_ECTOPIC = r"(?:ectopy|ectopics?|ectopic (?:beats?|complex(?:es)?)|extrasystoles?)"
_INFARCT = r"(?:wall )?(?:infarct(?:ion)?s?|myocardial infarct(?:ion)?s?|myocardial damage|mi)"
_ISCHEMIA = r"(?:wall )?(?:myocardial )?ischa?emia"
_HEART_BLOCK = r"(?:av|a v|atrioventricular|heart) block"
_CHANGES = r"(?:change|abnormalit(?:y|ies)|changes)"

# Finding (its name in `labels.yaml`) -> pattern of the phrases that state it.
PHRASES = {
    "normal ecg": r"normal (?:ecg|ekg|electrocardiogram|tracing)|^ ?(?:ecg |tracing )?(?:is )?within normal limits",
    "sinus rhythm": r"sinus rhythm",
    "sinus bradycardia": r"sinus brady(?:cardia)?|sinus rhythm with (?:a )?slow rate",
    "sinus tachycardia": r"sinus tach(?:ycardia)?|sinus rhythm with (?:a )?(?:rapid|fast) rate",
    "sinus arrhythmia": r"sinus arr?h?ythmia",
    "atrial fibrillation": r"atrial fibrillation|a ?fib|af",
    "atrial flutter": r"atrial flutter|a ?flutter",
    "atrial tachycardia": r"atrial tachycardia",
    "supraventricular tachycardia": r"supraventricular tachycardia|p?svt|avn?rt|av nodal reentrant tachycardia",
    "junctional rhythm": r"(?:junctional|nodal) (?:escape )?rhythm",
    "ventricular pacing": r"ventricular paced(?: rhythm| complex(?:es)?| beats?)?|ventricular pacing|"
    r"(?:av |dual |ventricular )?(?:electronic )?(?:av |dual |ventricular )?pacemaker(?: rhythm)?|"
    r"ventricular capture|(?:av )?paced rhythm",
    "atrial pacing": r"atrial paced(?: rhythm| complex(?:es)?)?|atrial pacing|electronic atrial pacemaker",
    "premature atrial complexes": rf"(?:premature (?:atrial|supraventricular)|(?:atrial|supraventricular) premature) "
    rf"{_PREMATURE}|pacs?|apcs?|(?:atrial|supraventricular) {_ECTOPIC}",
    "premature ventricular complexes": rf"(?:premature ventricular|ventricular premature) {_PREMATURE}|"
    rf"pvcs?|vpcs?|vpbs?|ventricular {_ECTOPIC}",
    "ventricular bigeminy": r"(?:ventricular )?bigemin(?:y|al|us)",
    "ventricular trigeminy": r"(?:ventricular )?trigemin(?:y|al|us)",
    "first degree av block": rf"(?:1st|first|1) degree {_HEART_BLOCK}|pr (?:interval )?prolongation|"
    r"(?:prolonged|long) pr(?: interval)?",
    "second degree av block": rf"(?:2nd|second|2) degree {_HEART_BLOCK}|mobitz|wenckebach",
    "third degree av block": rf"(?:3rd|third|3) degree {_HEART_BLOCK}|complete {_HEART_BLOCK}",
    "ventricular pre-excitation": r"(?:ventricular )?pre ?excitation|wolff? parkinson white|wpw",
    "right bundle branch block": r"(?:complete )?(?:right bundle branch block|rbbb)",
    "left bundle branch block": r"(?:complete )?(?:left bundle branch block|lbbb)",
    "incomplete right bundle branch block": r"(?:incomplete|partial) (?:right bundle branch block|rbbb)|irbbb",
    "incomplete left bundle branch block": r"(?:incomplete|partial) (?:left bundle branch block|lbbb)|ilbbb",
    "left anterior fascicular block": r"left anterior (?:fascicular block|hemiblock)|lafb|lahb",
    "left posterior fascicular block": r"left posterior (?:fascicular block|hemiblock)|lpfb|lphb",
    "nonspecific intraventricular conduction disturbance": r"intraventricular (?:conduction )?"
    r"(?:delay|defect|disturbance|disorder|block)|ivcd",
    "left axis deviation": r"left axis deviation|leftward axis|axis deviated to the left|lad",
    "right axis deviation": r"right axis deviation|rightward axis|axis deviated to the right|rad",
    "left atrial enlargement": r"left atrial (?:enlargement|abnormality|overload|hypertrophy)|lae|"
    r"hypertrophy of the left atrium",
    "right atrial enlargement": r"right atrial (?:enlargement|abnormality|overload|hypertrophy)|rae",
    "left ventricular hypertrophy": r"left ventricular hypertrophy|lvh",
    "right ventricular hypertrophy": r"right ventricular hypertrophy|rvh",
    "low voltage": r"low (?:qrs )?voltages?",
    "high voltage": r"high (?:qrs )?voltages?",
    "inferior infarction": rf"infero?(?:ior|lateral|posterior|posterolateral) {_INFARCT}",
    "anterior infarction": rf"(?:anterior|antero ?septal|antero ?lateral|septal) {_INFARCT}",
    "lateral infarction": rf"(?:high )?lateral {_INFARCT}",
    "posterior infarction": rf"posterior {_INFARCT}",
    "abnormal q waves": r"q waves?",
    "poor r wave progression": r"(?:poor|delayed|slow) r (?:wave )?progression",
    "inferior ischaemia": rf"infer(?:ior|o ?lateral) {_ISCHEMIA}",
    "anterior ischaemia": rf"(?:anterior|antero ?septal|antero ?lateral|high lateral|lateral) {_ISCHEMIA}",
    "nonspecific ischaemia": rf"(?:subendocardial )?{_ISCHEMIA}",
    "st elevation": r"st (?:segment )?elevation|st segments? (?:is|are) elevated|elevated st",
    "st depression": r"st (?:segment )?depression|st segments? (?:is|are) depressed|depressed st",
    "t wave inversion": r"t (?:wave )?inversions?|(?:inverted|negative) t(?: waves?)?|"
    r"t waves? (?:is|are) (?:inverted|negative)|t waves? with inversion",
    "nonspecific st-t abnormality": rf"(?:non ?specific )?st(?: and | ?& ?|/| )t (?:wave )?{_CHANGES}",
    "nonspecific st changes": rf"non ?specific st (?:segment )?{_CHANGES}",
    "nonspecific t wave changes": rf"non ?specific t (?:wave )?{_CHANGES}",
    "long qt": r"(?:prolonged|long) qtc?|qtc? (?:interval )?(?:prolongation|is prolonged)",
    "early repolarisation": r"early repolari[sz]ation",
    "digitalis effect": r"(?:digitalis|digoxin) effect",
}
# What contains one of these phrases and does not state it.
_OTHERWISE = (
    r"(?:otherwise|borderline) (?:normal (?:ecg|ekg|tracing)|within normal limits)|atrial bigeminy|atrial trigeminy"
)
_PATTERNS = {
    finding: re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])")
    for finding, pattern in [*PHRASES.items(), (None, _OTHERWISE)]
}

_UNCERTAIN = re.compile(r"\b(?:can ?not|can't|could not|not) (?:be )?(?:rule|ruled|exclude|excluded)(?: out)?\b")
_NO_CHANGE = re.compile(r"\bno (?:significant |definite |interval )?change\b")
_BREAKS = re.compile(r";|\s-\s|\b(?:but|however|although)\b")
_BEFORE = re.compile(
    r"\b(?:no|not|nor|neither|without|absence of|negative for|rule out|(?:has|have) replaced|replaces)\b|\br/o\b"
)
_OR = re.compile(r"\bn?or\b")
_AFTER = re.compile(
    r"\b(?:(?:is|are) (?:absent|excluded|not|resolved)|(?:not|no longer) (?:seen|present|evident)|ruled out|"
    r"(?:has|have) resolved|absent)\b"
)


def extract(report: str) -> set[str]:
    """Returns the findings that a report states, certain or not, by their names in `labels.yaml`."""
    text = re.sub(r"(?<=\w)-(?=\w)", " ", report.lower())
    text = _NO_CHANGE.sub("", _UNCERTAIN.sub("possible", re.sub(r"[ \t]+", " ", text)))
    stated = set()
    for sentence in split_sentences(text.replace("\n", ". ")):
        for segment in _BREAKS.split(sentence):
            stated |= _stated(segment.split(","))
    return stated


def _stated(clauses: list[str]) -> set[str]:
    """Returns the findings of clauses between which a list may be negated as a whole."""
    stated, listed = set(), False
    phrases = [_phrases(clause) for clause in clauses]
    # Where a list of findings continues with "or"; the "or" between leads is none.
    last = [
        bool((link := _OR.search(clause)) and any(start >= link.end() for start, _, _ in spans))
        for clause, spans in zip(clauses, phrases, strict=True)
    ]
    for index, clause in enumerate(clauses):
        before, after = _BEFORE.search(clause), _AFTER.search(clause)
        for start, end, finding in phrases[index]:
            negated = (before and start >= before.end()) or (after and end <= after.start())
            if not (negated or listed) and finding is not None:
                stated.add(finding)
        listed = bool(before or listed) and any(last[index + 1 :])
    return stated


def _phrases(clause: str) -> list[tuple[int, int, str | None]]:
    """Returns start, end and finding of the phrases of a clause; of overlapping ones the longest."""
    spans = [(m.start(), m.end(), finding) for finding, regex in _PATTERNS.items() for m in regex.finditer(clause)]
    chosen = []
    for span in sorted(spans, key=lambda span: span[0] - span[1]):
        if all(span[1] <= start or span[0] >= end for start, end, _ in chosen):
            chosen.append(span)
    return chosen


def stated_findings(reports: Sequence[str], findings: Sequence[str] = tuple(PHRASES)) -> np.ndarray:
    """Returns (reports, findings) bool: which findings each report states."""
    extracted = {report: extract(report) for report in set(reports)}
    rows = [[finding in extracted[report] for finding in findings] for report in reports]
    return np.array(rows, dtype=bool).reshape(len(reports), len(findings))
