"""Interests of every user at every snapshot, from the second output of an exported graph: no torch.

They are written in the order of the advertiser priors' rows, so that one pointer serves both. The file only grows:
after a kill the same call goes on after the last user that is whole in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.catalog import Catalog
from advprior.history.histories import Histories
from advprior.predictors.base import InterestScorer
from advprior.predictors.forwarding import Forwarder, Job, here
from advprior.predictors.llm.prompts import PromptEncoder, PromptWindow, occasions_before
from advprior.runtime.batching import pad_windows, token_budget_batches
from advprior.runtime.session import open_session
from advprior.store.arrays import Float, Int
from advprior.store.contract import INTEREST_MATRIX_FILE, INTERESTS_FILE
from advprior.store.errors import AdvpriorError

SUM_TOLERANCE = 1e-4  # of one
_SHARD_USERS = 32


def score_interests(
    scorer: InterestScorer, histories: Histories, cutoffs: Int, out: Path, forwarder: Forwarder | None = None
) -> dict[str, Any]:
    """Write ``interest_log_probs.npy`` [users × snapshots, C] and the list of categories; facts for the manifest.

    ``forwarder`` runs the forwards; without one they run here.

    Raises
    ------
    AdvpriorError
        ``PRI008`` when a row is no distribution.
    """
    from tqdm.auto import tqdm

    size, path = len(scorer.catalog), out / INTEREST_MATRIX_FILE
    facts = {"interests": size, "interests_version": scorer.catalog.version}
    if path.is_file():  # only ever there whole
        return facts
    rows_per_user = len(cutoffs)
    shape = (len(histories) * rows_per_user, size)
    growing = path.with_suffix(".part")
    header = _header(shape)
    width = rows_per_user * size * 4  # bytes of one user
    written = growing.stat().st_size if growing.is_file() else 0
    first = max(written - len(header), 0) // width if width and written >= len(header) else 0
    with growing.open("r+b" if written else "wb") as handle:
        handle.truncate(0 if first == 0 else len(header) + first * width)
        handle.seek(0, 2)
        if first == 0:
            handle.write(header)
        starts = range(first, len(histories), _SHARD_USERS)
        jobs = _jobs(starts, len(histories))
        done = (forwarder or here(scorer, histories, cutoffs))(jobs)
        for job, result in tqdm(done, total=len(starts), desc="interests", unit="shard", disable=None):
            assert result is not None
            log_probs = result.log_probs[result.index]
            _require_distribution(log_probs, f"users {job.users[0]} to {job.users[-1]}")
            handle.write(np.ascontiguousarray(log_probs, np.float32).tobytes())
            handle.flush()
    scorer.catalog.save(out / INTERESTS_FILE)
    growing.replace(path)
    return facts


def _jobs(starts: Iterable[int], users: int) -> Iterator[Job]:
    for start in starts:
        block = np.arange(start, min(start + _SHARD_USERS, users), dtype=np.int64)
        yield Job(start // _SHARD_USERS, block, block)


def _header(shape: tuple[int, int]) -> bytes:
    """Start of a ``.npy`` file of float32."""
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _require_distribution(log_probs: npt.NDArray[np.float32], where: str) -> None:
    error = float(np.abs(np.exp(log_probs, dtype=np.float64).sum(-1) - 1).max()) if log_probs.size else 0.0
    if not error <= SUM_TOLERANCE:  # a NaN fails too
        raise AdvpriorError(
            "PRI008",
            "a prior is no distribution over the interests",
            where=where,
            actual=f"sum of probabilities off by {error}",
            expected=f"at most {SUM_TOLERANCE}",
            fix="advprior export RUN --force, then score again",
        )


class LLMInterestScorer(InterestScorer):
    """Interests from the LLM's graph.

    Parameters
    ----------
    encoder : PromptEncoder
    catalog : Catalog
        C categories.
    onnx : Path
    device, threads
        See `advprior.runtime.session.open_session`.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        catalog: Catalog,
        onnx: Path,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.catalog = catalog
        self._encoder = encoder
        self._engine = open_session(onnx / "model.onnx", device=device, threads=threads, many=True)

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        jobs: list[
            tuple[int, PromptWindow, Int, Int]
        ] = []  # row, window, positions and columns of the snapshots it answers
        for row, user in enumerate(users):
            prompt = self._encoder.prompt(histories, int(user))
            seen = occasions_before(prompt, cutoffs)
            for window in self._encoder.windows(prompt, seen):
                columns = np.flatnonzero(np.isin(seen, window.occasions))
                positions = window.positions[np.searchsorted(window.occasions, seen[columns])]
                jobs.append((row, window, positions, columns))
        out = np.empty((len(users), len(cutoffs), len(self.catalog)), np.float32)

        def forward(batch: Int) -> Float:
            ids, mask, at = pad_windows([(jobs[b][1].ids, jobs[b][2]) for b in batch])
            inputs = {"input_ids": ids, "attention_mask": mask, "positions": at}
            inputs["offset"] = np.zeros((*at.shape, self._encoder.catalog_size), np.float32)  # interests hang on none
            return self._engine.run_all(inputs)["interest_log_probs"]

        batches = token_budget_batches(
            [len(window.ids) for _, window, _, _ in jobs], self._engine.token_budget, self._engine.lanes
        )
        for batch, rows in self._engine.each(batches, forward):
            for log_probs, b in zip(rows, batch, strict=True):
                row, _, positions, columns = jobs[b]
                out[row, columns] = log_probs[: len(positions)]
        return out
