"""`advprior.yaml`: one screen, checked whole, and a slip of the pen answered with what was meant."""

from __future__ import annotations

import re

import pytest
import yaml
from click.testing import CliRunner

from advprior.cli import cli
from advprior.pipeline.edit import set_keys
from advprior.pipeline.fit import read_settings, validated_settings
from advprior.pipeline.presets import FULL
from advprior.pipeline.project import PROJECT_FILE, lay_out
from advprior.pipeline.settings import read_project
from advprior.predictors.registry import KINDS, predictor_class
from advprior.store.errors import AdvpriorError
from advprior.store.keys import key_paths


def project(folder, **keys):
    (folder / PROJECT_FILE).write_text(yaml.safe_dump({"tables": {"example": "complete_journey"}, **keys}))
    return read_project(folder).config


def refused(folder, **keys):
    with pytest.raises(AdvpriorError) as caught:
        project(folder, **keys)
    assert caught.value.code == "CFG002"
    return str(caught.value.actual)


def test_tables_alone_are_a_project(tmp_path):
    config = project(tmp_path)
    assert [prior.name for prior in config.priors][-1] == config.served.name == "llm"
    assert config.retrieval is not None
    assert config.report is not None


def test_full_measures_old_priors_and_variants_too(tmp_path):
    config = project(tmp_path, priors="full")
    assert len(config.priors) == len(FULL)
    assert config.arms.variants
    assert config.arms.stale == (1, 4, 12)
    assert project(tmp_path, priors="full", arms={"stale": []}).arms.stale == ()


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        ({"prior": ["llm"]}, "did you mean priors?"),
        ({"retreival": False}, "did you mean retrieval?"),
        ({"arms": {"seed": 3}}, "did you mean arms.seeds or seed?"),
        ({"num_leaves": 50}, "did you mean arms.ranker.num_leaves?"),
        ({"priors": [{"name": "llm", "valid_days": 3}]}, "priors.settings.training.valid_days"),
        ({"priors": [{"name": "llm", "training": {"epochs": 3}}]}, "did you mean priors.settings.training?"),
        ({"replicates": 50}, "did you mean arms.replicates?"),
        ({"arms": {"report": False}}, "did you mean report?"),
        ({"arms.seeds": 3}, "dots are levels, write arms: {seeds: …}"),
        ({"memory_gb": 8}, "did you mean budget.memory_gb?"),
        ({"priors": [{"name": "llm", "setings": {}}]}, "did you mean priors.settings?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path, keys, meant):
    assert meant in refused(tmp_path, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"tables": {}},
        {"tables": {"mapping": "m.yaml", "example": "complete_journey"}},
        {"tables": {"example": "no_such"}},
        {"tables": {"mapping": "m.yaml", "households": 5}},
        {"tables": {"example": "complete_journey", "households": 0}},
        {"tables": {"example": "clicks", "households": 5}},
        {"tables": {"example": "complete_journey", "weeks": 5}},
        {"priors": []},
        {"priors": ["llm", "llm"]},
        {"priors": ["nobody"]},
        {"priors": [{"name": "placebo_llm", "predictor": "llm"}]},
        {"priors": ["popularity"], "serve": "llm"},
        {"origins": 0},
        {"decide_on": "clicks"},
        {"price": {}},
        {"price": {"currency": "USD"}},
        {"price": {"cpu_hour": 0}},
        {"price": {"gpu_hour": "two"}},
        {"price": 0.05},
        {"priors": 3},
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, keys):
    assert refused(tmp_path, **keys)


@pytest.mark.parametrize(
    ("kind", "change", "meant"),
    [
        ("llm", "valid_dayz=3", "did you mean training.valid_days?"),
        ("llm", "valid_days=3", "did you mean training.valid_days?"),
        ("llm", "training.layers=3", "did you mean layers?"),
        ("llm", "prompt.half_lives_days=[3]", "did you mean habit.half_lives_days?"),
        ("hybrid", "training.valid_days=3", "did you mean valid_days?"),
        ("hybrid", "width=8", "did you mean network.width?"),
        ("text", "training.penalty=3", "did you mean penalty?"),
    ],
)
def test_a_predictors_setting_in_the_wrong_place_is_answered_with_the_right_one(kind, change, meant):
    with pytest.raises(AdvpriorError) as caught:
        read_settings(kind, None, [change])
    assert meant in str(caught.value)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_setting_that_is_moved_to_another_level_is_answered_with_its_own(kind):
    model = type(predictor_class(kind).settings({}))
    paths = key_paths(model)
    nested = [path for path in paths if "." in path and sum(p.endswith(path[path.rindex(".") :]) for p in paths) == 1]
    for path in nested:  # up a level
        with pytest.raises(AdvpriorError, match=re.escape(f"did you mean {path}?")):
            validated_settings(kind, {path.rpartition(".")[2]: 1}, "test")
    groups = [path for path in paths if any(p.startswith(f"{path}.") for p in paths)]
    for path in set(paths) - set(groups):  # and down
        for group in groups if "." not in path else ():
            if f"{group}.{path}" not in paths and not any(p.endswith(f".{path}") for p in paths):
                with pytest.raises(AdvpriorError, match=rf"did you mean ([\w.]+ or )?{path}\?"):
                    validated_settings(kind, {group: {path: 1}}, "test")


@pytest.mark.parametrize("text", ["", "- a list", "tables: [", "\t"])
def test_what_is_no_mapping_is_a_coded_error(tmp_path, text):
    (tmp_path / PROJECT_FILE).write_text(text)
    with pytest.raises(AdvpriorError, match="CFG001"):
        read_project(tmp_path)


def test_set_changes_a_key_and_keeps_the_comments(tmp_path):
    lay_out(tmp_path, "complete_journey")
    path = tmp_path / PROJECT_FILE
    before = path.read_text()
    set_keys(path, ("tables.households=all", "priors=full", "origins=3", "arms.seeds=5", "budget.minutes=30"))
    config = read_project(tmp_path).config
    assert (config.tables.households, len(config.priors), config.origins) == ("all", len(FULL), 3)
    assert (config.arms.seeds, config.budget.minutes) == (5, 30)
    kept = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert set(kept) < set(before.splitlines())
    assert "serve: llm" in path.read_text()


def test_a_change_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    lay_out(tmp_path, "clicks")
    before = (tmp_path / PROJECT_FILE).read_bytes()
    result = CliRunner().invoke(cli, ["init", str(tmp_path), "--set", "priors=[popularity]"])
    assert "serve: 'llm' is none of the priors popularity; name one, or leave serve out" in str(result.exception)
    assert (tmp_path / PROJECT_FILE).read_bytes() == before
    done = CliRunner().invoke(cli, ["init", str(tmp_path), "--set", "priors=[popularity]", "--set", "serve=popularity"])
    assert done.exit_code == 0
    assert [prior.name for prior in read_project(tmp_path).config.priors] == ["popularity"]


@pytest.mark.parametrize("change", ["households", "=3", "tables.households=", "Tables=3"])
def test_a_change_that_is_none_is_a_coded_error(tmp_path, change):
    lay_out(tmp_path, "complete_journey")
    with pytest.raises(AdvpriorError, match="CFG001"):
        set_keys(tmp_path / PROJECT_FILE, (change,))
