"""Prompts of many users built at once are those that are written one by one, whatever style, tokenizer and history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.history.histories import Histories
from advprior.predictors.llm.prompts import DAY, PromptEncoder, PromptStyle
from advprior.predictors.tokens import Encode, plain_encoder
from tests.advprior.history.test_histories import histories_of
from tests.advprior.predictors.llm.plain_prompts import PlainPrompts
from tests.tiny_llm import tiny_tokenizer

NAMES = ["Tea house", "Bread", "Soap & Co", "Jam"]
PROFILES = ["", "Age: 45-54. Income: 50-74K", "Tags: " + "segment, " * 12]
TEXTS, CATEGORIES = ("Clay Mask", "Night; Day Oil", "the other tea in the house"), ("masks", "oils")
EVENTS = st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(-1, 2), st.integers(-1, 1), st.integers(0, 3))
VALUES = np.asarray([0.0, 7.46, 123.0, np.nan], np.float32)


def words(text: str) -> list[int]:
    """A tokenizer that drops what it does not know: digits above 4 and "+" give no token."""
    return [ord(letter) for letter in text if letter not in "56789+"]


TOKENIZERS: dict[str, Encode] = {
    "bytes": lambda text: list(text.encode()),
    "words": words,
    "bpe": plain_encoder(tiny_tokenizer()),
}
STYLES = st.fixed_dictionaries(
    {
        "profile": st.booleans(),
        "gaps": st.booleans(),
        "max_gap": st.sampled_from([3, 30]),
        "context": st.sampled_from([70, 130, 1024]),
        "names": st.booleans(),
        "detail": st.sampled_from(["none", "category", "product", "full"]),
        "detail_tokens": st.sampled_from([3, 24]),
        "advertisers": st.booleans(),
        "title": st.just("History:"),
    }
)


def histories_with_details(people: list[tuple[str, list[tuple[int, int, int, int, int]]]]) -> Histories:
    """Users by profile and events (day, advertiser, text, category, value)."""
    events = [sorted({event[:2]: event for event in of}.values()) for _, of in people]
    base = histories_of([[(day * DAY, advertiser) for day, advertiser, *_ in of] for of in events])
    flat = [event for of in events for event in of]
    return replace(
        base,
        profiles=tuple(profile for profile, _ in people),
        text=np.asarray([event[2] for event in flat], np.int32),
        category=np.asarray([event[3] for event in flat], np.int32),
        value=VALUES[[event[4] for event in flat]] if flat else np.zeros(0, np.float32),
        texts=TEXTS,
        categories=CATEGORIES,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PROFILES), st.lists(EVENTS, max_size=40)), min_size=1, max_size=5),
    STYLES,
    st.sampled_from(sorted(TOKENIZERS)),
    st.lists(st.integers(0, 41), min_size=1, max_size=4),
)
def test_many_prompts_are_those_written_one_by_one(people: list, style: dict, tokenizer: str, days: list) -> None:
    histories = histories_with_details(people)
    arguments = (PromptStyle(**style), TOKENIZERS[tokenizer], 300, NAMES)
    many, plain = PromptEncoder(*arguments), PlainPrompts(*arguments)
    users = np.arange(len(histories))[::-1].copy()  # any order of users
    cutoffs = np.asarray(days, np.int64) * DAY
    result = many.many(histories, users, cutoffs)
    jobs: dict[tuple, int] = {}
    prompts = rows = 0
    for i, user in enumerate(users):
        parts, one = plain.prompt(histories, int(user)), many.prompt(histories, int(user))
        assert tuple(part.tolist() for part in (one.head, one.body, one.ends, one.times, one.events)) == parts
        times = parts[3]
        for ids, positions, occasions in plain.windows(histories, int(user), cutoffs.tolist()):
            prompts += 1
            key = tuple(ids), tuple(positions)
            if key not in jobs:
                jobs[key] = rows
                rows += len(positions)
                window = len(jobs) - 1
                ours = result.row(window)
                assert [part.tolist() for part in ours] == [ids, positions]
                assert result.no_history[window] == (occasions[0] == 0)
            for column, cutoff in enumerate(cutoffs):
                seen = sum(time < cutoff for time in times)
                if seen in occasions:
                    assert result.index[i, column] == jobs[key] + occasions.index(seen)
    assert (len(result), result.prompts) == (len(jobs), prompts)


def test_padded_forwards_are_the_rows_to_the_left_and_zeros_to_the_right() -> None:
    people = [("", [(0, 1, -1, -1, 0)]), (PROFILES[1], []), ("", [(0, 1, -1, -1, 0), (9, 2, -1, -1, 0)])]
    encoder = PromptEncoder(PromptStyle(title="History:"), TOKENIZERS["bytes"], 300, NAMES)
    windows = encoder.many(histories_with_details(people), np.arange(3), np.asarray([5, 20]) * DAY)
    batch = np.asarray([2, 0])
    ids, mask, positions = windows.padded(batch)
    answers = windows.rows_of(batch)
    for row, window in enumerate(batch):
        tokens, places = windows.row(int(window))
        assert ids[row].tolist() == [*tokens, *[0] * (ids.shape[1] - len(tokens))]
        assert mask[row].sum() == len(tokens)
        assert positions[row, : len(places)].tolist() == places.tolist()
    assert windows.positions[answers].tolist() == [p for w in batch for p in windows.row(int(w))[1].tolist()]


def test_nobody_gives_no_forward() -> None:
    encoder = PromptEncoder(PromptStyle(), TOKENIZERS["bytes"], 300, NAMES)
    windows = encoder.many(histories_with_details([("", [])]), np.zeros(0, np.int64), np.asarray([5]) * DAY)
    assert len(windows) == 0
    assert windows.index.shape == (0, 1)


@pytest.mark.parametrize("same", [True, False])
def test_equal_prompts_are_one_forward(same: bool) -> None:
    days = [0, 9]
    people = [("", [(day, 1, -1, -1, 0) for day in days]), ("", [(day + (not same), 1, -1, -1, 0) for day in days])]
    people[1] = people[0] if same else (people[1][0], people[1][1][:1])
    encoder = PromptEncoder(PromptStyle(), TOKENIZERS["bytes"], 300, NAMES)
    windows = encoder.many(histories_with_details(people), np.arange(2), np.asarray([30]) * DAY)
    assert (len(windows), windows.prompts) == (1 if same else 2, 2)
