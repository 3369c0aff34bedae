"""Candidates by two towers in the request path: what is chosen online is what is chosen offline, and what is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from advprior.store.contract import LLM, PRIOR_ROW, SNAPSHOT, TABLE_FILE, USER_HISTORY_VIEW, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import new_run, run_key
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from advprior.store.times import moment_us
from ranking.candidates.choose import choose
from ranking.candidates.inputs import Pasts
from ranking.candidates.priors import predicted
from ranking.candidates.towers import Towers
from ranking.candidates.training import TowerConfig, fit_towers
from ranking.cli import rank
from ranking.cli.service import check as check_command
from ranking.evidence.ordering import Sorted
from ranking.experiment.assignment import ServedArm
from ranking.frame.publish import publish_features
from ranking.frame.streams import LEVELS, token_column
from ranking.frame.views import view_folder
from ranking.service.app import create_app, make_engine
from ranking.service.engine import Engine
from ranking.service.messages import RankResponse
from ranking.service.quota import read_quota
from ranking.service.slate import Query
from ranking.service.towers import TowerSource
from tests.ranking.stores import apply
from tests.service.live import TestClient, engine_for, settings_of
from tests.service.workspaces import NOW, FixedClock, Project, copy_project, materialize
from tests.service.workspaces import SNAPSHOT as MOMENT
from tests.tiny import PLAN

# ibis 12 calls a method that duckdb 2 renamed; faiss' wrapper is SWIG's
pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]
K, TOP, QUOTA = 8, 3, 0.5
WITHOUT = ServedArm(name="without", share=1, priors=False)


@dataclass(frozen=True)
class Runs:
    """What retrieval is served from."""

    towers: Path
    candidates: Path


def save_towers(fitted: Towers, folder: Path, seed: int = 0) -> Path:
    with new_run(folder, "rank towers", config={}, inputs={}, key=run_key("rank towers", seed, {})) as run:
        fitted.save(run.path)
    return folder


@pytest.fixture(scope="module")
def runs(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Fitted towers, and the real `rank candidates` on them; its quota set, so that priors have something to do."""
    root = tmp_path_factory.mktemp("retrieval")
    tables = load_tables(project.tables, "users", "ads", "events", "impressions")
    config = TowerConfig(size=8, hidden=16, epochs=4, batch=64, learning_rate=0.01, threads=1)
    fitted = fit_towers(
        tables["users"], tables["ads"], tables["events"], tables["impressions"], load_time_plan(project.tables), config
    )
    found = Runs(save_towers(fitted, root / "towers"), root / "candidates")
    done = CliRunner().invoke(
        rank,
        [
            "candidates",
            "--tables",
            str(project.tables),
            "--repo",
            str(project.repo),
            "--towers",
            str(found.towers),
            "--k",
            str(K),
            "--top",
            str(TOP),
            "--replicates",
            "20",
            "--out",
            str(found.candidates),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    path = found.candidates / "candidates.json"
    about = json.loads(path.read_text())
    assert set(about["chosen"]) == {LLM}
    path.write_text(json.dumps(about | {"chosen": {LLM: QUOTA}}))
    return found


def engine_of(project: Project, runs: Runs, **options: Any) -> Engine:
    named = {"clock": FixedClock(NOW), "towers": runs.towers, "quota": runs.candidates} | options
    engine = engine_for(project, **named)
    engine.resources.refresh_ads()
    return engine


# -- parity --------------------------------------------------------------------------------------------------------


def test_vectors_and_candidates_are_those_of_offline(served: Project, runs: Runs) -> None:
    """Of every user, through the store as it is: the vector from the tables, the choice by `choose`."""
    engine = engine_of(served, runs)
    assert engine.resources.default_candidates == K
    source = engine.resources.source
    assert isinstance(source, TowerSource)
    tables = load_tables(served.tables, "users", "ads", "events")
    towers, ads = Towers.load(runs.towers), tables["ads"].reset_index(drop=True)
    pasts = Pasts(tables["users"], tables["events"], towers.vocabulary)
    vectors = towers.users(pasts.at(moment_us(MOMENT)))
    of_ads, bias = towers.ads(ads)
    table = pd.read_parquet(view_folder(served.repo, prior_view(LLM)) / TABLE_FILE)
    rows = table[table[SNAPSHOT] == MOMENT].set_index("user_id")[PRIOR_ROW].reindex(pasts.ids).to_numpy()
    wanted = predicted(served.repo, LLM, rows, ads, TOP)
    origins = set()
    for i, user in enumerate(pasts.ids):
        vector, whole = source.user_vector(engine.resources.reader.read_user(user))
        assert whole
        np.testing.assert_allclose(vector[:-1], vectors[i], atol=2e-6)
        score = of_ads @ vectors[i] + bias
        for arm, quota in ((None, QUOTA), (WITHOUT, 0.0)):
            ready = engine.prepare(Query(user, arm=arm))
            assert ready.degraded == []
            expected = choose(Sorted.of(np.zeros(len(ads)), score), wanted[i], K, quota)
            got = {engine.resources.table.ids[row] for row in ready.ads}
            assert got == set(ads["ad_id"][expected]), user
            assert len(ready.ads) == K
            origins |= set(ready.choice.origin.tolist())
            # a slot for an advertiser goes to one that the prior names
            place = {ad: j for j, ad in enumerate(ads["ad_id"])}
            slots = [
                engine.resources.table.ids[row] for row, o in zip(ready.ads, ready.choice.origin, strict=True) if o == 3
            ]
            assert all(wanted[i][place[ad]] for ad in slots)
            assert bool(slots) <= (quota > 0)
    assert origins == {2, 3}


def test_tokens_of_a_quiet_user_are_those_of_offline(served: Project, runs: Runs) -> None:
    """Without a history row, as before a user's first refresh, the profile alone speaks; of nobody, nothing does."""
    engine = engine_of(served, runs)
    towers, stored = Towers.load(runs.towers), load_tables(served.tables, "users", "events")
    rows = engine.resources.reader.read_user("u004")
    alone, _ = engine.resources.source.user_vector({"user_profile": rows["user_profile"]})  # type: ignore[attr-defined]
    users, empty = stored["users"].query("user_id == 'u004'"), stored["events"].iloc[:0]
    np.testing.assert_allclose(alone[:-1], towers.users(Pasts(users, empty, towers.vocabulary).at(0))[0], atol=2e-6)
    nobody, whole = engine.resources.source.user_vector({})  # type: ignore[attr-defined]
    assert whole
    zero = towers.users(np.zeros((1, towers.vocabulary.user_tokens), np.float32))[0]
    np.testing.assert_allclose(nobody[:-1], zero, atol=1e-6)


# -- what is said --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(project: Project, runs: Runs) -> Iterator[TestClient]:
    own = settings_of(project, towers=runs.towers, candidates=runs.candidates, page=True)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as found:
        yield found


def test_an_answer_says_where_its_ads_came_from(client: TestClient) -> None:
    plain = client.post("/rank", json={"user_id": "u004"}).json()
    assert plain["candidates"] == K
    assert plain["degraded"] == []
    assert "origin" not in plain["slots"][0]
    response = client.post("/rank?explain=true", json={"user_id": "u004"})
    answer = RankResponse.model_validate_json(response.content, strict=True)
    assert {slot.origin for slot in answer.slots} == {"towers", "predicted_advertiser"}
    available = (MOMENT + PLAN.lag).isoformat()
    assert answer.as_of is not None
    assert {answer.as_of[v][0] for v in ("user_history", "ad_stats", "prior_llm")} == {available}
    given = client.post("/rank?explain=true", json={"user_id": "u004", "candidates": ["a00/Tea"]}).json()
    assert given["slots"][0]["origin"] == "given"
    page = client.get("/", params={"user": "u004"}).text
    with_priors, without = page.split('id="slate2"')
    said = re.findall(r"<b>([^<]+)<small>(?:[^<;]|</?span[^>]*>)+; ([^<]+)</small>", with_priors)
    assert dict(said) == {
        slot.ad_id: {"towers": "retrieved by the towers"}.get(
            slot.origin or "", "retrieved for its predicted advertiser"
        )
        for slot in answer.slots
    }
    assert "predicted advertiser" not in without
    about = client.get("/ready").json()
    assert about["candidates"] == {
        "source": "towers",
        "ads_known": 1.0,
        "search": "exact",
        "recall": 1.0,
        "predictor": LLM,
        "quota": QUOTA,
        "top": TOP,
    }


def test_the_stage_is_timed_where_the_service_chooses(client: TestClient) -> None:
    def count(stage: str) -> float:
        found = re.search(rf'advprior_rank_seconds_count{{stage="{stage}"}} (\S+)', client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    before = {stage: count(stage) for stage in ("candidates", "predict")}
    client.post("/rank", json={"user_id": "u004"})
    client.post("/rank", json={"user_id": "u004", "candidates": ["a00/Tea"]})
    assert count("candidates") == before["candidates"] + 1
    assert count("predict") == before["predict"] + 2


def test_without_a_prior_the_towers_stand_alone_and_it_is_said(project: Project, runs: Runs) -> None:
    engine = engine_of(project, runs)
    nobody = engine.rank(Query("nobody", K))
    assert nobody.degraded == ["prior_missing", "candidates_without_priors"]
    assert set(nobody.origins) == {"towers"}
    assert len(nobody.ads) == K
    assert engine.rank(Query("u004", K, arm=WITHOUT)).degraded == []  # this arm has none by design
    assert engine.rank(Query("u004", 2, ["a00/Tea", "a01/Coffee"])).degraded == []
    late = engine.rank(Query("u004", K, now_us=moment_us(NOW + timedelta(days=40))))
    assert late.degraded[:2] == ["prior_stale", "history_stale"]
    assert late.degraded[-1] == "candidates_without_priors"
    assert len(late.ads) == K
    engine.resources.reader.read_user = lambda user: (_ for _ in ()).throw(OSError("gone"))  # type: ignore[method-assign]
    dead = engine.rank(Query("u004", K))
    assert dead.degraded == ["store_unavailable", "candidates_without_priors"]
    assert dead.ads
    assert {ad for ad, _ in dead.ads} == {ad for ad, _ in nobody.ads}


def test_a_row_without_tokens_is_said(project: Project, runs: Runs) -> None:
    """As after a rollback to what was published before the towers: the profile alone is left to go by."""
    engine = engine_of(project, runs)
    read = engine.resources.reader.read_user

    def older(user: str) -> Any:
        rows = read(user)
        row = rows[USER_HISTORY_VIEW]
        kept = {name: value for name, value in row.values.items() if not name.endswith("_tokens")}  # noqa: PD011
        return rows | {USER_HISTORY_VIEW: type(row)(row.available_us, kept)}

    engine.resources.reader.read_user = older  # type: ignore[method-assign]
    slate = engine.rank(Query("u004", K))
    assert slate.degraded == ["candidates_inputs_missing"]
    assert slate.ranker.service == "ranker_with_priors_v1"


# -- starting ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_at_the_start(project: Project, runs: Runs, tmp_path: Path) -> None:
    towers = Towers.load(runs.towers)
    options = [
        "--repo",
        str(project.repo),
        "--ranker",
        str(project.ranker),
        "--fallback",
        str(project.plain),
        "--no-api-key",
        "--no-compile",
        "--clock-start",
        NOW.isoformat(),
    ]

    def refused(code: str, **changed: Any) -> None:
        own = settings_of(project, **changed)
        with pytest.raises(AdvpriorError, match=code):
            make_engine(own)
        given = [part for name, value in changed.items() for part in (f"--{name}", str(value))]
        said = CliRunner().invoke(check_command, [*options, *given])
        assert isinstance(said.exception, AdvpriorError)
        assert said.exception.code == code

    # other ads: each of the vocabulary's names is one that nobody has
    strange = type(towers.vocabulary).from_json(
        {
            name: [f"x{one}" for one in names] if name != "profiles" else names
            for name, names in towers.vocabulary.to_json().items()
        }
    )
    other = save_towers(Towers(strange, towers.arrays, {}), tmp_path / "other", 1)
    refused("SRV010", towers=other)
    # another profile
    profile = [f"profile_shoe={i}" for i in range(len(towers.vocabulary.profiles))]
    changed = type(towers.vocabulary).from_json(towers.vocabulary.to_json() | {"profiles": profile})
    refused("SRV011", towers=save_towers(Towers(changed, towers.arrays, {}), tmp_path / "shoes", 2))
    # a quota of other towers
    again = save_towers(towers, tmp_path / "again", 3)
    refused("SRV012", towers=again, candidates=runs.candidates)
    with pytest.raises(AdvpriorError, match="SRV012"):
        read_quota(runs.candidates, runs.towers, ["sasrec"])
    refused("RUN003", towers=runs.candidates)
    assert isinstance(
        CliRunner().invoke(check_command, [*options, "--candidates", str(runs.candidates)]).exception, AdvpriorError
    )

    good = CliRunner().invoke(
        check_command, [*options, "--towers", str(runs.towers), "--candidates", str(runs.candidates)]
    )
    assert good.exit_code == 0, good.output
    assert "towers fit: 100% of the ads" in good.output
    assert f"candidates: {K} a request, 50% for advertisers predicted by llm" in good.output
    alone = CliRunner().invoke(check_command, [*options, "--towers", str(runs.towers)])
    assert "towers alone" in alone.output


def test_a_store_without_the_tokens_is_refused(project: Project, runs: Runs, tmp_path: Path) -> None:
    """Published by an earlier version: the columns are not there."""
    copied = copy_project(project, tmp_path / "copied")
    path = view_folder(copied.repo, USER_HISTORY_VIEW) / TABLE_FILE
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([token_column(level) for level in LEVELS]), path)
    apply(copied.repo)
    with pytest.raises(AdvpriorError, match="SRV011") as caught:
        make_engine(settings_of(copied, towers=runs.towers))
    assert "history_advertiser_tokens" in str(caught.value)
    make_engine(settings_of(copied))  # without towers nothing asks for them


def test_towers_cost_a_service_without_them_nothing(project: Project) -> None:
    """A row's tokens are not even read."""
    engine = make_engine(settings_of(project))
    assert not [n for view in engine.resources.reader.views.values() for n in view.features if n.endswith("_tokens")]


# -- new ads -------------------------------------------------------------------------------------------------------


def test_new_ads_are_taken_in_and_known_ones_kept(project: Project, runs: Runs, tmp_path: Path) -> None:
    copied = copy_project(project, tmp_path / "copied")
    apply(copied.repo)
    materialize(copied.repo, MOMENT + PLAN.lag)
    engine = engine_of(copied, runs, default_candidates=30)
    before = engine.resources.table.cached(engine.resources.source, None)  # type: ignore[arg-type]
    assert len(engine.rank(Query("u004", 30)).ads) == 24
    engine.resources.refresh()
    assert engine.resources.table.cached(engine.resources.source, None) is before  # type: ignore[arg-type]
    tables = tmp_path / "tables"
    shutil.copytree(copied.tables, tables)
    ads = load_tables(tables, "ads")["ads"]
    more = pd.concat([ads, ads.tail(1).assign(ad_id="new/ad")], ignore_index=True)
    write_parquet(more, tables / "ads.parquet")
    manifest = json.loads((tables / "manifest.json").read_text())
    (tables / "manifest.json").write_text(json.dumps(manifest | {"key": "another"}))
    publish_features(tables, copied.repo)
    materialize(copied.repo, MOMENT + PLAN.lag)
    engine.resources.refresh()
    slate = engine.rank(Query("u004", 30))
    assert "new/ad" in {ad for ad, _ in slate.ads}
    assert slate.degraded == []


# -- the index -----------------------------------------------------------------------------------------------------


def test_a_service_chooses_the_same_by_its_index(project: Project, runs: Runs) -> None:
    pytest.importorskip("faiss")
    exact, index = engine_of(project, runs), engine_of(project, runs, exact_up_to=10)
    assert index.resources.source.about()["search"] == "index"
    same = []
    for i in range(20):
        one, other = (set(engine.prepare(Query(f"u{i:03d}")).ads.tolist()) for engine in (exact, index))
        same.append(len(one & other) / K)
    assert np.mean(same) > 0.9
