"""Evidence for the sentences of a draft, of a report, and for findings; the command is `python -m melp.explain`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from explain_melp import Evidence


def explain_recording(
    model,
    processor,
    inputs: Mapping,
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    method: str | None = None,
    beats: Sequence[float] | None = None,
) -> "list[Evidence]":
    """Finds where a recording bears out each of some texts.

    Args:
        model: a `MelpModel`; processor: its `MelpProcessor`.
        inputs: what the processor made of one recording, `input_values` and `lead_mask`, arrays or tensors. Of several
            windows the first is taken.
        texts: sentences; or the name of each finding and its prompts, whose embeddings are averaged.
        method: one of `explain_melp.METHODS`, by default the best of `evaluate.py faithfulness`.
        beats: R peaks in s; by default wfdb's detector finds them.

    Returns:
        An `Evidence` per text; none for no texts.

    Raises:
        ValueError: for an empty text or an unknown method.
    """
    import torch

    from melp.explain.beats import find_beats

    prompts = {name: list(texts[name]) for name in texts} if isinstance(texts, Mapping) else None
    names = list(texts)
    if not names:
        return []
    rows = [[name] for name in names] if prompts is None else list(prompts.values())
    groups = [number for number, row in enumerate(rows) for _ in row]
    encoded = processor(text=[text for row in rows for text in row], return_tensors="pt")
    values, mask = (torch.as_tensor(inputs[name])[:1] for name in ("input_values", "lead_mask"))
    if beats is None:
        beats = find_beats(values[0].numpy(), model.config.ecg_config.sampling_rate, mask[0].numpy())
    # A method that needs beats does without where none were found.
    if method == "beat-occlusion" and not len(beats):
        method = "occlusion"
    return model.explain(values, **encoded, lead_mask=mask, texts=names, groups=groups, method=method, beats=beats)
