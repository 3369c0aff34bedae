"""Tiny random base models of many families, from transformers' own configurations: no download, milliseconds each.

Weights are large enough that attention is far from uniform: a wrong mask, cut or graph shows in a comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_llm import VOCABULARY, write_tokenizer

HIDDEN, LAYERS = 32, 3
_MLP = {"intermediate_size": 64}
_KV = {**_MLP, "num_key_value_heads": 1}
_HEAD = {**_KV, "head_dim": 16}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}  # not all of them are chosen by a few tokens
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.5 + i for i in range(8)]}
#: what a family needs beside the sizes that all have; windows of 16 tokens, so that short prompts outgrow them, and
#: every kind of scaled positions
SETTINGS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "cohere": _KV,
    "falcon": {},
    "gemma": _HEAD,
    "gemma2": {**_HEAD, "sliding_window": 16},
    "gemma3_text": {
        **_HEAD,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gpt2": {"n_positions": 2048},
    "gpt_neox": _MLP,
    "gpt_oss": {**_HEAD, **_EXPERTS, "sliding_window": 16},
    "granite": _KV,
    "llama": _KV,
    "mistral": {
        **_HEAD,
        "sliding_window": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 128,
    },
    "mixtral": {**_KV, **_EXPERTS},
    "olmo2": _KV,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": HIDDEN},
    "phi": _MLP,
    "phi3": {**_KV, "rope_scaling": _LONGROPE, "original_max_position_embeddings": 32},
    "qwen2": {**_KV, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "qwen3": {**_HEAD, "rope_scaling": _YARN},
    "smollm3": {**_KV, "rope_scaling": _LLAMA3},
    "stablelm": _KV,
}


def write_family(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random causal LM of a family, `LAYERS` layers, as a Hugging Face folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = AutoConfig.for_model(family, **{**settings, **SETTINGS.get(family, {}), **changes})
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
