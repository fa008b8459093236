"""Models and processors from a folder or the Hub, by this repository's own classes: whole, or refused.

transformers draws weights that a folder lacks at random and says so in a log line. For a user's numbers that is worse
than an error, so evaluation, training, conversion, calibration and the Hub's commands all load through this module.
"""

from pathlib import Path

import torch

from configuration_melp import MelpConfig, MelpEcgConfig, check_folder, read_json
from melp.sources import fetch, require_model
from modeling_melp import MelpEcgModel, MelpForEcgClassification, MelpModel, MelpPreTrainedModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

LFS_POINTER = b"version https://git-lfs"
CLASSES = {kind.__name__: kind for kind in (MelpModel, MelpEcgModel, MelpForEcgClassification)}


def model_folder(source: str | Path) -> Path:
    """Returns the folder of a model that a user names, see `melp.sources.fetch`; its indices lead nowhere else.

    Raises:
        ValueError: where there is none, it has no config.json, an index is malformed, or a clone lacks its weights.
    """
    folder = fetch(source)
    require_model(folder, source)
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{path} is a pointer, not weights: install Git LFS, then run `git lfs pull`.")
    check_folder(folder)
    return folder


def read_config(source: str | Path) -> MelpConfig | MelpEcgConfig:
    """Returns the configuration of a MELP model or ECG tower.

    Raises:
        ValueError: where `source` is none of these, naming the file.
    """
    folder = model_folder(source)
    values = read_json(folder / "config.json")
    for config_class in (MelpConfig, MelpEcgConfig):
        if values.get("model_type") == config_class.model_type:
            return config_class.from_pretrained(folder)
    raise ValueError(f"{source} is not a MELP model: its config.json has model_type {values.get('model_type')!r}.")


def load_whole(
    kind: type, source: str | Path, dtype: torch.dtype = torch.float32, drawn: tuple[str, ...] = (), **options
):
    """Loads a model of class `kind`, on whose weights nothing is drawn at random but what `drawn` allows.

    Args:
        kind: a transformers model class, of ours or for a text tower.
        drawn: beginnings of the names of weights that may be missing, such as a head that is about to be trained.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: naming the folder and the weights that it lacks, or that are of another shape.
    """
    folder = model_folder(source)
    try:
        model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{source} cannot be loaded: {next(iter(str(error).splitlines()), error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(drawn or ("\0",)))
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{source} lacks {len(missing)} weights of {kind.__name__} ({shown}): it is incomplete, and they would be "
            "drawn at random. Copy the folder again, or name one that is whole."
        )
    return model


def load_model(source: str | Path, dtype: torch.dtype = torch.float32) -> MelpPreTrainedModel:
    """Loads the model of a folder by the class that it was saved from.

    Raises:
        ValueError: as `load_whole`, or where config.json names none of MELP's classes.
    """
    config = read_config(source)
    name = next(iter(config.architectures or ()), None)
    if name not in CLASSES:
        raise ValueError(f"{source}: config.json names {name} as the model's class, which is none of MELP's.")
    return load_whole(CLASSES[name], source, dtype)


def load_processor(source: str | Path) -> MelpProcessor | MelpFeatureExtractor:
    """Loads the processor of a whole model, or the feature extractor of an ECG tower or classifier.

    Raises:
        ValueError: where the folder has none, or its settings are not those of the model beside it.
    """
    folder = model_folder(source)
    kind = MelpProcessor if isinstance(read_config(source), MelpConfig) else MelpFeatureExtractor
    try:
        return kind.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{source} has no processor beside its weights: {str(error).splitlines()[0]}") from error
