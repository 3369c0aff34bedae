"""A few random worlds to the end in every test run; the budgeted job of CI (`make fuzz`) takes many."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.fuzz.chain import run_world
from tests.fuzz.worlds import make_world


@pytest.mark.parametrize(("seed", "depth"), [(5, 0), (9, 1), (34, 0)])
@pytest.mark.filterwarnings("default")  # the chain counts warnings itself
def test_a_world_ends_well(tmp_path, seed, depth):
    outcome = run_world(seed, tmp_path / "world", depth=depth)
    assert outcome.faults == []
    assert outcome.code == ""
    assert outcome.steps[-1] == ("rank train" if depth else "rank features")


def test_a_world_is_made_again_from_its_seed():
    first, again = make_world(12), make_world(12)
    assert first.mapping == again.mapping
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[name])
