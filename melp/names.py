"""Turns names and reports into numbers that tell which are the same, equal in every process and run."""

import hashlib
import re


def name_hash(name: str) -> int:
    """Returns a number from 0 to 2**63 - 1 for a name (of a record, a patient, a text)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def report_hash(report: str) -> int:
    """Returns the same number for reports that say the same.

    Case, punctuation, white space and the order of sentences do not matter.
    """
    from processing_melp import split_sentences  # needs torch, which the hash of a name does not

    sentences = (" ".join(re.findall(r"\w+", sentence.lower())) for sentence in split_sentences(report))
    return name_hash(". ".join(sorted(sentences)))
