"""Which files of a base model are taken: one copy of its weights, its configuration and its tokenizer.

Repositories often hold the same weights several times: as safetensors and as PyTorch files, in half precision, once
whole and once in shards, for other runtimes in subfolders. transformers reads one of them; only that one is fetched,
and only that one says which weights a run was fitted on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

#: by preference, as transformers loads them; the index names the shards
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDE = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
#: what a sentence encoder does with the states of its network (pooling, dense layers): names of sentence-transformers
MODULES = "modules.json"
_MODULES = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json")
_MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
_MODULE = re.compile(r"[0-9]+_[A-Za-z]+")


def is_module(folder: Path) -> bool:
    """Whether a folder is a part of a sentence encoder, such as ``1_Pooling``."""
    return _MODULE.fullmatch(folder.name) is not None


def module_files(folder: Path) -> list[Path]:
    """Files of a sentence encoder's parts behind its network, in order of their names; empty for any other model."""
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and is_module(part))
    return [part / name for part in parts for name in _MODULE_FILES if (part / name).is_file()]


def weight_files(folder: Path) -> list[Path]:
    """Files of the one copy of the weights that a folder gives, empty where it holds no whole one."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            files = _shards(folder / name) if name.endswith(".index.json") else [folder / name]
            return files if files and all(file.is_file() for file in files) else []
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return []
    return [index.parent / name for name in sorted(names)]


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those to fetch first: configuration, tokenizer, and the weights or their index.

    >>> wanted_files(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tokenizer.json"])
    ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    weights = next((name for name in WEIGHTS if name in names), None)
    beside = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _BESIDE) and "/" not in name]
    if MODULES in names:
        beside += [name for name in names if name in _MODULES or _of_module(name)]
    return sorted(beside + ([weights] if weights else []))


def _of_module(name: str) -> bool:
    folder, _, file = name.partition("/")
    return is_module(Path(folder)) and file in _MODULE_FILES


def snapshot(name: str, *, local: bool) -> Path | str:
    """Snapshot folder of a hub model, from the cache alone or from the network; else why not."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return "huggingface_hub is not installed"
    if not local and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        folder = _cached(name) if local else _fetched(name)
    except HFValidationError:
        return "not a valid id"
    except LocalEntryNotFoundError:
        return "not there" if local else "no connection"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return {401: "unknown or private", 403: "access refused", 404: "unknown"}.get(status or 0, f"answered {status}")
    except OSError as error:
        return "no connection" if "Connect" in type(error).__name__ else type(error).__name__
    if not (folder / "config.json").is_file() or not weight_files(folder):
        return "incomplete" if local else "has no weights that transformers reads"
    return folder


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True))


def _fetched(name: str) -> Path:
    """Fetch one copy of the weights and what belongs to it."""
    from huggingface_hub import HfApi, snapshot_download

    wanted = wanted_files([file.rfilename for file in HfApi().model_info(name).siblings or ()])
    # by name, not by commit: the cache then knows the name, and the next run needs no network
    folder = Path(snapshot_download(name, allow_patterns=wanted))
    for index in (file for file in wanted if file.endswith(".index.json")):
        shards = [file.name for file in _shards(folder / index)]
        folder = Path(snapshot_download(name, allow_patterns=[*wanted, *shards]))
    return folder
