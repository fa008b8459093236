"""Simulated ECGs that the app shows without a file: drawn when asked for, stored nowhere."""

from functools import lru_cache

from signal_melp import EcgBlock

# Findings -> recordings of the simulator's world 0 in which they are true by construction. A change of the simulator
# makes others of these: a test says so.
EXAMPLES = {
    "Normal": "synthetic-0000029-0",
    "Atrial fibrillation": "synthetic-0000000-0",
    "Left bundle branch block": "synthetic-0000055-0",
    "Inferior infarction": "synthetic-0000060-0",
    "Ventricular bigeminy": "synthetic-0000029-1",
}
PATIENT = ("synthetic-0000029-0", "synthetic-0000029-1")  # of one, normal and then with bigeminy, for Compare
RECORDS = 200  # of the world that are planned; only those above are drawn


def name_of(record: str) -> str:
    return f"{record} (simulated)"


@lru_cache(maxsize=16)
def simulated_block(record: str) -> EcgBlock:
    """Returns a simulated recording, 10 s of 12 leads."""
    from melp.synthetic import corpus

    item = next(item for item in corpus.plan(records=RECORDS).to_pylist() if item["record"] == record)
    drawn = corpus.simulated(item)[2]
    return EcgBlock(
        names=[name_of(record)],
        signal=(drawn.signal / drawn.gain[:, None]).astype("float32")[None],
        leads=list(drawn.leads),
        sampling_rate=float(drawn.sampling_rate),
        ignored_leads=[],
        done=["simulated: drawn by melp.synthetic, from no patient"],
    )
