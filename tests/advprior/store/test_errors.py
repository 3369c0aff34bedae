"""Coded errors go from one process to another as they are."""

from __future__ import annotations

import pickle

import pytest

from advprior.store.errors import AdvpriorError
from advprior.store.problems import Problem, TablesError

ERRORS = [
    AdvpriorError("RUN001", "no run", where="runs/a", actual="nothing", expected="a manifest", fix="advprior run"),
    AdvpriorError("RUN002", "nothing more is said"),
    TablesError([Problem("DAT005", "events", "user_id", "empty"), Problem("DAT006", "ads", "ad_id", "twice")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_an_error_arrives_in_another_process_as_it_was_raised(error: AdvpriorError) -> None:
    error.add_note("said on the way")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    assert arrived.__notes__ == ["said on the way"]
