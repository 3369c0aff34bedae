"""Quota by hand and by property; a curve through the real store, where a prior that knows must bring unique hits."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.contract import LLM, MATRIX_FILE, PLACEBO, TABLE_FILE, pair_id
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from ranking.candidates.choose import choose
from ranking.candidates.curve import CandidateCurve
from ranking.candidates.priors import predicted, prior_rows
from ranking.cli import rank
from ranking.evidence.ordering import Sorted, concentration
from tests.ranking.stores import apply, copy_repo, publish_priors, random_priors
from tests.tiny import PLAN, tiny_tables, write_tiny

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


def invoke(*arguments):
    return CliRunner().invoke(rank, [str(a) for a in arguments], catch_exceptions=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_a_choice_is_the_loop_written_out(rows, k, quota):
    request, score, wanted = (np.array(column) for column in zip(*rows, strict=True))
    ranked = Sorted.of(request, score)
    taken = choose(ranked, wanted, k, quota)
    for r in np.unique(request):
        order = [i for i in ranked.order if request[i] == r]
        assert (np.diff(score[order]) <= 0).all()
        kept = round(quota * k)
        head = order[: k - kept]
        extra = [i for i in order[k - kept :] if wanted[i]][:kept]
        rest = [i for i in order if i not in head and i not in extra][: k - len(head) - len(extra)]
        assert sorted(np.flatnonzero(taken & (request == r))) == sorted([*head, *extra, *rest])


def test_concentration_by_hand():
    assert concentration(np.array([0, 1, 2, 3])) == pytest.approx(0.25)
    assert concentration(np.array([0, 1]), np.array([3.0, 1.0])) == pytest.approx(0.625)


def knowing(tables, strength):
    """Priors that know what each user will buy, as a test wants them."""
    users, advertisers = tables["users"].user_id.tolist(), tables["advertisers"].advertiser_id.tolist()
    bought = tables["impressions"].query("label == 1").groupby(["user_id", "advertiser_id"]).size()
    cells = pd.MultiIndex.from_product([users, advertisers])
    table = bought.reindex(cells, fill_value=0).to_numpy(np.float64).reshape(len(users), -1)
    logits = np.tile(strength * np.log1p(table), (len(PLAN.snapshots()), 1))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("candidates")
    tables, repo = write_tiny(root / "tables"), copy_repo(root / "feature_repo")
    loaded = tiny_tables()
    users, advertisers = loaded["users"].user_id.tolist(), loaded["advertisers"].advertiser_id.tolist()
    for name, strength in ((LLM, 3.0), (PLACEBO, 0.0)):
        files = random_priors(users, advertisers, PLAN.snapshots(), PLAN.lag, PLAN.finetune_end, 1)
        if strength:
            files[MATRIX_FILE] = knowing(loaded, strength)
            files[TABLE_FILE] = files[TABLE_FILE].assign(
                log_probs=list(files[MATRIX_FILE][files[TABLE_FILE].prior_row])
            )
        publish_priors(repo, tables, name, **files)
    apply(repo)
    done = invoke("towers", "--tables", tables, "--out", root / "towers", "--size", 4, "--epochs", 1, "--threads", 1)
    assert done.exit_code == 0, done.output
    command = (
        "candidates",
        "--tables",
        tables,
        "--repo",
        repo,
        "--towers",
        root / "towers",
        "--k",
        6,
        "--top",
        2,
        "--replicates",
        200,
    )
    done = invoke(*command, "--out", root / "curve")
    assert done.exit_code == 0, done.output
    return root, tables, repo, command, done


def test_priors_that_know_bring_unique_hits_and_a_placebo_does_not(workspace):
    root, _, _, _, done = workspace
    curve = CandidateCurve.load(root / "curve")
    frame = curve.frame()
    assert (frame.query("quota == 0")["unique_hits"] == 0).all()
    assert (frame.query("quota == 0")["gain"] == 0).all()
    row = curve.at_choice(LLM)
    assert curve.chosen[LLM] > 0
    assert row.low > 0.05
    assert row.unique_hits > row.lost_hits
    assert row.recall == pytest.approx(row.hits / row.engaged)
    alone = frame.query("predictor == 'llm' and split == 'test' and quota == 0").iloc[0]
    assert row.hits == alone.hits + row.unique_hits - row.lost_hits
    assert frame["hhi"].between(1 / 12, 1).all()  # of 12 advertisers
    assert frame.query("predictor == 'placebo' and split == 'test' and quota == 1")["gain"].iloc[0] < row.gain
    assert curve.sentence(LLM) in done.output
    assert "a gain; by one fit of the towers" in curve.sentence(LLM)
    assert "whether a control does as well was not measured" in curve.sentence(LLM)
    placebo = curve.claim(LLM).placebo
    assert placebo.over.difference == pytest.approx(row.recall - curve.at_choice(PLACEBO).recall)
    assert placebo.over.adjusted_low < placebo.over.low
    assert curve.told == [LLM]
    assert len(curve.plot().axes) == 2
    assert "Change in recall@6" in curve.plot().axes[0].get_title(loc="left")
    assert "towers alone" in curve._repr_html_()


def test_priors_are_those_known_at_the_time(workspace):
    _, _, repo, _, _ = workspace
    first = np.datetime64(PLAN.finetune_end.replace(tzinfo=None), "us")
    lag = np.timedelta64(int(PLAN.lag.total_seconds()), "s")
    time = np.array([first + lag - np.timedelta64(1, "us"), first + lag, first + np.timedelta64(8, "D")])
    rows = prior_rows(repo, LLM, ["u001"] * 3, time)
    assert rows.tolist() == [-1, 1, 41]  # 40 users a snapshot
    of_ad = ["a00", "nobody", *[f"a{i:02d}" for i in range(1, 12)]]
    wanted = predicted(repo, LLM, rows, pd.DataFrame({"advertiser_id": of_ad, "category": "Tea"}), 3)
    assert wanted.sum(axis=1).tolist() == [0, 3, 3]
    assert not wanted[:, 1].any()


def test_a_prior_over_pairs_predicts_ads_by_advertiser_and_category(workspace, tmp_path):
    _, tables, _, _, _ = workspace
    repo, ads = copy_repo(tmp_path / "feature_repo"), tiny_tables()["ads"]
    pairs = [pair_id(a, c) for a, c in zip(ads.advertiser_id, ads.category, strict=True)]
    users = tiny_tables()["users"].user_id.tolist()
    files = random_priors(users, pairs, PLAN.snapshots(), PLAN.lag, PLAN.finetune_end, 1)
    publish_priors(repo, tables, "text_pair", **files)
    found = predicted(repo, "text_pair", np.array([-1, 0, 41]), ads, 2)
    best = np.sort(
        np.argsort(-open_matrix(repo / "data/prior_text_pair" / MATRIX_FILE)[:][[0, 41]], axis=1)[:, :2], axis=1
    )
    assert [np.flatnonzero(row).tolist() for row in found] == [[], *best.tolist()]


def test_a_prior_of_a_later_model_is_refused(workspace, tmp_path):
    _, tables, _, _, _ = workspace
    repo = copy_repo(tmp_path / "feature_repo")
    loaded = tiny_tables()
    users, advertisers = loaded["users"].user_id.tolist(), loaded["advertisers"].advertiser_id.tolist()
    publish_priors(repo, tables, LLM, **random_priors(users, advertisers, PLAN.snapshots(), PLAN.lag, PLAN.end, 1))
    apply(repo)
    time = pd.DatetimeIndex([PLAN.valid_end]).tz_localize(None).to_numpy("datetime64[us]")
    with pytest.raises(AdvpriorError, match="RNK001"):
        prior_rows(repo, LLM, ["u001"], time)


def test_unchanged_is_reused_and_faults_are_said(workspace, tmp_path):
    root, tables, repo, command, _ = workspace
    assert "unchanged, reused" in invoke(*command, "--out", root / "curve").output
    assert (
        "unchanged, reused"
        in invoke(
            "towers", "--tables", tables, "--out", root / "towers", "--size", 4, "--epochs", 1, "--threads", 1
        ).output
    )
    with pytest.raises(AdvpriorError, match="STO003"):
        invoke(*command, "--out", tmp_path / "c", "--predictors", "nobody")
    with pytest.raises(AdvpriorError, match="RUN003"):
        invoke("candidates", "--tables", tables, "--repo", repo, "--towers", tables, "--out", tmp_path / "c")
    with pytest.raises(AdvpriorError, match="RUN003"):
        CandidateCurve.load(root / "towers")
    (root / "curve" / "candidates.json").write_text("{}")
    with pytest.raises(AdvpriorError, match="RNK032"):
        CandidateCurve.load(root / "curve")
    assert not (tmp_path / "c").exists()
