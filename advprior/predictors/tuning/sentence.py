"""Sentence encoders: a folder that says itself how its states become one vector, or any encoder that reads both ways.

A folder of sentence-transformers lists its parts in ``modules.json``: the network, a pooling, perhaps dense layers, a
normalisation. They are read from there, since a mean in place of the pooling that a model was trained with is another
model. A folder without that file (BERT and its kin) is read by the mean of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.predictors.tokens import Encode
from advprior.predictors.tuning.anatomy import sliced
from advprior.predictors.tuning.base import Source, folder_digest
from advprior.predictors.tuning.decoder import loading, saved_tokenizer
from advprior.predictors.tuning.encode import TextEncoder, states_of
from advprior.predictors.tuning.hub import MODULES
from advprior.predictors.tuning.reading import Reading, special_rows
from advprior.predictors.tuning.transformers_import import import_transformers
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError

#: What a pooling's configuration calls true -> weights of n tokens
POOLS: dict[str, Callable[[int], Float]] = {
    "pooling_mode_cls_token": lambda n: np.eye(1, n, dtype=np.float32)[0],
    "pooling_mode_mean_tokens": lambda n: np.full(n, 1.0 / n, np.float32),
    "pooling_mode_mean_sqrt_len_tokens": lambda n: np.full(n, n**-0.5, np.float32),
    "pooling_mode_weightedmean_tokens": lambda n: (np.arange(1, n + 1) / (n * (n + 1) / 2)).astype(np.float32),
    "pooling_mode_lasttoken": lambda n: np.eye(1, n, n - 1, dtype=np.float32)[0],
}
MEAN = "pooling_mode_mean_tokens"


def is_sentence_encoder(folder: Path) -> bool:
    """Whether a model folder says how to pool, or holds a network that reads both ways."""
    import_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    if (folder / MODULES).is_file():
        return True
    with loading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = type(config)
    return kind in AutoModelForMaskedLM._model_mapping or kind not in AutoModelForCausalLM._model_mapping


def sentence_encoder(way: Source, reading: Reading) -> TextEncoder:
    """A sentence encoder as its folder describes it, but for what ``reading`` says.

    Raises
    ------
    AdvpriorError
        ``PRI022`` when it has fewer layers, ``PRI023`` when it cannot be loaded, ``PRI083`` when the folder asks for a
        part that is not known here, or texts shall be echoed to a network whose tokens see all of a text anyway.
    """
    parts = _parts(way.path)
    if reading.pooling == "echo":
        raise AdvpriorError(
            "PRI083",
            "a sentence encoder has no use for an echo: each of its tokens has read the whole text",
            where=way.name,
            actual="pooling: echo",
            expected="its own pooling (none set), mean or skip_first",
            fix="leave `pooling` out",
        )
    network, layers = _network(way, reading)
    first, last = reading.span(int(network.config.num_hidden_layers))
    pools = _pools(way, parts, reading)
    model = _Stack(network, [_dense(way.path / part["path"]) for part in parts if _kind(part) == "Dense"])
    unit = any(_kind(part) == "Normalize" for part in parts)

    def after(pooled: torch.Tensor) -> torch.Tensor:
        for dense in model.dense:
            pooled = dense(pooled)
        return nn.functional.normalize(pooled, dim=1) if unit else pooled

    facts = {
        **{"source": way.name, "kind": way.kind, "file": way.path.name, "sha256": folder_digest(way.path)},
        **({"revision": way.path.name} if way.kind.startswith("hub") else {}),
        **{"layers": last, "of_layers": layers, "encoder": "sentence encoder", "read_layers": [first, last]},
        "pooling": reading.pooling or ", ".join(name.removeprefix("pooling_mode_") for name in pools),
        "normalised": unit,
    }
    rows = special_rows(_encode(way.path, reading), _weights(pools, skip_first=reading.pooling == "skip_first"))
    return TextEncoder(model, rows, states_of(network, first, last), facts, after)


class _Stack(nn.Module):
    """The network and its dense layers as one, so that a random-weight control forgets both."""

    def __init__(self, network: Any, dense: list[nn.Module]) -> None:
        super().__init__()
        self.network, self.dense, self.config = network, nn.ModuleList(dense), network.config


def _parts(folder: Path) -> list[dict[str, Any]]:
    """The parts that a folder lists, in order; the network and a mean where it lists none."""
    if not (folder / MODULES).is_file():
        return []
    with loading(folder):
        parts: list[dict[str, Any]] = json.loads((folder / MODULES).read_text())
        order = [_kind(part) for part in parts]
    rest = order[2:]
    fits = order[:2] == ["Transformer", "Pooling"] and set(rest) <= {"Dense", "Normalize"}
    if not fits or "Normalize" in rest[:-1] or parts[0]["path"]:
        raise _unknown(folder / MODULES, ", ".join(order))
    return parts


def _kind(part: dict[str, Any]) -> str:
    """The class of a part, whatever module it lies in."""
    return str(part["type"]).rpartition(".")[2]


def _unknown(where: Path, actual: str) -> AdvpriorError:
    return AdvpriorError(
        "PRI083",
        "this sentence encoder has a part that is not known here",
        where=str(where),
        actual=actual,
        expected="Transformer, Pooling, Dense …, Normalize; pooling of the first, the last or a mean of all tokens",
        fix="name another encoder, or set `pooling: mean`" if where.parent.name.endswith("Pooling") else "name another",
    )


def _network(way: Source, reading: Reading) -> tuple[Any, int]:
    """The network in float32 with its first layers, and how many it had."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    with loading(way.path):
        config = AutoConfig.from_pretrained(way.path, local_files_only=True, trust_remote_code=False)
        layers = int(config.num_hidden_layers)
    if not 1 <= (reading.last or layers) <= layers:
        raise AdvpriorError(
            "PRI022",
            "the base model has fewer layers than that",
            where=way.name,
            actual=f"layers: {reading.last}",
            expected=f"1 to {layers}",
            fix="change `layers` in the configuration",
        )
    # of a model that also writes (T5), the half that reads
    loader = AutoModelForTextEncoding if type(config) in AutoModelForTextEncoding._model_mapping else AutoModel
    options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    with loading(way.path):
        config = sliced(config, 0, reading.last or layers)
        model, report = loader.from_pretrained(way.path, config=config, dtype=torch.float32, **options)
    missing = [key for key in report["missing_keys"] if "pooler" not in key]  # of another use of the network
    if missing:
        raise AdvpriorError(
            "PRI023",
            "the base model lacks weights",
            where=str(way.path),
            actual=", ".join(sorted(missing)[:4]),
            expected="every weight of the kept layers",
            fix="fetch or convert the folder again",
        )
    return model.eval(), layers


def _pools(way: Source, parts: list[dict[str, Any]], reading: Reading) -> list[str]:
    """Names of the pools that are put beside each other."""
    if reading.pooling is not None or not parts:
        return [MEAN]
    file = way.path / parts[1]["path"] / "config.json"
    with loading(way.path):
        config = json.loads(file.read_text())
    modes = config.get("pooling_mode")  # newer versions name it, older ones have a switch for each
    chosen = [name for name in config if name.startswith("pooling_mode_") and config[name] is True]
    if modes:
        chosen = [_switch(mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if not chosen or any(name not in POOLS for name in chosen):
        raise _unknown(file, ", ".join(chosen) or "no pooling")
    return sorted(chosen, key=list(POOLS).index)


def _switch(mode: str) -> str:
    """The switch of older versions for what newer ones call a mode."""
    return next(
        (
            name
            for name in POOLS
            if name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") == mode
        ),
        f"pooling_mode_{mode}",
    )


def _weights(pools: list[str], *, skip_first: bool) -> Callable[[int], Float]:
    """Weights [K, n] of n tokens."""

    def weights(tokens: int) -> Float:
        if skip_first and tokens > 1:
            return np.asarray([[0.0] + [1.0 / (tokens - 1)] * (tokens - 1)], np.float32)
        return np.stack([POOLS[name](tokens) for name in pools])

    return weights


def _encode(folder: Path, reading: Reading) -> Encode:
    """Text to token ids, with the marks that the model was trained with, cut to what it was trained on."""
    with loading(folder):
        saved = saved_tokenizer(folder, "name another encoder")
        settings = folder / "sentence_bert_config.json"
        longest = json.loads(settings.read_text()).get("max_seq_length") if settings.is_file() else None
    tokens = saved.backend_tokenizer
    tokens.no_padding()
    tokens.enable_truncation(max(min(reading.tokens, longest or reading.tokens, saved.model_max_length), 3))
    tokens.encode_special_tokens = True  # marks within a text are letters like all others
    prompt = _prompt(folder)
    return lambda text: list(tokens.encode(prompt + text).ids)


def _prompt(folder: Path) -> str:
    """What is put before every text by default: nothing, for most."""
    file = folder / "config_sentence_transformers.json"
    if not file.is_file():
        return ""
    with loading(folder):
        config = json.loads(file.read_text())
        return str((config.get("prompts") or {}).get(config.get("default_prompt_name"), ""))


def _dense(folder: Path) -> nn.Module:
    """A dense layer behind the pooling."""
    from safetensors.torch import load_file

    with loading(folder):
        config = json.loads((folder / "config.json").read_text())
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        module, _, name = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")
        if not module.startswith("torch.nn.modules"):
            raise _unknown(folder, f"activation {module}.{name}")
        file = folder / "model.safetensors"
        weights = load_file(file) if file.is_file() else torch.load(folder / "pytorch_model.bin", weights_only=True)
        linear.load_state_dict({key.removeprefix("linear."): weight for key, weight in weights.items()})
        return nn.Sequential(linear, getattr(import_module(module), name)()).eval()
