"""Intervals are valid: they cover zero under the null as often as they say, and a planted difference is found."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap, user_weights
from ranking.evidence.lift import OVERALL, Lifts, as_lifts
from ranking.evidence.metrics import DEFAULT_METRICS, Auc, Ndcg, Rows


def bootstrap(scores, label, user, pairs, *, slate=None, segments=None, cutoff=None, **options):
    outcomes = Outcomes.of(label, user, slate=slate, segments=segments, cutoff=cutoff)
    return paired_bootstrap(scores, outcomes, pairs, Resampling(**options))


def world(rng, users=60, rows=40):
    """Truth and labels of users who differ from one another."""
    user = np.repeat(np.arange(users), rows)
    truth = rng.normal(-2, 1, users * rows) + np.repeat(rng.normal(0, 0.7, users), rows)
    label = (rng.random(len(truth)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    return user, truth, label, user * 4 + np.tile(np.arange(rows) % 4, users)


def noisy(rng, truth, user, sd):
    """Scores as a ranker gives them: the truth with noise by row and by user."""
    return 1 / (1 + np.exp(-(truth + rng.normal(0, sd, len(truth)) + rng.normal(0, 0.5, user.max() + 1)[user])))


def test_intervals_cover_zero_under_the_null_at_the_nominal_rate():
    rng = np.random.default_rng(3)
    covered = {m.name: 0 for m in DEFAULT_METRICS}
    worlds = 200
    for i in range(worlds):
        user, truth, label, slate = world(rng)
        arms = {arm: [noisy(rng, truth, user, 1.0)] for arm in ("base", "arm")}
        for lift in bootstrap(arms, label, user, [("arm", "base")], slate=slate, replicates=200, seed=i):
            covered[lift.metric] += lift.low <= 0 <= lift.high
    # 200 worlds at .95: 190 expected, standard deviation 3.1; percentile intervals of 60 users run a little short
    assert all(0.90 <= n / worlds <= 0.99 for n in covered.values()), covered


def test_training_noise_is_in_the_interval():
    """Three seeds that differ by luck alone: without their spread, half of the intervals would miss zero."""
    rng = np.random.default_rng(4)
    covered, worlds = 0, 100
    for i in range(worlds):
        user, truth, label, _ = world(rng, users=400, rows=10)
        arms = {
            arm: [noisy(rng, truth, np.zeros_like(user), sd) for sd in rng.uniform(0.2, 1.8, 3)]
            for arm in ("arm", "base")
        }
        (lift,) = bootstrap(arms, label, user, [("arm", "base")], metrics=(Auc(),), replicates=200, seed=i)
        covered += lift.low <= 0 <= lift.high
        by_seed = [Auc()(Rows.of(label, a)) - Auc()(Rows.of(label, b)) for a, b in zip(*arms.values(), strict=True)]
        assert lift.seed_sd == pytest.approx(np.std(by_seed, ddof=1))
    assert covered / worlds >= 0.88  # training outweighs users tenfold: three seeds cover 92 %, standard deviation 2.7


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 4.0]), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_no_interval_depends_on_which_other_arms_there_are(others, random):
    """Other arms, however unlike, before or after: a pair keeps its interval, error and p to the bit."""
    rng = np.random.default_rng(14)
    user, truth, label, slate = world(rng, users=30, rows=12)
    pair = {name: [noisy(rng, truth, user, 1.0) for _ in range(2)] for name in ("base", "arm")}
    more = {f"other{i}": [noisy(rng, sd * truth, user, sd) for _ in range(2)] for i, sd in enumerate(others)}
    pairs = [("arm", "base"), *((name, "base") for name in more), *(("arm", name) for name in more)]
    random.shuffle(pairs)
    about = {"slate": slate, "segments": {"few": user < 12}, "replicates": 60, "metrics": (Auc(), Ndcg(2))}
    own = bootstrap(pair, label, user, [("arm", "base")], **about)
    among = bootstrap(dict(sorted({**pair, **more}.items())), label, user, pairs, **about)
    for lift in own:
        same = among.get("arm", "base", lift.metric, lift.segment)
        for name in ("difference", "low", "high", "error", "freedom", "seed_sd", "p"):
            assert getattr(same, name) == getattr(lift, name), name
        assert same.family >= lift.family


def test_what_both_arms_share_in_a_seed_is_no_luck_of_their_difference():
    """Arms of the same rankers, as in the two-by-two: each seed's luck is in both, and not in the interval."""
    rng = np.random.default_rng(15)
    user, truth, label, _ = world(rng, users=200)
    rankers = [noisy(rng, truth, np.zeros_like(user), sd) for sd in (0.2, 1.0, 1.8)]
    blurred = 1 + 0.2 * rng.normal(size=len(user))  # the same change to all of them
    arms = {"base": rankers, "shared": [score * blurred for score in rankers], "apart": rankers[1:] + rankers[:1]}
    shared, apart = bootstrap(arms, label, user, [("shared", "base"), ("apart", "base")], metrics=(Auc(),))
    assert shared.seed_sd < 0.2 * apart.seed_sd
    assert shared.high - shared.low < 0.2 * (apart.high - apart.low)


def test_seeds_that_differ_by_users_alone_are_counted_once():
    """Noise of each row and seed is in the users' resampling already: the error is that of the mean, no more."""
    rng = np.random.default_rng(16)
    errors, differences = [], []
    for i in range(60):
        user, truth, label, _ = world(rng, users=80, rows=15)
        arms = {arm: [noisy(rng, truth, user, 1.5) for _ in range(3)] for arm in ("arm", "base")}
        (lift,) = bootstrap(arms, label, user, [("arm", "base")], metrics=(Auc(),), replicates=100, seed=i)
        errors.append(lift.error)
        differences.append(lift.difference)
    assert np.median(np.square(errors)) == pytest.approx(np.var(differences), rel=0.5)  # sd of the ratio .18


def test_a_cut_off_without_positives_is_left_out_and_counted():
    rng = np.random.default_rng(17)
    user, truth, label, _ = world(rng, users=60)
    cutoff = np.arange(len(user)) % 3
    label[cutoff == 1] = 0
    few = (user < 30) & (cutoff != 2)  # there the segment has no row at all
    arms = {arm: [noisy(rng, truth, user, sd) for _ in range(2)] for arm, sd in (("arm", 0.8), ("base", 1.2))}
    about = {"metrics": (Auc(),), "replicates": 100, "cutoff": cutoff, "segments": {"few": few, "none": label > 2}}
    lift, of_few, of_none = bootstrap(arms, label, user, [("arm", "base")], **about)
    assert np.isnan(lift.by_cutoff).tolist() == [False, True, False]
    assert (lift.left_out, of_few.left_out, of_none.left_out) == (1, 2, 0)
    assert lift.difference == pytest.approx(np.nanmean(lift.by_cutoff)) == lift.value - lift.baseline_value
    rows = cutoff != 1
    cut = {arm: [score[rows] for score in of_arm] for arm, of_arm in arms.items()}
    alone = bootstrap(
        cut, label[rows], user[rows], [("arm", "base")], metrics=(Auc(),), replicates=100, cutoff=cutoff[rows]
    )[0]
    assert (lift.low, lift.high, lift.error) == pytest.approx((alone.low, alone.high, alone.error))
    assert of_none.state == "undefined"
    assert as_lifts(json.loads(json.dumps(_plain(lift))))[0].left_out == 1


def _plain(lift):
    """As a result's file has it: null for what is not a number."""
    values = asdict(lift) | {"by_cutoff": [None if np.isnan(value) else value for value in lift.by_cutoff]}
    return [{name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in values.items()}]


def test_segments_are_held_jointly_apart_from_the_whole():
    rng = np.random.default_rng(18)
    user, truth, label, _ = world(rng, users=120, rows=20)
    arms = {f"arm{a}": [noisy(rng, truth, user, 1.0) for _ in range(3)] for a in range(3)}
    segments = {f"s{i}": user % 4 == i for i in range(4)}
    pairs = [("arm1", "arm0"), ("arm2", "arm0"), ("arm2", "arm1")]
    lifts = bootstrap(arms, label, user, pairs, metrics=(Auc(),), segments=segments, replicates=300)
    families = {(lift.baseline, lift.segment == OVERALL): lift.family for lift in lifts}
    assert families == {("arm0", True): 2, ("arm1", True): 1, ("arm0", False): 8, ("arm1", False): 4}
    for lift in lifts:
        assert lift.joint.low <= lift.low < lift.high <= lift.joint.high
        assert lift.family == 1 or lift.joint.high - lift.joint.low > 1.05 * (lift.high - lift.low)


def test_a_planted_difference_is_found_with_its_sign():
    rng = np.random.default_rng(5)
    user, truth, label, slate = world(rng, users=200)
    arms = {arm: [noisy(rng, truth, user, sd) for _ in range(4)] for arm, sd in (("base", 1.5), ("arm", 0.5))}
    lifts = bootstrap(arms, label, user, [("arm", "base")], slate=slate, replicates=300)
    assert len(lifts) == len(DEFAULT_METRICS)
    assert all(lift.better and not lift.worse for lift in lifts)
    assert lifts.get("arm", "base", "log_loss").difference < 0  # lower is better there
    back = bootstrap(arms, label, user, [("base", "arm")], slate=slate, replicates=300)
    assert all(lift.worse and not lift.better for lift in back)
    assert back[0].difference == pytest.approx(-lifts[0].difference)
    one_seed = {arm: of_arm[:1] for arm, of_arm in arms.items()}
    alone = bootstrap(one_seed, label, user, [("arm", "base")], metrics=(Auc(),))
    assert alone[0].low > 0
    assert {lift.state for lift in alone} == {"one seed"}
    assert not any(lift.better or lift.worse for lift in alone)


def test_pairing_makes_the_interval_shorter_than_that_of_one_arm():
    rng = np.random.default_rng(6)
    user, truth, label, _ = world(rng, users=100)
    score = noisy(rng, truth, user, 1.0)
    near = 1 / (1 + np.exp(-(np.log(score / (1 - score)) + rng.normal(0, 0.1, len(score)))))
    constant = np.full(len(score), 0.1)
    arms = {"base": [score], "near": [near], "constant": [constant]}
    paired, alone = bootstrap(arms, label, user, [("near", "base"), ("base", "constant")], metrics=(Auc(),))
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_users_are_resampled_not_rows():
    """Copies of a user's rows carry no news: ten times the rows must not shorten the interval."""
    rng = np.random.default_rng(7)
    user, truth, label, _ = world(rng, users=40, rows=20)
    arms = {"base": [noisy(rng, truth, user, 1.5)], "arm": [noisy(rng, truth, user, 0.8)]}
    tenfold = {arm: [np.tile(s[0], 10)] for arm, s in arms.items()}
    one = bootstrap(arms, label, user, [("arm", "base")], metrics=(Auc(),))[0]
    ten = bootstrap(tenfold, np.tile(label, 10), np.tile(user, 10), [("arm", "base")], metrics=(Auc(),))[0]
    assert (ten.low, ten.high, ten.difference) == pytest.approx((one.low, one.high, one.difference))


def test_segments_are_their_rows_and_results_survive_a_round_trip():
    rng = np.random.default_rng(8)
    user, truth, label, slate = world(rng)
    arms = {"base": [noisy(rng, truth, user, 1.5)], "arm": [noisy(rng, truth, user, 0.5)]}
    mask = rng.random(len(user)) < 0.4
    lifts = bootstrap(arms, label, user, [("arm", "base")], slate=slate, segments={"new": mask}, replicates=100)
    cut = bootstrap(
        {a: [s[0][mask]] for a, s in arms.items()},
        label[mask],
        user[mask],
        [("arm", "base")],
        slate=slate[mask],
        replicates=100,
    )
    assert [lift.segment for lift in lifts] == [OVERALL] * 5 + ["new"] * 5
    assert lifts.get("arm", "base", "auc", "new").difference == pytest.approx(cut[0].difference)
    frame = lifts.frame()
    assert isinstance(frame, pd.DataFrame)
    assert as_lifts(frame.astype(object).where(frame.notna(), None).to_dict("records")) == lifts
    assert isinstance(lifts, Lifts)
    assert len(lifts[0].frame()) == 1


def test_undefined_metrics_give_nan_and_no_warning():
    lifts = bootstrap({"a": [[0.1, 0.2]], "b": [[0.2, 0.1]]}, [0, 0], ["u", "v"], [("a", "b")], metrics=(Auc(),))
    assert np.isnan(lifts[0].difference)
    assert not lifts[0].better
    assert not lifts[0].worse


def test_weights_draw_as_many_users_as_there_are():
    weights = user_weights(300, 20, seed=0)
    assert weights.shape == (20, 300)
    assert (weights.sum(axis=1) == 300).all()
    assert (user_weights(300, 20, seed=0) == weights).all()
    assert (user_weights(300, 20, seed=1) != weights).any()


def test_the_bootstrap_of_auc_is_that_of_rows_written_out():
    """Each replicate against a plain AUC over rows repeated as often as their users were drawn."""
    rng = np.random.default_rng(9)
    user, truth, label, _ = world(rng, users=12, rows=15)
    score = np.round(noisy(rng, truth, user, 1.0), 2)  # with ties
    drawn = user_weights(12, 30, seed=4)
    got = Auc().weighted(Rows.of(label, score, user=user), drawn.T.astype(float))
    for r, weights in enumerate(drawn):
        y, x = np.repeat(label, weights[user]), np.repeat(score, weights[user])
        above = x[y == 1][:, None] - x[y == 0][None, :]
        assert got[r] == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))


def test_cut_offs_are_measured_apart_and_averaged():
    rng = np.random.default_rng(10)
    user, truth, label, slate = world(rng, users=80)
    cutoff = np.arange(len(user)) % 3
    arms = {"base": [noisy(rng, truth, user, 1.5) for _ in range(2)], "arm": [noisy(rng, truth, user, 1.0)] * 2}
    shifted = {arm: [score / (1 + cutoff) for score in of_arm] for arm, of_arm in arms.items()}  # no common scale
    pooled, moved = (
        bootstrap(s, label, user, [("arm", "base")], slate=slate, cutoff=cutoff, metrics=(Auc(),))[0]
        for s in (arms, shifted)
    )
    assert pooled.difference == pytest.approx(moved.difference)  # so scales of cut-offs do not mix
    assert (pooled.low, pooled.high) == pytest.approx((moved.low, moved.high))
    alone = []
    for c in range(3):
        rows = cutoff == c
        cut = {arm: [score[rows] for score in of_arm] for arm, of_arm in arms.items()}
        alone.append(bootstrap(cut, label[rows], user[rows], [("arm", "base")], metrics=(Auc(),))[0])
    assert pooled.by_cutoff == pytest.approx([lift.difference for lift in alone])
    assert pooled.difference == pytest.approx(np.mean(pooled.by_cutoff))
    assert pooled.error < np.mean([lift.error for lift in alone])


def test_many_arms_are_judged_jointly():
    """Ten arms that differ by luck: alone some interval misses zero in a third of worlds, jointly in one of twenty."""
    rng = np.random.default_rng(11)
    worlds, alone, jointly = 60, 0, 0
    for i in range(worlds):
        user, truth, label, _ = world(rng, users=60, rows=15)
        arms = {f"arm{a}": [noisy(rng, truth, user, 1.0)] for a in range(11)}
        lifts = bootstrap(
            arms, label, user, [(f"arm{a}", "arm0") for a in range(1, 11)], metrics=(Auc(),), replicates=300, seed=i
        )
        alone += any(lift.p < 0.05 for lift in lifts)
        jointly += any(lift.p_adjusted < 0.05 for lift in lifts)
        for lift in lifts:
            assert lift.p_adjusted >= lift.p
            assert lift.adjusted_low < lift.difference < lift.adjusted_high
            assert lift.p_adjusted < 0.05 or lift.adjusted_low <= 0 <= lift.adjusted_high
    assert alone > 10
    assert jointly <= 8  # 3 expected, standard deviation 1.7


def test_the_detectable_lift_is_that_many_standard_errors():
    rng = np.random.default_rng(12)
    user, truth, label, _ = world(rng, users=60)
    arms = {"base": [noisy(rng, truth, user, 1.0)], "arm": [noisy(rng, truth, user, 1.0)]}
    lift = bootstrap(arms, label, user, [("arm", "base")], metrics=(Auc(),))[0]
    assert replace(lift, freedom=np.inf).detectable == pytest.approx(2.8016 * lift.error, rel=1e-4)
    assert replace(lift, freedom=2.0).detectable == pytest.approx((4.3027 + 1.0607) * lift.error, rel=1e-4)
    assert lift.detectable == pytest.approx(2.85 * lift.error, rel=0.02)  # told by fewer than 60 users
    assert lift.frame()["detectable"][0] == lift.detectable
    assert (lift.high - lift.low) / lift.error == pytest.approx(3.92, abs=0.3)


def test_lifts_show_themselves():
    rng = np.random.default_rng(13)
    user, truth, label, _ = world(rng, users=60)
    arms = {name: [noisy(rng, truth, user, noise) for _ in range(2)] for name, noise in (("base", 3.0), ("arm", 0.5))}
    half = (np.arange(len(label)) % 2).astype(int)
    lifts = bootstrap(
        arms, label, user, [("arm", "base")], metrics=(Auc(),), cutoff=half, segments={"few_events": user < 30}
    )
    axis = lifts.plot().axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "arm − base, users with the fewest events",
        "arm − base, all test impressions",
    ]
    assert lifts[0].plot().axes[0].get_xlabel() == "Difference in auc"
    assert f"{lifts[0].difference:.5f}" in lifts[0]._repr_html_()
    assert lifts._repr_html_().count("<tr>") == 2
