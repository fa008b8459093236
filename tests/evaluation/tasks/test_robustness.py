"""Robustness: what each condition does to recordings, and the table of all."""

import numpy as np
import pytest
from evaluating import evaluate

from melp.evaluation.tasks.robustness import arms_exchanged, conditions, noisy
from signal_melp import LEADS, limb_error


@pytest.mark.slow
def test_robustness_measures_every_condition_and_keeps_the_clean_one(pictures, evaluated, tmp_path):
    others = [evaluated / "other", evaluated / "model"]
    results, predictions = evaluate(evaluated, "robustness", "model", tmp_path, "--against", *others)
    metrics = results["metrics"]
    assert {f"macro_auroc {kind} {name}" for kind, name, _ in conditions()[1:]} <= set(metrics)
    assert metrics["macro_auroc leads 12"] == metrics["macro_auroc"]
    # Min-max scaling takes amplitude away: the model must not notice.
    assert metrics["macro_auroc amplitude x 2"]["value"] == pytest.approx(metrics["macro_auroc"]["value"], abs=0.02)
    assert not np.allclose(predictions["score"], predictions["score_leads_1"])
    less = metrics["macro_auroc_less_other leads 1"]
    pair = [metrics[f"macro_auroc{name} leads 1"]["value"] for name in ("", "_other")]
    assert less["value"] == pytest.approx(pair[0] - pair[1]) and "score_other_leads_1" in predictions
    assert metrics["macro_auroc_less_other_2 leads 1"]["value"] == 0  # the model itself
    assert results["against"] == {"other": str(others[0]), "other 2": str(others[1])}
    for name in ("robustness", "performance_profile"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()


def test_changes_are_what_they_are_called():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 5000)).astype(np.float32)
    leads = {
        "I": one,
        "II": two,
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVF": two - one / 2,
        "aVL": one - two / 2,
    }
    signal = np.stack([leads.get(lead, one) for lead in LEADS])[None]
    mask = np.ones((1, 12), dtype=bool)
    swapped, _ = arms_exchanged(signal.copy(), mask, ["a"])
    rows = dict(zip(LEADS, swapped[0], strict=True))
    np.testing.assert_allclose(rows["I"], -one)
    assert limb_error({lead: rows[lead] for lead in leads}) < 1e-5  # still Einthoven's triangle
    kinds = {f"{kind} {name}": change for kind, name, change in conditions()}
    few, kept = kinds["leads 2"].apply(signal.copy(), mask, ["a"])
    assert kept.sum() == 2 and (few[0, 2:] == 0).all()
    low, _ = kinds["rate 100 Hz"].apply(signal.copy(), mask, ["a"])
    spectrum = np.abs(np.fft.rfft(low[0, 0]))
    assert low.shape == signal.shape and spectrum[600:].max() < 0.05 * spectrum[:400].max()  # nothing above 60 Hz
    noise = kinds["noise baseline wander"].apply.keywords["noise"]
    first, second = (noisy(signal.copy(), mask, ["a"], noise)[0] - signal for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0.1 < first.std() < 1 and not np.allclose(first, noisy(signal.copy(), mask, ["b"], noise)[0] - signal)
