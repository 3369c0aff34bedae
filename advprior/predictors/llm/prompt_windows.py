"""Which tokens each answer may see, for many users and cut-offs at once: the forwards of a shard in flat arrays.

Answers that see the same start of a history share a forward, and equal forwards of several users are one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.predictors.llm.prompt_layout import Bodies
from advprior.predictors.llm.token_table import TokenTable, offsets_of, ragged
from advprior.store.arrays import Bool, Int

_LAST = 12  # tokens at the end that forwards are compared by first
_MIX = np.random.default_rng(0).integers(1, 2**63, _LAST + 3, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


@dataclass(frozen=True)
class PromptWindows:
    """Distinct forwards of users at cut-offs: W rows of token ids, and P positions that answer.

    Attributes
    ----------
    ids : int64 [T]
        Token ids, one forward after another.
    offsets : int64 [W + 1]
        First token of each forward.
    positions : int64 [P]
        Positions that answer, each the last token that its answer may see; ascending within a forward.
    position_offsets : int64 [W + 1]
        First answer of each forward.
    no_history : bool [W]
        Whether the first answer of a forward sees the profile alone.
    index : int64 [U, S]
        Which answer each user and cut-off takes.
    prompts : int
        Forwards before equal ones became one.
    """

    ids: Int
    offsets: Int
    positions: Int
    position_offsets: Int
    no_history: Bool
    index: Int
    prompts: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """Tokens of each forward [W]."""
        return np.diff(self.offsets)

    @property
    def answers(self) -> Int:
        """Answers of each forward [W]."""
        return np.diff(self.position_offsets)

    def row(self, window: int) -> tuple[Int, Int]:
        """Token ids and positions of one forward."""
        ids = self.ids[self.offsets[window] : self.offsets[window + 1]]
        return ids, self.positions[self.position_offsets[window] : self.position_offsets[window + 1]]

    def rows_of(self, batch: Int) -> Int:
        """Which answers, of P, the forwards of a batch give, one forward after another."""
        return ragged(self.position_offsets[batch], self.answers[batch])

    def padded(self, batch: Int) -> tuple[Int, Int, Int]:
        """Right-padded ``input_ids`` [B, T], ``attention_mask`` [B, T], ``positions`` [B, P] of some forwards."""
        ids, mask = _padded(self.ids, self.offsets[batch], self.lengths[batch])
        positions, _ = _padded(self.positions, self.position_offsets[batch], self.answers[batch])
        return ids, mask, positions


def _padded(values: Int, starts: Int, lengths: Int) -> tuple[Int, Int]:
    """Rows of a flat array as a matrix, zeros to the right, and where it holds values (ones)."""
    width = int(lengths.max(initial=0))
    mask = np.arange(width) < lengths[:, None]
    out = np.zeros(mask.shape, np.int64)
    out[mask] = values[ragged(starts, lengths)]
    return out, mask.astype(np.int64)


def window_starts(bodies: Bodies, user: Int, seen: Int, room: Int) -> Int:
    """First token of the body that each answer sees [n].

    Where what it may see outgrows the context, the oldest tokens are dropped in blocks of half the context, whole
    occasions, by a rule that looks only at tokens up to the answer. Of an occasion that fills the context alone the
    last events are kept.

    Parameters
    ----------
    bodies : Bodies
    user : int64 [n]
    seen : int64 [n]
        Tokens of the body that each answer may see.
    room : int64 [n]
        Tokens that the context has for them.
    """
    start = np.zeros(len(seen), np.int64)
    long = np.flatnonzero(seen > room)
    if len(long):
        user, seen, room = user[long], seen[long], room[long]
        base, block = bodies.offsets[user], np.maximum(room // 2, 1)
        drop = -(-(seen - room) // block) * block
        # at the first occasion that begins at or after the dropped block
        begins = _begins(bodies)
        first = np.minimum(begins[np.searchsorted(begins, base + drop)] - base, seen)
        first = np.where(first == seen, last_events(bodies, user, seen, room), first)
        start[long] = first
    return start


def last_events(bodies: Bodies, user: Int, seen: Int, room: Int) -> Int:
    """Where the last events before ``seen`` begin that fit; within an event only where the last is too long itself."""
    base = bodies.offsets[user]
    at = np.searchsorted(bodies.events, base + np.maximum(seen - room, 0))
    events = np.append(bodies.events, 0)
    start = np.where(at < bodies.event_offsets[user + 1], events[at] - base, seen)
    fits: Int = np.where(start < seen, start, np.maximum(seen - room, 0))
    return fits


def _begins(bodies: Bodies) -> Int:
    """Where occasions of each user begin, and where the user's body ends; ascending, twice where users meet."""
    begins = np.empty(len(bodies.ends) + len(bodies.offsets) - 1, np.int64)
    users = bodies.occasion_offsets[:-1] + np.arange(len(bodies.offsets) - 1)
    begins[users] = bodies.offsets[:-1]
    others = np.ones(len(begins), np.bool_)
    others[users] = False
    begins[others] = bodies.ends + 1
    return begins


def tokens_seen(bodies: Bodies, user: Int, occasions: Int) -> Int:
    """Tokens of a user's body [n] in their first so many occasions [n]."""
    number = bodies.occasion_offsets[user] + occasions
    if not len(bodies.ends):
        return np.zeros(len(user), np.int64)
    ends: Int = np.where(occasions > 0, bodies.ends[np.maximum(number - 1, 0)] + 1 - bodies.offsets[user], 0)
    return ends


def prompt_windows(bodies: Bodies, heads: TokenTable, head: Int, seen: Int, context: int) -> PromptWindows:
    """Forwards that answer for users who have seen so many occasions.

    Parameters
    ----------
    bodies : Bodies
        Of U users.
    heads : TokenTable
        Distinct starts of prompts.
    head : int64 [U]
        Which of them each user has.
    seen : int64 [U, S]
        Occasions that each answer has seen.
    context : int
        Most tokens of a forward.
    """
    users, snapshots = seen.shape
    user, occasions = np.repeat(np.arange(users, dtype=np.int64), snapshots), seen.ravel()
    head_length = heads.lengths[head[user]]
    tokens = tokens_seen(bodies, user, occasions)
    start = window_starts(bodies, user, tokens, context - head_length)
    if snapshots == 1:
        window = answer = firsts = np.arange(users, dtype=np.int64)
        stop, per_window = tokens, np.ones(users, np.int64)
    else:
        width = int(start.max(initial=0)) + 1
        _, first_pair, window = np.unique(user * width + start, return_index=True, return_inverse=True)
        stop = np.zeros(len(first_pair), np.int64)
        np.maximum.at(stop, window, tokens)
        width = int(occasions.max(initial=0)) + 1
        _, firsts, answer = np.unique(window * width + occasions, return_index=True, return_inverse=True)
        user, start = user[first_pair], start[first_pair]
        per_window = np.bincount(window[firsts], minlength=len(first_pair))
    start_of = start[window]
    positions = (head_length + tokens - start_of - 1)[firsts]
    lengths = np.stack([heads.lengths[head[user]], stop - start], axis=1)
    begins = np.stack([heads.starts[head[user]], len(heads.tokens) + bodies.offsets[user] + start], axis=1)
    ids = np.concatenate([heads.tokens, bodies.tokens])[ragged(begins.ravel(), lengths.ravel())]
    position_offsets = offsets_of(per_window)
    whole = PromptWindows(
        ids,
        offsets_of(lengths.sum(1)),
        positions,
        position_offsets,
        (occasions[firsts] == 0)[position_offsets[:-1]] if len(firsts) else np.zeros(0, np.bool_),
        answer.reshape(users, snapshots),
        len(lengths),
    )
    return _distinct(whole)


def _distinct(windows: PromptWindows) -> PromptWindows:
    """Equal forwards as one, in the order in which they first occur."""
    same = _same_as(windows)
    keep = np.flatnonzero(same == np.arange(len(same)))
    if len(keep) == len(same):
        return windows
    answers = windows.answers
    position_offsets = offsets_of(answers[keep])
    # where the answers of each forward begin once its twin stands for it
    begins = position_offsets[:-1][np.searchsorted(keep, same)]
    moved = np.repeat(begins - windows.position_offsets[:-1], answers) + np.arange(len(windows.positions))
    return PromptWindows(
        windows.ids[ragged(windows.offsets[keep], windows.lengths[keep])],
        offsets_of(windows.lengths[keep]),
        windows.positions[ragged(windows.position_offsets[keep], answers[keep])],
        position_offsets,
        windows.no_history[keep],
        moved[windows.index],
        windows.prompts,
    )


def _same_as(windows: PromptWindows) -> Int:
    """The first forward of the same tokens and positions, for each [W].

    Only those whose length, positions and last tokens agree are compared whole.
    """
    same = np.arange(len(windows), dtype=np.int64)
    ends = windows.offsets[1:, None] - 1 - np.arange(_LAST)
    last = windows.ids[np.maximum(ends, 0)].astype(np.uint64)
    last[ends < windows.offsets[:-1, None]] = 0
    rest = np.stack([windows.lengths, windows.answers, windows.positions[windows.position_offsets[:-1]]], axis=1)
    key = (np.concatenate([last, rest.astype(np.uint64)], axis=1) * _MIX).sum(1, dtype=np.uint64)
    order = np.argsort(key, kind="stable")
    alike = np.zeros(len(key), np.bool_)
    agree = key[order][1:] == key[order][:-1]
    alike[order[1:][agree]] = alike[order[:-1][agree]] = True
    first: dict[tuple[bytes, bytes], int] = {}
    for window in np.flatnonzero(alike).tolist():
        ids, positions = windows.row(window)
        same[window] = first.setdefault((ids.tobytes(), positions.tobytes()), window)
    return same
