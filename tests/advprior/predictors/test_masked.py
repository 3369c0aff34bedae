"""The name-masked control: what it reads does not depend on what advertisers are called; its run knows them still."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from torch.testing import assert_close

from advprior.history.catalog import Catalog
from advprior.history.read import load_histories
from advprior.pipeline.fit import finetune
from advprior.predictors.base import FitData
from advprior.predictors.encoding.settings import Encoding, label, parse_encoding
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.registry import load_predictor
from advprior.predictors.sequence.predictor import encode_catalog as encode_hybrid
from advprior.predictors.sequence.settings import EncoderSettings
from advprior.predictors.text.predictor import ENCODINGS
from advprior.predictors.text.predictor import encode_catalog as encode_text
from advprior.predictors.text.settings import TextSettings
from tests.advprior.conftest import llm_settings
from tests.advprior.history.test_histories import histories_of
from tests.tiny import write_tiny
from tests.tiny_llm import write_tiny_llm


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("base"))


def catalogs() -> list[Catalog]:
    """The same advertisers under two sets of names, which stand in their texts too."""
    sold = ["green tea", "rye bread", ""]
    return [
        Catalog(("a", "b", "c"), names, tuple(t and f"{t} by {n}" for t, n in zip(sold, names, strict=True)))
        for names in (("Margaux", "Ryker Inc", "Zest"), ("Olson", "Ukrop", "Quill"))
    ]


@pytest.mark.parametrize("masked", [True, False])
def test_encodings_depend_on_names_only_where_they_are_read(base: Path, masked: bool) -> None:
    shown = [catalog.to_read(masked=masked) for catalog in catalogs()]
    of_text = [encode_text(c.names, c.texts, TextSettings(base=str(base), layers=2))[0] for c in shown]
    settings = EncoderSettings(base=str(base), layers=2, masked=masked)
    data = [FitData(histories_of([[(0, 0)]]), catalog, 0, 1, 1) for catalog in catalogs()]
    of_hybrid = [encode_hybrid(one, settings, 0)[0] for one in data]
    for pair in (of_text, of_hybrid):
        assert np.array_equal(*pair, equal_nan=True) == masked


def test_an_llm_that_reads_no_names_knows_its_advertisers(base: Path, tmp_path: Path) -> None:
    """Two fits on tables that differ in names alone say the same; the runs keep the names, and so their catalogs."""
    runs, tables = [], write_tiny(tmp_path / "tables", users=16)
    histories, catalog = load_histories(tables)
    settings = llm_settings(base, epochs=1) | {"masked": True, "texts": True}
    settings["prompt"] = {"context": 160, "names": True}
    for part in ("one", "two"):
        if part == "two":
            file = tables / "advertisers.parquet"
            table = pd.read_parquet(file)
            table.assign(name=[f"Quill {i}" for i in range(len(table))]).to_parquet(file)
        runs.append(tmp_path / part)
        finetune(tables, runs[-1], "llm", LLMSettings(**settings))
        text = TextSettings(base=str(base), layers=2, masked=True)
        finetune(tables, tmp_path / f"{part} text", "text", text)
    one, two = (load_predictor(run) for run in runs)
    assert one.catalog.names == catalog.names
    encodings = [np.load(tmp_path / f"{part} text" / ENCODINGS) for part in ("one", "two")]
    np.testing.assert_array_equal(*encodings)
    assert one.catalog.version != two.catalog.version
    assert json.loads((runs[0] / "prompt.json").read_text())["masked"]
    states = [AdvertiserModel.from_pretrained(run / "model").state_dict() for run in runs]
    for name, weight in states[0].items():
        assert_close(weight, states[1][name], rtol=1e-4, atol=1e-4 * float(weight.abs().max()))
    prompts = [predictor.encoder().prompt(histories, 0).head for predictor in (one, two)]
    np.testing.assert_array_equal(*prompts)


def test_settings_that_would_name_what_is_masked_are_refused() -> None:
    with pytest.raises(ValidationError, match="name the brand"):
        LLMSettings(masked=True, prompt={"detail": "product"})
    assert LLMSettings(masked=True, prompt={"detail": "category"}).masked


def test_a_curve_tells_a_masked_encoder_from_the_plain_one() -> None:
    masked = parse_encoding("models/mine@masked=true,skip_first")
    assert masked.masked
    assert label(masked) == "mine@skip_first,masked=true"
    assert masked.key() == replace_masked(masked).key()  # the texts differ, not how they are encoded


def replace_masked(encoding: Encoding) -> Encoding:
    return encoding.model_copy(update={"masked": False})
