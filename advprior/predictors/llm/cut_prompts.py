"""Whose prompts hold a part of what is known of them only: counted, and said by name, not cut in silence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NAMED = 5  # users that are named


@dataclass(frozen=True)
class CutPrompts:
    """Users whose prompts hold a part of what is known of them only.

    Attributes
    ----------
    profiles, occasions : tuple of str
        Ids of users whose profile is longer than half of the context, or one of whose occasions is longer than what
        the profile leaves.
    """

    profiles: tuple[str, ...] = ()
    occasions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a fact of a run: how many, and the first of them; empty where nothing was cut."""
        parts = {"profiles": self.profiles, "occasions": self.occasions}
        return {name: {"users": len(ids), "first": list(ids[:NAMED])} for name, ids in parts.items() if ids}


def all_cut(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What `CutPrompts.to_json` says of all users, from what it says of some at a time, in order.

    >>> all_cut([{"profiles": {"users": 4, "first": ["a", "b"]}}, {"profiles": {"users": 1, "first": ["c"]}}, {}])
    {'profiles': {'users': 5, 'first': ['a', 'b', 'c']}}
    """
    out: dict[str, Any] = {}
    for part in parts:
        for name, cut in part.items():
            users, first = out[name].values() if name in out else (0, [])
            out[name] = {"users": users + cut["users"], "first": [*first, *cut["first"]][:NAMED]}
    return out


def cut_lines(facts: dict[str, Any]) -> list[str]:
    """What `CutPrompts.to_json` says, in words.

    >>> cut_lines({"cut_prompts": {"profiles": {"users": 7, "first": ["u1", "u2"]}}})
    ['the profiles of 7 users were cut to half of the context: u1, u2, …']
    """
    how = {
        "profiles": "the profiles of {} users were cut to half of the context",
        "occasions": "events at one time of {} users are more than the context holds, and were cut",
    }
    lines = []
    for name, part in facts.get("cut_prompts", {}).items():
        more = ", …" if part["users"] > len(part["first"]) else ""
        lines.append(f"{how[name].format(part['users'])}: {', '.join(part['first'])}{more}")
    return lines
