"""Answers are made of one publication; the witness of the soak is silent on whole ones, and fires on planted mixes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import CATALOG_FILE, LLM, MATRIX_FILE, PRIOR_ROW, SNAPSHOT, TABLE_FILE, prior_view
from advprior.store.matrix import open_matrix
from benchmarks.one_publication import Witness
from ranking.experiment.assignment import EVERYBODY
from ranking.experiment.exposure_table import publication
from ranking.experiment.exposures import read_exposures
from ranking.service.catalogs import Catalogs
from tests.ranking.stores import apply, publish
from tests.service.live import Live, engine_for, live, post, until
from tests.service.test_faults import corrupt
from tests.service.workspaces import NOW, FixedClock, Project, copy_project, knowing_priors, materialize
from tests.service.workspaces import SNAPSHOT as ONLINE
from tests.tiny import PLAN

VIEW = prior_view(LLM)
USERS = [f"u{i:03d}" for i in range(20)]


@pytest.fixture
def own(project: Project, tmp_path: Path) -> Project:
    """A copy whose store the test may change."""
    copied = copy_project(project, tmp_path / "copied")
    apply(copied.repo)
    materialize(copied.repo, ONLINE + PLAN.lag)
    return copied


def witness_of(project: Project) -> Witness:
    witness = Witness(engine_for(project, clock=FixedClock(NOW)), VIEW)
    witness.add(project.repo / "data" / VIEW)
    witness.look(USERS)
    return witness


def ask(service: Live, users: list[str] = USERS) -> list[dict[str, Any]]:
    found = [post(service.port, {"user_id": user, "slots": 5}) for user in users]
    assert {status for status, _ in found} == {200}
    return [answer for _, answer in found]


def judged(witness: Witness, answers: list[dict[str, Any]]) -> set[str]:
    return {witness.judge(answer, NOW.isoformat()) for answer in answers}


def test_a_snapshot_published_twice_is_not_weighed_against_the_other_mean(own: Project, tmp_path: Path) -> None:
    """A predictor trained anew: the same snapshots, users and catalog, other values in the files than in the store."""
    witness, exposures = witness_of(own), tmp_path / "exposures"
    with live(own, exposures=exposures) as service:
        before = ask(service)
        assert judged(witness, before) == {"whole"}
        (first,) = {answer["prior"]["publication"] for answer in before}
        assert (own.repo / "data" / VIEW).resolve().name == f"{VIEW}-{first}"
        publish(own.repo, VIEW, knowing_priors(own.tables, seed=5))
        witness.add(own.repo / "data" / VIEW)
        catalog = service.engine.resources.catalogs
        until(lambda: all(len(found) == 2 for found in list(catalog.priors[VIEW]["v1"].snapshots.values())))
        between = ask(service)  # the store still has the rows of the first
        assert judged(witness, between) == {"whole"}
        assert [answer["slots"] for answer in between] == [answer["slots"] for answer in before]
        materialize(own.repo, ONLINE + PLAN.lag, [VIEW])  # sqlite takes a row of the same time
        after = ask(service)
        assert judged(witness, after) == {"whole"}
        (second,) = {answer["prior"]["publication"] for answer in after}
        assert second != first
        assert all(witness.would_notice(answer, NOW.isoformat()) for answer in after)
        # a vector that neither publication has for the row: the service itself refuses it
        corrupt(own, "u003", vector_of(own, "u003", back=1))
        assert ask(service, ["u003"])[0]["degraded"] == ["prior_catalog_unknown"]
        assert judged(witness, ask(service, ["u003"])) == {"degraded"}
    logged = [publication(record) for record in read_exposures(exposures)]
    expected = [*[f"llm {first}"] * 40, *[f"llm {second}"] * 20, "none", "none"]
    assert logged == expected
    assert EVERYBODY.arms[0].priors


def test_either_of_two_publications_that_say_the_same_is_whole(own: Project) -> None:
    """A predictor fitted anew on the same data: other digests, the same values. An answer may name either."""
    view = own.repo / "data" / VIEW
    catalog = json.loads((view / CATALOG_FILE).read_text()) | {"note": "fitted anew"}
    table, matrix = pd.read_parquet(view / TABLE_FILE), open_matrix(view / MATRIX_FILE)[:]
    first = view.resolve().name
    publish(own.repo, VIEW, {TABLE_FILE: table, MATRIX_FILE: matrix, CATALOG_FILE: catalog})
    assert view.resolve().name != first
    current = witness_of(own)
    both = witness_of(own)
    both.add_kept(view)
    with live(own) as service:
        answers = ask(service)
    (named,) = {answer["prior"]["publication"] for answer in answers}
    assert first == f"{VIEW}-{named}"  # the one that the service knew first, and the current one's witness does not
    assert judged(current, answers) == {"mixed"}
    assert judged(both, answers) == {"whole"}
    # the other publication's row of the same snapshot is no mix; older rows still would be
    assert any(both.would_notice(answer, NOW.isoformat()) for answer in answers)


def vector_of(project: Project, user: str, back: int) -> bytes:
    """What the store would hold of a user's vector of an earlier snapshot."""
    from feast.protos.feast.types.Value_pb2 import FloatList, Value

    folder = project.repo / "data" / VIEW
    table = pd.read_parquet(folder / TABLE_FILE)
    moments = sorted(table.loc[(table[SNAPSHOT] <= pd.Timestamp(ONLINE)).to_numpy(), SNAPSHOT].unique())
    row = table[((table.user_id == user) & (table[SNAPSHOT] == moments[-1 - back])).to_numpy()]
    vector = open_matrix(folder / MATRIX_FILE)[:][int(row[PRIOR_ROW].iloc[0])]
    return Value(float_list_val=FloatList(val=vector.tolist())).SerializeToString()


def test_the_witness_fires_on_a_vector_of_another_snapshot(own: Project) -> None:
    """Well-formed, and nothing that a service could see as wrong where a snapshot is published once."""
    witness = witness_of(own)
    corrupt(own, "u001", vector_of(own, "u001", back=1))
    with live(own) as service:
        mixed, *others = ask(service)[1:]
        assert mixed["degraded"] == []
        assert judged(witness, [mixed]) == {"mixed"}
        assert judged(witness, others) == {"whole"}
        assert witness.judge(mixed | {"prior": None}, NOW.isoformat()) == "degraded"


@pytest.mark.parametrize("wrong", ["mean", "catalog", "claim"])
def test_the_witness_fires_on_a_mean_or_a_catalog_of_another_publication(project: Project, wrong: str) -> None:
    """What is wrong is the service's own memory: the store is only read."""
    witness = witness_of(project)
    with live(project) as service:
        known = service.engine.resources.catalogs.priors[VIEW]["v1"]
        for snapshot, (found,) in list(known.snapshots.items()):
            if wrong == "mean":
                known.snapshots[snapshot] = [replace(found, mean=found.mean[::-1].copy())]
            if wrong == "claim":
                known.snapshots[snapshot] = [replace(found, publication="0123456789abcdef")]
        if wrong == "catalog":
            known.advertisers = known.advertisers[::-1]
            service.engine.resources.table._by_catalog.clear()
        verdicts = [witness.judge(answer, NOW.isoformat()) for answer in ask(service)]
        assert verdicts.count("mixed") >= 18  # on a user or two the trees may not tell


def test_many_refreshes_do_not_grow_what_is_known(project: Project, tmp_path: Path) -> None:
    """A publication a day for weeks: catalogs, snapshots and mapped files stay few."""
    own = copy_project(project, tmp_path / "copied")
    catalogs = Catalogs(own.repo, [VIEW])
    now_us = round(NOW.timestamp() * 1e6)
    catalogs.refresh(now_us)
    files = knowing_priors(own.tables, seed=5)
    for day in range(12):
        assert not catalogs.moved()
        table = files[TABLE_FILE].assign(catalog_version=f"v{day}")
        logits = files[MATRIX_FILE] + np.random.default_rng(day).normal(size=files[MATRIX_FILE].shape)
        matrix = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        catalog = {**files["catalog.json"], "version": f"v{day // 6}"}
        table["catalog_version"] = catalog["version"]
        publish(own.repo, VIEW, {TABLE_FILE: table, MATRIX_FILE: matrix, "catalog.json": catalog})
        assert catalogs.moved()
        catalogs.refresh(now_us)
    assert len(catalogs._seen) == len(catalogs._moments) + 1 == 3  # two publications are kept, and one of the history
    assert {folder for folder, _ in catalogs._worked_out} <= set(catalogs._seen)
    assert set(catalogs.priors[VIEW]) == {"v1", "v0"}
    counts = [len(found) for known in catalogs.priors[VIEW].values() for found in known.snapshots.values()]
    assert max(counts) == 4
    # the oldest that is still known can be told from the others by its rows, though its folder is gone
    found = catalogs.priors[VIEW]["v1"].snapshots[round(ONLINE.timestamp() * 1e6)]
    assert catalogs.published(VIEW, "v1", round(ONLINE.timestamp() * 1e6), 7.0, found[0].files.log_probs[7]) is found[0]
    assert catalogs.published(VIEW, "v1", round(ONLINE.timestamp() * 1e6), None, found[0].files.log_probs[7]) is None
