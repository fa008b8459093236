"""`pipeline("feature-extraction", model=..., trust_remote_code=True)` on recordings instead of texts."""

import torch
import torch.nn.functional as F
from transformers import Pipeline


class MelpFeatureExtractionPipeline(Pipeline):
    """A recording, or a list of them, to its L2-normalised rhythm embedding, the one that texts are compared with.

        extractor = pipeline("feature-extraction", model=ID, revision=COMMIT, trust_remote_code=True)
        extractor("path/to/wfdb_record")            # a list of projection_dim numbers
        extractor([a, b], return_tensors=True)      # tensors (projection_dim,)

    Options of the feature extractor (sampling_rate, leads, unit, crop, ...) can be given at the call; a list is of
    recordings, so an array stands for one of them.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False
    _load_feature_extractor = True

    def _sanitize_parameters(self, return_tensors: bool | None = None, **ecg_kwargs):
        if ecg_kwargs.get("stride") is not None:
            raise ValueError(
                "a pipeline gives one embedding a recording: cut it into windows with the feature extractor"
            )
        return ecg_kwargs, {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, ecg, **ecg_kwargs):
        return self.feature_extractor(ecg, return_tensors="pt", **ecg_kwargs)

    def _forward(self, model_inputs):
        model = getattr(self.model, "ecg_model", self.model)
        return {"embedding": F.normalize(model(**model_inputs).rhythm_embeds.float(), dim=-1)}

    def postprocess(self, model_outputs, return_tensors: bool = False) -> list[float] | torch.Tensor:
        embedding = model_outputs["embedding"][0]
        return embedding if return_tensors else embedding.tolist()
