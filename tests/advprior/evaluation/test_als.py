"""ALS is tuned on labels of an earlier window: the settings that explain them best, and none that came after."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.evaluation.als import GRID, AlsSettings, als_installed, tune_als
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.split import Split
from advprior.history.catalog import Catalog
from advprior.history.counts import DAY
from tests.advprior.history.test_histories import histories_of

SIZE = 8
needs_als = pytest.mark.skipif(not als_installed(), reason="implicit is not installed")


def world(later: int = 0):
    """60 users who keep to one of two halves of the advertisers; ``later`` shifts their events of day 30 on."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        own = rng.integers(0, SIZE // 2, 40) + (user % 2) * SIZE // 2
        rows.append([(day * DAY, int((a + later * (day >= 30)) % SIZE)) for day, a in enumerate(own) if day % 3 == 0])
    return histories_of(rows)


def split(histories) -> Split:
    names = tuple(f"a{i}" for i in range(SIZE))
    return Split(histories, Catalog(names, names), 30 * DAY, 10 * DAY)


@needs_als
def test_the_best_of_the_grid_is_taken_and_the_others_are_told() -> None:
    case = split(world())
    best, nats = case.als
    assert len(nats) == len(GRID)
    assert all(0 < value < np.log(SIZE) for value in nats.values())  # better than a guess
    name = min(nats, key=nats.__getitem__)
    assert name == f"factors {best.factors:g}, regularization {best.regularization:g}, alpha {best.alpha:g}"
    assert case.terms_at(case.now)._als_settings == best


@needs_als
def test_no_label_from_the_cut_off_on_tunes_it() -> None:
    assert split(world()).als == split(world(later=3)).als


def test_without_a_label_the_settings_stay() -> None:
    histories = histories_of([[(0, 1)], []])
    assert tune_als(histories, first_labels(histories, 5, 5), 3, 0) == (AlsSettings(), {})
