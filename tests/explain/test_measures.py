"""Curves and localisation of attributions of which the answer is known."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from explain_melp import FRAME, Recording, can_compare
from melp.explain.measures import RANDOM, attributions, locate, measure
from melp.synthetic.places import Place
from modeling_melp import MelpEcgModelOutput

RECORDED = np.ones(250, dtype=bool)


def map_at(time: float, lead: int) -> np.ndarray:
    weights = np.zeros((12, 250), np.float32)
    weights[lead, round(time / FRAME) : round(time / FRAME) + 5] = 0.2
    return weights


def test_an_attribution_is_compared_with_the_truth():
    place = Place(((4.0, 4.3),), frozenset(["V1", "V2"]))
    right = locate(map_at(4.0, 6), RECORDED, place)
    assert right["pointing"] == right["inside"] == right["lead_pointing"] == right["leads_inside"] == 1.0
    assert right["chance"] == pytest.approx(0.05, abs=0.005) and right["lead_chance"] == pytest.approx(2 / 12)
    wrong = locate(map_at(7.0, 0), RECORDED, place)
    assert wrong["pointing"] == wrong["inside"] == wrong["lead_pointing"] == wrong["leads_inside"] == 0.0
    everywhere = locate(map_at(4.0, 6), RECORDED, Place(((4.0, 4.3),)))
    assert everywhere["lead_pointing"] is None
    anytime = locate(map_at(4.0, 6), RECORDED, Place((), frozenset(["V1"])))
    assert anytime["pointing"] is None and anytime["lead_pointing"] == 1.0
    nothing = locate(np.zeros((12, 250)), RECORDED, place)
    assert nothing["pointing"] == 0.0 and nothing["inside"] == nothing["chance"]


class OneSpike(torch.nn.Module):
    """A model whose similarity with its text is how high lead V1 goes about 6 s."""

    device = torch.device("cpu")

    def ecg_model(self, values, lead_mask=None):
        height = values[:, 6, 2950:3050].amax(dim=-1)
        return MelpEcgModelOutput(rhythm_embeds=torch.stack([height, torch.ones_like(height)], dim=-1))


def test_a_right_attribution_has_the_better_curves_and_is_faithful():
    model = OneSpike()
    model.config = tiny_model().config
    times = np.arange(5000) / 500
    signal = np.zeros((1, 12, 5000), np.float32) + 0.001 * np.sin(50 * times)
    signal[0, 6] += np.exp(-(((times - 6.0) / 0.02) ** 2)) + np.exp(-(((times - 2.0) / 0.02) ** 2))
    text = torch.tensor([[1.0, 0.0]])
    recording = Recording(model, torch.from_numpy(signal.astype(np.float32)), None, text)
    right, wrong = (measure(recording, map_at(at, 6), 0, None, 5, 0) for at in (5.92, 1.92))
    assert right.deletion.mean() < 0.1 < 0.6 < right.insertion.mean() and right.faithful
    assert wrong.deletion.mean() > right.deletion.mean() and not wrong.faithful
    assert right.without < 0.1 and right.without_elsewhere == pytest.approx(right.score, abs=0.02)
    assert right.blank < 0.05 and right.truth["pointing"] is None


def test_without_as_much_elsewhere_nothing_is_compared():
    shown = np.arange(250) < 100
    assert can_compare(shown, RECORDED) and not can_compare(shown, np.arange(250) < 199)
    assert not can_compare(shown & False, RECORDED)


def test_random_is_measured_beside_the_methods():
    recording = Recording(tiny_model(), torch.rand(1, 12, 5000), None, torch.eye(16)[:2])
    maps = attributions(recording, torch.eye(16)[:2], ["attention", "beat-occlusion", RANDOM], [], seed=1)
    assert {name: values.shape for name, values in maps.items()} == dict.fromkeys(maps, (2, 12, 250))
    assert maps[RANDOM].sum(axis=(1, 2)) == pytest.approx(1.0)
