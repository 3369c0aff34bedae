"""Batches of rows of like length, and padding: for whoever fits or scores, with torch or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int

FEW = 4  # batches a lane: below them, an uneven number leaves lanes idle for long


@dataclass(frozen=True)
class Budget:
    """What one batch may hold.

    Attributes
    ----------
    tokens : int
        Padded tokens: rows × the longest.
    output_bytes : int, optional
        Of what it returns: rows × most points × bytes a point. Without it no limit.
    """

    tokens: int
    output_bytes: int | None = None


@dataclass(frozen=True)
class Outputs:
    """What each row of a batch returns.

    Attributes
    ----------
    points : int64 [n]
        Points of each row; a batch is as wide as its largest.
    bytes_a_point : int
        ``4 · N`` for log-probabilities of N advertisers.
    """

    points: Int
    bytes_a_point: int


def length_batches(
    lengths: npt.ArrayLike, budget: int, *, longest_first: bool = False, ties: npt.ArrayLike | None = None
) -> list[Int]:
    """Group rows of like length so that no batch is larger than a budget of padded tokens.

    Parameters
    ----------
    lengths : int [n]
        Tokens of each row.
    budget : int
        Largest ``rows × longest`` of a batch; a single row above it gets a batch of its own.
    longest_first : bool
        For scoring: memory peaks at the start, where a limit shows before hours of work.
    ties : float [n], optional
        From 0 to 1: the order among rows of equal length; by default their own.

    Returns
    -------
    list of int64 arrays
        Indices into ``lengths``, every one exactly once.

    Examples
    --------
    >>> [batch.tolist() for batch in length_batches([3, 9, 4, 4, 20], budget=12)]
    [[0, 2, 3], [1], [4]]
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    sizes = np.maximum(np.asarray(lengths, np.int64), 1)
    keys = -sizes if longest_first else sizes
    order = np.argsort(keys if ties is None else keys + np.asarray(ties), kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and max(sizes[order[start]], sizes[order[stop]]) * (stop + 1 - start) <= budget:
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches


def token_budget_batches(
    lengths: npt.ArrayLike, budget: int | Budget, lanes: int = 1, outputs: Outputs | None = None
) -> list[Int]:
    """`length_batches` for scoring, longest first, that keep every lane at work to the end.

    Parameters
    ----------
    lengths
        See `length_batches`.
    budget : int or Budget
        Padded tokens, and bytes of ``outputs``.
    lanes : int
        How many batches run at a time: where there are few batches, smaller ones are made.
    outputs : Outputs, optional
        What each row returns.

    Examples
    --------
    >>> [batch.tolist() for batch in token_budget_batches([3, 9, 4, 4, 20], budget=12)]
    [[4], [1], [2, 3, 0]]
    >>> few = Outputs(np.array([1, 1, 9, 1, 1]), 100)
    >>> [batch.tolist() for batch in token_budget_batches([3, 9, 4, 4, 20], Budget(12, 900), outputs=few)]
    [[4], [1], [2], [3, 0]]
    """
    if isinstance(budget, int):
        budget = Budget(budget)
    batches = length_batches(lengths, budget.tokens, longest_first=True)
    if len(batches) % lanes and len(batches) < FEW * lanes:
        rounds = -(-len(batches) // lanes)
        tokens = int(np.maximum(np.asarray(lengths, np.int64), 1).sum())
        batches = length_batches(lengths, max(tokens // (rounds * lanes), 1), longest_first=True)
    if outputs is None or budget.output_bytes is None:
        return batches
    most = budget.output_bytes // max(outputs.bytes_a_point, 1)  # points, padded ones too
    return [part for batch in batches for part in _within(batch, outputs.points[batch], most)]


def _within(batch: Int, points: Int, most: int) -> list[Int]:
    """A batch in parts of no more than ``most`` padded points each; a row above it is a part of its own."""
    if len(batch) * int(points.max(initial=0)) <= most:
        return [batch]
    parts, start, widest = [], 0, 0
    for stop, width in enumerate(points):
        if stop > start and max(widest, int(width)) * (stop + 1 - start) > most:
            parts.append(batch[start:stop])
            start, widest = stop, 0
        widest = max(widest, int(width))
    parts.append(batch[start:])
    return parts


def padded(rows: Sequence[Int], *, least: int = 0) -> Int:
    """Rows of any length as one int64 matrix, zeros to the right, at least ``least`` wide.

    >>> padded([np.array([1, 2]), np.array([3])], least=3).tolist()
    [[1, 2, 0], [3, 0, 0]]
    """
    out = np.zeros((len(rows), max([least, *map(len, rows)])), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def pad_windows(windows: Sequence[tuple[Int, Int]]) -> tuple[Int, Int, Int]:
    """Right-padded ``input_ids`` [B, T], ``attention_mask`` [B, T], ``positions`` [B, P] of (ids, positions) rows.

    >>> [part.tolist() for part in pad_windows([(np.array([5, 6]), np.array([1])), (np.array([7]), np.array([0, 0]))])]
    [[[5, 6], [7, 0]], [[1, 1], [1, 0]], [[1, 0], [0, 0]]]
    """
    ids = [ids for ids, _ in windows]
    return padded(ids), padded([np.ones_like(row) for row in ids]), padded([positions for _, positions in windows])
