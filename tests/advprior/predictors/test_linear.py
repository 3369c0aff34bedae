"""EASE and L3AE as predictors: ridges by the last labels, texts for whom events say little, wide catalogs by parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advprior.pipeline.fit import finetune
from advprior.predictors import autoencoders
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import read_manifest
from tests.planted import kind_of, write_planted


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("linear") / "tables", users=30)


def fit(tables: Path, out: Path, kind: str, **raw: object):
    finetune(tables, out, kind, predictor_class(kind).settings(raw))
    return load_predictor(out), read_manifest(out)["facts"]


def test_the_ridge_is_the_one_that_explains_the_last_labels_best(tables: Path, tmp_path: Path) -> None:
    ridges = (0.01, 10.0, 1e6)
    nats = {}
    for ridge in ridges:
        _, facts = fit(tables, tmp_path / f"{ridge}", "ease", ridges=[ridge])
        nats[f"ridge {ridge:g}"] = facts["valid"]["model"]["nll"]
    predictor, facts = fit(tables, tmp_path / "all", "ease", ridges=list(ridges))
    assert facts["links"] == min(nats, key=nats.__getitem__)
    assert facts["valid"]["model"]["nll"] == pytest.approx(min(nats.values()), rel=1e-6)
    assert (np.diag(predictor.similarity) == 0).all()


def test_texts_link_an_advertiser_without_an_event(tables: Path, tmp_path: Path) -> None:
    """Withheld from fitting, it is tied to its own kind by words, and to nobody by events."""
    withheld = ("t5",)
    for kind, raw in (("ease", {}), ("l3ae", {"encoder": {"base": "lexical"}})):
        finetune(tables, tmp_path / kind, kind, predictor_class(kind).settings(raw), withheld=withheld)
    ease, l3ae = load_predictor(tmp_path / "ease"), load_predictor(tmp_path / "l3ae")
    assert l3ae.uses_llm is False
    ids = ease.catalog.ids
    at = ids.index("t5")
    assert not ease.similarity[:, at].any()
    links = {other: float(l3ae.similarity[i, at]) for i, other in enumerate(ids) if i != at}
    nearest = sorted(links, key=links.__getitem__)[-5:]
    assert {kind_of(other) for other in nearest} == {"t"}


@pytest.mark.parametrize("kind", ["ease", "l3ae"])
def test_a_wide_catalog_has_links_from_small_systems(tables, tmp_path, monkeypatch, kind: str) -> None:
    """With as many links as there are others they are the closed form's, and so are the priors."""
    raw = {"encoder": {"base": "lexical"}} if kind == "l3ae" else {}
    whole, facts = fit(tables, tmp_path / "whole", kind, **raw)
    monkeypatch.setattr(autoencoders, "WIDEST", 17)
    wide, wide_facts = fit(tables, tmp_path / "wide", kind, **raw)
    similar = wide.similarity.toarray()
    np.testing.assert_allclose(similar, whole.similarity, atol=1e-4 * np.abs(whole.similarity).max())
    assert wide_facts["links"] == facts["links"]
    assert wide_facts["valid"]["model"] == pytest.approx(facts["valid"]["model"], rel=1e-4)
    wide.export(tmp_path / "wide")  # refused unless it says the same
    few, _ = fit(tables, tmp_path / "few", kind, most=3, **raw)
    assert few.similarity.nnz < wide.similarity.nnz
