"""A folder's config.json is input: what its fields may hold, checked before anything is made of them."""

import json

import pytest
from tiny import tiny_config, tiny_model
from transformers import AutoConfig

from configuration_melp import MelpConfig, MelpEcgConfig
from melp.models import read_config

ODD = [
    ("dtype", "os.system", "dtype is 'os.system'; it must be one of float64"),
    ("dtype", 5, "dtype is 5"),
    ("torch_dtype", {"a": 1}, "torch_dtype is"),
    ("attn_implementation", "somebody/kernels", "a file may only name eager"),  # code of the Hub, else
    ("architectures", 5, "architectures is 5"),
    ("architectures", [["MelpModel"]], "architectures is"),
    ("id2label", [1], "id2label is"),
    ("id2label", {"a": "b"}, "id2label has a key that is no number"),
    ("num_labels", 10**9, "num_labels is 1000000000; it must be from 0 to"),
    ("num_labels", "x", "num_labels is 'x'"),
    ("quantization_config", 5, "quantization_config is 5"),
    ("base_model_tp_plan", 5, "base_model_tp_plan is 5"),
    ("to_dict", "x", "a configuration has no such field"),
    ("__class__", "x", "a configuration has no such field"),
    ("initializer_range", "x", "initializer_range is 'x'"),
    ("initializer_range", -1.0, "it must be from 0 to 1"),
    ("max_logit_scale", None, "max_logit_scale is None"),
    ("logit_scale_init_value", float("inf"), "logit_scale_init_value is inf"),
    ("num_frozen_text_layers", -3, "num_frozen_text_layers is -3"),
    ("pad_token_id", True, "pad_token_id is True"),
    ("ecg_config", {"hidden_dropout": 7}, r"ecg_config.hidden_dropout is 7"),
    ("ecg_config", {"conv_dim": "abcd"}, r"ecg_config.conv_dim is 'abcd'"),
    ("ecg_config", {"hidden_act": ["gelu"]}, r"ecg_config.hidden_act is \['gelu'\]"),
    ("text_config", {"hidden_act": "os.system"}, r"text_config.hidden_act is 'os.system'"),
    ("text_config", {"model_type": "gpt2"}, "The text tower must be a BERT"),
    ("text_config", {"layer_norm_eps": "x"}, r"text_config.layer_norm_eps is 'x'"),
    ("caption_los_weight", 1.0, "caption_los_weight: .* no such field; did you mean caption_loss_weight"),
    ("scaling", "millivolt", "scaling: .* no such field; did you mean ecg_config.scaling"),
    ("ecg_config", {"scalling": "millivolt"}, "ecg_config.scalling: .* did you mean ecg_config.scaling"),
    ("text_config", {"hiden_size": 32}, "text_config.hiden_size: .* did you mean text_config.hidden_size"),
]


@pytest.mark.parametrize("field, value, message", ODD)
def test_an_odd_field_is_refused_with_its_folder(tmp_path, field, value, message):
    tiny_config(architectures=["MelpModel"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(
        json.dumps(stored | {field: stored[field] | value if field.endswith("_config") and field in stored else value})
    )
    for read in (read_config, MelpConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"{tmp_path}.*config.json: .*{message}"):
            read(tmp_path)


def test_fields_of_other_versions_are_read_and_named(tmp_path, monkeypatch):
    """What other tools and versions of transformers leave in a config.json is not a reason not to open a folder."""
    warned = []
    monkeypatch.setattr("configuration_melp.logger.warning_once", warned.append)
    tiny_config(architectures=["MelpModel"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    usual = {"_name_or_path": "x", "auto_map": {}, "torch_dtype": "float32", "use_cache": False, "_commit_hash": "0"}
    foreign = {"position_embedding_type": "absolute", "gradient_checkpointing": False, "sep_token_id": 102}
    stored |= usual | {"transformers_version": "4.57.0", "text_config": stored["text_config"] | usual | foreign}
    path.write_text(json.dumps(stored))
    read_config(tmp_path)
    assert warned == [], "a BERT's fields of other versions of transformers are none of the user's business"
    path.write_text(json.dumps(stored | {"wavelet": 3}))
    read_config(tmp_path)
    assert warned and set(warned) == {"config.json: wavelet is no field of a MELP configuration, and has no effect."}


def test_what_we_write_is_read_again(tmp_path):
    model = tiny_model()
    for part, config_class in ((model, MelpConfig), (model.ecg_model, MelpEcgConfig)):
        part.config.num_labels = 5
        part.save_pretrained(tmp_path / config_class.model_type)
        folder = tmp_path / config_class.model_type
        config = config_class.from_pretrained(folder)
        assert config.num_labels == 5 and config.to_dict() == read_config(folder).to_dict()
        assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == config_class.__name__
