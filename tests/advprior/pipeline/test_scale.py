"""Scoring at scale: shared prompts once, refreshes that equal scoring anew, top-K rows, kills that cost nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.history.fingerprints import input_keys, seen_before
from advprior.history.histories import Histories, build_histories
from advprior.history.read import load_histories
from advprior.pipeline.publish import publish
from advprior.pipeline.rowfiles import Journal, RowFile
from advprior.pipeline.score_shards import plan_shards
from advprior.predictors.registry import load_predictor
from advprior.runtime.topk import kept, top_k
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix, write_matrix
from advprior.store.runs import new_run, read_manifest
from advprior.store.tables import load_tables, write_parquet
from ranking.frame.gather import PriorFiles, gather_priors, mean_probability
from tests.advprior.conftest import Fitted
from tests.advprior.scoring import score
from tests.parity import assert_distributions, assert_other_log_probs, assert_same_log_probs
from tests.tiny import PLAN, WEEK, tiny_tables, write_tiny

REPO_YAML = Path(__file__).parents[3] / "feature_repo/feature_store.yaml"
N = 12


def write_tables(folder: Path, tables: dict[str, pd.DataFrame], plan: TimePlan) -> Path:
    with new_run(folder, "data", config={}, inputs={}, key=str(folder)) as run:
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts["time_plan"] = plan.to_json()
    return folder


def matrix(folder: Path) -> np.ndarray:
    return open_matrix(folder / "log_probs.npy")[:]


# -- identical prompts ---------------------------------------------------------------------------------------


def test_users_with_the_same_prompt_share_one_forward(fitted: Fitted, tmp_path: Path) -> None:
    """Three newcomers with one profile, and two with one history at other hours, cost two forwards more."""
    tables = tiny_tables()
    before = score(fitted.model("llm"), fitted.tables, tmp_path / "before", last=1)
    assert before
    first = tables["events"].user_id[0]
    twin = tables["events"][tables["events"].user_id == first].assign(user_id="z3")
    twin["timestamp"] += timedelta(minutes=1)  # the same days, another time: the same tokens
    tables["events"] = pd.concat([tables["events"], twin])
    profile = tables["users"][tables["users"].user_id == first]
    new = [profile.assign(user_id=f"z{i}") for i in range(4)]
    tables["users"] = pd.concat([tables["users"], *new])
    folder = write_tables(tmp_path / "tables", tables, PLAN)
    # one user a shard asked for: sharing does not hang on being in one batch
    assert score(fitted.model("llm"), folder, tmp_path / "after", last=1, shard_users=1)
    facts = {name: read_manifest(tmp_path / name)["facts"] for name in ("before", "after")}
    assert facts["before"]["forwarded"] == 40
    assert facts["after"]["prompts"] == 44
    assert facts["after"]["forwarded"] == 41  # z3 shares with its twin, z0 to z2 with each other
    log_probs = matrix(tmp_path / "after")
    np.testing.assert_array_equal(log_probs[40], log_probs[41])
    # habit and popularity are each user's own: shared is the network's part, not the prior
    assert np.abs(log_probs[43] - log_probs[int(first[1:])]).max() < 0.01
    assert_distributions(log_probs, 1)


def test_shared_prompts_say_what_they_said_alone(fitted: Fitted) -> None:
    histories, _ = load_histories(fitted.tables)
    scorer = load_predictor(fitted.model("llm")).scorer(fitted.model("llm") / "onnx", "cpu", 1)
    cutoffs = np.asarray([histories.time.max() + 1], np.int64)
    users = np.asarray([3, 5, 3, 3, 9], np.int64)
    together = scorer.score(histories, users, cutoffs)
    assert (scorer.prompts, scorer.forwarded) == (5, 3)
    for i, user in enumerate(users):
        alone = scorer.score(histories, np.asarray([user]), cutoffs)
        assert_same_log_probs(together[i], alone[0])


def test_shards_keep_like_users_together_and_lose_nobody() -> None:
    rng = np.random.default_rng(0)
    alike = rng.integers(0, 30, 200).astype(np.uint64)
    shards = plan_shards(alike, 7)
    assert sorted(np.concatenate(shards).tolist()) == list(range(200))
    where = {int(u): i for i, shard in enumerate(shards) for u in shard}
    for value in np.unique(alike):
        assert len({where[int(u)] for u in np.flatnonzero(alike == value)}) == 1


# -- refresh -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def week_later(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Priors as of an early plan, and the tables one week later: some bought, one came, one changed their profile."""
    folder = tmp_path_factory.mktemp("refresh")
    tables = tiny_tables()
    cut = PLAN.end - WEEK
    plan = TimePlan(PLAN.start, PLAN.finetune_end, PLAN.train_end, PLAN.valid_end, cut)
    events = tables["events"]
    # in the last week before the last snapshot only four users buy: what others did there never happened
    quiet = (events.timestamp < PLAN.end - 2 * WEEK) | events.user_id.isin(["u001", "u007", "u013", "u020"])
    tables["events"] = events[quiet]
    early = dict(tables, events=tables["events"][tables["events"].timestamp < cut - WEEK])
    write_tables(folder / "early", early, plan)
    changed = tables["users"].copy()
    changed.loc[5, "profile_age"] = "18-34" if changed.profile_age[5] != "18-34" else "55+"
    newcomer = changed.iloc[:1].assign(user_id="z9")
    tables["users"] = pd.concat([changed, newcomer])
    write_tables(folder / "late", tables, PLAN)
    assert score(fitted.model("llm"), folder / "early", folder / "priors")
    return folder / "priors", folder / "late"


def test_a_refresh_equals_scoring_everyone(fitted: Fitted, week_later: tuple[Path, Path], tmp_path: Path) -> None:
    priors, late = week_later
    run = fitted.model("llm")
    assert score(run, late, tmp_path / "refreshed", since=priors)
    assert score(run, late, tmp_path / "scratch", last=1)
    facts = read_manifest(tmp_path / "refreshed")["facts"]
    assert facts["snapshots"] == 1
    events = load_tables(late, "events")["events"].dropna(subset="advertiser_id")
    bought = events.user_id[events.timestamp.between(PLAN.end - 2 * WEEK, PLAN.end - WEEK, inclusive="left")].nunique()
    assert bought in (3, 4)  # of the four; one more changed, one is new; everybody else is carried over
    assert facts["forwarded"] == facts["prompts"] == bought + 2
    assert facts["carried"] == 41 - bought - 2
    rows = [pd.read_parquet(tmp_path / name / "rows.parquet") for name in ("refreshed", "scratch")]
    assert (rows[0][["user_id", "snapshot", "prior_row"]] == rows[1][["user_id", "snapshot", "prior_row"]]).all(None)
    assert_same_log_probs(matrix(tmp_path / "refreshed"), matrix(tmp_path / "scratch"))
    # it is no copy: drift and habit moved for those carried over as well
    old = matrix(priors).reshape(40, -1, N)[:, -1]
    for user, row in enumerate(matrix(tmp_path / "refreshed")[:40]):
        assert_other_log_probs(row, old[user])
    # and a refresh can be refreshed in turn
    assert score(run, late, tmp_path / "again", since=tmp_path / "refreshed")
    assert read_manifest(tmp_path / "again")["facts"]["forwarded"] == 0
    assert_same_log_probs(matrix(tmp_path / "again"), matrix(tmp_path / "refreshed"))


def test_a_refresh_of_another_model_or_without_a_network_part_is_refused(
    fitted: Fitted, week_later: tuple[Path, Path], tmp_path: Path
) -> None:
    priors, late = week_later
    with pytest.raises(AdvpriorError, match="PRI012"):
        score(fitted.model("popularity"), late, tmp_path / "out", since=priors)
    assert score(fitted.model("llm"), late, tmp_path / "bare", last=1, keep_network=False)
    with pytest.raises(AdvpriorError, match=r"PRI012(.|\n)*--keep-network"):
        score(fitted.model("llm"), late, tmp_path / "out", since=tmp_path / "bare")


def test_a_control_refreshes_by_scoring_the_new_snapshots(fitted: Fitted, tmp_path: Path) -> None:
    run = fitted.model("neighbours")
    assert score(run, fitted.tables, tmp_path / "all")
    assert score(run, fitted.tables, tmp_path / "new", since=tmp_path / "all")
    last = matrix(tmp_path / "all").reshape(40, -1, N)[:, -1]
    assert_same_log_probs(matrix(tmp_path / "new"), last)


def test_keys_change_with_what_was_known_and_with_nothing_later() -> None:
    def histories(profile: str, times: list[int]) -> Histories:
        offsets = np.asarray([0, 1, 1 + len(times)], np.int64)
        time = np.asarray([1, *times], np.int64)
        return Histories(("a", "b"), ("", profile), offsets, time, np.zeros(len(time), np.int64))

    base = input_keys(histories("x", [3, 5]), 9, "m")
    assert seen_before(histories("x", [3, 5]), 5).tolist() == [1, 2]
    assert input_keys(histories("x", [3, 5, 9]), 9, "m").tolist() == base.tolist()
    for other in (histories("y", [3, 5]), histories("x", [3, 6]), histories("x", [3]), histories("x", [3, 5, 8])):
        assert (input_keys(other, 9, "m") == base).tolist() == [True, False]
    assert not (input_keys(histories("x", [3, 5]), 9, "another") == base).any()


# -- top-K ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("topk")
    for name, k in (("dense", None), ("top", 5)):
        assert score(fitted.model("llm"), fitted.tables, folder / name, top_k=k, last=2)
        (folder / f"repo_{name}").mkdir()
        shutil.copy(REPO_YAML, folder / f"repo_{name}")
        assert publish(folder / name, folder / f"repo_{name}") == "prior_llm"
    return folder / "repo_dense/data/prior_llm", folder / "repo_top/data/prior_llm"


def test_top_k_rows_say_what_whole_rows_say(both: tuple[Path, Path]) -> None:
    dense, top = (PriorFiles.open(folder) for folder in both)
    assert dense.log_probs.shape == (80, N)
    assert top.log_probs.shape == (80, 5)
    assert top.size == N
    rows, advertisers = np.divmod(np.arange(80 * N), N)
    expected, rank = gather_priors(dense, rows, advertisers)
    found, top_rank = gather_priors(top, rows, advertisers)
    inside = top_rank <= 5
    assert inside.sum() == 80 * 5
    assert_same_log_probs(found[inside], expected[inside])
    np.testing.assert_array_equal(top_rank[inside], rank[inside])
    assert (top_rank[~inside] == 6).all()
    assert (rank[~inside] >= 6).all()
    # the tail's share is the mean of what it stands for, so nothing is lost or made up
    whole, share = (np.exp(x.reshape(80, N).astype(np.float64)) for x in (expected, found))
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-4)
    outside = ~inside.reshape(80, N)
    for i in range(80):
        np.testing.assert_allclose(share[i, outside[i]], whole[i, outside[i]].mean(), rtol=1e-4)
    # unknown rows and advertisers stay missing
    assert np.isnan(gather_priors(top, np.asarray([-1, 0]), np.asarray([0, -1]))[0]).all()


def test_an_export_of_before_the_top_graph_gives_the_same_rows(fitted: Fitted, tmp_path: Path) -> None:
    run = shutil.copytree(fitted.model("llm"), tmp_path / "llm")
    (run / "onnx/top.onnx").unlink()
    for name, model in (("old", run), ("new", fitted.model("llm"))):
        assert score(model, fitted.tables, tmp_path / name, top_k=5, last=1)
    for file in ("log_probs.npy", "tail_log_mass.npy"):
        old, new = (open_matrix(tmp_path / name / file)[:] for name in ("old", "new"))
        assert_same_log_probs(new, old)
    old, new = (pd.read_parquet(tmp_path / name / "rows.parquet") for name in ("old", "new"))
    np.testing.assert_allclose(new.entropy, old.entropy, rtol=1e-4)
    assert (new.top1_index == old.top1_index).all()


def test_a_refresh_of_top_k_rows_goes_on_from_states(
    fitted: Fitted, week_later: tuple[Path, Path], tmp_path: Path
) -> None:
    """Some numbers a user are kept, not one for each advertiser, and the rows are those of scoring everyone."""
    priors, late = week_later
    assert score(fitted.model("llm"), priors.parent / "early", tmp_path / "early", top_k=5, keep_network=True)
    assert open_matrix(tmp_path / "early/network_states.npy")[:].shape == (40, 40)  # 32 states, a one, and pads
    assert score(fitted.model("llm"), late, tmp_path / "all", top_k=5, last=1)
    assert score(fitted.model("llm"), late, tmp_path / "new", top_k=5, since=tmp_path / "early")
    facts = read_manifest(tmp_path / "new")["facts"]
    assert 0 < facts["carried"] < 40
    assert_same_log_probs(matrix(tmp_path / "new"), matrix(tmp_path / "all"))
    # whole rows need whole rows to go on from
    with pytest.raises(AdvpriorError, match=r"PRI012(.|\n)*network.npy"):
        score(fitted.model("llm"), late, tmp_path / "dense", since=tmp_path / "early")


def test_means_over_users_include_the_tail(both: tuple[Path, Path]) -> None:
    top = PriorFiles.open(both[1])
    rows, snapshots = np.arange(80), np.tile([1, 2], 40)
    moments, means = mean_probability(top, rows, snapshots)
    assert moments.tolist() == [1, 2]
    for i, moment in enumerate(moments):
        by_hand = np.mean([np.exp(top.row(int(r)).astype(np.float64)) for r in rows[snapshots == moment]], axis=0)
        np.testing.assert_allclose(means[i], by_hand, rtol=1e-5)


def test_published_top_k_table_holds_ids_and_the_tail(both: tuple[Path, Path]) -> None:
    table = pd.read_parquet(both[1] / "table.parquet")
    index, log_probs = np.stack(table.top_index.to_list()), np.stack(table.log_probs.to_list())
    assert index.shape == log_probs.shape == (80, 5)
    np.testing.assert_array_equal(index, open_matrix(both[1] / "top_index.npy")[:])
    np.testing.assert_array_equal(table.tail_log_mass, open_matrix(both[1] / "tail_log_mass.npy")[:])
    assert (table.top1_index == index[:, 0]).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(1) + np.exp(table.tail_log_mass), 1, rtol=1e-4)
    # what Feast serves of a dense prior knows nothing of it
    assert "top_index" not in pd.read_parquet(both[0] / "table.parquet").columns


@pytest.mark.parametrize("damage", ["tail", "doubled", "gone"])
def test_damaged_top_k_priors_are_refused(both: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(both[1].parents[2] / "top", broken)
    if damage == "tail":
        write_matrix(broken / "tail_log_mass.npy", [open_matrix(broken / "tail_log_mass.npy")[:] + np.float32(0.1)])
    elif damage == "doubled":
        index = open_matrix(broken / "top_index.npy")[:]
        index[3, 1] = index[3, 0]
        write_matrix(broken / "top_index.npy", [index])
    else:
        (broken / "tail_log_mass.parquet").unlink()
    repo = tmp_path / "repo"
    repo.mkdir()
    shutil.copy(REPO_YAML, repo)
    with pytest.raises(AdvpriorError, match="PRI010"):
        publish(broken, repo)


def test_ties_at_the_edge_keep_the_lower_index() -> None:
    log_probs = np.log(np.asarray([[0.1, 0.2, 0.2, 0.3, 0.2]], np.float32))
    index, best, tail = top_k(log_probs, 2)
    assert index.tolist() == [[3, 1]]
    np.testing.assert_allclose(np.exp(best), [[0.3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(tail), [0.5], rtol=1e-6)
    assert kept(10_000, None) is None
    assert kept(10_001, None) == 100


# -- kills ---------------------------------------------------------------------------------------------------


def test_three_kills_cost_nothing(fitted: Fitted, tmp_path: Path) -> None:
    """Killed at three random moments and run again: bit for bit what an undisturbed run writes."""
    calm, out = tmp_path / "calm", tmp_path / "killed"
    assert score(fitted.model("llm"), fitted.tables, calm, shard_users=1, threads=1, device="cpu")
    call = [
        sys.executable,
        "-m",
        "advprior",
        "score",
        str(fitted.model("llm")),
        "--tables",
        str(fitted.tables),
        "--out",
        str(out),
        "--shard-users",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    journal = tmp_path / ".killed.partial" / "journal.jsonl"
    rng = np.random.default_rng(7)
    done = 0
    for lines in np.sort(rng.choice(np.arange(2, 34), 3, replace=False)):
        # slowed down by shards of one user; killed a random moment after a random shard
        process = subprocess.Popen(call, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and (journal.read_bytes().count(b"\n") if journal.is_file() else 0) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(float(rng.uniform(0, 0.003)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            pytest.skip("it was done before it could be killed")
        now = journal.read_bytes().count(b"\n")
        assert done <= now < 40
        done = now
    # a line torn by the kill, and rows of a shard that was never noted as done
    with journal.open("ab") as handle:
        handle.write(b'{"shard": 39, "max_')
    damaged = RowFile(tmp_path / ".killed.partial" / "log_probs.npy", matrix(calm).shape, np.float32)
    damaged.write(np.asarray([39 * len(PLAN.snapshots())]), np.full((1, N), 7.0, np.float32))
    damaged.close()
    subprocess.run(call, check=True, capture_output=True)
    for name in ("log_probs.parquet", "rows.parquet", "network.parquet", "network_keys.npy", "catalog.json"):
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name
    assert {p.name for p in out.iterdir()} == {p.name for p in calm.iterdir()}
    rows = pd.read_parquet(out / "rows.parquet")
    assert len(rows) == 40 * len(PLAN.snapshots())
    assert not rows.duplicated(["user_id", "snapshot"]).any()


def test_rows_are_written_where_they_belong(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.npy", (6, 2), np.float32)
    file.write(np.asarray([4, 5, 0, 2]), np.arange(8).reshape(4, 2))
    file.close()
    again = RowFile(tmp_path / "a.npy", (6, 2), np.float32)
    again.write(np.asarray([1]), np.asarray([[9, 9]]))
    expected = [[4, 5], [9, 9], [6, 7], [0, 0], [0, 1], [2, 3]]
    assert np.concatenate(list(again.blocks(4))).tolist() == expected
    again.close()
    assert np.load(tmp_path / "a.npy").tolist() == expected


def test_a_torn_line_of_the_journal_is_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path / "j").add(3, {"x": 1})
    with (tmp_path / "j").open("ab") as handle:
        handle.write(b'{"sh')
    journal = Journal(tmp_path / "j")
    assert journal.done == {3: {"x": 1}}
    journal.add(4, {})
    assert sorted(Journal(tmp_path / "j").done) == [3, 4]


# -- reading -------------------------------------------------------------------------------------------------


def test_histories_read_by_codes_are_the_same(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tables")
    histories, catalog = load_histories(folder)
    loaded = load_tables(folder, "users", "events")
    expected = build_histories(loaded["users"], loaded["events"], catalog)
    assert (histories.users, histories.profiles) == (expected.users, expected.profiles)
    for name in ("offsets", "time", "advertiser"):
        np.testing.assert_array_equal(getattr(histories, name), getattr(expected, name))
    (folder / "events.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(AdvpriorError, match="DAT002"):
        load_histories(folder)
