"""SNOMED CT codes of ECG findings, and the class names that three databases give them.

Sources: `dx_mapping_scored.csv` and `dx_mapping_unscored.csv` of the PhysioNet/CinC Challenge 2021 (codes, names,
abbreviations, and the four pairs scored as one diagnosis); `ConditionNames_SNOMED-CT.csv` of the
Chapman-Shaoxing-Ningbo database (acronyms; several acronyms of that table share a code, here each code has the one
that the benchmark uses); F. Liu et al., Journal of Medical Imaging and Health Informatics 8, 1368 (2018) and the
Challenge's headers for the nine classes of CPSC2018.
"""

from collections.abc import Iterable, Mapping

# The 30 scored codes of the Challenge 2021: code -> (abbreviation, name).
SCORED = {
    "164889003": ("AF", "atrial fibrillation"),
    "164890007": ("AFL", "atrial flutter"),
    "6374002": ("BBB", "bundle branch block"),
    "426627000": ("Brady", "bradycardia"),
    "733534002": ("CLBBB", "complete left bundle branch block"),
    "713427006": ("CRBBB", "complete right bundle branch block"),
    "270492004": ("IAVB", "first degree av block"),
    "713426002": ("IRBBB", "incomplete right bundle branch block"),
    "39732003": ("LAD", "left axis deviation"),
    "445118002": ("LAnFB", "left anterior fascicular block"),
    "164909002": ("LBBB", "left bundle branch block"),
    "251146004": ("LQRSV", "low qrs voltages"),
    "698252002": ("NSIVCB", "nonspecific intraventricular conduction disorder"),
    "426783006": ("NSR", "sinus rhythm"),
    "284470004": ("PAC", "premature atrial contraction"),
    "10370003": ("PR", "pacing rhythm"),
    "365413008": ("PRWP", "poor r wave progression"),
    "427172004": ("PVC", "premature ventricular contractions"),
    "164947007": ("LPR", "prolonged pr interval"),
    "111975006": ("LQT", "prolonged qt interval"),
    "164917005": ("QAb", "abnormal q wave"),
    "47665007": ("RAD", "right axis deviation"),
    "59118001": ("RBBB", "right bundle branch block"),
    "427393009": ("SA", "sinus arrhythmia"),
    "426177001": ("SB", "sinus bradycardia"),
    "427084000": ("STach", "sinus tachycardia"),
    "63593006": ("SVPB", "supraventricular premature beats"),
    "164934002": ("TAb", "t wave abnormal"),
    "59931005": ("TInv", "t wave inversion"),
    "17338001": ("VPB", "ventricular premature beats"),
}
# Codes that the Challenge scores as the same diagnosis as another: 30 codes, 26 classes.
SAME = {"733534002": "164909002", "713427006": "59118001", "63593006": "284470004", "17338001": "427172004"}
CHALLENGE = {code: SCORED[SAME.get(code, code)][0] for code in SCORED}

# The other codes: the Challenge's 103 unscored ones, and the last four, which only Chapman-Shaoxing-Ningbo names.
UNSCORED = {
    "233892002": "accelerated atrial escape rhythm",
    "164951009": "abnormal qrs",
    "251187003": "atrial escape beat",
    "61277005": "accelerated idioventricular rhythm",
    "426664006": "accelerated junctional rhythm",
    "251139008": "suspect arm ecg leads reversed",
    "57054005": "acute myocardial infarction",
    "413444003": "acute myocardial ischemia",
    "426434006": "anterior ischemia",
    "54329005": "anterior myocardial infarction",
    "251173003": "atrial bigeminy",
    "195080001": "atrial fibrillation and flutter",
    "195126007": "atrial hypertrophy",
    "251268003": "atrial pacing pattern",
    "106068003": "atrial rhythm",
    "713422000": "atrial tachycardia",
    "233917008": "av block",
    "50799005": "atrioventricular dissociation",
    "29320008": "atrioventricular junctional rhythm",
    "251166008": "atrioventricular node reentrant tachycardia",
    "233897008": "atrioventricular reentrant tachycardia",
    "251170000": "blocked premature atrial contraction",
    "418818005": "brugada",
    "74615001": "brady tachy syndrome",
    "426749004": "chronic atrial fibrillation",
    "251199005": "counterclockwise rotation",
    "61721007": "clockwise or counterclockwise vectorcardiographic loop",
    "698247007": "cardiac dysrhythmia",
    "27885002": "complete heart block",
    "204384007": "congenital incomplete atrioventricular heart block",
    "53741008": "coronary heart disease",
    "413844008": "chronic myocardial ischemia",
    "251198002": "clockwise rotation",
    "82226007": "diffuse intraventricular block",
    "428417006": "early repolarization",
    "13640000": "fusion beats",
    "164942001": "fragmented qrs",
    "84114007": "heart failure",
    "368009": "heart valve disorder",
    "251259000": "high t voltage",
    "251200008": "indeterminate cardiac axis",
    "195042002": "second degree av block",
    "426183003": "mobitz type ii atrioventricular block",
    "425419005": "inferior ischemia",
    "251120003": "incomplete left bundle branch block",
    "704997005": "inferior st segment depression",
    "49260003": "idioventricular rhythm",
    "426995002": "junctional escape",
    "251164006": "junctional premature complex",
    "426648003": "junctional tachycardia",
    "253352002": "left atrial abnormality",
    "67741000119109": "left atrial enlargement",
    "446813000": "left atrial hypertrophy",
    "425623009": "lateral ischemia",
    "445211001": "left posterior fascicular block",
    "164873001": "left ventricular hypertrophy",
    "55827005": "left ventricular high voltage",
    "370365005": "left ventricular strain",
    "164865005": "myocardial infarction",
    "164861001": "myocardial ischemia",
    "54016002": "mobitz type i wenckebach atrioventricular block",
    "428750005": "nonspecific st t abnormality",
    "164867002": "old myocardial infarction",
    "282825002": "paroxysmal atrial fibrillation",
    "251205003": "prolonged p wave",
    "67198005": "paroxysmal supraventricular tachycardia",
    "425856008": "paroxysmal ventricular tachycardia",
    "164912004": "p wave change",
    "253339007": "right atrial abnormality",
    "164921003": "r wave abnormal",
    "446358003": "right atrial hypertrophy",
    "67751000119106": "right atrial high voltage",
    "314208002": "rapid atrial fibrillation",
    "89792004": "right ventricular hypertrophy",
    "17366009": "sinus atrium to atrial wandering rhythm",
    "65778007": "sinoatrial block",
    "5609005": "sinus arrest",
    "60423000": "sinus node dysfunction",
    "49578007": "shortened pr interval",
    "77867006": "decreased qt interval",
    "55930002": "st changes",
    "429622005": "st depression",
    "164931005": "st elevation",
    "164930006": "st interval abnormal",
    "251168009": "supraventricular bigeminy",
    "426761007": "supraventricular tachycardia",
    "266257000": "transient ischemic attack",
    "251223006": "tall p wave",
    "164937009": "u wave abnormal",
    "11157007": "ventricular bigeminy",
    "164884008": "ventricular ectopics",
    "75532003": "ventricular escape beat",
    "81898007": "ventricular escape rhythm",
    "164896001": "ventricular fibrillation",
    "111288001": "ventricular flutter",
    "266249003": "ventricular hypertrophy",
    "195060002": "ventricular preexcitation",
    "251266004": "ventricular pacing pattern",
    "251182009": "paired ventricular premature complexes",
    "164895002": "ventricular tachycardia",
    "251180001": "ventricular trigeminy",
    "195101003": "wandering atrial pacemaker",
    "74390002": "wolff parkinson white pattern",
    "28189009": "second degree av block, type ii",
    "251148003": "low qrs voltages in chest leads",
    "251147008": "low qrs voltages in limb leads",
    "233896004": "av node reentrant tachycardia",
}
NAMES = {code: name for code, (_, name) in SCORED.items()} | UNSCORED

# The 38 classes of the published Chapman-Shaoxing-Ningbo tables, in their order: code -> acronym. AF is flutter there.
CSN = {
    "164917005": "AQW",
    "164937009": "UW",
    "426783006": "SR",
    "74390002": "WPW",
    "195042002": "2AVB",
    "713422000": "AT",
    "11157007": "VB",
    "47665007": "ARS",
    "428750005": "STTC",
    "427393009": "SA",
    "164930006": "STE",
    "17338001": "VPB",
    "59931005": "TWO",
    "164931005": "STTU",
    "39732003": "ALS",
    "284470004": "APB",
    "54016002": "2AVB1",
    "164947007": "PRIE",
    "251199005": "CCR",
    "251198002": "CR",
    "164890007": "AF",
    "233917008": "AVB",
    "111975006": "QTIE",
    "164909002": "LBBB",
    "75532003": "VEB",
    "426761007": "SVT",
    "59118001": "RBBB",
    "270492004": "1AVB",
    "429622005": "STDD",
    "164865005": "MI",
    "164889003": "AFIB",
    "164934002": "TWC",
    "164912004": "PWC",
    "428417006": "ERV",
    "89792004": "RVH",
    "164873001": "LVH",
    "427084000": "ST",
    "426995002": "JEB",
}

# The nine classes of CPSC2018 in the order of the competition's label numbers 1 to 9, by the benchmark's names.
CPSC2018 = {
    "426783006": "NORM",
    "164889003": "AFIB",
    "270492004": "1AVB",
    "164909002": "CLBBB",
    "59118001": "CRBBB",
    "284470004": "PAC",
    "164884008": "VPC",
    "429622005": "STD",
    "164931005": "STE",
}


def classes_of(codes: Iterable[str] | None, classes: Mapping[str, str]) -> list[str] | None:
    """Returns the classes of a recording's codes, each once; None where the recording has no codes at all."""
    return None if codes is None else list(dict.fromkeys(classes[code] for code in codes if code in classes))


def names_of(codes: Iterable[str] | None, names: Mapping[str, str] = NAMES) -> list[str] | None:
    """Returns English names of a recording's codes; a code that the tables do not have is its own name."""
    return None if codes is None else list(dict.fromkeys(names.get(code, code) for code in codes))


def describe(codes: Iterable[str] | None) -> str:
    """Returns a sentence per code: "sinus rhythm. left bundle branch block."; none for unknown codes."""
    return " ".join(f"{name}." for name in classes_of(codes, NAMES) or [])


def add_reports(parser):
    parser.add_argument(
        "--reports",
        choices=("none", "statements"),
        default="none",
        help="the database has no reports: none, or each recording's codes by English names, one sentence per code",
    )
