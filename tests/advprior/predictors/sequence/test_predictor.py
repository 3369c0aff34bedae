"""SASRec and the hybrid: they learn an order, export what they learned, and see the past alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from advprior.history.catalog import Catalog
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors.base import FitData
from advprior.predictors.registry import predictor_class
from tests.parity import assert_distributions, assert_same_log_probs
from tests.tiny_llm import write_tiny_llm

N = 6
SMALL = {
    "horizon_days": 20,
    "target": "first",
    "valid_days": 60,
    "network": {"width": 16, "context": 8},
    "training": {"epochs": 12, "lr": 0.01, "batch_tokens": 256},
}


def couples(users: int = 60, events: int = 30) -> FitData:
    """After advertiser a of the first three always comes a + 3, then anyone of the first: counts cannot tell."""
    rng = np.random.default_rng(0)
    time = np.concatenate([np.sort(rng.choice(np.arange(1, 330), events, replace=False)) for _ in range(users)])
    first = rng.integers(0, N // 2, users * events // 2)
    advertiser = np.stack([first, first + N // 2], axis=1).ravel()
    histories = Histories(
        tuple(f"u{u:02}" for u in range(users)),
        ("",) * users,
        np.arange(users + 1) * events,
        time.astype(np.int64) * DAY,
        advertiser.astype(np.int64),
    )
    catalog = Catalog(tuple("abcdef"), ("tea", "bread", "soap", "shoes", "lamps", "books"))
    return FitData(histories, catalog, 0, 340 * DAY, 7 * DAY)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitData, dict]:
    torch.set_num_threads(1)
    out, data = tmp_path_factory.mktemp("sasrec"), couples()
    kind = predictor_class("sasrec")
    facts = kind.fit(data, kind.settings(SMALL), out)
    exported = kind(out).export(out)
    assert exported["parity"] <= exported["parity_allowed"] < 1e-3
    return out, data, facts


def test_it_learns_an_order_that_counts_do_not_know(fitted: tuple[Path, FitData, dict]) -> None:
    facts = fitted[2]
    best = min(facts["curve"], key=lambda row: row["valid_nll"])
    # half of the labels are certain, the other half one of three
    assert best["valid_nll"] < np.log(3) / 2 + 0.2
    assert facts["valid"]["start"]["nll"] > best["valid_nll"] + 0.4
    assert facts["strength"] > 0.3
    assert facts["labels"]["refit"] > facts["labels"]["train"]


def test_priors_are_distributions_and_see_the_past_alone(fitted: tuple[Path, FitData, dict]) -> None:
    out, data, _ = fitted
    scorer = predictor_class("sasrec")(out).scorer(out, "cpu")
    users, cutoffs = np.arange(60), np.array([1, 50, 200, 250], np.int64) * DAY
    whole = scorer.score(data.histories, users, cutoffs)
    assert_distributions(whole)
    for column, cutoff in enumerate(cutoffs):
        past = scorer.score(data.histories.before(int(cutoff)), users, cutoffs[column : column + 1])
        assert_same_log_probs(past[:, 0], whole[:, column])
    past = data.histories.before(250 * DAY)
    last = np.array([past.advertiser[past.rows(u)][-1] for u in users])
    begun = last < N // 2
    assert (whole[begun, -1].argmax(-1) == last[begun] + N // 2).mean() > 0.9


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    kind, data = predictor_class("sasrec"), couples(20)
    settings = kind.settings({**SMALL, "training": {"epochs": 2}})
    first, second = (kind.fit(data, settings, tmp_path)["curve"] for _ in range(2))
    assert [row["valid_nll"] for row in first] == [row["valid_nll"] for row in second]


def test_it_ends_when_passes_bring_nothing(tmp_path: Path) -> None:
    """At a learning rate of nothing no pass after the first is better; the best one is fitted again."""
    kind, data = predictor_class("sasrec"), couples(20)
    raw = {**SMALL, "training": {"epochs": 9, "patience": 2, "lr": 1e-12, "points_a_history": 4}}
    facts = kind.fit(data, kind.settings(raw), tmp_path)
    assert len(facts["curve"]) < 9
    assert len(facts["curve"]) - facts["best_epoch"] == 2
    assert len(facts["refit_curve"]) == facts["best_epoch"]


@pytest.mark.parametrize("twin", [False, True])
def test_the_hybrid_starts_from_what_a_language_model_makes_of_the_texts(tmp_path: Path, twin: bool) -> None:
    kind, data = predictor_class("hybrid"), couples(20)
    encoder = {"base": str(write_tiny_llm(tmp_path / "base")), "layers": 1, "twin": twin, "components": 4}
    raw = {**SMALL, "encoder": encoder, "network": {**SMALL["network"], "free": False}, "training": {"epochs": 1}}
    kind.fit(data, kind.settings(raw), tmp_path)
    predictor = kind(tmp_path)
    assert predictor.uses_llm is not twin
    encodings = predictor.encodings()
    assert encodings.shape == (N, 4)
    # whitened: no direction counts for more than another
    np.testing.assert_allclose(encodings.T @ encodings, np.eye(4) * N / 4, atol=1e-3)
    exported = predictor.export(tmp_path)
    assert exported["parity"] <= exported["parity_allowed"]
    found = predictor.scorer(tmp_path, "cpu").score(data.histories, np.arange(3), np.array([300 * DAY]))
    assert_distributions(found)
