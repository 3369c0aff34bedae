"""What runs on Spark's workers: one open model a process, and the scoring code that one machine runs too.

Nothing here imports pyspark but to find the model's folder: a worker that has `advprior` and its runtime is enough.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import advprior
from advprior.history.histories import Histories
from advprior.history.stored import BlockFacts, Blocks, BlockWork, build_block
from advprior.history.subset import Crowd, Part
from advprior.predictors.base import Scorer
from advprior.predictors.forwarding import Forwarded, forward
from advprior.predictors.registry import load_predictor
from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError

IN_COLUMNS = ("job", "users", "people")
OUT_SCHEMA = "job bigint, piece int, payload binary"
FAILED, HEAD = -1, 0  # pieces of a result; from 1 on: rows of log-probs in order, then those of interests
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Setup:
    """What all jobs of a run share, sent to every worker once.

    Attributes
    ----------
    archive : str
        Folder of the unpacked model among Spark's files.
    blocks : Blocks
        Where everyone's events are.
    cutoffs : int64 [S]
    crowd : Crowd
    device : str
    threads : int
        Of ONNX Runtime, in each worker process.
    """

    archive: str
    blocks: Blocks
    cutoffs: Int
    crowd: Crowd
    device: str
    threads: int


_open: dict[tuple[str, str, int], Scorer] = {}  # at most one: sessions are large


def scorer_of(setup: Setup) -> Scorer:
    """The open model of this process."""
    key = (setup.archive, setup.device, setup.threads)
    if key not in _open:
        from pyspark import SparkFiles

        _open.clear()
        run = Path(SparkFiles.get(setup.archive))
        _open[key] = load_predictor(run).scorer(run / "onnx", setup.device, setup.threads)
    return _open[key]


def compute(setup: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """For ``mapInArrow``: jobs in, pieces of their results out.

    A coded error travels back as a piece, so that the driver can raise it as it was.

    Parameters
    ----------
    setup : broadcast `Setup`
    batches : iterator of pyarrow.RecordBatch
        ``job``, ``users`` (int64, their places among all) and ``people`` (pickled `Histories` of them without events:
        these are read where they lie).
    """
    import pyarrow as pa

    def piece(job: int, number: int, payload: bytes) -> Any:
        columns = [pa.array([job], pa.int64()), pa.array([number], pa.int32()), pa.array([payload], pa.binary())]
        return pa.RecordBatch.from_arrays(columns, ["job", "piece", "payload"])

    shared: Setup = setup.value
    for batch in batches:
        for job, places, raw in zip(*(batch[name].to_pylist() for name in IN_COLUMNS), strict=True):
            try:
                users = np.frombuffer(places, np.int64)
                part = Part.join(shared.blocks.with_events(pickle.loads(raw), users), shared.crowd)
                scorer = scorer_of(shared)
                result = forward(scorer, part, np.arange(len(part), dtype=np.int64), shared.cutoffs)
            except AdvpriorError as error:
                yield piece(job, FAILED, pickle.dumps(error))
                return
            yield piece(job, HEAD, pickle.dumps(head(result, getattr(scorer, "provider", ""))))
            arrays = [result.log_probs] if result.interests is None else [result.log_probs, result.interests]
            for number, rows in enumerate(chain.from_iterable(map(slices, arrays)), start=1):
                yield piece(job, number, rows.tobytes())


def built(work: BlockWork, number: int) -> BlockFacts | AdvpriorError:
    """Build a block of histories; a coded error comes back as it is."""
    try:
        return build_block(work, number)
    except AdvpriorError as error:
        return error


def head(result: Forwarded, provider: str) -> dict[str, Any]:
    """All of a result but its log-probabilities, with the worker's version and ONNX Runtime provider."""
    return {
        "version": advprior.__version__,
        "provider": provider,
        "shape": result.log_probs.shape,
        "interests": None if result.interests is None else result.interests.shape,
        "index": result.index,
        "prompts": result.prompts,
        "forwarded": result.forwarded,
    }


def slices(log_probs: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Rows in blocks that one message can hold."""
    step = max(1, PIECE_BYTES // max(4 * log_probs.shape[1], 1))
    for start in range(0, len(log_probs), step):
        yield np.ascontiguousarray(log_probs[start : start + step], np.float32)


def packed(histories: Histories) -> bytes:
    """Users as a job carries them."""
    return pickle.dumps(histories, protocol=pickle.HIGHEST_PROTOCOL)


def assembled(pieces: dict[int, bytes]) -> tuple[dict[str, Any], Forwarded]:
    """Head and result of a job from its pieces.

    Raises
    ------
    AdvpriorError
        Whatever the worker raised.
    """
    if FAILED in pieces:
        raise pickle.loads(pieces[FAILED])
    summary = pickle.loads(pieces[HEAD])
    raw = b"".join(pieces[number] for number in sorted(pieces) if number > HEAD)
    values = np.frombuffer(raw, np.float32)
    first = int(np.prod(summary["shape"], dtype=np.int64))
    log_probs = values[:first].reshape(summary["shape"])
    interests = None if summary["interests"] is None else values[first:].reshape(summary["interests"])
    return summary, Forwarded(log_probs, summary["index"], summary["prompts"], summary["forwarded"], interests)
