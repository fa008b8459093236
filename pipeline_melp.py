"""`pipeline(TASK, model=..., trust_remote_code=True)` on recordings: embeddings, findings, classes and drafts.

Every pipeline takes a recording (a path of a file in any format of docs/formats.md, an array, a wfdb.Record) or a
list of them, with `batch_size`, and returns plain JSON types. Options of the feature extractor (sampling_rate, leads,
unit, crop, ...) can be given at the call; a list is of recordings, so an array stands for one of them.
"""

import torch
import torch.nn.functional as F
from transformers import Pipeline
from transformers.utils import logging

try:
    from .findings_melp import (
        CONDITIONS,
        NOT_CALIBRATED,
        check_calibration,
        condition_of,
        embed_prompts,
        findings_file,
        findings_of,
        read_findings,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from findings_melp import (
        CONDITIONS,
        NOT_CALIBRATED,
        check_calibration,
        condition_of,
        embed_prompts,
        findings_file,
        findings_of,
        read_findings,
    )

logger = logging.get_logger(__name__)


class MelpPipeline(Pipeline):
    """Base of the pipelines: recordings are read and prepared by the model's own feature extractor."""

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False
    _load_feature_extractor = True
    own_parameters: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of `_forward` and of `postprocess`

    def _sanitize_parameters(self, **parameters):
        if parameters.get("stride") is not None:
            raise ValueError(
                "a pipeline gives one answer per recording: cut it into windows with the feature extractor, or use "
                "predict.py --stride"
            )
        given = {name: value for name, value in parameters.items() if value is not None}
        forward, postprocess = (
            {name: given[name] for name in names if name in given} for names in self.own_parameters
        )
        return {name: given[name] for name in given if name not in forward | postprocess}, forward, postprocess

    def preprocess(self, ecg, **ecg_kwargs):
        return self.feature_extractor(ecg, return_tensors="pt", **ecg_kwargs)

    def _embed(self, model_inputs) -> torch.Tensor:
        """Returns (batch, projection_dim) float32, L2-normalised."""
        model = getattr(self.model, "ecg_model", self.model)
        return F.normalize(model(**model_inputs).rhythm_embeds.float(), dim=-1)


class MelpTextPipeline(MelpPipeline):
    """Base of those that need the whole model, with its text tower and tokenizer."""

    _load_feature_extractor = False
    _load_processor = True

    def __init__(self, *args, processor=None, feature_extractor=None, **kwargs):
        if getattr(processor, "tokenizer", None) is None:
            raise ValueError("this pipeline needs the processor of a whole MELP model, with its tokenizer")
        super().__init__(*args, processor=processor, feature_extractor=processor.feature_extractor, **kwargs)


class MelpFeatureExtractionPipeline(MelpPipeline):
    """Returns a recording's L2-normalised rhythm embedding, the one that texts are compared with.

    extractor = pipeline("feature-extraction", model=ID, revision=COMMIT, trust_remote_code=True)
    extractor("path/to/wfdb_record")            # a list of projection_dim numbers
    extractor([a, b], return_tensors=True)      # tensors (projection_dim,)
    """

    own_parameters = ((), ("return_tensors",))

    def _forward(self, model_inputs):
        return {"embedding": self._embed(model_inputs)}

    def postprocess(self, model_outputs, return_tensors: bool = False) -> list[float] | torch.Tensor:
        embedding = model_outputs["embedding"][0]
        return embedding if return_tensors else embedding.tolist()


class MelpZeroShotPipeline(MelpTextPipeline):
    """Returns how well labels in words describe a recording, best first.

        ask = pipeline("zero-shot-classification", model=ID, trust_remote_code=True)
        ask("ecg.dcm", candidate_labels=["atrial fibrillation", "sinus rhythm"])
        # [{"label": "sinus rhythm", "score": 0.41, "probability": 0.93, "verdict": "present"}, ...]

    `candidate_labels` may also be a text with commas, or label -> prompts. `score` is the cosine similarity of
    recording and text; findings can occur together, so scores do not sum to 1. `probability` and `verdict` ("present",
    "absent", "cannot say") are None unless the model folder holds a calibration of the label (findings.json), and a
    warning says so; where all have a probability, it orders the labels. Of a recording with fewer leads, a shorter or
    a printed one, labels that cannot be told from such are left out.
    """

    own_parameters = (("candidate_labels",), ("candidate_labels",))
    _embedded: tuple | None = None  # of the last call's labels

    def preprocess(self, ecg, **ecg_kwargs):
        inputs = self.feature_extractor(ecg, return_tensors="pt", quality=True, **ecg_kwargs)
        (quality,) = inputs.pop("quality")
        condition = condition_of(quality, self.feature_extractor.leads, ecg_kwargs.get("layout"))
        place = -1 if condition is None else list(CONDITIONS).index(condition)
        return inputs | {"condition": torch.tensor([place])}

    def _forward(self, model_inputs, candidate_labels=None):
        if candidate_labels is None:
            raise ValueError('pass candidate_labels=, as in candidate_labels=["atrial fibrillation", "sinus rhythm"]')
        condition = model_inputs.pop("condition")
        similarity = self._embed(model_inputs) @ self._embed_labels(candidate_labels)[1].T
        return {"similarity": similarity, "condition": condition}

    def _embed_labels(self, labels):
        if self._embedded is None or self._embedded[0] != labels:
            where = {"revision": getattr(self.model.config, "_commit_hash", None)}
            check_calibration(self.model, findings_file(self.model.name_or_path, **where))
            findings = findings_of(labels, read_findings(self.model.name_or_path, **where))
            embeddings = embed_prompts(self.model, self.processor, [finding.prompts for finding in findings])
            self._embedded = (labels, findings, embeddings)
        return self._embedded[1:]

    def postprocess(self, model_outputs, candidate_labels=None) -> list[dict]:
        rows, place = [], int(model_outputs["condition"][0])
        condition = None if place < 0 else list(CONDITIONS)[place]
        findings = self._embed_labels(candidate_labels)[0]
        for finding, score in zip(findings, model_outputs["similarity"][0].tolist(), strict=True):
            if (told := finding.under(condition)) is not None:
                numbers = {"probability": told.probability(score), "verdict": told.verdict(score)}
                rows.append({"label": finding.name, "score": score} | numbers)
        if bare := [row["label"] for row in rows if row["probability"] is None]:
            logger.warning_once(f"{', '.join(bare)}: {NOT_CALIBRATED}")
        # Probabilities of some labels and similarities of others have no common order.
        key = "score" if bare else "probability"
        return sorted(rows, key=lambda row: -row[key])


class MelpClassificationPipeline(MelpPipeline):
    """Returns the probabilities of the classes that a model was fine-tuned for, most probable first.

        classify = pipeline("ecg-classification", model=FINE_TUNED, trust_remote_code=True)
        classify(["a.scp", "b.xml"], top_k=3)       # [[{"label": "AFIB", "score": 0.93}, ...], ...]

    Each class has a probability of its own (sigmoid), unless config.json's problem_type is
    "single_label_classification" (softmax).
    """

    own_parameters = ((), ("top_k",))

    def _forward(self, model_inputs):
        return {"logits": self.model(**model_inputs).logits.float()}

    def postprocess(self, model_outputs, top_k: int | None = None) -> list[dict]:
        logits = model_outputs["logits"][0]
        exclusive = self.model.config.problem_type == "single_label_classification"
        scores = logits.softmax(-1) if exclusive else logits.sigmoid()
        labels = self.model.config.id2label
        rows = [{"label": labels[index], "score": score} for index, score in enumerate(scores.tolist())]
        return sorted(rows, key=lambda row: -row["score"])[:top_k]


class MelpReportPipeline(MelpTextPipeline):
    """Returns a drafted report, which can be wrong in every sentence and is for a physician to check.

        draft = pipeline("ecg-to-text", model=ID, trust_remote_code=True)
        draft("ecg.xml")                            # {"generated_text": "sinus rhythm. normal ecg."}
        draft("ecg.xml", generate_kwargs={"num_beams": 4})

    `generate_kwargs` are arguments of `generate`; the default is greedy, as the model's own.
    """

    own_parameters = (("generate_kwargs",), ())

    def _forward(self, model_inputs, generate_kwargs=None):
        return {"tokens": self.model.generate(**model_inputs, **({"do_sample": False} | (generate_kwargs or {})))}

    def postprocess(self, model_outputs) -> dict[str, str]:
        texts = self.processor.batch_decode(model_outputs["tokens"], skip_special_tokens=True)
        return {"generated_text": texts[0]}
