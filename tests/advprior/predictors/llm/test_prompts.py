"""Prompts are append-only: what a snapshot sees never depends on what comes after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.history.histories import Histories
from advprior.predictors.llm.cut_prompts import cut_lines
from advprior.predictors.llm.prompts import DAY, PromptEncoder, PromptStyle, occasions_before
from advprior.predictors.llm.settings import PromptSettings
from advprior.store.errors import AdvpriorError
from tests.advprior.history.test_histories import histories_of

VOCAB = 300
LONGEST_EVENT = len(" a59,")


def encoder(**style: object) -> PromptEncoder:
    return PromptEncoder(PromptStyle(**style), lambda text: list(text.encode()), VOCAB, ["Tea", "Bread", "Soap", "Jam"])


def history(days: list[tuple[int, int]], profile: str = "Age: 45") -> Histories:
    base = histories_of([[(d * DAY, a) for d, a in days]])
    return Histories(base.users, (profile,), base.offsets, base.time, base.advertiser)


TEXTS, CATEGORIES = ("Clay Mask", "Night; Day Oil"), ("masks", "oils")


def detailed(days: list[tuple[int, int]], profile: str = "Age: 45") -> Histories:
    """Purchases with a text, category and value that follow from their row."""
    base = history(days, profile)
    rows = np.arange(len(base.time), dtype=np.int32)
    return replace(
        base,
        text=rows % 3 - 1,
        category=(rows + 1) % 3 - 1,
        value=(rows * 7.25 + 5).astype(np.float32),
        texts=TEXTS,
        categories=CATEGORIES,
    )


def written(histories: Histories, **style: object) -> str:
    body = encoder(gaps=False, **style).prompt(histories, 0).body
    return "".join(chr(token) if token < VOCAB else f"<{token - VOCAB}>" for token in body)


def test_details_as_written() -> None:
    # (text, category, value) of the rows: (-, masks, 5), (Clay Mask, oils, 12.25), (Night; Day Oil, -, 19.5)
    histories = detailed([(0, 2), (0, 3), (4, 1)])
    assert written(histories, detail="category") == "<2> masks<3> oils;<1>;"
    assert written(histories, detail="product") == "<2><3> Clay Mask;<1> Night, Day Oil;"
    assert written(histories, detail="full") == "<2> masks, 5<3> Clay Mask, oils, 12;<1> Night, Day Oil, 20;"
    assert written(histories, detail="product", advertisers=False) == "<2> + Clay Mask; Night, Day Oil;"
    assert written(histories, detail="category", names=True) == " Soap, masks Jam, oils; Bread,;"


def test_a_text_is_cut_before_category_and_price() -> None:
    histories = detailed([(0, 2), (1, 3)])
    assert written(histories, detail="full", detail_tokens=14) == "<2> masks, 5;<3> Cla, oils, 12;"
    assert written(histories, detail="full", detail_tokens=3) == "<2> ma;<3>, o;"


def test_a_day_of_many_purchases_leaves_half_the_room() -> None:
    histories = detailed([(0, a) for a in range(4)] + [(1, a) for a in range(4)])
    write = encoder(detail="full", detail_tokens=100, context=100)
    prompt = write.prompt(histories, 0)
    room = 100 - len(prompt.head)
    assert np.diff(np.concatenate([[-1], prompt.ends])).max() <= room // 2
    (window,) = write.windows(prompt, np.asarray([2]))
    assert len(window.ids) > len(prompt.head) + 8  # the last day is in sight


def test_detail_that_no_event_has_is_refused() -> None:
    for detail in ("category", "product", "full"):
        with pytest.raises(AdvpriorError) as caught:
            encoder(detail=detail).prompt(history([(0, 1)]), 0)
        assert caught.value.code == "PRI013"
        assert len(encoder(detail=detail).prompt(history([]), 0).body) == 0
    with pytest.raises(ValueError, match="needs a detail"):
        PromptSettings(advertisers=False)


def test_a_style_without_detail_reads_as_before() -> None:
    """What was saved before details were written still says the same."""
    old = {"profile": True, "gaps": True, "max_gap": 30, "context": 1024, "names": False, "version": 1}
    assert PromptStyle(**old) == PromptStyle()
    assert written(detailed([(0, 2), (3, 1)])) == written(history([(0, 2), (3, 1)]))


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
    st.sampled_from([{}, {"detail": "category"}, {"detail": "full"}, {"detail": "product", "advertisers": False}]),
    st.integers(1, 30),
)
def test_long_windows_hold_exactly_the_truncated_prompt(
    days: list, context: int, cutoffs: list, style: dict, detail_tokens: int
) -> None:
    write = encoder(context=context, detail_tokens=detail_tokens, **style)
    whole = detailed(days)
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


def test_a_profile_longer_than_the_context_is_cut_and_leaves_half_for_the_history() -> None:
    write = encoder(context=100)
    prompt = write.prompt(history([(day, day % 4) for day in range(60)], profile="Tags: " + "segment, " * 40), 0)
    head = bytes(prompt.head.tolist()).decode()
    assert len(prompt.head) == 50
    assert head.startswith("Tags: segment, ")
    assert head.endswith("\nPurchases, oldest first:\n")
    assert all(len(window.ids) <= 100 for window in write.windows(prompt, np.arange(61)))
    short = encoder(context=1024).prompt(history([(0, 1)]), 0)
    assert bytes(short.head.tolist()).decode() == "Age: 45\nPurchases, oldest first:\n"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 59)), min_size=1, max_size=150),
    st.integers(0, 300),
    st.integers(60, 120),
    st.booleans(),
)
def test_no_prompt_is_empty_or_longer_than_the_context_and_who_is_cut_is_named(
    events: list, profile: int, context: int, names: bool
) -> None:
    """An occasion, or a profile, that outgrows the context is cut: each answer sees the end of its history."""
    write = PromptEncoder(
        PromptStyle(context=context, names=names), lambda text: list(text.encode()), VOCAB, [f"a{i}" for i in range(60)]
    )
    whole = history(events, "p" * profile)
    prompt = write.prompt(whole, 0)
    occasions = np.arange(len(prompt.ends) + 1)
    sizes = np.diff(np.concatenate([[-1], prompt.ends]))
    for window in write.windows(prompt, occasions):
        assert len(window.ids) <= context
        for position, occasion in zip(window.positions, window.occasions, strict=True):
            seen = window.ids[len(prompt.head) : position + 1]
            if occasion:  # cut between events, not within one
                assert len(seen) > min(sizes[occasion - 1], context - len(prompt.head)) - LONGEST_EVENT
                assert seen[-1] == prompt.body[prompt.ends[occasion - 1]]
    for occasion in occasions:
        alone = write.newest(prompt, int(occasion))
        stop = prompt.ends[occasion - 1] + 1 if occasion else 0
        start = stop - (len(alone.ids) - len(prompt.head))
        assert alone.ids.tolist() == [*prompt.head, *prompt.body[start:stop]]
        assert alone.positions.tolist() == [len(alone.ids) - 1]
        earlier = prompt.events[prompt.events < start]
        assert not occasion or start in prompt.events, "it starts within an event"
        assert len(alone.ids) <= context
        assert not len(earlier) or stop - earlier[-1] > context - len(prompt.head), "one more would have fitted"
    cut = write.cut(whole)
    assert (cut.profiles == ("u0",)) == (profile > 0 and profile + len("\nPurchases, oldest first:\n") > context // 2)
    too_large = (sizes > context - len(prompt.head)).any()
    assert (
        not too_large or cut.occasions == ("u0",) or sizes.max() - context + len(prompt.head) <= 2
    )  # the gap's digits
    assert not cut.occasions or too_large
    for part, lines in (("profiles", cut.profiles), ("occasions", cut.occasions)):
        assert any("u0" in line for line in cut_lines({"cut_prompts": cut.to_json()})) or not lines, part


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(AdvpriorError, match="PRI053"):
        encoder(context=32)
    assert encoder(context=34, profile=False).prompt(history([(0, 1)]), 0).ends.tolist() == [1]


def test_a_title_of_one_s_own_is_written() -> None:
    prompt = encoder(title="Visits:").prompt(history([(0, 1)]), 0)
    assert bytes(prompt.head.tolist()).decode() == "Age: 45\nVisits:\n"
