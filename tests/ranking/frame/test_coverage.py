"""Why impressions lack a prior: each cause is counted, and the one of most rows is named with its cure."""

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import EVENT_TIMESTAMP, TABLE_FILE, USER_ID
from advprior.store.tables import write_parquet
from ranking.frame.coverage import Uses, coverage_gap
from ranking.frame.views import view_folder


def day(number):
    return pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(days=number)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Priors of two users at days 7 and 14, and of a third at day 14."""
    folder = tmp_path_factory.mktemp("repo")
    rows = [("a", 7), ("b", 7), ("a", 14), ("b", 14), ("new", 14)]
    view = view_folder(folder, "prior_llm")
    view.mkdir(parents=True)
    table = pd.DataFrame({USER_ID: [u for u, _ in rows], EVENT_TIMESTAMP: [day(n) for _, n in rows]})
    write_parquet(table, view / TABLE_FILE)
    return folder


def uses(rows, joined, listed=None, **more):
    moments = np.array([day(number).tz_localize(None).to_datetime64() for _, number in rows]).astype("datetime64[us]")
    return Uses([user for user, _ in rows], moments, np.array(joined), listed, **more)


@pytest.mark.parametrize(
    ("rows", "cause", "fix"),
    [
        (
            [("a", 1), ("b", 6), ("new", 10)],
            "a refresh, which publishes the newest",
            "full priors again",
        ),
        ([("nobody", 8), ("noone", 9), ("a", 1)], "2 users have no published row at all", "score every user"),
        ([("new", 8), ("new", 9), ("nobody", 9)], "their first published row is later", "score these tables"),
        ([("a", 90), ("b", 91), ("a", 1)], "older than the view's TTL", "score every snapshot"),
    ],
)
def test_the_cause_of_most_rows_is_named_with_its_cure(repo, rows, cause, fix):
    gap = coverage_gap(repo, "llm", uses([*rows, ("a", 15)], [False] * 3 + [True]))
    assert gap.share == 0.25
    assert cause in gap.cause
    assert fix in gap.fix
    assert "advprior publish PRIORS/llm" in gap.fix


def test_a_catalog_that_lacks_what_was_shown_is_its_own_cause(repo):
    gap = coverage_gap(repo, "llm", uses([("a", 8), ("b", 9)], [True, True], np.array([True, False])))
    assert "catalog lacks" in gap.cause


def test_enough_priors_leave_no_gap(repo):
    rows = [("a", 8)] * 9 + [("nobody", 8)]
    assert coverage_gap(repo, "llm", uses(rows, [True] * 9 + [False])) is None
    assert coverage_gap(repo, "llm", uses(rows, [True] * 8 + [False] * 2, of="requests")).of == "requests"
