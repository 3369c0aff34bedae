"""The Python interface says on frames what the commands say on files, and leaves its arguments alone."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import advprior
from advprior.history.histories import micros
from advprior.history.read import load_histories
from advprior.pipeline.publish import publish
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables
from tests.advprior.conftest import Fitted
from tests.advprior.scoring import score
from tests.tiny import PLAN

CUTOFF = PLAN.finetune_end


@pytest.fixture(scope="module")
def tables(fitted: Fitted) -> dict[str, pd.DataFrame]:
    return load_tables(fitted.tables, "users", "advertisers", "events")


@pytest.mark.parametrize("kind", ["popularity", "sasrec", "llm"])
def test_a_frame_of_events_is_scored_as_the_tables_are(fitted: Fitted, tables: dict, kind: str) -> None:
    predictor = advprior.load_predictor(str(fitted.model(kind)))
    events, profiles = tables["events"], tables["users"]
    before = events.copy(), profiles.copy()
    mixed = events.sample(frac=1.0, random_state=0)
    frame = advprior.score_users(predictor, mixed, CUTOFF, users=["u005", "u001"], profiles=profiles, top=None)
    pd.testing.assert_frame_equal(events, before[0])
    pd.testing.assert_frame_equal(profiles, before[1])

    histories, catalog = load_histories(fitted.tables)
    scorer = predictor.scorer(fitted.model(kind) / "onnx", "cpu")
    expected = scorer.score(histories, np.asarray([5, 1]), np.asarray([micros(CUTOFF)]))[:, 0]
    assert frame.user_id.unique().tolist() == ["u005", "u001"]
    for row, (_, scores) in enumerate(frame.groupby("user_id", sort=False)):
        assert scores["rank"].tolist() == list(range(1, len(catalog) + 1))
        assert (np.diff(scores.log_prob) <= 0).all()
        columns = [catalog.index[a] for a in scores.advertiser_id]
        np.testing.assert_allclose(scores.log_prob, expected[row, columns], rtol=1e-4)
        assert scores.advertiser.tolist() == [catalog.names[c] for c in columns]


def test_events_at_the_snapshot_or_later_are_not_seen(fitted: Fitted, tables: dict) -> None:
    events, run = tables["events"], fitted.model("neighbours")
    past = events[events.timestamp < CUTOFF]
    late = past.tail(1).assign(timestamp=pd.Timestamp(CUTOFF))
    whole, cut, tied = (
        advprior.score_users(run, some, CUTOFF.isoformat(), top=3) for some in (events, past, pd.concat([past, late]))
    )
    pd.testing.assert_frame_equal(whole, cut)
    pd.testing.assert_frame_equal(tied, cut)
    early = pd.concat([past, late.assign(timestamp=pd.Timestamp(CUTOFF) - timedelta(seconds=1))])
    assert not advprior.score_users(run, early, CUTOFF, top=3).equals(cut)


def test_a_user_known_by_a_profile_alone_has_a_prior(fitted: Fitted, tables: dict) -> None:
    profiles = pd.DataFrame({"user_id": ["new"], "profile_age": ["18-34"]})
    frame = advprior.score_users(fitted.model("llm"), tables["events"], CUTOFF, users=["new"], profiles=profiles)
    assert np.exp(frame.log_prob).sum() == pytest.approx(1.0, rel=1e-4)  # twelve advertisers: all of them
    nothing = advprior.score_users(fitted.model("llm"), tables["events"], CUTOFF, users=["u003", "u001"], top=1)
    assert nothing.user_id.tolist() == ["u003", "u001"]  # nobody has a profile


def test_what_is_fitted_on_frames_is_a_run_like_any_other(fitted: Fitted, tables: dict, tmp_path: Path) -> None:
    settings = {"half_lives_days": [30, 7]}
    events = tables["events"]
    predictor = advprior.fit("neighbours", tables, CUTOFF, tmp_path / "run", settings)
    assert predictor.parameters["half_lives_days"] == [30, 7]
    cut = {**tables, "events": events[events.timestamp < CUTOFF]}
    later = advprior.fit("neighbours", cut, CUTOFF, tmp_path / "cut", settings)
    assert later.parameters["weights"] == predictor.parameters["weights"]
    frames = [advprior.score_users(run, events, CUTOFF) for run in (predictor, tmp_path / "run")]
    pd.testing.assert_frame_equal(*frames)


def test_priors_of_a_scoring_run_and_as_published(fitted: Fitted, tmp_path: Path) -> None:
    out, repo = tmp_path / "priors", tmp_path / "repo"
    score(fitted.model("popularity"), fitted.tables, out, device="cpu")
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text("")
    publish(out, repo, name="popularity")
    scored, published = advprior.load_priors(out), advprior.load_priors(repo / "data" / "prior_popularity")
    for priors in (scored, published):
        assert priors.advertisers.name.str.contains("house").all()
        some = priors.of(["u001", "u002"], PLAN.snapshots()[0])
        assert some.array().shape == (2, 12)
        np.testing.assert_allclose(np.exp(some.array()).sum(1), 1.0, rtol=1e-4)
        frame = some.frame(top=4)
        assert len(frame) == 8
        assert frame.log_prob.iloc[0] == some.array()[0].max()
    pd.testing.assert_frame_equal(scored.frame(top=1), published.frame(top=1))
    assert "40 users" in repr(scored)


def test_the_likeliest_alone(fitted: Fitted, tmp_path: Path) -> None:
    for name, k in (("all", None), ("some", 3)):
        score(fitted.model("neighbours"), fitted.tables, tmp_path / name, device="cpu", top_k=k)
    whole, some = (advprior.load_priors(tmp_path / name) for name in ("all", "some"))
    pd.testing.assert_frame_equal(some.frame(top=None), whole.frame(top=3))
    row = some.of("u003").array()[0]
    assert np.isfinite(row).sum() == 3
    np.testing.assert_array_equal(row[np.isfinite(row)], whole.of("u003").array()[0][np.isfinite(row)])


def test_wrong_input_is_said(fitted: Fitted, tables: dict, tmp_path: Path) -> None:
    run, events = fitted.model("popularity"), tables["events"]
    for wrong, code in (
        (lambda: advprior.load_priors(tmp_path), "PRI080"),
        (lambda: advprior.load_predictor(tmp_path), "RUN001"),
        (lambda: advprior.score_users(run, events.drop(columns="timestamp"), CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, events, CUTOFF, users=["nobody"]), "PRI081"),
        (lambda: advprior.score_users(run, tables, CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, {}, CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, "events.parquet", CUTOFF), "PRI081"),
        (lambda: advprior.score_users(events, run, CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, events, CUTOFF, profiles={"user_id": ["u1"]}), "PRI081"),
        (lambda: advprior.score_users(run, events, CUTOFF, profiles=pd.concat([tables["users"]] * 2)), "PRI081"),
        (lambda: advprior.score_users(run, events, "last week"), "PRI081"),
        (lambda: advprior.score_users(run, events, None), "PRI081"),
        (lambda: advprior.score_users(run, events.assign(timestamp="soon"), CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, events.assign(timestamp=pd.NaT), CUTOFF), "PRI081"),
        (lambda: advprior.score_users(run, events.assign(user_id=None), CUTOFF), "PRI081"),
        (lambda: advprior.fit("popularity", events, CUTOFF, tmp_path / "x"), "PRI081"),
        (lambda: advprior.fit("popularity", {**tables, "events": tables}, CUTOFF, tmp_path / "x"), "PRI081"),
        (lambda: advprior.fit("popularity", tables, CUTOFF, tmp_path / "x", {"smoothness": 1}), "CFG002"),
        (lambda: advprior.fit("forest", tables, CUTOFF, tmp_path / "x"), "PRI003"),
        (lambda: advprior.fit("popularity", tables, PLAN.start, tmp_path / "x"), "PRI006"),
        (lambda: advprior.fit("popularity", {"events": events}, CUTOFF, tmp_path / "x"), "PRI081"),
    ):
        with pytest.raises(AdvpriorError) as caught:
            wrong()
        assert caught.value.code == code
    with pytest.raises(AttributeError):
        advprior.load_forests  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = """
import sys
import advprior
heavy = {"numpy", "pandas", "torch", "feast", "click", "pydantic", "onnxruntime"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(advprior.__all__) <= set(dir(advprior))
advprior.score_users
assert not {"torch", "feast", "transformers", "lightgbm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
