"""Some users' histories to go: what another process needs to score them as if it held everyone's.

A prior asks for two things only: the user's own events, and how popular advertisers are with everyone. The first
travels with the users, the second is computed once, where all histories are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from advprior.history.histories import UNKNOWN, Codes, Histories
from advprior.store.arrays import Double, Int


@dataclass(frozen=True)
class Crowd:
    """Decayed counts of everyone's events at the cut-offs that are scored (see `advprior.history.counts.crowd`).

    Attributes
    ----------
    cutoffs : int64 [S]
        Ascending.
    decayed : dict of float to float64 [S, N]
        By half-life in days.
    """

    cutoffs: Int = field(default_factory=lambda: np.zeros(0, np.int64))
    decayed: dict[float, Double] = field(default_factory=dict)

    def popularity(self, cutoffs: Int, half_life: float) -> Double:
        """As `advprior.history.counts.popularity` over all histories [len(cutoffs), N].

        Raises
        ------
        LookupError
            For a cut-off or a half-life that was not computed.
        """
        if float(half_life) not in self.decayed or not np.isin(cutoffs, self.cutoffs).all():
            raise LookupError(f"nothing of everyone at a half-life of {half_life} days and these cut-offs")
        return self.decayed[float(half_life)][np.searchsorted(self.cutoffs, cutoffs)]


@dataclass(frozen=True)
class Part(Histories):
    """Histories of some users, and what is known of everyone."""

    crowd: Crowd = field(default_factory=Crowd)

    @classmethod
    def join(cls, histories: Histories, crowd: Crowd) -> Part:
        """The two halves put together."""
        return cls(**{f.name: getattr(histories, f.name) for f in fields(Histories)}, crowd=crowd)


def part_of(histories: Histories, users: Int) -> Histories:
    """Histories of ``users`` [n] alone, numbered from 0 in that order, with the texts that they mention.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 5, 3]), np.array([0, 1, 0]),
    ...               text=np.array([0, 1, 1], np.int32), texts=("rye", "tea"))
    >>> part = part_of(h, np.array([1]))
    >>> part.users, part.time.tolist(), part.text.tolist(), part.texts
    (('v',), [3], [0], ('tea',))
    """
    counts = np.diff(histories.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts) + np.repeat(histories.offsets[users], counts)
    text, texts = _used(histories.text, histories.texts, rows)
    category, categories = _used(histories.category, histories.categories, rows)
    return replace(
        histories,
        users=tuple(histories.users[u] for u in users),
        profiles=tuple(histories.profiles[u] for u in users),
        offsets=offsets,
        time=histories.time[rows],
        advertiser=histories.advertiser[rows],
        text=text,
        texts=texts,
        category=category,
        categories=categories,
        value=histories.value[rows] if len(histories.value) else histories.value,
        profile_codes=histories.profile_codes[users] if len(histories.profile_codes) else histories.profile_codes,
    )


def _used(codes: Codes, labels: tuple[str, ...], rows: Int) -> tuple[Codes, tuple[str, ...]]:
    """Codes of some rows and the labels they use, in the same order; one label stays, for it says there are some."""
    if not len(codes):
        return codes, labels
    codes = codes[rows]
    used = np.unique(codes[codes >= 0])
    if not len(used):
        return codes, labels[:1]
    renumbered = np.where(codes >= 0, np.searchsorted(used, codes), UNKNOWN).astype(np.int32)
    return renumbered, tuple(labels[code] for code in used)
