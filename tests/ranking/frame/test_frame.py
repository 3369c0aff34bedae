"""The frame through the real Feast store, against joins and sums written out by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from advprior.store.contract import (
    LLM,
    POPULARITY,
    TABLE_FILE,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from advprior.store.runs import read_manifest
from advprior.store.tables import read_parquet
from ranking.cli.measure import features as features_command
from ranking.cli.measure import frame as frame_command
from ranking.frame.build import build_frame, write_frame
from ranking.frame.columns import clock_columns
from ranking.frame.join import join_features, open_store, scalar_refs
from ranking.frame.rows import SortedRows
from ranking.frame.views import view_folder
from tests.ranking.stores import Workspace, apply, copy_repo, publish, publish_priors, random_priors
from tests.tiny import PLAN, tiny_tables, write_tiny

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
DAY = timedelta(days=1)
TTL = 14 * DAY
TICK = timedelta(microseconds=1)
T0 = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def frame(workspace: Workspace) -> pd.DataFrame:
    return build_frame(workspace.tables, workspace.repo, [LLM, POPULARITY]).frame


# -- the point-in-time join ----------------------------------------------------------------------------------------
# One user of a batch is one generated case, so that an example of many cases is one join.


def sum_times(pair: tuple[datetime, timedelta]) -> datetime:
    return pair[0] + pair[1]


_EVENTS = st.integers(0, 4).map(lambda week: T0 + 7 * week * DAY)  # few distinct times: ties are common
_DELAYS = st.sampled_from([timedelta(0), timedelta(hours=1), 10 * DAY])  # late rows
_ROWS = st.lists(st.tuples(_EVENTS, _DELAYS), max_size=6)
_MOMENTS = st.lists(
    st.tuples(_EVENTS, st.sampled_from([-TICK, timedelta(0), TICK, 3 * DAY, TTL, TTL + TICK])).map(sum_times),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A store whose priors each example publishes anew."""
    repo = copy_repo(tmp_path_factory.mktemp("join") / "feature_repo")
    _publish_rows(repo, [[(T0, timedelta(0))]])
    return repo, apply(repo)


def _publish_rows(repo: Path, cases: list[list[tuple[datetime, timedelta]]]) -> pd.DataFrame:
    rows = [(f"u{i}", event, event + delay) for i, case in enumerate(cases) for event, delay in case]
    files = random_priors([f"r{i}" for i in range(len(rows))], ["a", "b"], [T0], timedelta(0), T0, 0)
    table = files[TABLE_FILE].sort_values("prior_row").reset_index(drop=True)
    table["user_id"] = [user for user, _, _ in rows]
    for name, at in (("event_timestamp", 1), ("created_timestamp", 2), ("snapshot", 1)):
        table[name] = pd.Series(pd.DatetimeIndex([row[at] for row in rows]).as_unit("us"))
    publish(repo, prior_view(LLM), files | {TABLE_FILE: table.sample(frac=1, random_state=0)})
    return table


# no shrinking: a batch of cases is one join, and the assertion names the row
@settings(
    max_examples=8,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cases=st.lists(st.tuples(_ROWS, _MOMENTS), min_size=25, max_size=40))
def test_join_equals_brute_force(
    bare: tuple[Path, Any], cases: list[tuple[list[tuple[datetime, timedelta]], list[datetime]]]
) -> None:
    repo, store = bare
    published = _publish_rows(repo, [[(T0, timedelta(0))], *(rows for rows, _ in cases)])
    asked = [(f"u{i}", moment) for i, (_, moments) in enumerate(cases, start=1) for moment in moments]
    entities = pd.DataFrame(asked, columns=["user_id", "event_timestamp"])
    entities["event_timestamp"] = entities.event_timestamp.dt.as_unit("us")
    entities.insert(0, "impression_id", np.random.default_rng(len(asked)).permutation(len(asked)))

    joined = join_features(store, ["prior_llm:prior_row", "prior_llm:snapshot"], entities)
    found = joined.pop("prior_llm__prior_row").to_pylist()
    assert joined.pop("impression_id").to_pylist() == entities.impression_id.tolist()  # rows kept, order restored
    for (user, moment), row in zip(asked, found, strict=True):
        fits = published[
            (published.user_id == user)
            & (published.event_timestamp <= moment)
            & (published.created_timestamp <= moment)
            & (published.event_timestamp + TTL >= moment)
        ]
        if fits.empty:
            assert row is None
            continue
        newest = fits[fits.event_timestamp == fits.event_timestamp.max()]
        latest = newest[newest.created_timestamp == newest.created_timestamp.max()]
        assert row in latest.prior_row.tolist()  # more than one only for exact duplicates
        assert published.event_timestamp[row] <= moment


# -- the whole frame -----------------------------------------------------------------------------------------------


def test_every_impression_once_and_split_by_the_plan(frame: pd.DataFrame) -> None:
    impressions = tiny_tables()["impressions"]
    expected = impressions[impressions.timestamp >= PLAN.finetune_end]
    assert sorted(frame.impression_id) == sorted(expected.impression_id)
    assert frame.timestamp.is_monotonic_increasing
    joined = frame.merge(expected, on="impression_id", suffixes=("", "_given"))
    for name in ("slate_id", "timestamp", "label"):
        assert (joined[name] == joined[f"{name}_given"]).all()
    for name in ("user_id", "ad_id", "advertiser_id", "context_placement"):
        assert (joined[name].astype(str) == joined[f"{name}_given"]).all()
    split = np.where(
        frame.timestamp < PLAN.train_end, "train", np.where(frame.timestamp < PLAN.valid_end, "valid", "test")
    )
    assert (frame.split.astype(str) == split).all()
    assert frame.dtypes.map(str).isin(["float32", "category", "int64", "int8", "bool", "datetime64[us, UTC]"]).all()


def test_features_equal_what_was_known_then(workspace: Workspace, frame: pd.DataFrame) -> None:
    """Every feature group of sampled impressions against raw rows and published vectors."""
    tables = tiny_tables()
    ads, users = tables["ads"].set_index("ad_id"), tables["users"].set_index("user_id")
    folder = view_folder(workspace.repo, prior_view(LLM))
    priors = pd.read_parquet(folder / "table.parquet")
    index = {
        a["advertiser_id"]: i for i, a in enumerate(json.loads((folder / "catalog.json").read_text())["advertisers"])
    }
    stats = pd.read_parquet(view_folder(workspace.repo, "ad_stats") / "table.parquet")
    unknown = 0
    for row in frame.sample(120, random_state=0).itertuples():
        snapshot = max(s for s in PLAN.feature_snapshots() if s + PLAN.lag <= row.timestamp)
        mine = tables["events"][tables["events"].user_id == row.user_id]
        same_ad = (mine.advertiser_id == row.advertiser_id) & (mine.category == ads.category[row.ad_id])
        for level, same in (
            ("advertiser", mine.advertiser_id == row.advertiser_id),
            ("ad", same_ad),
            ("category", mine.category == ads.category[row.ad_id]),
        ):
            times = mine.timestamp[same & (mine.timestamp < snapshot)].drop_duplicates()
            expected = [(times >= snapshot - d * DAY).sum() for d in (7, 28, 84)] + [len(times)]
            assert [getattr(row, f"history_{level}_{w}") for w in ("1w", "4w", "12w", "all")] == expected
            recency = (row.timestamp - times.max()) / DAY if len(times) else np.nan
            assert getattr(row, f"history_{level}_recency_days") == pytest.approx(recency, rel=1e-4, nan_ok=True)
        assert row.segment_never_advertiser == (
            not ((mine.advertiser_id == row.advertiser_id) & (mine.timestamp < row.timestamp)).any()
        )
        assert row.segment_never_ad == (not (same_ad & (mine.timestamp < row.timestamp)).any())
        assert row.activity_occasions_all == mine.timestamp[mine.timestamp < snapshot].nunique()
        assert str(row.profile_age) == users.profile_age[row.user_id]
        assert str(row.ad_category) == ads.category[row.ad_id]
        assert row.ad_rate_4w == stats[(stats.ad_id == row.ad_id) & (stats.snapshot == snapshot)].ad_rate_4w.item()

        known = priors[priors.event_timestamp <= row.timestamp]
        prior = known[known.user_id == row.user_id].sort_values("event_timestamp")
        advertiser = index.get(row.advertiser_id)  # the test catalog lacks the last advertiser
        if prior.empty or advertiser is None:
            unknown += 1
            assert row.prior_llm_missing == 1
            assert all(np.isnan(getattr(row, f"prior_llm_{c}")) for c in ("log_prob", "log_ratio", "rank", "top20"))
            continue
        prior = prior.iloc[-1]
        assert row.prior_llm_missing == 0
        assert row.prior_llm_log_prob == prior.log_probs[advertiser]
        assert row.prior_llm_rank == 1 + (prior.log_probs > prior.log_probs[advertiser]).sum()
        assert row.prior_llm_top20 == (row.prior_llm_rank <= 20)
        assert row.prior_llm_entropy == prior.entropy
        assert row.prior_llm_age_days == pytest.approx((row.timestamp - prior.snapshot) / DAY, rel=1e-5)
        everyone = np.exp(np.stack(priors.log_probs[priors.snapshot == prior.snapshot]).astype(float)).mean(axis=0)
        assert row.prior_llm_log_ratio == pytest.approx(
            prior.log_probs[advertiser] - np.log(everyone[advertiser]), abs=1e-4
        )
    assert 0 < unknown < 60


def test_rows_before_the_first_lag_have_no_prior(tmp_path: Path, workspace: Workspace) -> None:
    """Within the lag of the first snapshot a prior is not there yet, while history comes from the snapshot before."""
    tables = Path(shutil.copytree(workspace.tables, tmp_path / "tables"))
    impressions = pd.read_parquet(tables / "impressions.parquet")
    early = impressions.index[impressions.timestamp >= PLAN.finetune_end][0]
    impressions.loc[early, "timestamp"] = PLAN.finetune_end + PLAN.lag - TICK
    impressions.to_parquet(tables / "impressions.parquet", index=False, coerce_timestamps="us")
    built = build_frame(tables, workspace.repo, [LLM]).frame
    row = built[built.impression_id == impressions.impression_id[early]].iloc[0]
    assert row.prior_llm_missing == 1
    assert np.isnan(row.prior_llm_entropy)
    assert np.isnan(row.prior_llm_age_days)
    assert row.activity_occasions_all >= 0


def test_later_model_cutoff_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    repo = Path(shutil.copytree(workspace.repo, tmp_path / "feature_repo", symlinks=True))
    table = pd.read_parquet(view_folder(repo, prior_view(LLM)) / TABLE_FILE)
    table["model_cutoff"] = pd.Series([PLAN.train_end] * len(table)).dt.as_unit("us")
    publish_priors(repo, workspace.tables, LLM, seed=1, **{TABLE_FILE: table})
    apply(repo)
    with pytest.raises(AdvpriorError, match="RNK001"):
        build_frame(workspace.tables, repo, [LLM])


def test_a_store_is_opened_without_torch(workspace: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path; from ranking.frame.join import open_store; "
        f"open_store(Path({str(workspace.repo)!r})); assert 'torch' not in sys.modules; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_a_service_that_is_not_applied_is_named(workspace: Workspace) -> None:
    with pytest.raises(AdvpriorError, match="STO005") as caught:
        scalar_refs(open_store(workspace.repo), [prior_service("nobody")], workspace.repo)
    published, applied = str(caught.value.fix).split("; then ")
    assert published == f"advprior publish PRIORS/nobody --repo {workspace.repo}"
    assert applied == f"feast -c {workspace.repo} apply"


def test_never_before_excludes_ties_and_missing_keys(tmp_path: Path) -> None:
    """By user and advertiser, and by user, advertiser and category: exact, no snapshot."""
    times = pd.DatetimeIndex([PLAN.finetune_end, PLAN.finetune_end + DAY]).as_unit("us")
    events = pd.DataFrame(
        {
            "user_id": ["u", "u", "u"],
            "advertiser_id": ["a", None, "b"],
            "category": ["Tea", "Tea", None],
            "timestamp": times[[0, 1, 0]],
        }
    )
    shown = pd.DataFrame(
        {
            "user_id": ["u", "u", "v", "u", "u"],
            "ad_id": ["a1", "a1", "a1", "b1", "c1"],
            "advertiser_id": ["a", "a", "a", "b", "c"],
            "timestamp": [times[0], times[0] + TICK, times[1], times[1], times[1]],
        }
    ).assign(impression_id=np.arange(5), slate_id=np.arange(5), label=np.int8(0))
    ads = pd.DataFrame(
        {"ad_id": ["a1", "b1", "c1"], "advertiser_id": ["a", "b", "c"], "category": ["Tea", "Tea", None]}
    )
    folder = write_tiny(tmp_path / "tables")
    for name, table in (("impressions", shown), ("ads", ads)):
        table.to_parquet(folder / f"{name}.parquet", index=False, coerce_timestamps="us")
    for count, never_advertiser, never_ad in (
        (3, [True, False, True, False, True], [True, False, True, True, True]),
        (0, [True] * 5, [True] * 5),
    ):
        events.iloc[:count].to_parquet(folder / "events.parquet", index=False, coerce_timestamps="us")
        rows = SortedRows.load(folder, PLAN, tmp_path)
        parts = list(rows.parts(2))
        assert [len(part.table) for part in parts] == [2, 2, 1]
        found = pd.concat([part.table.assign(adv=part.never_advertiser, ad=part.never_ad) for part in parts])
        found = found.set_index("impression_id").sort_index()
        assert found.adv.tolist() == never_advertiser
        assert found.ad.tolist() == never_ad


def test_a_frame_of_many_parts_is_the_frame(
    tmp_path: Path, workspace: Workspace, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell by cell, in its order, read in three ways; and what the checks count is of the whole."""
    whole = SortedRows.parts
    monkeypatch.setattr(SortedRows, "parts", lambda self: whole(self, len(frame) // 3))
    warnings, facts = write_frame(workspace.tables, workspace.repo, [LLM, POPULARITY], tmp_path)
    assert len(list((tmp_path / "frame.parquet").iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["frame.parquet"]  # what was sorted is gone
    for read in (pd.read_parquet, read_parquet, lambda path: pq.read_table(path).to_pandas()):
        pd.testing.assert_frame_equal(read(tmp_path / "frame.parquet"), frame, check_categorical=False)
    monkeypatch.undo()
    once = build_frame(workspace.tables, workspace.repo, [LLM, POPULARITY])
    assert facts == once.facts
    assert warnings == once.warnings


def test_the_baseline_knows_the_time_of_week() -> None:
    moments = np.array(["2024-03-04T00:00", "2024-03-10T18:00", "1969-12-31T06:00"], dtype="datetime64[us]")
    found = clock_columns(moments)
    assert found["clock_days_into_week"].tolist() == [0.0, 6.75, 2.25]  # a Monday, a Sunday, a Wednesday
    assert found["clock_hour"].tolist() == [0.0, 18.0, 6.0]


# -- the commands --------------------------------------------------------------------------------------------------


def test_commands_publish_once_and_reuse(tmp_path: Path, workspace: Workspace) -> None:
    tables, repo = workspace.tables, Path(shutil.copytree(workspace.repo, tmp_path / "feature_repo", symlinks=True))
    run, both = CliRunner(), ["--tables", str(tables), "--repo", str(repo)]
    assert "unchanged" in run.invoke(features_command, both, catch_exceptions=False).output
    apply(repo)
    out = tmp_path / "frame"
    first = run.invoke(frame_command, [*both, "--out", str(out)], catch_exceptions=False)
    assert "priors of llm, popularity" in first.output  # those published, when none are named
    assert "unchanged" in run.invoke(frame_command, [*both, "--out", str(out)], catch_exceptions=False).output
    facts = read_manifest(out, step="rank frame")["facts"]
    assert sum(facts["rows"].values()) == len(pd.read_parquet(out / "frame.parquet"))
    assert pd.read_parquet(out / "frame.parquet").ad_category.dtype == "category"
    publish_priors(repo, tables, LLM, seed=3)
    again = run.invoke(frame_command, [*both, "--out", str(out), "--predictors", "llm"], catch_exceptions=False)
    assert "unchanged" not in again.output
    with pytest.raises(AdvpriorError, match="CFG001"):
        run.invoke(frame_command, [*both, "--out", str(out), "--predictors", ","], catch_exceptions=False)


def test_a_stale_prior_is_the_one_known_so_many_weeks_before(workspace: Workspace) -> None:
    result = build_frame(*workspace, [LLM], stale=[1, 4])
    made = result.frame
    fresh, old = made["prior_llm_age_days"], made["prior_stale4w_llm_age_days"]
    both = fresh.notna() & old.notna()
    assert both.any()
    assert np.allclose(old[both] - fresh[both], 28)
    # the value is that of the same user's fresh row four weeks before, wherever such an impression was
    published = pd.read_parquet(view_folder(workspace.repo, "prior_llm") / TABLE_FILE)
    matrix = open_matrix(view_folder(workspace.repo, "prior_llm") / "log_probs.npy")[:]
    index = {f"a{i:02d}": i for i in range(matrix.shape[1])}
    rows = made[both & made["advertiser_id"].astype(str).isin(index)].sample(20, random_state=0)
    for row in rows.itertuples():
        known = published[(published.user_id == row.user_id) & (published.event_timestamp <= row.timestamp - 28 * DAY)]
        newest = known.sort_values("event_timestamp").iloc[-1]
        assert row.prior_stale4w_llm_log_prob == matrix[newest.prior_row, index[row.advertiser_id]]
    assert (made["prior_stale4w_llm_missing"][old.isna()] == 1).all()
    assert made["prior_stale1w_llm_log_prob"].notna().sum() > made["prior_stale4w_llm_log_prob"].notna().sum()
    features = {feature["name"]: feature for feature in result.facts["features"]}
    of_old = features["prior_stale4w_llm_entropy"]
    assert (of_old["group"], of_old["source"]) == ("prior_stale4w_llm", "prior_llm")


def test_rows_that_share_a_key_and_a_time_are_joined_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ads of a slate ask for their user's row once; every row still gets its own."""
    store = open_store(workspace.repo)
    refs = ["user_history:history_row", "prior_llm:prior_row", "ad_stats:ad_rate_all"]
    time = pd.Timestamp(PLAN.valid_end)
    entities = pd.DataFrame(
        {
            "impression_id": [7, 3, 9, 1],
            "user_id": ["u001", "u002", "u001", "u001"],
            "ad_id": ["a00/Tea", "a01/Coffee", "a01/Coffee", "a00/Tea"],
            "event_timestamp": [time, time, time, time + DAY * 7],
        }
    )
    asked = []
    ask = store.get_historical_features

    def counted(**options: Any) -> Any:
        asked.append(len(options["entity_df"]))
        return ask(**options)

    monkeypatch.setattr(store, "get_historical_features", counted)
    joined = join_features(store, refs, entities)
    assert sorted(asked) == [3, 3]  # (user, time), and (ad, time)
    prior = joined.pop("prior_llm__prior_row").to_pylist()
    assert prior[0] == prior[2] != prior[1]
    assert prior[3] not in prior[:3]
    rate = joined.pop("ad_stats__ad_rate_all").to_pylist()
    assert rate[1] == rate[2]
    monkeypatch.undo()
    alone = [join_features(store, refs, entities.iloc[[i]]).pop("ad_stats__ad_rate_all")[0].as_py() for i in range(4)]
    assert rate == alone
