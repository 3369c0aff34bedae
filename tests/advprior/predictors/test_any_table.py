"""Any table: what nobody thought of when the predictors were written is fitted, scored, measured and described."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.evaluation.ladder import evaluate
from advprior.evaluation.options import Options
from advprior.evaluation.show import lines, markdown
from advprior.pipeline.card import card
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import KINDS, predictor_class
from advprior.store.runs import new_run, read_manifest
from advprior.store.tables import write_parquet
from tests.advprior.conftest import export
from tests.advprior.scoring import score
from tests.tiny import PLAN, tiny_tables
from tests.tiny_llm import write_tiny_llm


def bare() -> dict[str, pd.DataFrame]:
    """No profile, category or value; advertisers known by their ids alone."""
    tables = tiny_tables(users=16, weeks=20)
    tables["users"] = tables["users"][["user_id"]]
    tables["events"] = tables["events"].drop(columns=["category", "value"])
    tables["advertisers"] = tables["advertisers"].assign(name=tables["advertisers"].advertiser_id)
    return tables


def one_advertiser() -> dict[str, pd.DataFrame]:
    """A catalog of one, with a profile field and amounts that are null for everybody."""
    tables = tiny_tables(users=16, weeks=20)
    tables["users"] = tables["users"].assign(profile_age=None, profile_income=np.nan)
    tables["events"] = tables["events"].assign(value=np.nan, category=None)
    tables["advertisers"] = tables["advertisers"].iloc[:1]
    return tables


def odd() -> dict[str, pd.DataFrame]:
    """A category for every event, amounts beyond float32, a profile and a basket that outgrow any prompt, odd names."""
    tables = tiny_tables(users=16, weeks=20)
    events, users = tables["events"], tables["users"].assign(profile_income=None)
    users["profile_code"] = [f"z{i}" for i in range(len(users))]
    users.loc[3, "profile_region"] = ", ".join(f"segment {k}" for k in range(99))
    names = ["\u200b", " ", "茶", "🍵", "<|im_end|>", "a; b, c"]
    more = pd.DataFrame({"advertiser_id": [f"b{i:03d}" for i in range(150)], "name": names * 25})
    basket = events.iloc[[0] * len(more)].assign(advertiser_id=more.advertiser_id.to_numpy())
    events = pd.concat([events.assign(category=[f"c{i}" for i in range(len(events))], value=1e300), basket])
    more["name"] += ["", "x"] * 75
    return {**tables, "users": users, "events": events, "advertisers": pd.concat([tables["advertisers"], more])}


def settings_of(base: Path) -> dict[str, dict]:
    small = {"network": {"width": 8, "context": 16}, "training": {"epochs": 1, "points_a_history": 4}}
    return {kind: {} for kind in KINDS} | {
        "llm": {
            "base": str(base),
            "layers": 2,
            "tuned_layers": 1,
            "prompt": {"context": 160},
            "training": {"epochs": 1, "rank": 4},
        },
        "l3ae": {"encoder": {"base": "lexical"}},
        "sasrec": small,
        "hybrid": {**small, "encoder": {"base": str(base), "layers": 1, "components": 4}},
        "text": {"base": str(base), "layers": 1, "components": 2},
        "zero_shot": {"base": str(base)},
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("any") / "base", layers=2, hidden=16)


@pytest.mark.parametrize("world", [bare, one_advertiser, odd])
def test_every_predictor_takes_it(world, base: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    with new_run(tables, "data", config={}, inputs={}, key=world.__name__) as run:
        for name, table in world().items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts["time_plan"] = PLAN.to_json()
    # what reads prompts costs the most: not in every world
    left_out = {bare: ["zero_shot"], one_advertiser: ["llm", "zero_shot"], odd: []}[world]
    kinds = [kind for kind in KINDS if kind not in left_out]
    cut, raw_settings = {}, settings_of(base)
    for kind in kinds:
        raw = raw_settings[kind]
        finetune(tables, tmp_path / kind, kind, predictor_class(kind).settings(raw))
        export(tmp_path / kind)
        score(tmp_path / kind, tables, tmp_path / f"priors_{kind}", device="cpu", threads=1, last=2)
        assert "# " in card(tmp_path / kind)
        cut[kind] = read_manifest(tmp_path / f"priors_{kind}")["facts"]["cut_prompts"]
    if world is odd:
        expected = {"profiles": {"users": 1, "first": ["u003"]}, "occasions": {"users": 1, "first": ["u000"]}}
        assert cut["llm"] == expected
    assert not any(facts for kind, facts in cut.items() if kind not in ("llm", "zero_shot"))
    options = Options(horizon=timedelta(days=28), replicates=10, device="cpu")
    result, _ = evaluate([tmp_path / kind for kind in kinds], tables, PLAN.finetune_end, options)
    assert len(result["arms"]) > len(kinds)
    assert lines(result)
    assert markdown(result)
