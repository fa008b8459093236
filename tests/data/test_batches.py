"""Rows become batches: cropped, augmented, masked, and the same on any number of processes."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny import tiny_processor

from melp.data.batches import (
    KEPT_LEADS,
    MelpCollator,
    TrainingBatches,
    augment_signals,
    decode,
    move_electrodes,
    prepare_inputs,
    some_sentences,
)
from melp.data.prepared import load_prepared, with_reports
from melp.prepare.folder import prepare
from processing_melp import MelpFeatureExtractor
from signal_melp import LEADS


def test_crops_are_the_extractors():
    """The same part of a longer recording as `MelpFeatureExtractor` takes."""
    digital = np.random.default_rng(0).integers(-900, 900, (12, 7001)).astype(np.int16)
    row = {"signal": digital.tobytes(), "leads": list(LEADS), "gain": [1000.0] * 12, "baseline": [0.0] * 12}
    extractor = MelpFeatureExtractor(scaling="millivolt")
    signal = np.empty((12, 5000), dtype=np.float32)
    for crop in ("first", "center", "random"):
        torch.manual_seed(1)
        decode(row, signal, crop)
        torch.manual_seed(1)
        expected = extractor(digital / 1000, sampling_rate=500, leads=LEADS, crop=crop).input_values[0]
        np.testing.assert_allclose(signal, expected, atol=1e-6)
    with pytest.raises(ValueError, match="crop must be one of first, center, random, not 'middle'"):
        MelpCollator(extractor, crop="middle")


def test_batches_are_the_same_for_any_number_of_processes_and_resume_anywhere():
    class Rows(list):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def draws(rows):
        return rows, torch.rand(()).item()

    def batches(**options):
        return TrainingBatches(Rows(range(37)), draws, seed=5, **options)

    one = batches(batch_size=8)
    halves = [batches(batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    for step in (7, 0, 3, 11):
        assert one[step][0] == halves[0][step][0] + halves[1][step][0]
        assert halves[0][step][1] != halves[1][step][1]
    assert batches(batch_size=8)[9] == one[9]
    epoch = [row for step in range(4) for row in one[step][0]]
    assert len(set(epoch)) == 32 and [one[step][0] for step in range(4, 8)] != [one[step][0] for step in range(4)]
    state = torch.get_rng_state()
    one[2]
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the training's own stream"
    with pytest.raises(ValueError, match="do not fill one batch"):
        batches(batch_size=38)


def test_a_mixture_gives_each_source_its_share_and_each_row_its_turn():
    """30 rows of one source and 10 of another, of which an epoch takes 20 each: the small one comes round twice."""

    class Rows(list):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def batches(rank=0, world=1):
        size = 8 // world
        return TrainingBatches(Rows(range(40)), list, size, 3, rank, world, parts=[(30, 20), (10, 20)])

    one, halves = batches(), [batches(rank, 2) for rank in (0, 1)]
    assert one[6] == halves[0][6] + halves[1][6]
    epochs = [[row for step in range(5 * epoch, 5 * epoch + 5) for row in one[step]] for epoch in range(3)]
    for epoch in epochs:
        small = [row for row in epoch if row >= 30]
        assert len(small) == 20 and set(Counter(small).values()) == {2}
    large = Counter(row for epoch in epochs for row in epoch if row < 30)
    assert set(large.values()) == {2} and len(large) == 30, "two rounds in three epochs"


def test_augmented_signals_stay_near_and_the_others_stay():
    signals = torch.sin(torch.arange(5000) / 100).expand(16, 12, 5000).contiguous()
    torch.manual_seed(1)
    changed = augment_signals(signals, 0.5)
    same = (changed == signals).flatten(1).all(dim=1)
    assert 3 < same.sum() < 13 and changed.isfinite().all()
    assert changed.abs().max() < 1.25 + 0.1 + 0.02 * 6
    assert torch.equal(augment_signals(signals, 0.0), signals)


def test_moved_electrodes_see_the_same_heart():
    torch.manual_seed(0)
    eight = torch.randn(6, 8, 500)
    one, two = eight[:, 0], eight[:, 1]
    limb = {"I": one, "II": two, "III": two - one}
    limb |= {"aVR": -(one + two) / 2, "aVF": two - one / 2, "aVL": one - two / 2}
    signals = torch.cat([torch.stack([limb[lead] for lead in LEADS[:6]], 1), eight[:, 2:]], 1)
    signals[5, 7] = 0.0  # a lead that is not there
    moved = move_electrodes(signals)
    at = {lead: moved[:5, LEADS.index(lead)] for lead in LEADS}
    torch.testing.assert_close(at["I"] + at["III"], at["II"], atol=1e-5, rtol=0)
    torch.testing.assert_close(at["aVR"] + at["aVL"] + at["aVF"], torch.zeros(5, 500), atol=1e-5, rtol=0)
    vector = lambda leads: leads["I"] ** 2 + (2 * leads["II"] - leads["I"]) ** 2 / 3  # noqa: E731
    torch.testing.assert_close(vector(at), vector({"I": one[:5], "II": two[:5]}), atol=1e-4, rtol=0)
    for row in range(5):
        likeness = torch.nn.functional.cosine_similarity(moved[row], signals[row], dim=-1)
        assert (likeness > 0.9).all() and not torch.equal(moved[row], signals[row])
    assert torch.equal(moved[5], signals[5])


def test_lead_masking_scales_first_and_keeps_something(tmp_path):
    folder = prepare("synthetic", tmp_path / "corpus", records=20)
    split = load_prepared(folder)["train"]
    batch = MelpCollator(tiny_processor())(list(split.select(range(8))))
    assert batch["input_values"].dtype == torch.float32 and batch["input_values"].shape == (8, 12, 5000)
    torch.manual_seed(0)
    masked = prepare_inputs(batch, "cpu", "minmax", lead_dropout=0.5)
    whole = prepare_inputs(batch, "cpu", "minmax")
    assert torch.equal(masked["input_values"], whole["input_values"])
    assert 0.3 < masked["lead_mask"].float().mean() < 0.7 and masked["lead_mask"].any(dim=1).all()
    assert whole["input_values"].amin() == 0.0 and whole["input_values"].amax() == pytest.approx(1.0)
    assert prepare_inputs(batch, "cpu", "minmax", lead_dropout=1.0)["lead_mask"].all()
    assert len(with_reports(split)) == len(split)


def test_training_masks_leads_and_times_as_recordings_lack_them():
    batch = {"input_values": torch.randn(300, 12, 400), "lead_mask": torch.ones(300, 12, dtype=torch.bool)}
    batch["lead_mask"][::3, :2] = False

    def drawn(**masking) -> dict:
        torch.manual_seed(1)
        return prepare_inputs(batch, "cpu", "millivolt", **masking)

    whole = prepare_inputs(batch, "cpu", "millivolt")
    subsets = drawn(lead_subsets=1.0)["lead_mask"]
    assert subsets.any(dim=1).all() and not (subsets & ~whole["lead_mask"]).any()
    kept = {tuple(lead for lead, there in zip(LEADS, row, strict=True) if there) for row in subsets[1::3].tolist()}
    assert set(KEPT_LEADS) <= kept and len(kept) > len(KEPT_LEADS) + 5

    printed = drawn(printed_layout=1.0, lead_dropout=0.5)
    assert torch.equal(printed["lead_mask"], whole["lead_mask"]), "a print has all its leads"
    there = (printed["input_values"] != 0)[1::3].float().mean(dim=0)
    assert (there[LEADS.index("aVF")] == (torch.arange(400) // 100 == 1)).all()
    assert (there[LEADS.index("II"), :100] == 1).all() and 0.3 < there[LEADS.index("II"), 100:].mean() < 0.7

    some = drawn(printed_layout=0.3, lead_subsets=0.2, lead_dropout=1e-9)
    cut = (some["input_values"] != whole["input_values"]).any(dim=(1, 2))
    fewer = (some["lead_mask"] != whole["lead_mask"]).any(dim=1)
    assert 0.2 < cut.float().mean() < 0.4 and 0.1 < fewer.float().mean() < 0.3 and not (cut & fewer).any()
    again = drawn(printed_layout=0.3, lead_subsets=0.2, lead_dropout=1e-9)
    assert all(torch.equal(some[name], again[name]) for name in some), "the generator decides alone"


def test_some_sentences_are_whole_sentences_of_the_report():
    torch.manual_seed(0)
    report = "sinus rhythm. qtc 0.48 s, prolonged. left axis deviation"
    variants = {some_sentences(report) for _ in range(50)}
    sentences = {"sinus rhythm.", "qtc 0.48 s, prolonged.", "left axis deviation"}
    assert sentences <= variants and len(variants) > 6
