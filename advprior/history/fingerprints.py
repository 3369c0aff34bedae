"""What a user's prior depends on, as a number: same number, same input, nothing to forward again.

Generic over the fields of `Histories`, so that whatever a prompt may come to say of an event or a user counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from advprior.history.histories import Histories
from advprior.store.arrays import Int

Keys = npt.NDArray[np.uint64]
#: Fields that are no one user's, or name the user; departments are the catalog's, which the model names.
_SHARED = {"users", "offsets", "departments", "texts", "categories", "profile_fields", "profile_levels", "crowd"}


def hash64(*parts: bytes) -> int:
    """64 bits of BLAKE2b over parts; where one ends counts.

    >>> hash64(b"ab", b"c") == hash64(b"ab", b"c"), hash64(b"ab", b"c") == hash64(b"a", b"bc")
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def seen_before(histories: Histories, cutoff: int) -> Int:
    """Row after the last event strictly before the cut-off, for every user [U]."""
    past = np.concatenate([[0], np.cumsum(histories.time < cutoff)])
    counts: Int = past[histories.offsets[1:]] - past[histories.offsets[:-1]]
    return histories.offsets[:-1] + counts


def input_keys(histories: Histories, cutoff: int, model: str) -> Keys:
    """A number for each user [U]: all that is known of them before the cut-off, and the model that reads it.

    Parameters
    ----------
    model : str
        Digest of the model: keys of two models are never alike.
    """
    stops = seen_before(histories, cutoff)
    events, users = [], []
    for field in fields(histories):
        value = getattr(histories, field.name)
        if field.name in _SHARED:
            continue
        if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) == len(histories.time):
            events.append((value, _labels(histories, field.name)))
        elif len(value) == len(histories):
            users.append(value)
    out = np.empty(len(histories), np.uint64)
    head = model.encode()
    for user, (start, stop) in enumerate(zip(histories.offsets[:-1], stops, strict=True)):
        profile = [v[user].tobytes() if isinstance(v, np.ndarray) else str(v[user]).encode() for v in users]
        # of who has no event yet, it is all the same what events tell: other users' say whether they have a text
        seen = [
            "\n".join(labels[c] if c >= 0 else "" for c in v[start:stop]).encode()
            if labels
            else v[start:stop].tobytes()
            for v, labels in (events if stop > start else ())
        ]
        out[user] = hash64(head, *profile, *seen)
    return out


def _labels(histories: Histories, name: str) -> tuple[str, ...]:
    """What the codes of a field stand for: their numbers change with the table, what they stand for does not."""
    labels: tuple[str, ...] = getattr(histories, {"text": "texts", "category": "categories"}.get(name, ""), ())
    return labels
