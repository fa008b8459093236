"""Evidence: what is removed and how, every attribution's form, and a number that can say that it is not faithful."""

import json

import numpy as np
import pytest
import torch
from tiny import REPORTS, tiny_model, tiny_processor

from explain_melp import (
    FRAME,
    METHODS,
    Evidence,
    Recording,
    beat_bounds,
    elsewhere,
    enough_leads,
    is_faithful,
    local_level,
    measure_faithfulness,
    query_attention,
    runs,
    shown_frames,
)
from modeling_melp import MelpEcgModelOutput
from signal_melp import LEADS

RATE = 500


def spikes(at=(2.0, 4.0, 6.0, 8.0)) -> np.ndarray:
    """Twelve leads with a spike at each of some times over slow wander."""
    times = np.arange(10 * RATE) / RATE
    wave = sum(np.exp(-(((times - one) / 0.02) ** 2)) for one in at) + 0.3 * np.sin(times)
    return (np.linspace(0.5, 1.5, 12)[:, None] * wave).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def inputs_of(processor, signal, **options):
    return processor(ecg=signal, sampling_rate=RATE, leads=LEADS, text=REPORTS[:2], return_tensors="pt", **options)


class Summing(torch.nn.Module):
    """Stands for a model whose similarity with a text is what one lead holds between two times."""

    def __init__(self, config, lead: int, start: float, stop: float):
        super().__init__()
        self.config, self.device = config, torch.device("cpu")
        self.part = (lead, slice(round(start * RATE), round(stop * RATE)))

    def ecg_model(self, values, lead_mask=None):
        lead, time = self.part
        height = values[:, lead, time].amax(dim=-1) - values[:, lead].median(dim=-1).values
        return MelpEcgModelOutput(rhythm_embeds=torch.stack([height, torch.ones_like(height)], dim=-1))


def test_the_level_follows_the_wander_and_not_the_beats():
    times = np.arange(10 * RATE) / RATE
    level = local_level(torch.from_numpy(spikes()), RATE)
    assert np.abs(level[4].numpy() - np.linspace(0.5, 1.5, 12)[4] * 0.3 * np.sin(times)).max() < 0.1


def test_removing_leaves_no_step_and_touches_nothing_else(model, processor):
    inputs = inputs_of(processor, spikes())
    recording = Recording(model, inputs["input_values"], inputs["lead_mask"], torch.eye(16)[:2])
    seen = []
    recording.embed = lambda values: seen.append(values) or torch.zeros(len(values), 2)
    removed = np.zeros((1, 1, recording.frames), dtype=bool)
    removed[..., round(3.8 / FRAME) : round(4.2 / FRAME)] = True
    recording.scores(removed)
    before, after = inputs["input_values"][0].numpy(), seen[0][0].numpy()
    changed = np.flatnonzero((before != after).any(axis=0)) / RATE
    assert changed.min() > 3.78 and changed.max() < 4.22
    part = after[:, round(3.85 * RATE) : round(4.15 * RATE)]
    assert np.ptp(part, axis=1).max() < 0.1 * np.ptp(before)  # the spike is gone
    assert np.abs(np.diff(after[:, round(3.7 * RATE) : round(4.3 * RATE)])).max() < 0.02  # and nothing jumps


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name == "masking" else name for name in METHODS]
)
def test_every_attribution_spreads_the_evidence_over_leads_and_time(model, processor, method):
    signal = spikes()
    evidence = model.explain(
        **inputs_of(processor, signal), texts=REPORTS[:2], method=method, beats=[2.0, 4.0, 6.0, 8.0]
    )
    assert [one.text for one in evidence] == REPORTS[:2]
    for one in evidence:
        assert one.weights.shape == (12, 250) and one.weights.min() >= 0 and one.method == method
        assert one.weights.sum() == pytest.approx(1.0, abs=1e-4) or not one.spans
        assert list(one.leads) == list(LEADS) and sum(one.leads.values()) == pytest.approx(one.weights.sum(), abs=1e-4)
        assert sum(beat["weight"] for beat in one.beats) == pytest.approx(one.weights.sum(), abs=1e-3)
        assert set(one.shown_leads) <= set(LEADS) and bool(one.shown_leads) == bool(one.spans)
        assert sum(stop - start for start, stop, _ in one.spans) == pytest.approx(one.faithfulness["removed_s"])
        assert json.loads(json.dumps(one.to_json()))["faithfulness"]["sentence"] == one.sentence


@pytest.mark.parametrize("method", ["gradient", "integrated-gradients", "occlusion", "beat-occlusion", "masking"])
def test_a_spike_in_one_lead_is_found(model, processor, method):
    from explain_melp import attribute

    inputs = inputs_of(processor, spikes())
    summing = Summing(model.config, lead=7, start=5.8, stop=6.2)
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2]]), dim=-1)
    recording = Recording(summing, inputs["input_values"], None, text)
    weights = attribute(recording, text, method, beats=[2.0, 4.0, 6.0, 8.0])[0]
    lead, frame = np.unravel_index(weights.argmax(), weights.shape)
    assert lead == 7 and (method == "beat-occlusion" or abs(frame * FRAME - 6.0) < 0.25)
    assert weights[7].sum() > 0.8
    shown = shown_frames(weights.sum(axis=0))
    assert shown[round(6.0 / FRAME)] and not shown[round(4.0 / FRAME)]


def test_padding_and_absent_leads_carry_nothing(model, processor):
    signal = spikes()[:, : 6 * RATE]
    inputs = processor(
        ecg=signal[:8], sampling_rate=RATE, leads=LEADS[:8], derive_leads=False, text=REPORTS[:1], return_tensors="pt"
    )
    for one in model.explain(**inputs, method="occlusion"):
        assert not one.weights[8:].any() and not one.weights[:, round(6.1 / FRAME) :].any()
        assert list(one.leads) == list(LEADS[:8])


def test_what_is_shown_is_the_fewest_cells_with_half_of_the_evidence():
    over_time = np.zeros(250)
    over_time[50:60], over_time[200:205] = 0.07, 0.06
    shown = shown_frames(over_time)
    assert runs(shown) == [(50, 60)]
    assert not shown_frames(np.zeros(250)).any()
    assert shown_frames(np.ones(250)).sum() * FRAME == pytest.approx(4.0)  # and never more than that


def test_as_much_elsewhere_is_never_what_is_shown():
    shown, recorded = np.zeros(250, dtype=bool), np.arange(250) < 200
    shown[20:40] = shown[100:110] = True
    drawn = [elsewhere(shown, recorded, np.random.default_rng(seed)) for seed in range(50)]
    assert {mask.sum() for mask in drawn} == {30} and not any((mask & (shown | ~recorded)).any() for mask in drawn)
    assert len({mask.tobytes() for mask in drawn}) > 30
    assert elsewhere(np.arange(250) < 150, recorded, np.random.default_rng(0)).sum() == 50  # all that is left


def test_the_rule_of_faithfulness():
    assert is_faithful(0.9, 0.2, [0.9, 0.85])
    assert not is_faithful(0.9, 0.85, [0.9, 0.89])  # costs less than a tenth
    assert not is_faithful(0.9, 0.2, [0.9, 0.1])  # something elsewhere costs more
    assert not is_faithful(-0.1, -0.5, [-0.1])


def test_without_as_much_elsewhere_nothing_is_faithful():
    """The score is the share of the first 100 frames that is left: removing them costs all, anything else nothing."""

    class Stub:
        recorded = np.arange(250) < 180

        @staticmethod
        def scores(masks):
            return torch.from_numpy(1.0 - masks[:, 0, :100].mean(axis=1, keepdims=True))

    shown = np.arange(250) < 60
    assert measure_faithfulness(Stub(), shown, 0)["without"] == pytest.approx(0.4)
    few = Stub()
    few.recorded = np.arange(250) < 100  # 40 frames are left
    assert not measure_faithfulness(few, shown, 0)["faithful"]
    enough = Stub()
    enough.recorded = np.arange(250) >= 0
    assert measure_faithfulness(enough, np.arange(250) < 100, 0)["faithful"], "150 frames elsewhere cost nothing"


def test_a_beat_begins_before_its_p_wave():
    assert beat_bounds([1.0, 2.0, 2.5], 10.0).tolist() == [0.0, 1.65, 2.3, 10.0]


def test_queries_attend_over_the_time_of_the_recording(model):
    over_time, beats = query_attention(model, torch.from_numpy(spikes())[None])
    assert over_time.shape == (1, 3, 250) and over_time.sum(-1) == pytest.approx(1.0)
    assert beats.shape == (1, 3, 16)


def test_a_print_stays_absent_where_it_has_no_trace(processor):
    inputs = processor(ecg=spikes(), sampling_rate=RATE, leads=LEADS, layout="3x4+II", return_tensors="pt")
    values = inputs["input_values"][0]
    level = local_level(values, RATE)
    absent = torch.ones_like(values, dtype=torch.bool)
    for column in range(4):
        absent[3 * column : 3 * column + 3, 1250 * column : 1250 * (column + 1)] = False
    absent[1] = False
    assert not level[absent & (values == 0)].any() and level[~absent].abs().max() > 0


def test_leads_are_shown_until_removing_in_them_is_enough(model, processor):
    inputs = inputs_of(processor, spikes())
    summing = Summing(model.config, lead=7, start=5.8, stop=6.2)
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2]]), dim=-1)
    recording = Recording(summing, inputs["input_values"], None, text)
    shown = np.zeros(recording.frames, dtype=bool)
    shown[round(5.8 / FRAME) : round(6.2 / FRAME)] = True
    score, without = recording.scores(np.stack([~shown & shown, shown])[:, None])[:, 0]
    shares = np.linspace(0.01, 0.15, 12)
    shares[[3, 7]] = 0.3, 0.2
    leads, in_leads = enough_leads(recording, shown, shares, 0, score, without)
    assert [LEADS[index] for index in np.flatnonzero(leads)] == [LEADS[3], LEADS[7]]  # the first alone does nothing
    assert in_leads == pytest.approx(without, abs=1e-3)
    assert enough_leads(recording, shown, np.full(12, 1 / 12), 0, score, without)[0].all()


def test_the_sentence_says_what_removing_does():
    facts = {"removed_s": 1.2, "score": 0.91, "without": 0.22, "without_elsewhere": 0.9, "faithful": True}
    evidence = Evidence("", 0.91, "masking", spans=[(1.0, 2.2, 0.5)], faithfulness=facts)
    said = "removing the shown 1.2 s lowers the score from 0.91 to 0.22; removing as much elsewhere leaves 0.90"
    assert evidence.sentence == said
    evidence.leads, evidence.shown_leads, facts["without_in_leads"] = {"I": 0.9, "II": 0.1}, ["I"], 0.45
    said = said.replace("to 0.22", "to 0.22 (in the shown leads alone to 0.45)")
    assert evidence.sentence == said
    evidence.faithfulness["faithful"] = False
    assert evidence.sentence == f"not faithful here: {said}"
    assert Evidence("", 0.1, "masking").sentence.startswith("nothing to show")


def test_mistakes_are_named(model, processor):
    inputs = inputs_of(processor, spikes())
    with pytest.raises(ValueError, match="method must be one of"):
        model.explain(**inputs, method="magic")
    with pytest.raises(ValueError, match="R peaks"):
        model.explain(**inputs, method="beat-occlusion")
    with pytest.raises(ValueError, match="one recording"):
        model.explain(**inputs | {"input_values": inputs["input_values"].repeat(2, 1, 1)})
    with pytest.raises(ValueError, match="3 texts"):
        model.explain(**inputs, texts=["a", "b", "c"])


def test_prompts_of_a_finding_are_one_text(model, processor):
    inputs = inputs_of(processor, spikes())
    (one,) = model.explain(**inputs, texts=["rhythm"], groups=[0, 0], method="gradient")
    features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    text = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
    ecg = model.get_ecg_features(inputs["input_values"], inputs["lead_mask"]).pooler_output[0]
    assert one.score == pytest.approx(float((text @ ecg).detach()), abs=1e-4) and one.text == "rhythm"
