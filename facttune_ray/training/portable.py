"""Make a folder that transformers 5 wrote readable by transformers 4 as well, and read it back.

    config.json            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    ->  the same and       {"rope_theta": 500000.0, "rope_scaling": null}
    tokenizer_config.json  {"tokenizer_class": "TokenizersBackend"}
    ->                     {"tokenizer_class": "PreTrainedTokenizerFast"}

transformers 4 does not know the new keys. It would take its default for the old ones without a
word, such as a base of 10,000 for rotary positions. transformers 5 reads both. Names that only
some types of models had are in the tables below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import torch

from facttune_ray.errors import UserError

# Values under their names of transformers 4, by model type: old name -> key of rope_parameters
OLD_NAMES = {"gpt_neox": {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}}
# Layer types under their names of transformers 4, by model type
OLD_LAYERS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
LONGROPE = ("short_factor", "long_factor")  # Phi-3 in transformers 4 accepts these and "type" only
TEXT = "The Danube rises in the Black Forest: 1,000 km² – ça va?"
# Keys of a config that do not describe the model
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "dtype", "type")


def both_versions(folder: Path, config: Any) -> None:
    """Add the keys of transformers 4 to the files of a folder. `config`: of its model."""
    for name, change in (("config.json", _old_config), ("tokenizer_config.json", _old_tokenizer)):
        file = folder / name
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        changed = change(found, config)
        if changed != found:
            file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _old_config(found: dict, config: Any) -> dict:
    out = {key: _number(value) for key, value in (found | _rope(found)).items()}
    for alias, name in config.attribute_map.items():  # one value that has had two names
        if name in found:
            out.setdefault(alias, found[name])
    if isinstance(found.get("text_config"), dict):  # of a model that also sees
        out["text_config"] = _old_config(found["text_config"], config.get_text_config())
    if "dtype" in found:  # before 4.56
        out.setdefault("torch_dtype", found["dtype"])
    old_layers = OLD_LAYERS.get(found.get("model_type", ""), {})
    for key in ("layer_types", "layers_block_type"):
        if old_layers and key in out:
            out[key] = [old_layers.get(kind, kind) for kind in out[key]]
    return out


def _number(value: Any) -> Any:
    """Infinity and NaN as transformers 4 reads them, not {"__float__": "NaN"}."""
    if isinstance(value, list):
        return [_number(v) for v in value]
    return float(value["__float__"]) if isinstance(value, dict) and "__float__" in value else value


def _rope(found: dict) -> dict:
    """The settings of rotary positions under their names of transformers 4."""
    parameters = found.get("rope_parameters")
    if not parameters:
        return {}
    out: dict[str, Any] = {}
    if all(isinstance(v, dict) for v in parameters.values()):  # one entry a type of layer
        local = parameters.get("sliding_attention")
        parameters = parameters.get("full_attention") or next(iter(parameters.values()))
        if local and "rope_theta" in local:
            out["rope_local_base_freq"] = local["rope_theta"]
    if "rope_theta" not in parameters:
        return {}
    own = ("rope_theta", "partial_rotary_factor")
    out |= {k: parameters[k] for k in own if parameters.get(k) is not None}
    plain = parameters.get("rope_type", "default") == "default"
    scaling = {k: v for k, v in parameters.items() if k not in own}
    if found.get("model_type") == "phi3":
        kept = {k: v for k, v in scaling.items() if k in LONGROPE}
        scaling = {"type": scaling.get("rope_type"), **kept}
    out["rope_scaling"] = None if plain else scaling
    old = OLD_NAMES.get(found.get("model_type", ""), {})
    return out | {name: parameters[key] for name, key in old.items() if key in parameters}


def _old_tokenizer(found: dict, _config: Any) -> dict:
    out = dict(found)
    if out.get("tokenizer_class") == "TokenizersBackend":
        out["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(out.get("extra_special_tokens"), list):  # transformers 4 expects a dict there
        out["additional_special_tokens"] = out.pop("extra_special_tokens")
    return out


def read_back(folder: Path, lm: Any, tokenizer: Any, weights: dict[str, torch.Tensor]) -> str:
    """Load the folder again and compare its settings, its tokenizer and every weight. -> what was
    compared, for the model card. UserError if something differs.

    `lm`: a model of the same class; `weights`: what was written. A folder that does not fit into
    the free memory a second time is not loaded.
    """
    from transformers import AutoConfig, AutoTokenizer, __version__

    wrong = []
    written = AutoTokenizer.from_pretrained(folder)
    if _ids(written) != _ids(tokenizer):
        wrong.append("its tokenizer gives other ids")
    config = AutoConfig.from_pretrained(folder).to_dict()
    expected = type(lm.config).from_dict(lm.config.to_dict()).to_dict()
    keys = [k for k in expected if k not in NOT_THE_MODEL and not _same(expected[k], config.get(k))]
    wrong += [f"config.json differs in {', '.join(keys)}"] if keys else []
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    loads = 1.5 * size < psutil.virtual_memory().available
    if loads:
        again = type(lm).from_pretrained(folder, dtype=lm.dtype, use_safetensors=True).state_dict()
        other = [k for k in again if k in weights and not _equal(again[k], weights[k])]
        missing = sorted(weights.keys() - again.keys())
        if other or missing:
            wrong.append(
                f"{len(other)} weights differ and {len(missing)} are missing, such as "
                f"{(other + missing)[0]}"
            )
    if wrong:
        raise UserError(f"{folder}: the written model is not the trained model: {'; '.join(wrong)}")
    compared = "settings, tokenizer and every weight" if loads else "settings and tokenizer"
    return f"{compared}, read back in transformers {__version__}"


def _same(expected: Any, found: Any) -> bool:
    """Whether a setting has been kept. Sections may have more keys: the names of transformers 4."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return expected == found
    keys = expected.keys() - {*NOT_THE_MODEL}
    return all(_same(expected[k], found.get(k)) for k in keys)


def _ids(tokenizer: Any) -> list[int]:
    return list(tokenizer(TEXT)["input_ids"])


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b.to(a.dtype)) if a.shape == b.shape else False
