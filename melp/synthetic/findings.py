"""The findings of the synthetic corpus, and the PTB-XL statements that say the same.

Names are those of `melp/evaluation/labels.yaml`, so that a model's figures on the corpus and on real databases can be
compared. `STATEMENTS` follows `scp_statements.csv` of PTB-XL 1.0.3.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A finding's PTB-XL statement (or None), its family, and how a report treats it.

    `primary` findings are never left out of a report; `minor` ones alone leave the ECG "otherwise normal".
    """

    statement: str | None
    family: str
    primary: bool = False
    minor: bool = False


def _family(family: str, rows: str) -> dict[str, Finding]:
    """Reads the findings of a family from lines of "name | statement or - | flags"."""
    findings = {}
    for line in rows.strip().splitlines():
        name, statement, *flags = (cell.strip() for cell in line.split("|"))
        flags = flags[0].split() if flags else []
        findings[name] = Finding(None if statement == "-" else statement, family, "primary" in flags, "minor" in flags)
    return findings


# In the order in which a report states them.
FINDINGS: dict[str, Finding] = {
    **_family(
        "rhythm",
        """
        sinus rhythm | SR | primary minor
        sinus bradycardia | SBRAD | primary minor
        sinus tachycardia | STACH | primary minor
        atrial fibrillation | AFIB | primary
        atrial flutter | AFLT | primary
        supraventricular tachycardia | SVTAC | primary
        paroxysmal supraventricular tachycardia | PSVT | primary
        atrial tachycardia | SVTAC | primary
        supraventricular arrhythmia | SVARR | primary
        junctional rhythm | SVARR | primary
        idioventricular rhythm | - | primary
        ventricular pacing | PACE | primary
        atrial pacing | PACE | primary
        dual chamber pacing | PACE | primary
        sinus arrhythmia | SARRH | minor
        sinus pause | - |
        premature atrial complexes | PAC | minor
        premature ventricular complexes | PVC |
        ventricular bigeminy | BIGU | primary
        ventricular trigeminy | TRIGU | primary
        atrial bigeminy | BIGU | primary
        atrial trigeminy | TRIGU | primary
        junctional escape beats | - |
        ventricular escape beats | - |
        """,
    ),
    **_family(
        "conduction",
        """
        first degree av block | 1AVB | minor
        second degree av block type i | 2AVB | primary
        second degree av block type ii | 2AVB | primary
        third degree av block | 3AVB | primary
        ventricular pre-excitation | WPW |
        right bundle branch block | CRBBB |
        incomplete right bundle branch block | IRBBB | minor
        left bundle branch block | CLBBB |
        incomplete left bundle branch block | ILBBB |
        nonspecific intraventricular conduction disturbance | IVCD |
        left anterior fascicular block | LAFB |
        left posterior fascicular block | LPFB |
        left axis deviation | - | minor
        right axis deviation | - | minor
        clockwise rotation | - | minor
        counterclockwise rotation | - | minor
        poor r wave progression | - | minor
        """,
    ),
    **_family(
        "hypertrophy and voltage",
        """
        left atrial enlargement | LAO/LAE | minor
        right atrial enlargement | RAO/RAE | minor
        left ventricular hypertrophy | LVH |
        voltage criteria for left ventricular hypertrophy | VCLVH | minor
        high voltage | HVOLT | minor
        right ventricular hypertrophy | RVH |
        septal hypertrophy | SEHYP |
        low voltage | LVOLT | minor
        """,
    ),
    **_family(
        "infarction",
        """
        inferior infarction | IMI |
        inferolateral infarction | ILMI |
        inferoposterior infarction | IPMI |
        anteroseptal infarction | ASMI |
        anterior infarction | AMI |
        anterolateral infarction | ALMI |
        lateral infarction | LMI |
        posterior infarction | PMI |
        acute infarction | - |
        abnormal q waves | QWAVE |
        abnormal qrs | ABQRS |
        ventricular aneurysm | ANEUR |
        """,
    ),
    **_family(
        "repolarisation",
        """
        anteroseptal subendocardial injury | INJAS |
        anterolateral subendocardial injury | INJAL |
        lateral subendocardial injury | INJLA |
        inferior subendocardial injury | INJIN |
        inferolateral subendocardial injury | INJIL |
        anterior ischaemia | ISCAN |
        anteroseptal ischaemia | ISCAS |
        anterolateral ischaemia | ISCAL |
        lateral ischaemia | ISCLA |
        inferior ischaemia | ISCIN |
        inferolateral ischaemia | ISCIL |
        nonspecific ischaemia | ISC |
        st elevation | STE |
        st depression | STD |
        nonspecific st changes | NST |
        t wave inversion | INVT |
        low t waves | LOWT | minor
        nonspecific t wave changes | NT | minor
        nondiagnostic t wave abnormalities | NDT | minor
        t wave abnormality | TAB |
        digitalis effect | DIG |
        electrolyte disturbance | EL |
        long qt | LNGQT |
        prolonged st segment | - |
        u waves | - | minor
        early repolarisation | - | minor
        """,
    ),
    **_family("normal", "normal ecg | NORM | primary"),
}
# The findings that the demo and its figures are about, each drawn in its textbook form.
TEXTBOOK = [
    "sinus rhythm",
    "sinus bradycardia",
    "sinus tachycardia",
    "atrial fibrillation",
    "atrial flutter",
    "supraventricular tachycardia",
    "ventricular pacing",
    "sinus arrhythmia",
    "premature atrial complexes",
    "premature ventricular complexes",
    "ventricular bigeminy",
    "first degree av block",
    "ventricular pre-excitation",
    "right bundle branch block",
    "left bundle branch block",
    "left anterior fascicular block",
    "left axis deviation",
    "right axis deviation",
    "left atrial enlargement",
    "low voltage",
    "left ventricular hypertrophy",
    "inferior infarction",
    "anterior infarction",
    "st elevation",
    "st depression",
    "t wave inversion",
    "long qt",
    "normal ecg",
]

# statement: superclass, subclass ("-": not diagnostic), and whether it is one of form (F) or rhythm (R).
_TABLE = """
NDT STTC STTC F, NST STTC NST F, DIG STTC STTC F, LNGQT STTC STTC F, NORM NORM NORM, IMI MI IMI, ASMI MI AMI,
LVH HYP LVH, LAFB CD LAFB/LPFB, ISC STTC ISC, IRBBB CD IRBBB, 1AVB CD AVB, IVCD CD IVCD, ISCAL STTC ISCA,
CRBBB CD CRBBB, CLBBB CD CLBBB, ILMI MI IMI, LAO/LAE HYP LAO/LAE, AMI MI AMI, ALMI MI AMI, ISCIN STTC ISCI,
INJAS MI AMI, LMI MI LMI, ISCIL STTC ISCI, LPFB CD LAFB/LPFB, ISCAS STTC ISCA, INJAL MI AMI, ISCLA STTC ISCA,
RVH HYP RVH, ANEUR STTC STTC, RAO/RAE HYP RAO/RAE, EL STTC STTC, WPW CD WPW, ILBBB CD ILBBB, ISCAN STTC ISCA,
IPMI MI IMI, SEHYP HYP SEHYP, INJIN MI IMI, INJLA MI AMI, PMI MI PMI, 3AVB CD AVB, INJIL MI IMI, 2AVB CD AVB,
ABQRS - - F, PVC - - F, STD - - F, VCLVH - - F, QWAVE - - F, LOWT - - F, NT - - F, PAC - - F, LPR - - F, INVT - - F,
LVOLT - - F, HVOLT - - F, TAB - - F, STE - - F, SR - - R, AFIB - - R, STACH - - R, SARRH - - R, SBRAD - - R,
PACE - - R, SVARR - - R, BIGU - - R, AFLT - - R, SVTAC - - R, PSVT - - R, TRIGU - - R
"""
STATEMENTS = {row.split()[0]: row.split()[1:] for row in _TABLE.split(",")}


def _classes() -> dict[str, dict[str, str]]:
    """Returns `{label set: {statement: class}}`, as the PTB-XL module has them."""
    return {
        "superclass": {name: row[0] for name, row in STATEMENTS.items() if row[0] != "-"},
        "subclass": {name: row[1] for name, row in STATEMENTS.items() if row[1] != "-"},
        "form": {name: name for name, row in STATEMENTS.items() if "F" in row[2:]},
        "rhythm": {name: name for name, row in STATEMENTS.items() if "R" in row[2:]},
    }


CLASSES = _classes()
LABEL_SETS = {"findings": list(FINDINGS)} | {
    name: sorted(set(class_of.values())) for name, class_of in CLASSES.items()
}


def labels_of(findings: list[str]) -> dict[str, list[str] | None]:
    """Returns the labels of every label set.

    As in PTB-XL, a recording without a statement of a kind is not labelled in that label set (None).
    """
    statements = {FINDINGS[name].statement for name in findings}
    labels: dict[str, list[str] | None] = {"findings": findings}
    for name, class_of in CLASSES.items():
        labels[name] = sorted({class_of[code] for code in statements if code in class_of}) or None
    return labels
