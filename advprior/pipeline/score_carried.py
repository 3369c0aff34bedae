"""What earlier priors spare a refresh: the network's part of users whose input did not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advprior.history.everyone import Everyone
from advprior.history.fingerprints import input_keys
from advprior.pipeline.score_files import NETWORK_FILE, STATES_FILE
from advprior.store.arrays import Float, Int
from advprior.store.contract import INTEREST_MATRIX_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import Matrix, matrix_path, open_matrix

NETWORK_KEYS_FILE = "network_keys.npy"  # [U] uint64: the input that each row of the network's part was computed from


@dataclass(frozen=True)
class Carried:
    """The network's part of earlier priors, for users whose input did not change.

    Attributes
    ----------
    network : float32 [U0, N], or states [U0, W], on disk
    rows : int64 [U, S]
        Which of its rows each user and cut-off may take; −1: none.
    interests : float32 [U0, C], optional
        What the same forwards said of product categories.
    """

    network: Matrix
    rows: Int
    interests: Float | None = None

    @classmethod
    def open(cls, since: Path, everyone: Everyone, cutoffs: Int, model: str, states: bool = False) -> Carried:
        """Match earlier rows by the digest of what the network read; ``states`` says which part is carried over.

        Raises
        ------
        AdvpriorError
            ``PRI012`` when the earlier priors have no saved network part.
        """
        file = STATES_FILE if states else NETWORK_FILE
        if not (since / NETWORK_KEYS_FILE).is_file() or not matrix_path(since / file):
            raise AdvpriorError(
                "PRI012",
                "the earlier priors have no saved network part",
                where=str(since),
                actual=f"no {file}",
                expected="priors scored with --keep-network (the default for whole rows, not for top-K)",
                fix="advprior score RUN --tables TABLES --out PRIORS --keep-network",
            )
        keys = np.load(since / NETWORK_KEYS_FILE)
        order = np.argsort(keys)
        rows = np.full((len(everyone), len(cutoffs)), -1, np.int64)
        start = 0
        for block in everyone.blocks() if len(keys) else ():
            for column, cutoff in enumerate(cutoffs):
                wanted = input_keys(block, int(cutoff), model)
                at = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
                candidates = order[at]
                rows[start : start + len(block), column] = np.where(keys[candidates] == wanted, candidates, -1)
            start += len(block)
        network, interests = open_matrix(since / file), None
        if matrix_path(since / INTEREST_MATRIX_FILE):
            matrix = open_matrix(since / INTEREST_MATRIX_FILE)
            snapshots = max(len(matrix) // max(len(network), 1), 1)
            interests = matrix[snapshots - 1 :: snapshots]  # each user's last snapshot, as the network's part is
        return cls(network, rows, interests)


def carries_states(since: Path) -> bool:
    """Whether earlier priors kept states, from which a top-K score goes on."""
    return bool(matrix_path(since / STATES_FILE))


def save_keys(folder: Path, everyone: Everyone, cutoff: int, model: str) -> None:
    """Keep what a later `Carried` matches by."""
    keys = [input_keys(block, cutoff, model) for block in everyone.blocks()]
    np.save(folder / NETWORK_KEYS_FILE, np.concatenate([np.zeros(0, np.uint64), *keys]))
