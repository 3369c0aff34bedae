"""A part of the users, taken to another process, is scored as if everyone were there: every predictor, no Spark."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from advprior.history.counts import crowd, popularity
from advprior.history.histories import UNKNOWN, Histories, micros
from advprior.history.read import load_histories
from advprior.history.subset import Part, part_of
from advprior.predictors.forwarding import forward
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.registry import KINDS, load_predictor
from tests.advprior.conftest import Fitted
from tests.parity import assert_same_log_probs
from tests.tiny import PLAN

CUTOFFS = np.asarray([micros(moment) for moment in PLAN.snapshots()[::9]], np.int64)
USERS = np.asarray([3, 4, 17, 38], np.int64)


@pytest.fixture(scope="module")
def histories(fitted: Fitted) -> Histories:
    found, _ = load_histories(fitted.tables)
    text = (np.arange(len(found.time)) % 5 - 1).astype(np.int32)  # some say nothing
    return replace(found, text=text, texts=("bread", "rye", "soap", "tea"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_scored_elsewhere_as_here(fitted: Fitted, histories: Histories, kind: str) -> None:
    scorer = load_predictor(fitted.model(kind)).scorer(fitted.model(kind) / "onnx", "cpu", 1)
    everyone = crowd(histories, CUTOFFS, scorer.half_lives, len(load_predictor(fitted.model(kind)).catalog))
    part = Part.join(pickle.loads(pickle.dumps(part_of(histories, USERS))), everyone)
    here = forward(scorer, histories, USERS, CUTOFFS)
    there = forward(scorer, part, np.arange(len(part), dtype=np.int64), CUTOFFS)
    np.testing.assert_array_equal(there.index, here.index)
    assert_same_log_probs(there.log_probs, here.log_probs)
    assert (there.prompts, there.forwarded) == (here.prompts, here.forwarded)


def test_a_part_says_of_its_users_what_the_whole_says(histories: Histories) -> None:
    part = part_of(histories, USERS)
    for i, user in enumerate(USERS):
        there, here = part.rows(i), histories.rows(int(user))
        assert part.users[i] == histories.users[user]
        assert part.profiles[i] == histories.profiles[user]
        for name in ("time", "advertiser", "value"):
            np.testing.assert_array_equal(getattr(part, name)[there], getattr(histories, name)[here])
        for codes, labels in (("text", "texts"), ("category", "categories")):
            said = [
                [getattr(h, labels)[c] if c >= 0 else None for c in getattr(h, codes)[rows]]
                for h, rows in ((part, there), (histories, here))
            ]
            assert said[0] == said[1]
    assert list(part.texts) == sorted(part.texts)


def test_users_who_say_nothing_do_not_make_the_column_vanish(histories: Histories) -> None:
    """Else a shard of such users would be refused by PRI013, in the middle of a run that began well."""
    silent = replace(histories, text=np.where(histories.user_of_row == 3, UNKNOWN, histories.text).astype(np.int32))
    part = part_of(silent, USERS[:1])
    assert part.texts
    assert (part.text == UNKNOWN).all()
    encoder = PromptEncoder(PromptStyle(detail="product"), lambda text: list(text.encode()), 256, ["a"] * 12)
    assert len(encoder.prompt(part, 0).body)


def test_what_is_not_known_of_everyone_is_no_guess(histories: Histories) -> None:
    everyone = crowd(histories, CUTOFFS, (30.0,), 12)
    part = Part.join(part_of(histories, USERS), everyone)
    np.testing.assert_array_equal(
        popularity(part, CUTOFFS[::-1], 30.0, 12), popularity(histories, CUTOFFS, 30.0, 12)[::-1]
    )
    with pytest.raises(LookupError, match="half-life of 7"):
        popularity(part, CUTOFFS, 7.0, 12)
    with pytest.raises(LookupError):
        popularity(part, CUTOFFS + 1, 30.0, 12)
