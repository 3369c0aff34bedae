"""Encodings of a catalog's texts: made once for the same texts, weights and settings, and kept in the user's cache.

The cache has a limit; what was not used for longest goes first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from advprior.predictors.deadline import Deadline
from advprior.predictors.encoding.lexical import LEXICAL_VERSION, lexical_vectors
from advprior.predictors.encoding.settings import ENCODING_VERSION, Encoding
from advprior.predictors.labels import LabelSpan
from advprior.predictors.tuning.base import encodings_folder, find_base, identity
from advprior.store.arrays import Float
from advprior.store.contract import LEXICAL, LLM
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, digest, manifest_digest, read_manifest

if TYPE_CHECKING:
    from advprior.predictors.tuning.encode import TextEncoder

KEPT_GB = 2.0  # of the cache, unless $ADVPRIOR_ENCODINGS_GB says otherwise
HALF_WRITTEN_S = 86_400.0  # older files that were never finished go


def encode(
    texts: Sequence[str],
    encoding: Encoding,
    *,
    seed: int = 0,
    cutoff: int | None = None,
    deadline: Deadline | None = None,
    fitted_on: Sequence[str] | None = None,
) -> tuple[Float, dict[str, Any]]:
    """What the encoder makes of each text [len(texts), E], and what it is.

    Parameters
    ----------
    texts : sequence of str
    encoding : Encoding
    seed : int
        Of random weights, where the encoding takes them.
    cutoff : int, optional
        Microseconds: whoever reads the encodings is tested on labels from here on.
    deadline : Deadline, optional
    fitted_on : sequence of str, optional
        Texts whose words the lexical encoder counts: by default the texts themselves.

    Returns
    -------
    encodings : float32 [len(texts), E]
    facts : dict
        ``encoder`` (its kind), ``source``, ``layers``, ``pooling``, ``tokens``, ``random_weights``, ``version``,
        ``cpu_seconds`` that the encodings took when they were made.

    Raises
    ------
    AdvpriorError
        ``PRI019`` when it would not end by the deadline, ``PRI020`` to ``PRI025`` and ``PRI083`` when the encoder
        cannot be had or read this way, ``PRI040`` when it is a run that saw labels from the cut-off on.
    """
    if encoding.base == LEXICAL:
        return lexical_vectors(texts, fitted_on)
    if cutoff is not None:
        _require_past(encoding, cutoff)
    random_seed = seed if encoding.twin else None
    name = digest([list(texts), encoding.key(), encoder_identity(encoding.base), random_seed])
    path = encodings_folder() / f"{name}.npz"
    if (saved := _read(path)) is not None:
        return saved[0], saved[1] | _facts(encoding, random_seed)
    from advprior.predictors.tuning.encode import encode_texts

    started = time.process_time()
    encoder = open_encoder(encoding)
    encodings = encode_texts(texts, encoder, random_seed=random_seed, deadline=deadline)
    spent = {"cpu_seconds": round(time.process_time() - started, 2)}  # of the CPU alone, where a card computed
    facts = encoder.origin | spent
    _write(path, encodings, facts)
    return encodings, facts | _facts(encoding, random_seed)


def open_encoder(encoding: Encoding) -> TextEncoder:
    """The network that an encoding names, ready to read.

    Raises
    ------
    AdvpriorError
        As `encode`.
    """
    reading = encoding.reading()
    if is_fitted_run(encoding.base):
        from advprior.predictors.llm.tuning.as_encoder import fitted_encoder

        return fitted_encoder(Path(encoding.base).expanduser(), reading)
    way = find_base(encoding.base)
    if way.path.is_dir():
        from advprior.predictors.tuning.sentence import is_sentence_encoder, sentence_encoder

        if is_sentence_encoder(way.path):
            return sentence_encoder(way, reading)
    from advprior.predictors.tuning.encode import language_model

    return language_model(encoding.base, reading)


def is_fitted_run(base: str) -> bool:
    """Whether an encoder's name is a folder that ``advprior finetune`` wrote."""
    return (Path(base).expanduser() / MANIFEST).is_file()


def encoder_identity(base: str) -> dict[str, str]:
    """What tells apart the weights that one name may mean; of a run its manifest's digest.

    Raises
    ------
    AdvpriorError
        ``PRI020``, ``PRI021`` where there are none.
    """
    if base == LEXICAL:
        return {"version": str(LEXICAL_VERSION)}
    if is_fitted_run(base):
        return {"run": manifest_digest(Path(base).expanduser())}
    return identity(base)


def pretrained(run: Path, encoding: Encoding) -> bool:
    """Whether weights of a pre-training are behind a run's encodings: not so where its encoder never had any."""
    origin = read_manifest(run)["facts"].get("base") if (run / MANIFEST).is_file() else None
    return encoding.pretrained and not (origin or {}).get("twin", False)


def saw_labels(encoding: Encoding, since: int) -> bool:
    """Whether the encoder is a run that learned from labels at or after ``since`` (microseconds): its encodings tell.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.labels.LabelSpan.of_run`.
    """
    until = _learned_until(encoding)
    return until is not None and until > datetime.fromtimestamp(since / 1e6, UTC)


def _learned_until(encoding: Encoding) -> datetime | None:
    """The model cut-off of an encoder that was fitted on histories; None of one that was not, or whose weights go."""
    if not is_fitted_run(encoding.base) or encoding.twin:
        return None
    run = Path(encoding.base).expanduser()
    manifest = read_manifest(run, step="finetune", fix="advprior finetune --predictor llm")
    return LabelSpan.of_run(manifest, str(run)).model_cutoff


def _require_past(encoding: Encoding, cutoff: int) -> None:
    """Refuse an encoder that was fitted on labels from the cut-off on: its encodings would tell of them."""
    until, end = _learned_until(encoding), datetime.fromtimestamp(cutoff / 1e6, UTC)
    if until is not None and until > end:
        raise AdvpriorError(
            "PRI040",
            "the encoder saw labels that its encodings would be tested on",
            where=str(Path(encoding.base).expanduser()),
            actual=f"fitted on events up to {until.isoformat()}",
            expected=f"no event from {end.isoformat()} on",
            fix=f"advprior finetune --predictor {LLM} on tables whose finetune_end is no later",
        )


def _facts(encoding: Encoding, random_seed: int | None) -> dict[str, Any]:
    """What does not follow from the weights alone: the same ones may lie under several names."""
    kind = "fitted run" if is_fitted_run(encoding.base) else find_base(encoding.base).kind
    about = {"source": encoding.base, "kind": kind, "tokens": encoding.tokens}
    return about | {"random_weights": random_seed, "version": ENCODING_VERSION}


def _read(path: Path) -> tuple[Float, dict[str, Any]] | None:
    """Encodings and facts of a kept file; None where there is none that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            read = saved["encodings"], json.loads(str(saved["facts"]))
        with suppress(OSError):
            os.utime(path)  # what is used stays longest
        return read
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _write(path: Path, encodings: Float, facts: dict[str, Any]) -> None:
    """Keep encodings; a folder that cannot be written costs the next fit the time, not this one its result."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, encodings=encodings, facts=np.asarray(json.dumps(facts)))
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
    prune(path.parent, path)


def prune(folder: Path, latest: Path, most: int | None = None) -> int:
    """Remove the encodings that nobody has used for longest, as far as all take more than ``most`` bytes; how many.

    Parameters
    ----------
    folder : Path
    latest : Path
        Stays whatever its size.
    most : int, optional
        By default ``$ADVPRIOR_ENCODINGS_GB``, else 2 GB.
    """
    most = int(float(os.environ.get("ADVPRIOR_ENCODINGS_GB", KEPT_GB)) * 1e9) if most is None else most
    files: list[tuple[float, int, Path]] = []
    removed = 0
    for path in folder.glob("*.npz"):
        with suppress(OSError):
            facts = path.stat()
            if path.name.startswith("."):  # half written, by a process that was killed
                if time.time() - facts.st_mtime > HALF_WRITTEN_S:
                    path.unlink()
            else:
                files.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            break
        if path != latest:
            with suppress(OSError):
                path.unlink()
                total, removed = total - size, removed + 1
    return removed
