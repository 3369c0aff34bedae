"""Towers: tokens by hand, the arrays that are served equal what torch trained, and nothing later leaks in."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from advprior.data import clicks
from advprior.data.drawn import Size
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.existence import ads_exist_from, load_users_exist_from
from advprior.store.tables import load_tables, load_time_plan
from advprior.store.times import micros, moment_us
from ranking.candidates.inputs import Pasts, Vocabulary, requests
from ranking.candidates.towers import ARRAYS_FILE, Towers
from ranking.candidates.training import TowerConfig, TowerExamples, TowerFit, fit_towers
from tests.ranking.frame.no_future import cut
from tests.tiny import PLAN, START, WEEK, tiny_tables

FAST = TowerConfig(size=8, hidden=16, epochs=25, batch=64, learning_rate=0.01, threads=1)


@pytest.fixture(scope="module")
def tables():
    return tiny_tables()


@pytest.fixture(scope="module")
def fitted(tables):
    return fit_towers(tables["users"], tables["ads"], tables["events"], tables["impressions"], PLAN, FAST)


def test_towers_compute_where_they_are(tables):
    """On torch's meta device: it refuses a tensor of any other device."""
    users, ads, events, impressions = (tables[name] for name in ("users", "ads", "events", "impressions"))
    fit = TowerFit(TowerExamples.of(users, ads, events, impressions, PLAN), FAST, "meta")
    loss = fit.loss(fit.examples.engaged["train"][:5], sampled=True)
    loss.backward()
    assert {p.grad.device.type for p in fit.model.parameters()} == {loss.device.type} == {"meta"}


def small():
    users = pd.DataFrame({"user_id": ["u", "v"], "profile_age": ["18", None]})
    ads = pd.DataFrame({"ad_id": ["a/T", "b/T"], "advertiser_id": ["a", "b"], "category": ["T", "T"]})
    times = pd.to_datetime([START, START + 4 * WEEK, START + 4 * WEEK]).astype("datetime64[us, UTC]")
    events = pd.DataFrame(
        {"user_id": ["u", "u", "v"], "timestamp": times, "advertiser_id": ["a", "b", None], "category": ["T", "T", "T"]}
    )
    return users, ads, events


def test_a_past_by_hand():
    users, ads, events = small()
    pasts = Pasts(users, events, Vocabulary.of(users, ads))
    # columns: advertisers a b faded, even; category T faded, even; pairs faded, even; profile
    at = pasts.at(moment_us(START + 4 * WEEK)).toarray()  # strictly before: the first event alone, 28 days old
    raw = np.log1p([0.5, 0, 1, 0, 0.5, 1, 0.5, 0, 1, 0, np.e - 1])
    assert at[0] == pytest.approx(raw / np.linalg.norm(raw))
    assert not at[1].any()
    later = pasts.at(moment_us(START + 4 * WEEK) + 1).toarray()
    assert later[1] == pytest.approx(
        np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]) / np.sqrt(2)
    )  # a category, no advertiser


def test_requests_by_hand():
    plan = TimePlan(START, START + 2 * WEEK, START + 4 * WEEK, START + 5 * WEEK, START + 6 * WEEK)
    hour = np.timedelta64(1, "h")
    times = [START + 3 * WEEK, START + 3 * WEEK + plan.lag, START + 4 * WEEK - plan.lag, START + 4 * WEEK + plan.lag]
    shown = pd.DataFrame(
        {
            "user_id": ["u"] * 4,
            "ad_id": ["a", "b", "a", "b"],
            "label": [0, 1, 1, 0],
            "timestamp": pd.to_datetime(times).astype("datetime64[us, UTC]"),
        }
    )
    asked = requests(shown, ["t", "u"], ["a", "b"], plan)
    # a snapshot is available an hour after it: the first impression still has the one before
    assert asked.snapshot.tolist() == [2, 3, 4]
    assert asked.split.tolist() == ["train", "train", "valid"]
    assert asked.user.tolist() == [1, 1, 1]
    assert asked.engaged.tolist() == [[1, 0], [1, 1]]
    assert {s: ads.tolist() for s, ads in asked.live.items()} == {2: [0], 3: [0, 1], 4: [1]}
    assert (asked.time - np.datetime64(START.replace(tzinfo=None), "us"))[1] == 21 * 24 * hour + hour


def test_towers_learn_and_the_served_arrays_are_what_was_trained(tables, fitted, tmp_path):
    curve = [epoch["valid"] for epoch in fitted.facts["curve"]]
    assert fitted.facts["valid_loss"] == min(curve) < curve[0]
    assert fitted.facts["label_cutoff"] == PLAN.train_end.isoformat()
    fitted.save(tmp_path)
    loaded = Towers.load(tmp_path)
    pasts = Pasts(tables["users"], tables["events"], loaded.vocabulary)
    tokens = pasts.at(moment_us(PLAN.valid_end))
    vectors, bias = loaded.ads(tables["ads"])
    score = loaded.users(tokens) @ vectors.T + bias

    import torch  # the same arithmetic, by torch

    a = {name: torch.as_tensor(array) for name, array in fitted.arrays.items()}
    user = torch.relu(torch.as_tensor(tokens.toarray()) @ a["user_in"] + a["user_in_bias"]) @ a["user_out"]
    ad_tokens = torch.as_tensor(loaded.vocabulary.ad_tokens(tables["ads"]))
    ad = torch.relu(a["ad_in"][ad_tokens].sum(1) + a["ad_in_bias"]) @ a["ad_out"]
    assert score == pytest.approx((user @ ad.T + a["ad_bias"][ad_tokens].sum(1)).numpy(), abs=1e-5)

    # they say something: an ad that a user will buy scores higher than others of the same user
    later = tables["impressions"][tables["impressions"]["timestamp"] >= PLAN.valid_end]
    place = {ad: i for i, ad in enumerate(tables["ads"]["ad_id"])}
    of_user = {user: i for i, user in enumerate(pasts.ids)}
    found = score[later["user_id"].map(of_user), later["ad_id"].map(place)]
    assert found[later["label"] == 1].mean() > found[later["label"] == 0].mean() + 0.3


def test_an_unknown_ad_is_its_advertiser_and_category(tables, fitted):
    ads = tables["ads"].head(2).copy()
    ads["ad_id"] = ["new/ad", "a01/none"]
    ads.loc[ads.index[1], "advertiser_id"] = "new"
    vectors, _ = fitted.ads(ads)
    known, _ = fitted.ads(tables["ads"].head(2))
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], known[0])
    assert (
        np.linalg.norm(vectors[0] - known[0])
        < np.linalg.norm(vectors[0] - fitted.ads(tables["ads"])[0][5:], axis=1).min()
    )


def test_what_comes_later_changes_no_tower(tables, fitted):
    """Labels from validation's end on, and events after it, must not reach a fit."""
    changed = {name: table.copy() for name, table in tables.items()}
    late = changed["impressions"]["timestamp"] >= PLAN.valid_end
    changed["impressions"].loc[late, "label"] = 1 - changed["impressions"].loc[late, "label"]
    changed["events"] = changed["events"][changed["events"]["timestamp"] < PLAN.valid_end]
    again = fit_towers(changed["users"], changed["ads"], changed["events"], changed["impressions"], PLAN, FAST)
    for name, array in fitted.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_inputs_know_nothing_after_their_snapshot(tmp_path):
    """Of a click log: late events, users who come later, and ads that no fit could have named."""
    clicks.build(tmp_path / "whole", Size(users=40, advertisers=8, weeks=12, seed=2))
    plan, snapshots = load_time_plan(tmp_path / "whole"), load_time_plan(tmp_path / "whole").snapshots()
    end, inputs = snapshots[-2], {}
    for name in ("whole", "past"):
        folder = tmp_path / name if name == "whole" else cut(tmp_path / "whole", end, tmp_path / name)
        loaded = load_tables(folder)
        ads_from = ads_exist_from(loaded["ads"], loaded["impressions"])
        users_from = load_users_exist_from(folder, loaded["users"]["user_id"])
        at = moment_us(snapshots[2])
        vocabulary = Vocabulary.of(loaded["users"][users_from <= at], loaded["ads"][ads_from <= at])
        pasts = Pasts.load(folder, vocabulary)
        tokens = [pasts.at(moment_us(s)) for s in snapshots if s <= end]
        rows = {user: [one[i].toarray().tobytes() for one in tokens] for i, user in enumerate(pasts.ids)}
        inputs[name] = vocabulary, rows
        young = np.flatnonzero(pasts.exist_from > moment_us(snapshots[0]))
        assert len(young) > 0
        assert not tokens[0][young].sum()
    assert plan.valid_end > snapshots[2]
    assert inputs["past"][0] == inputs["whole"][0]
    assert inputs["past"][1] == {user: inputs["whole"][1][user] for user in inputs["past"][1]}
    nobody = [user for user in inputs["whole"][1] if user not in inputs["past"][1]]
    assert not any(np.frombuffer(cell, np.float32).any() for user in nobody for cell in inputs["whole"][1][user])


def test_faults_are_said(tables, fitted, tmp_path):
    nothing = tables["impressions"].assign(label=0)
    with pytest.raises(AdvpriorError, match="RNK031"):
        fit_towers(tables["users"], tables["ads"], tables["events"], nothing, PLAN, FAST)
    with pytest.raises(AdvpriorError, match="RNK030"):
        Towers.load(tmp_path)
    fitted.save(tmp_path)
    (tmp_path / ARRAYS_FILE).write_bytes((tmp_path / ARRAYS_FILE).read_bytes()[:-100])
    with pytest.raises(AdvpriorError, match="RNK030"):
        Towers.load(tmp_path)


def test_serving_loads_no_torch(fitted, tmp_path):
    fitted.save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from ranking.candidates.towers import Towers; "
        f"Towers.load(Path({str(tmp_path)!r})); import ranking.candidates.curve; "
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_micros_of_the_plan_are_utc():
    assert micros(pd.Series(pd.to_datetime([START]).astype("datetime64[us, UTC]")))[0] == moment_us(START)
