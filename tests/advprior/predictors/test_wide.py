"""What is done for a wide catalog, on a small one: the same numbers as the dense way, and honest bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import advprior.predictors.neighbours as neighbours
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors.autoencoders import ease_weights, gram, l3ae_weights
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.tuning import points as points_module
from advprior.predictors.llm.tuning.points import training_points
from advprior.predictors.neighbours import NeighbourPredictor, similarity
from advprior.predictors.sequence.predictor import SASRecPredictor
from advprior.predictors.sparse_links import common_users, local_weights, neighbour_links, semantic_weights, text_links
from tests.advprior.predictors.llm.tuning.cycles import NAMES, SIZE, cycle_data, cycle_settings
from tests.parity import assert_same_log_probs


@pytest.fixture(scope="module")
def data():
    """Users who go round, with departments, some days off the circle."""
    data = cycle_data(users=40)
    rng = np.random.default_rng(0)
    events = data.histories
    advertiser = np.where(
        rng.random(len(events.time)) < 0.3, rng.integers(0, SIZE, len(events.time)), events.advertiser
    )
    catalog = dataclasses.replace(data.catalog, departments=tuple("ab"[i % 2] for i in range(SIZE)))
    histories = dataclasses.replace(events, advertiser=advertiser, departments=catalog.department_codes())
    return dataclasses.replace(data, histories=histories, catalog=catalog)


def test_sparse_neighbours_are_the_dense_ones(data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, quality, export and scores; with departments, whose term is sparse there too."""
    users, moments = np.arange(9), np.array([data.cutoff - 30 * DAY, data.cutoff])
    scores, facts = [], []
    for wide in (10_000, 1):
        monkeypatch.setattr(neighbours, "WIDE", wide)
        (folder := tmp_path / f"{wide}").mkdir()
        facts.append(NeighbourPredictor.fit(data, NeighbourPredictor.settings({}), folder))
        predictor = NeighbourPredictor(folder)
        assert isinstance(predictor.similarity, np.ndarray) == (wide > 1)
        predictor.export(folder)  # refused unless it says the same
        scores.append(predictor.scorer(folder, "cpu", 1).score(data.histories, users, moments))
    np.testing.assert_allclose(facts[1]["weights"], facts[0]["weights"], rtol=1e-3, atol=1e-4)
    assert facts[1]["valid"]["model"] == pytest.approx(facts[0]["valid"]["model"], rel=1e-4)
    assert_same_log_probs(scores[1], scores[0])


def test_the_strongest_links_are_those_of_the_whole_matrix(data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = similarity(data.histories, SIZE)
    for products in (20_000_000, 1):  # block by block
        monkeypatch.setattr("advprior.predictors.sparse_links.PRODUCTS", products)
        np.testing.assert_allclose(neighbour_links(data.histories, SIZE, SIZE).toarray(), whole, rtol=1e-5, atol=1e-7)
        few = neighbour_links(data.histories, SIZE, 3).toarray()
        assert ((few > 0).sum(1) == 3).all()
        np.testing.assert_allclose(np.sort(few, axis=1)[:, -3:], np.sort(whole, axis=1)[:, -3:], rtol=1e-5)


def test_small_systems_with_all_links_are_the_closed_forms(data) -> None:
    both = gram(data.histories, SIZE)
    common = common_users(data.histories, SIZE)
    np.testing.assert_allclose(
        local_weights(common, 10.0, SIZE).toarray(), ease_weights(both, 10.0), rtol=1e-4, atol=1e-6
    )
    vectors = np.random.default_rng(1).normal(size=(SIZE, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = ease_weights(vectors @ vectors.T, 3.0)
    semantic = semantic_weights(text_links(vectors, SIZE), vectors, 3.0)
    np.testing.assert_allclose(semantic.toarray(), whole, rtol=1e-3, atol=1e-5)
    pulled = local_weights(common, 10.0, SIZE, semantic, pull=50.0)
    np.testing.assert_allclose(pulled.toarray(), l3ae_weights(both, whole, 10.0, 50.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("around", [30.0, None])
def test_a_network_learns_block_by_block_what_it_learns_at_once(data, tmp_path, around: float | None) -> None:
    facts = {}
    for softmax in ("full", "blockwise", "sampled"):
        (folder := tmp_path / softmax).mkdir()
        training = {"epochs": 2, "softmax": softmax, "sampled": 6}
        raw = {"training": training, "offset": {"around": around}, "network": {"dropout": 0.0}}
        facts[softmax] = SASRecPredictor.fit(data, SASRecPredictor.settings(raw), folder)
    for name in ("train_nll", "valid_nll", "strength"):
        whole, blocks, drawn = ([row[name] for row in facts[s]["curve"]] for s in ("full", "blockwise", "sampled"))
        np.testing.assert_allclose(blocks, whole, rtol=2e-3, atol=1e-4)
        if name != "strength":
            np.testing.assert_allclose(drawn, whole, rtol=0.1)
    assert facts["sampled"]["curve"] != facts["full"]["curve"]


def llm_points(data, **training):
    encoder = PromptEncoder(PromptStyle(context=128, gaps=False), lambda text: [1], 50, list(NAMES))
    return training_points(data, encoder, cycle_settings("x", training=training))


def test_users_are_drawn_until_they_have_so_many_points(data, capsys: pytest.CaptureFixture[str]) -> None:
    every = llm_points(data)
    total = sum(int(p.train.sum()) for p in every)
    assert not capsys.readouterr().err.count("drawn at random")
    drawn = llm_points(data, max_points=total // 3)
    assert "training.max_points" in capsys.readouterr().err
    users = sorted({p.user for p in drawn})
    assert total // 5 <= sum(int(p.train.sum()) for p in drawn) <= total // 3
    # whole users: one forward serves all of their points (the first of which lies at a random time)
    of_them = [p for p in every if p.user in users]
    ours, theirs = ([(p.user, *p.train, *p.moments[1:]) for p in some] for some in (drawn, of_them))
    assert ours == theirs
    assert users != list(range(len(users)))
    assert [p.user for p in llm_points(data, max_points=total // 3)] == [p.user for p in drawn]


@pytest.mark.parametrize("which", ["newest", "drawn"])
def test_a_busy_user_gives_some_points(data, which: str) -> None:
    every, few = llm_points(data), llm_points(data, points_a_user=4, points_of_user=which)
    assert max(int(p.train.sum()) for p in every) > 4
    for whole, some in zip(every, few, strict=True):
        assert some.train.sum() == min(whole.train.sum(), 4)
        assert set(some.moments[some.train]) <= set(whole.moments[whole.train])
        assert some.moments[some.valid].tolist() == whole.moments[whole.valid].tolist()
        if which == "newest":
            assert sorted(some.moments[some.train]) == sorted(whole.moments[whole.train])[-4:]


def test_over_a_wide_catalog_some_points_validate(data, monkeypatch: pytest.MonkeyPatch) -> None:
    every = llm_points(data)
    monkeypatch.setattr(points_module, "VALID_CELLS", 1)
    monkeypatch.setattr(points_module, "LEAST_VALID", 7)
    few = llm_points(data)
    assert sum(int(p.valid.sum()) for p in few) == 7 < sum(int(p.valid.sum()) for p in every)
    assert sum(int(p.train.sum()) for p in few) == sum(int(p.train.sum()) for p in every)


def test_links_of_nobody_are_none() -> None:
    nobody = Histories(("u",), ("",), np.zeros(2, int), np.zeros(0, int), np.zeros(0, int))
    assert neighbour_links(nobody, 5, 3).nnz == 0
    assert local_weights(common_users(nobody, 5), 1.0, 3).nnz == 0
