"""Which kinds of base models are measured, from loading to parity, and how any other is tried before its fit.

A fit takes minutes to hours and a model that cannot be exported is of no use after it. What is measured by the tests
(every family below, fitted, exported, run and compared) is taken as it is; any other family, and any of these with
other switches than its own defaults, exports a shallow copy of itself first.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

#: `model_type` of each family that the tests fit, export and compare
FAMILIES = (
    "bloom",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
)
#: kinds of scaled rotary positions that the tests fit, export and compare
ROPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
_SIZES = ("head_dim", "use_cache")  # differ within a family and change no operation


def rope_kind(config: Any) -> str:
    """Kind of scaled rotary positions of a decoder's configuration, ``default`` where it scales none.

    >>> from transformers import LlamaConfig
    >>> rope_kind(LlamaConfig()), rope_kind(LlamaConfig(rope_scaling={"rope_type": "linear", "factor": 2.0}))
    ('default', 'linear')
    """
    scaling = getattr(config, "rope_scaling", None) or {}
    kind: str = scaling.get("rope_type") or scaling.get("type") or "default"
    return kind


def is_measured(config: Any) -> bool:
    """Whether the tests measure this kind of decoder: its family, with the switches that it has by default.

    >>> from transformers import LlamaConfig, MambaConfig
    >>> [is_measured(config) for config in (LlamaConfig(hidden_size=64), LlamaConfig(mlp_bias=True), MambaConfig())]
    [True, False, False]
    """
    if config.model_type not in FAMILIES or rope_kind(config) not in ROPES:
        return False
    common, own = vars(PretrainedConfig()), vars(type(config)())
    switches = {name: value for name, value in own.items() if not name.startswith("_") and name not in common}
    return not any(_differ(name, value, getattr(config, name, value)) for name, value in switches.items())


def _differ(name: str, default: Any, value: Any) -> bool:
    """Whether a setting makes other operations, not other sizes: a switch, a name, or a number where there was none."""
    if name in _SIZES or name == "rope_scaling" or name.endswith("token_id"):
        return False
    if isinstance(default, (bool, str)) or isinstance(value, (bool, str)):
        return bool(default != value)
    return (default is None) != (value is None)
