"""Words in the place of a network: their cosines, as vectors, and as the text prior's encoder from fit to card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from advprior.cli import main
from advprior.pipeline.card import card
from advprior.pipeline.fit import finetune
from advprior.predictors.encoding.lexical import lexical_cosines, lexical_vectors
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.predictors.sequence.settings import HybridSettings
from advprior.predictors.text.settings import TextSettings
from advprior.store.runs import read_manifest
from tests.advprior.conftest import export
from tests.planted import KINDS, kind_of, write_planted

NEW = ("t5", "s5")
WORDS = st.lists(st.sampled_from(["tea", "green tea", "soap", "rye bread", "", "b"]), min_size=1, max_size=12)


@given(WORDS)
@settings(max_examples=15, deadline=None)
def test_vectors_have_the_cosines_of_the_words(texts: list[str]) -> None:
    vectors, _ = lexical_vectors(texts)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0.5, length, 1.0)
    np.testing.assert_allclose(unit @ unit.T, lexical_cosines(texts), atol=1e-5)


def test_other_texts_are_laid_into_the_same_space() -> None:
    texts = ["green tea", "black tea", "rye bread", "corner bakery"]
    before, _ = lexical_vectors(texts)
    after, _ = lexical_vectors(["white tea", *texts, "no such thing"], fitted_on=texts)
    np.testing.assert_allclose(after[1:5], before, atol=1e-6)
    assert after[0] @ before[0] > 10 * abs(after[0] @ before[2])
    assert np.linalg.norm(after[5]) < 0.5


def test_no_dimension_varies_much_more_than_another() -> None:
    """Whoever standardises dimensions must not make the faintest component count as much as the leading one."""
    texts = [f"{kind} {n}" for kind in KINDS.values() for n in range(40)]
    spread = lexical_vectors(texts)[0].std(axis=0)
    assert spread.max() < 3 * spread.min()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lexical")
    write_planted(folder / "before", leave_out=NEW)
    write_planted(folder / "after")
    raw = {"base": "lexical", "components": 4}
    finetune(folder / "before", folder / "run", "text", predictor_class("text").settings(raw))
    export(folder / "run")
    return folder


def test_it_is_a_predictor_without_a_language_model(workspace: Path) -> None:
    predictor = load_predictor(workspace / "run")
    assert predictor.uses_llm is False
    facts = read_manifest(workspace / "run")["facts"]
    assert "base" not in facts
    assert facts["words"]["kind"] == "lexical"
    text = card(workspace / "run")
    assert "| uses an LLM's pre-training | no |" in text
    assert "character n-grams" in text


def test_new_advertisers_stand_where_their_words_say(workspace: Path) -> None:
    with pytest.raises(SystemExit) as leave:
        main(
            ["catalog", "extend", f"{workspace}/run", "--tables", f"{workspace}/after", "--out", f"{workspace}/longer"]
        )
    assert not leave.value.code
    old, new = load_predictor(workspace / "run"), load_predictor(workspace / "longer")
    features = dict(zip(new.catalog.ids, new.features, strict=True))
    for advertiser, theirs in zip(old.catalog.ids, old.features, strict=True):
        np.testing.assert_allclose(features[advertiser], theirs, atol=1e-5 * np.abs(old.features).max())
    for advertiser in NEW:
        distance = {a: float(np.linalg.norm(features[a] - features[advertiser])) for a in old.catalog.ids}
        nearest = sorted(distance, key=distance.__getitem__)[:3]
        assert {kind_of(a) for a in nearest} == {kind_of(advertiser)}
    assert json.loads((workspace / "longer" / "words.json").read_text())  # for the next extension


def test_words_have_no_network_to_forget() -> None:
    with pytest.raises(ValidationError, match="no network"):
        TextSettings(base="lexical", twin=True)
    assert not HybridSettings.model_validate({"encoder": {"base": "lexical"}}).encoder.pretrained
    assert TextSettings().pretrained
    assert not TextSettings(twin=True).pretrained
