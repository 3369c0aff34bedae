"""Prompts are append-only: what a snapshot sees never depends on what comes after it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.histories import Histories
from advprior.prompts import DAY, PromptEncoder, PromptStyle, occasions_before
from tests.advprior.test_histories import histories_of

VOCAB = 300


def encoder(**style: object) -> PromptEncoder:
    return PromptEncoder(PromptStyle(**style), lambda text: list(text.encode()), VOCAB, ["Tea", "Bread", "Soap", "Jam"])


def history(days: list[tuple[int, int]], profile: str = "Age: 45") -> Histories:
    base = histories_of([[(d * DAY, a) for d, a in days]])
    return Histories(base.users, (profile,), base.offsets, base.time, base.advertiser)


def test_a_prompt_as_written() -> None:
    prompt = encoder(max_gap=9).prompt(history([(0, 2), (0, 1), (3, 1), (50, 0)]), 0)
    assert bytes(prompt.head.tolist()).decode() == "Age: 45\nPurchases, oldest first:\n"
    expected = [VOCAB + 1, VOCAB + 2, ord(";"), ord("3"), VOCAB + 1, ord(";"), ord("9"), VOCAB, ord(";")]
    assert prompt.body.tolist() == expected  # ties in catalog order, gaps capped at max_gap
    assert prompt.ends.tolist() == [2, 5, 8]


def test_names_in_place_of_tokens() -> None:
    prompt = encoder(names=True, gaps=False, profile=False).prompt(history([(0, 1), (1, 0)]), 0)
    assert bytes(prompt.body.tolist()).decode() == " Bread,; Tea,;"


def test_a_tie_with_the_snapshot_is_not_seen() -> None:
    prompt = encoder().prompt(history([(0, 0), (5, 1)]), 0)
    cutoffs = np.asarray([0, 1, 5 * DAY, 5 * DAY + 1])
    assert occasions_before(prompt, cutoffs).tolist() == [0, 1, 1, 2]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=60),
    st.integers(60, 200),
    st.lists(st.integers(0, 61), min_size=1, max_size=10),
)
def test_long_windows_hold_exactly_the_truncated_prompt(days: list, context: int, cutoffs: list) -> None:
    write = encoder(context=context)
    whole = history(days)
    prompt = write.prompt(whole, 0)
    moments = np.asarray(cutoffs, np.int64) * DAY
    seen = occasions_before(prompt, moments)
    answers = {}
    for window in write.windows(prompt, seen):
        assert len(window.ids) <= context
        for position, occasion in zip(window.positions, window.occasions, strict=True):
            answers[int(occasion)] = window.ids[: position + 1].tolist()
    for moment, occasions in zip(moments, seen, strict=True):
        short = write.prompt(whole.before(int(moment)), 0)
        (alone,) = write.windows(short, np.asarray([len(short.ends)]))
        assert alone.ids.tolist() == answers[int(occasions)]
        assert alone.positions.tolist() == [len(alone.ids) - 1]


def test_no_history_is_the_profile_alone() -> None:
    write = encoder()
    prompt = write.prompt(history([]), 0)
    (window,) = write.windows(prompt, np.asarray([0]))
    assert window.ids.tolist() == prompt.head.tolist()
    assert window.positions.tolist() == [len(prompt.head) - 1]


def test_a_context_without_room_is_refused() -> None:
    write = encoder(context=20)
    with pytest.raises(ValueError, match="no room"):
        write.windows(write.prompt(history([(0, 1)]), 0), np.asarray([1]))
