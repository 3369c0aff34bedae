"""Ranked lists against brute force, rewards by hand, and a policy that earns more after the stage."""

from __future__ import annotations

from itertools import permutations
from math import exp, log

import numpy as np
import pytest
import torch

from advprior.history.targets import Targets
from advprior.predictors.llm.fit_lines import decision_lines
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.tuning.grpo import advantages, clipped_gain, divergence, mean_reward
from advprior.predictors.llm.tuning.lists import length_penalty, list_log_prob, match_reward, sample_lists
from advprior.predictors.llm.tuning.model import AdvertiserModel
from tests.advprior.predictors.llm.tuning.cycles import cycle_data, cycle_settings
from tests.tiny_llm import write_tiny_llm


def brute_force(probabilities, chosen) -> float:
    """Place by place: the chance of each among what is left."""
    left, total = dict(enumerate(probabilities)), 0.0
    for index in chosen:
        total += log(left[index] / sum(left.values()))
        del left[index]
    return total


def test_list_log_prob_equals_brute_force_and_sums_to_one() -> None:
    probabilities = np.asarray([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    log_probs = torch.tensor(np.log(probabilities))
    for length in (1, 2, 3, 4):  # 4: nothing is left out
        lists = list(permutations(range(4), length))
        found = list_log_prob(log_probs, torch.tensor([lists, lists]))
        for row in range(2):
            assert found[row].tolist() == pytest.approx([brute_force(probabilities[row], x) for x in lists], abs=1e-9)
            assert float(found[row].exp().sum()) == pytest.approx(1.0)


def test_list_log_prob_has_finite_gradients() -> None:
    logits = torch.tensor([[30.0, 0.0, -30.0, -60.0]], requires_grad=True)
    list_log_prob(torch.log_softmax(logits, -1), torch.tensor([[[3, 2, 1, 0], [0, 1, 2, 3]]])).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_lists_in_parts_are_the_same_lists_probabilities_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of(cells: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        monkeypatch.setattr("advprior.predictors.llm.tuning.lists.CELLS", cells)
        torch.manual_seed(0)
        logits = torch.randn(7, 50, requires_grad=True)
        log_probs = torch.log_softmax(logits, -1)
        lists = sample_lists(log_probs.detach(), 4, 6)
        worth = list_log_prob(log_probs, lists)
        (worth * torch.arange(4.0)).sum().backward()
        return lists, worth, logits.grad

    whole = all_of(10**9)
    for cells in (4 * 50, 3 * 4 * 50):
        assert all(torch.equal(a, b) for a, b in zip(whole, all_of(cells), strict=True))


def test_lists_are_drawn_as_their_probability_says() -> None:
    torch.manual_seed(0)
    log_probs = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    drawn = sample_lists(log_probs, 20_000, 2)[0]
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for first, second in permutations(range(3), 2):
        share = float(((drawn[:, 0] == first) & (drawn[:, 1] == second)).float().mean())
        expected = exp(float(list_log_prob(log_probs, torch.tensor([[[first, second]]]))))
        assert share == pytest.approx(expected, abs=0.012)
    assert sample_lists(log_probs, 4, 20).shape == (1, 4, 3)  # no more than there are


def test_rewards_by_hand() -> None:
    lists = torch.arange(30)[:20].expand(1, 1, 20)

    def reward(*targets: int) -> float:
        truth = torch.zeros(1, 30)
        truth[0, list(targets)] = 1.0
        return float(match_reward(lists, truth, 20))

    assert reward(0) == pytest.approx(4.0)  # 0.1 · 20 + 2
    assert reward(4) == pytest.approx(3.6)  # the fifth place still has the bonus
    assert reward(5) == pytest.approx(1.5)
    assert reward(19) == pytest.approx(0.1)  # the last place is worth something
    assert reward(25) == 0.0
    assert reward(0, 25) == pytest.approx(2.0)  # half the credit
    five = match_reward(torch.arange(5).expand(1, 1, 5), torch.tensor([[0.0, 0, 1, 0, 0, 0]]), 5)
    assert float(five) == pytest.approx(0.3 + 2)
    assert [length_penalty(n, 20) for n in (20, 19, 15, 10, 2, 25)] == pytest.approx([0, 1.1, 1.5, 2, 2, 1.5])


def test_a_catalog_smaller_than_the_list_pays_for_it() -> None:
    log_probs = np.log(np.asarray([[0.4, 0.3, 0.2, 0.1]], np.float32))
    truth = Targets.from_dense(np.asarray([[0, 1, 0, 0]], np.float32))
    assert mean_reward(log_probs, truth, 20) == pytest.approx(1.9 + 2 - 2)  # 16 missing: 1 + 1
    assert mean_reward(log_probs, truth, 4) == pytest.approx(0.3 + 2)
    beside_none = Targets.joined([truth, Targets.none(1, 4)])
    assert mean_reward(np.repeat(log_probs, 2, 0), beside_none, 4) == pytest.approx(2.3)


def test_advantages_are_standard_and_equal_rewards_teach_nothing() -> None:
    found = advantages(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    assert found.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_the_ratio_is_clipped_where_it_would_gain_more() -> None:
    old = torch.zeros(1, 4)
    new = torch.log(torch.tensor([[1.5, 1.1, 0.5, 1.5]]))
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    # 1.2 (clipped), 1.1, −0.8 (clipped), −1.5 (never clipped where it is worse)
    assert float(clipped_gain(new, old, advantage, 0.2)) == pytest.approx((1.2 + 1.1 - 0.8 - 1.5) / 4, abs=1e-6)


def test_divergence_by_hand() -> None:
    policy, reference = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(policy, reference)) == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), abs=1e-6)
    assert float(divergence(policy, policy)) == pytest.approx(0.0, abs=1e-7)


def test_the_policy_finds_a_planted_target() -> None:
    """One softmax, one target at the bottom of 40: the gradient alone lifts it and its reward."""
    torch.manual_seed(0)
    logits = torch.zeros(1, 40)
    logits[0, 33] = -1.0
    logits.requires_grad_(True)
    truth = torch.zeros(1, 40)
    truth[0, 33] = 1.0
    optimizer = torch.optim.Adam([logits], lr=0.05)

    def expected() -> float:
        with torch.no_grad():
            return float(match_reward(sample_lists(torch.log_softmax(logits, -1), 4000, 20), truth, 20).mean())

    before = expected()
    for _ in range(40):
        with torch.no_grad():
            log_probs = torch.log_softmax(logits, -1)
            lists = sample_lists(log_probs, 32, 20)
            old, advantage = list_log_prob(log_probs, lists), advantages(match_reward(lists, truth, 20))
        for _ in range(2):
            loss = -clipped_gain(list_log_prob(torch.log_softmax(logits, -1), lists), old, advantage, 0.2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert expected() > before + 1.0
    assert int(logits.argmax()) == 33


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("base"))


def stage_facts(base, folder, *, interests: float = 0.0, users: int = 40, **ranking) -> dict:
    """Half tuned, so that there is something left to gain."""
    settings = cycle_settings(
        base,
        interests={"weight": interests},
        training={"epochs": 1},
        ranking={"epochs": 3, "lr": 1e-3, "kl": 0.0, "group": 16, **ranking},
    )
    folder.mkdir(exist_ok=True)
    facts: dict = LLMPredictor.fit(cycle_data(users), settings, folder)
    return facts


def test_the_stage_gains_and_is_kept(base, tmp_path) -> None:
    ranking = stage_facts(base, tmp_path)["ranking"]
    assert ranking["kept"]
    assert ranking["after"]["valid_reward"] > ranking["before"]["valid_reward"]
    assert ranking["after"]["valid_recall@5"] >= ranking["before"]["valid_recall@5"]
    assert ranking["after"]["valid_nll"] <= ranking["before"]["valid_nll"] * 1.01
    assert ranking["curve"][-1]["train_reward"] > ranking["curve"][0]["train_reward"]
    # 8 advertisers for 20 places: the length is paid for
    assert ranking["after"]["valid_reward"] <= 4.0 - length_penalty(8, 20)


def test_interests_have_a_stage_too_and_a_say_in_keeping_it(base, tmp_path) -> None:
    """Lists of 5 from the second head; its likelihood is guarded as the first one's."""
    facts = stage_facts(base, tmp_path, interests=0.5)
    ranking = facts["ranking"]
    assert ranking["curve"][-1]["train_reward"] > ranking["curve"][0]["train_reward"]
    # 3 interests for 5 places are paid for in the reward of the pair
    highest = 4.0 - length_penalty(8, 20) - length_penalty(3, 5)
    assert all(row["valid_reward"] <= highest for row in ranking["curve"])
    if ranking["kept"]:
        assert ranking["after"]["interest_nll"] <= ranking["before"]["interest_nll"] * 1.01
    else:
        assert any(row["interest_nll"] > ranking["before"]["interest_nll"] * 1.01 for row in ranking["curve"])
    weights = AdvertiserModel.from_pretrained(tmp_path / "model").state_dict()
    assert float(weights["interest_head.weight"].abs().max()) > 0


def test_a_stage_that_does_not_gain_leaves_no_trace(base, tmp_path) -> None:
    """A rate that wrecks the network: reported, and not kept."""
    wrecked = stage_facts(base, tmp_path / "wrecked", users=16, lr=3.0, epochs=1)["ranking"]
    assert not wrecked["kept"]
    assert wrecked["after"]["valid_nll"] > wrecked["before"]["valid_nll"]
    without = stage_facts(base, tmp_path / "without", users=16, epochs=0)
    assert "ranking" not in without
    ours, theirs = ((tmp_path / n / "model/model.safetensors").read_bytes() for n in ("wrecked", "without"))
    assert ours == theirs


def test_the_best_of_several_trials_is_kept_and_all_are_reported(base, tmp_path) -> None:
    """A rate that wrecks the network, then one that gains: each starts from the same tuned weights."""
    ranking = stage_facts(base, tmp_path, epochs=2, lr=[3.0, 1e-3])["ranking"]
    wrecked, gained = ranking["trials"]
    assert [(row["lr"], row["kept"]) for row in ranking["trials"]] == [(3.0, False), (1e-3, True)]
    assert (ranking["kept"], ranking["lr"], ranking["kl"]) == (True, 1e-3, 0.0)
    assert ranking["after"]["valid_reward"] == gained["valid_reward"] > ranking["before"]["valid_reward"]
    assert wrecked["valid_nll"] > ranking["before"]["valid_nll"] * 1.01 > gained["valid_nll"]
    assert not list(tmp_path.glob("checkpoint*"))
    (line,) = decision_lines({"ranking": ranking})
    assert "the best of 2 trials (learning rate × KL weight), was kept" in line


def test_a_reference_holds_the_policy_back_whether_it_is_kept_or_asked_again(base, tmp_path, monkeypatch) -> None:
    free, held = (stage_facts(base, tmp_path / f"kl{kl}", users=16, kl=kl)["ranking"] for kl in (0.0, 100.0))
    moved = [abs(r["after"]["valid_nll"] - r["before"]["valid_nll"]) for r in (free, held)]
    assert moved[1] < moved[0]
    monkeypatch.setattr("advprior.predictors.llm.tuning.grpo.REFERENCE_BYTES", 0)
    again = stage_facts(base, tmp_path / "again", users=16, kl=100.0)["ranking"]
    # asked again, the reference is added up in other batches: the same to rounding, of which three epochs make more
    for metric in ("valid_reward", "valid_nll"):
        assert again["after"][metric] == pytest.approx(held["after"][metric], rel=1e-3)
