"""A text run by a sentence encoder from fit to score: what its key holds, its card says, and what it needs later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from advprior.history.catalog import Catalog
from advprior.pipeline.card import card
from advprior.pipeline.fit import finetune, read_settings
from advprior.predictors.encoding.settings import ENCODING_VERSION
from advprior.predictors.text.extend import extend_text
from advprior.predictors.text.predictor import TextPredictor
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.conftest import export
from tests.planted import write_planted
from tests.tiny_sentence import write_tiny_sentence_encoder

NEW = ("b0", "s3", "t5")

SCORING = """
import sys
from pathlib import Path
import numpy as np
from advprior.history.histories import build_histories
from advprior.predictors.registry import load_predictor
from advprior.store.tables import load_tables
run, tables = Path({run!r}), load_tables(Path({tables!r}), "users", "events")
predictor = load_predictor(run)
histories = build_histories(tables["users"], tables["events"], predictor.catalog)
priors = predictor.scorer(run / "onnx", "cpu").score(histories, np.arange(4), histories.time[-1:])
assert np.isfinite(priors).all()
print({{"torch", "transformers", "safetensors"}} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder-of-run")
    write_planted(made / "before", leave_out=NEW)
    write_planted(made / "after")
    write_tiny_sentence_encoder(made / "encoder")
    assert fit(made, "run")
    export(made / "run")
    return made


def fit(folder: Path, run: str, *changes: str, encoder: str = "encoder") -> bool:
    settings = read_settings("text", None, [f"base={folder / encoder}", "components=4", "points=200", *changes])
    return finetune(folder / "before", folder / run, "text", settings)


def test_another_encoder_is_another_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fit(folder, "run")
    shutil.copytree(folder / "run", folder / "again")
    assert fit(folder, "again", "pooling=skip_first")
    assert fit(folder, "again", "pooling=skip_first", "layers=[1, 2]")
    with monkeypatch.context() as newer:
        newer.setattr("advprior.pipeline.fit.ENCODING_VERSION", ENCODING_VERSION + 1)
        assert fit(folder, "again", "pooling=skip_first", "layers=[1, 2]")
    changed = shutil.copytree(folder / "encoder", folder / "changed")
    write_tiny_sentence_encoder(changed, pooling=["cls_token"])
    shutil.move(folder / "encoder", folder / "aside")
    shutil.move(changed, folder / "encoder")
    try:
        shutil.copytree(folder / "run", folder / "other")
        assert fit(folder, "other")  # the same name, another pooling in the folder
    finally:
        shutil.rmtree(folder / "encoder")
        shutil.move(folder / "aside", folder / "encoder")


def test_the_manifest_and_the_card_say_what_the_encoder_is(folder: Path) -> None:
    origin = read_manifest(folder / "run")["facts"]["base"]
    expected = {
        "encoder": "sentence encoder",
        "pooling": "mean_tokens",
        "read_layers": [3, 3],
        "version": ENCODING_VERSION,
    }
    assert expected.items() <= origin.items()
    assert "a sentence encoder: pooling mean_tokens, states behind layer 3" in card(folder / "run")


def test_scoring_needs_no_encoder(folder: Path) -> None:
    shutil.move(folder / "encoder", folder / "gone")
    try:
        code = SCORING.format(run=str(folder / "run"), tables=str(folder / "before"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        shutil.move(folder / "gone", folder / "encoder")
    assert done.stdout.strip() == "set()"


def test_new_advertisers_are_encoded_by_the_same_encoder_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    catalog = Catalog.from_table(load_tables(folder / "after", "advertisers")["advertisers"])
    (tmp_path / "out").mkdir()
    facts = extend_text(folder / "run", catalog, tmp_path / "out")
    assert sorted(facts["new_advertisers"]) == sorted(NEW)
    before, after = TextPredictor(folder / "run"), TextPredictor(tmp_path / "out")
    old = [after.catalog.index[a] for a in before.catalog.ids]
    np.testing.assert_array_equal(after.features[old], before.features)
    new = after.features[[after.catalog.index[a] for a in NEW]]
    assert np.isfinite(new).all()
    assert np.abs(new).max() > 0.1
    other = shutil.copytree(folder / "run", tmp_path / "run")
    text = (other / "parameters.json").read_text()
    (other / "parameters.json").write_text(text.replace('"pooling": null', '"pooling": "skip_first"'))
    (tmp_path / "refused").mkdir()
    with pytest.raises(AdvpriorError) as error:
        extend_text(other, catalog, tmp_path / "refused")
    assert error.value.code == "PRI064"
    assert not any((tmp_path / "refused").iterdir())
