"""Tiny random models of every causal type that transformers knows.

    models = variants()                 -> ["afmoe", "afmoe/wide", ..., "zaya"]
    lm = build("qwen2_moe")             a model of a few thousand parameters, in evaluation mode
    tokenizer()                         one character a token, so that text gives token ids

Types and their default configs come from transformers' own registries. A default config is shrunk
by the names of its fields (SIZES), and its lists of layers are cut to one layer of each kind.
PECULIAR holds what follows from no rule.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 96
LARGEST = 4_000_000  # parameters
WINDOW = 6  # shorter than the texts of the checks
ORIGINAL = 16  # the original length of scaled rotary embeddings, shorter than the texts
TINY: dict[int, tuple[str, ...]] = {
    VOCAB: (
        "vocab_size",
        "vocab_size_per_layer_input",
        "unpadded_vocab_size",
        "decoder_vocab_size",
    ),
    256: (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "context_length",
        "model_max_length",
        "max_target_positions",
        "keep_window_size",
    ),
    64: (
        "hidden_size",
        "d_model",
        "n_embd",
        "emb_dim",
        "embedding_dim",
        "embedding_size",
        "word_embed_proj_dim",
        "input_embedding_size",
        "output_embedding_size",
        "lru_width",
        "attention_hidden_size",
        "intermediate_size",
        "intermediate_size_mlp",
        "dense_intermediate_size",
        "ffn_dim",
        "decoder_ffn_dim",
        "encoder_ffn_dim",
        "ffn_hidden_size",
        "dff",
        "dim_ff",
        "d_inner",
        "feed_forward_size",
        "dim_model_base",
    ),
    32: (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_experts_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "expert_ffn_hidden_size",
        "router_hidden_size",
        "hidden_size_per_layer_input",
        "o_lora_rank",
        "q_lora_rank",
        "kv_lora_rank",
        "pronunciation_embed_dim",
        "shape_embed_dim",
        "ple_embed_dim",
    ),
    16: (
        "head_dim",
        "global_head_dim",
        "d_head",
        "dim_head",
        "kv_channels",
        "attention_head_dim",
        "attention_head_size",
        "swa_head_dim",
        "v_head_dim",
        "qk_nope_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_head_dim",
        "mamba_d_head",
        "mamba_head_dim",
        "mamba_headdim",
        "index_head_dim",
        "num_query_groups",
        "query_pre_attn_scalar",
        "mamba_d_state",
        "state_size",
        "ssm_state_size",
        "d_rel",
        "rotary_dim",
        "adapter_rank",
        "laurel_rank",
        "time_step_rank",
        "mamba_dt_rank",
        "pronunciation_vocab_size",
        "shape_vocab_size",
    ),
    8: (
        "qk_rope_head_dim",
        "chunk_size",
        "mamba_chunk_size",
        "mamba_n_heads",
        "mamba_num_heads",
        "prompt_length",
        "hc_lowrank",
        "gated_norm_rank",
        "loop_gate_rank",
        "block_multiple_of",
    ),
    4: (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
        "decoder_attention_heads",
        "encoder_attention_heads",
        "num_encoder_attention_heads",
        "num_decoder_attention_heads",
        "swa_num_attention_heads",
        "linear_num_value_heads",
        "linear_num_heads",
        "index_n_heads",
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
        "zero_expert_num",
        "n_group",
    ),
    2: (
        "num_key_value_heads",
        "swa_num_key_value_heads",
        "num_kv_heads",
        "linear_num_key_heads",
        "num_experts_per_tok",
        "moe_topk",
        "moe_k",
        "num_experts_per_token",
        "top_k_experts",
    ),
    1: (
        "n_group",
        "topk_group",
        "n_groups",
        "mamba_n_groups",
        "mamba_ngroups",
        "num_kv_shared_layers",
        "first_k_dense_replace",
    ),
}
SIZES = {name: size for size, names in TINY.items() for name in names}
WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
    "local_attention_window_len",
)
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "attention_layers", "attn_layers")
LAYERS = 4  # at most, unless a model has more kinds of layers
AS_DECODER = {
    "is_decoder": True,
    "is_encoder_decoder": False,
}  # for types that are encoders by default

# What no rule gives: fields of one type.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PECULIAR: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"]
        + ["full_attention", "mlp"],
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 24, "per_layer_config": {}},
    "falcon_h1": {"mamba_d_ssm": 128},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": {"rope_parameters": ROPE},
    "hunyuan_v1_moe": {"rope_parameters": ROPE},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "full_attn_idxs": [1],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xlstm": {"chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
}
# Types that AutoModelForCausalLM names and that do not continue a text by themselves.
NOT_TEXT = {
    "blt": "bytes, which a model of its own patches",
    "gemma4_assistant": "drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose states it reads",
    "musicgen": "audio codes",
    "musicgen_melody": "audio codes",
}


def types() -> list[str]:
    """Every type that AutoModelForCausalLM opens, without those that only wrap another of them."""
    out = []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        inner = _inner(kind)
        if kind not in NOT_TEXT and (
            inner == kind or inner not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        ):
            out.append(kind)
    return out


@functools.cache
def _inner(kind: str) -> str:
    """The type of the text model's config."""
    try:
        return CONFIG_MAPPING[kind]().get_text_config(decoder=True).model_type
    except Exception:  # no default config
        return kind


def config(kind: str, variant: str = "") -> Any:
    """A tiny config of a type. Variants: see `variants`."""
    whole = CONFIG_MAPPING[kind]()
    if hasattr(whole, "is_decoder"):
        whole = type(whole)(**AS_DECODER)
    fields = shrink(whole.to_dict(), kind)
    VARIANTS[variant](fields)
    fields.pop("transformers_version", None)
    return type(whole)(**fields)


def shrink(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a config with small sizes, and with one layer of each kind."""
    fields = {k: v for k, v in fields.items() if k not in ("id2label", "label2id", "dtype")}
    depth = next((fields[d] for d in DEPTHS if fields.get(d)), 0)
    layers = _layers(fields, depth)
    for name, value in fields.items():
        if isinstance(value, dict):
            if name.endswith("_config") and "model_type" in value:
                fields[name] = shrink(value, value["model_type"])
            elif name.endswith("_config"):
                fields[name] = {k: _sized(k, v) for k, v in value.items()}
        elif isinstance(value, list) and depth and len(value) == depth:
            fields[name] = [_sized(name, value[i]) for i in layers]
        elif name in DEPTHS and value:
            fields[name] = len(layers)
        else:
            fields[name] = _sized(name, value)
    if "per_layer_config" in fields:  # by the number of a layer
        old = fields["per_layer_config"] or {}
        per_layer = ((n, old.get(f"{i:02d}")) for n, i in enumerate(layers))
        fields["per_layer_config"] = {
            f"{n:02d}": {k: _sized(k, v) for k, v in part.items()} for n, part in per_layer if part
        }
    for name in WINDOWS:
        if fields.get(name):
            fields[name] = WINDOW
    if fields.get("rope_theta", 0) is None:
        fields.pop("rope_theta")
    if fields.get("head_dim", 0) is None:
        fields["head_dim"] = 16
    if fields.get("logit_scale"):
        fields["logit_scale"] = 1.0
    if (rope := fields.get("rope_parameters")) and "rope_type" in rope:
        fields["rope_parameters"] = rope | {"rope_theta": rope.get("rope_theta") or 10000.0}
    for end, i in (("bos", 1), ("eos", 2), ("pad", 0)):
        if fields.get(f"{end}_token_id") is not None:
            fields[f"{end}_token_id"] = i
    if "kv_lora_rank" in fields:  # latent attention: a head's sizes follow from its parts
        fields |= {"head_dim": fields["qk_rope_head_dim"], "num_key_value_heads": 4}
        fields.pop("qk_head_dim", None)
    return fields | PECULIAR.get(kind, {})


def _sized(name: str, value: Any) -> Any:
    if name in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return SIZES[name]
    return value


def _layers(fields: dict[str, Any], depth: int) -> list[int]:
    """Numbers of the layers that are kept: the first of every kind, at least two."""
    lists = [v for v in fields.values() if isinstance(v, list) and depth and len(v) == depth]
    seen: dict[str, int] = {}
    for i in range(depth):
        seen.setdefault(repr([x[i] for x in lists]), i)
    kept = sorted(seen.values())[: 2 * LAYERS]
    return kept if len(kept) > 1 else list(range(min(2, depth)))


def _wide(fields: dict[str, Any]) -> None:
    for name in WINDOWS:
        if fields.get(name):
            fields[name] = 128


def _windowed(fields: dict[str, Any]) -> None:
    """A window that is not active by default."""
    fields["sliding_window"] = WINDOW
    if "use_sliding_window" not in fields:
        return
    fields |= {"use_sliding_window": True, "max_window_layers": 1}
    if fields.get("layer_types"):
        kinds = {"full_attention": "sliding_attention"}
        fields["layer_types"] = [kinds.get(x, x) for x in fields["layer_types"]]


def _retied(fields: dict[str, Any]) -> None:
    fields["tie_word_embeddings"] = not fields["tie_word_embeddings"]


def _scaled(rope: dict[str, Any]) -> Any:
    def change(fields: dict[str, Any]) -> None:
        old = fields["rope_parameters"]
        dim = fields.get("qk_rope_head_dim") or fields.get("head_dim") or 16
        dim = int(
            dim * (old.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1)
        )
        more = {k: v(dim) if callable(v) else v for k, v in rope.items()}
        fields["rope_parameters"] = {**old, **more}
        fields["original_max_position_embeddings"] = ORIGINAL
        if rope["rope_type"] == "dynamic":
            fields["max_position_embeddings"] = ORIGINAL

    return change


LONG = {
    "rope_type": "longrope",
    "factor": 16.0,
    "original_max_position_embeddings": ORIGINAL,
    "short_mscale": 1.0,
    "long_mscale": 1.0,
    "short_factor": lambda dim: [1.0 + 0.01 * i for i in range(dim // 2)],
    "long_factor": lambda dim: [1.0 + 0.5 * i for i in range(dim // 2)],
}
VARIANTS: dict[str, Any] = {
    "": lambda fields: None,
    "wide": _wide,  # windows longer than the texts
    "windowed": _windowed,
    "retied": _retied,  # embeddings tied if they are not by default, and the other way round
    "longrope": _scaled(LONG),
    "dynamic": _scaled({"rope_type": "dynamic", "factor": 16.0}),
    "encoder": lambda fields: fields.update(is_decoder=False),
}
EVERY = 6  # the costly variants of every so many types


def _accepted(name: str) -> bool:
    """Whether the config takes the variant: Phi-3's, for example, takes longrope only."""
    try:
        return bool(config(*name.split("/")))
    except Exception:  # each library that checks configs has its own
        return False


@functools.cache
def variants() -> list[str]:
    """kind, or kind/variant."""
    out = []
    ropes = 0
    for n, kind in enumerate(types()):
        try:
            fields = config(kind).to_dict()
        except Exception:  # reported where it is built
            out.append(kind)
            continue
        out.append(kind)
        if any(fields.get(w) for w in WINDOWS):
            out.append(f"{kind}/wide")
        if "sliding_window" in fields and (
            not fields["sliding_window"] or fields.get("use_sliding_window") is False
        ):
            out += [v for v in [f"{kind}/windowed"] if _accepted(v)]
        if "tie_word_embeddings" in fields and n % EVERY == 0:
            out += [v for v in [f"{kind}/retied"] if _accepted(v)]
        if fields.get("is_decoder") and n % 2:
            out.append(f"{kind}/encoder")
        if (fields.get("rope_parameters") or {}).get("rope_type") == "default":
            ropes += 1
            if ropes % EVERY == 1 or kind in ("phi3", "llama"):
                out += [v for v in (f"{kind}/longrope", f"{kind}/dynamic") if _accepted(v)]
    return out


@torch.no_grad()
def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with random weights large enough for a wrong key to change the output."""
    kind, _, variant = name.partition("/")
    quiet = logging.getLogger("transformers")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        tiny = config(kind, variant)
        with torch.device("meta"):
            numbers = transformers.AutoModelForCausalLM.from_config(tiny).num_parameters()
        if numbers > LARGEST:
            raise ValueError(f"{numbers:,} parameters: a size is not in SIZES")
        torch.manual_seed(0)
        lm = transformers.AutoModelForCausalLM.from_config(tiny, dtype=dtype)
    finally:
        quiet.setLevel(before)
    for module in lm.modules():
        for own, p in module.named_parameters(recurse=False):
            if p.ndim >= 2 and own in (
                "weight",
                "gate_up_proj",
                "down_proj",
                "gate_proj",
                "up_proj",
            ):
                if not isinstance(module, torch.nn.Conv1d):
                    p.normal_(0.0, 1.3 / p.shape[-1] ** 0.5)
    for table in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        if table is not None and hasattr(table, "weight"):
            table.weight.normal_(0.0, 0.12)
    if lm.generation_config is not None:
        lm.generation_config.eos_token_id = 2
    return lm.eval()


def tokenizer() -> Any:
    """Token i is one character, so that the text of a sample gives its token ids; 2 is the end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.WordLevel(TOKENS | {"</s>": 2}, unk_token=character(3)))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tok.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>")


def character(token: int) -> str:
    return chr(0x4E00 + token)


TOKENS = {character(i): i for i in range(VOCAB) if i != 2}
