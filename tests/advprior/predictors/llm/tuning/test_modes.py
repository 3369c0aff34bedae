"""Every way of tuning, on two architectures: it learns, exports to the same numbers, and resumes where it stopped."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import advprior.predictors.llm.tuning.loop as loop
from advprior.history.targets import Targets
from advprior.predictors.base import FitData
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.tuning.model import AdvertiserModel, from_base
from advprior.predictors.llm.tuning.modes import tuned_weights
from advprior.predictors.tuning.base import load_base
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.tuning.cycles import cycle_data, cycle_settings
from tests.tiny_llm import VOCABULARY, write_tiny_llm

MODES = ("cached", "lora", "full")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {a: write_tiny_llm(folder / a, architecture=a) for a in ("llama", "gpt2", "gpt_neox", "bloom")}


@pytest.fixture(scope="module")
def data() -> FitData:
    return cycle_data()


def fit(data, folder, settings) -> dict:
    folder.mkdir(exist_ok=True)
    return LLMPredictor.fit(data, settings, folder)


def weights(folder) -> dict:
    return AdvertiserModel.from_pretrained(folder / "model").state_dict()


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_and_exports(bases, data, tmp_path, mode: str) -> None:
    """What comes next follows from the last advertiser: nobody knows it but a network that reads.

    Other families, to parity: `test_families`.
    """
    settings = cycle_settings(bases["llama"], mode=mode, interests={"weight": 0.5}, training={"epochs": 5})
    facts = fit(data, tmp_path, settings)
    curve = facts["curve"]
    assert curve[-1]["train_nll"] < curve[0]["train_nll"] - 0.3
    assert facts["valid"]["model"]["nll"] < 0.5 * facts["valid"]["start"]["nll"]
    assert facts["valid"]["model"]["interest_nll"] < 0.5 * np.log(3)
    exported = LLMPredictor(tmp_path).export(tmp_path / "onnx")
    assert exported["parity"] <= exported["parity_allowed"]
    assert exported["outputs"][:2] == ["log_probs", "interest_log_probs"]
    assert facts["interests"] == 3


def test_each_mode_tunes_what_it_says(bases, data, tmp_path) -> None:
    quick = {"training": {"epochs": 1}}
    found = {}
    for mode in MODES:
        fit(data, tmp_path / mode, cycle_settings(bases["llama"], mode=mode, **quick))
        found[mode] = weights(tmp_path / mode)
    base = {k: v for k, v in load_base(str(bases["llama"])).model.state_dict().items() if k.startswith("layers.")}
    for layer in range(3):
        name = f"layers.{layer}.mlp.down_proj.weight"
        cached = found["cached"].get(f"lower.{name}", found["cached"].get(f"upper.layers.{layer - 1}.{name[9:]}"))
        assert torch.equal(cached, base[name]) == (layer == 0)
        for mode in ("lora", "full"):
            assert not torch.equal(found[mode][f"upper.{name}"], base[name])
        # adapters move a weight by a matrix of low rank, full tuning by any
        change = found["lora"][f"upper.{name}"] - base[name]
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 8
    norm = "upper.layers.0.input_layernorm.weight"
    assert torch.equal(found["lora"][norm], base[norm.removeprefix("upper.")])
    assert not torch.equal(found["full"][norm], base[norm.removeprefix("upper.")])
    assert found["lora"].keys() == found["full"].keys()  # merged: nothing of the adapters is left


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_sit_on_every_projection(bases, architecture: str) -> None:
    base = load_base(str(bases[architecture])).model
    model = from_base(
        base, catalog_size=4, text_vocab_size=VOCABULARY, frozen_layers=0, advertiser_embeddings=torch.zeros(4, 32)
    )
    before = {name for name, m in model.upper.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert len(before) == 3 * {"llama": 7, "gpt2": 4}[architecture]
    tuned_weights(model, cycle_settings("x", mode="lora"))
    adapted = {n.removeprefix("base_model.model.") for n, m in model.upper.named_modules() if hasattr(m, "lora_A")}
    assert adapted == before


def test_a_twin_learns_from_random_weights(bases, data, tmp_path) -> None:
    """Random weights of its own, the recency weights and the offset as everywhere, and it still learns the circle."""
    settings = cycle_settings(
        bases["llama"],
        twin=True,
        habit={"half_lives_days": [30]},
        training={"recency_half_life_days": 200, "epochs": 3},
    )
    facts = fit(data, tmp_path, settings)
    assert not LLMPredictor(tmp_path).uses_llm
    assert facts["curve"][-1]["train_nll"] < facts["curve"][0]["train_nll"]
    name = "lower.layers.0.mlp.down_proj.weight"
    base = load_base(str(bases["llama"])).model.state_dict()["layers.0.mlp.down_proj.weight"]
    assert abs(float(torch.corrcoef(torch.stack([weights(tmp_path)[name].ravel(), base.ravel()]))[0, 1])) < 0.2


@pytest.mark.parametrize(("architecture", "mode"), [("llama", "lora"), ("gpt2", "cached")])
def test_an_interrupted_fit_ends_as_the_uninterrupted_one(
    bases, tmp_path, monkeypatch: pytest.MonkeyPatch, architecture: str, mode: str
) -> None:
    """Stopped after its second epoch and in the ranking stage; dropout (GPT-2 has some) included."""
    settings = cycle_settings(
        bases[architecture], mode=mode, interests={"weight": 0.5}, training={"epochs": 3}, ranking={"epochs": 2}
    )
    data = cycle_data(users=16)
    whole = fit(data, tmp_path / "whole", settings)
    save = loop.save_checkpoint
    written: list[int] = []

    def save_and_stop(*arguments):
        save(*arguments)
        written.append(1)
        if len(written) in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(data, tmp_path / "parts", settings)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    parts = fit(data, tmp_path / "parts", settings)
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [r["valid_nll"] for r in parts["curve"]] == [r["valid_nll"] for r in whole["curve"]]
    assert parts["ranking"]["after"]["valid_reward"] == whole["ranking"]["after"]["valid_reward"]
    assert not list((tmp_path / "parts").glob("checkpoint*"))


def test_the_curve_is_a_table_and_a_drawing(bases, data, tmp_path) -> None:
    facts = fit(data, tmp_path, cycle_settings(bases["llama"], training={"epochs": 2}, ranking={"epochs": 1}))
    with (tmp_path / "curve.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["stage"], r["epoch"]) for r in rows] == [("sft", "1"), ("sft", "2"), ("ranking", "1")]
    assert [float(r["valid_nll"]) for r in rows[:2]] == [r["valid_nll"] for r in facts["curve"]]
    drawing = (tmp_path / "curve.svg").read_text()
    assert "train_nll, sft" in drawing
    assert "valid_recall@5, ranking" in drawing


def test_first_targets_reach_the_points(bases, tmp_path) -> None:
    """Within three weeks three follow, but only one is the first."""
    from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
    from advprior.predictors.llm.tuning.points import training_points

    data = cycle_data(users=3)
    encoder = PromptEncoder(PromptStyle(), lambda text: [1] * len(text), VOCABULARY, data.catalog.names)
    found = {}
    for target in ("all", "first"):
        settings = cycle_settings("x", target=target, horizon_days=21, interests={"weight": 1.0})
        points = training_points(data, encoder, settings)
        later = [p.moments > data.histories.time[data.histories.offsets[p.user]] for p in points]  # than the first
        found[target] = tuple(
            Targets.joined([getattr(p, what).take(some) for p, some in zip(points, later, strict=True)]).dense()
            for what in ("truth", "interests")
        )
    assert set(found["first"][0].sum(1)) == set(found["first"][1].sum(1)) == {1.0}
    assert set(found["all"][0].sum(1)) == {3.0}
    assert set(found["all"][1].sum(1)) == {2.0, 3.0}  # advertisers 6, 7, 0 sell categories 0, 1, 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_cut_model_is_still_the_base_model(bases, architecture: str, cut: int) -> None:
    base = load_base(str(bases[architecture])).model
    model = from_base(
        base, catalog_size=4, text_vocab_size=VOCABULARY, frozen_layers=cut, advertiser_embeddings=torch.zeros(4, 32)
    )
    ids = torch.randint(0, VOCABULARY, (2, 50), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        ours = model.upper_states(model.lower_states(ids, mask), ids, mask)
        theirs = base(input_ids=ids).last_hidden_state
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "bloom"])
def test_states_at_some_positions_are_those_of_the_whole_forward(bases, architecture: str) -> None:
    """Values and gradients; the prompts are padded on the right, and no mask says so."""
    base = load_base(str(bases[architecture])).model
    model = from_base(
        base,
        catalog_size=4,
        text_vocab_size=VOCABULARY,
        frozen_layers=1,
        advertiser_embeddings=torch.zeros(4, 32),
    ).eval()
    ids = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([20, 12, 5])[:, None]).long()
    rows = torch.tensor([0, 7, 19, 20, 31, 44])  # of prompts of 20, 12 and 5 tokens
    sums, gradients = [], []
    for some in (False, True):
        model.zero_grad()
        lower = model.lower_states(ids, None if some else mask)
        whole = None if some else model.upper_states(lower, ids, mask).flatten(0, 1)
        states = model.states_at(lower, ids, rows) if whole is None else whole[rows]
        # weights of their own: a plain sum of squares behind a norm is nearly constant, and its gradients mere rounding
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
        (states * weights).sum().backward()
        sums.append(states.detach())
        gradients.append({name: p.grad.clone() for name, p in model.upper.named_parameters() if p.grad is not None})
    assert float((sums[0] - sums[1]).abs().max()) <= 1e-5 * float(sums[0].abs().max())
    assert gradients[0].keys() == gradients[1].keys()
    for name, whole in gradients[0].items():
        apart = float((gradients[1][name] - whole).abs().max())
        assert apart <= 1e-4 * float(whole.abs().max()), name


def test_a_model_that_looks_ahead_is_refused(tmp_path) -> None:
    from transformers import BertConfig, BertModel

    from tests.tiny_llm import tiny_tokenizer

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=VOCABULARY, **small)).save_pretrained(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AdvpriorError, match=r"PRI022(.|\n)*causal"):
        load_base(str(tmp_path))


def test_adapters_without_peft_are_refused(bases, data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdvpriorError, match=r"PRI051(.|\n)*advprior\[train\]"):
        fit(data, tmp_path, cycle_settings(bases["llama"], mode="lora"))


def test_interests_need_categories(bases, data, tmp_path) -> None:
    without = FitData(data.histories, data.catalog, data.start, data.cutoff, data.snapshot_every)
    with pytest.raises(AdvpriorError, match="PRI052"):
        fit(without, tmp_path, cycle_settings(bases["llama"], interests={"weight": 1.0}))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """WindowPoints and targets are those of all users at once."""
    import advprior.predictors.llm.tuning.points as points_module
    from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle

    data = cycle_data(users=9)
    encoder = PromptEncoder(PromptStyle(context=64), lambda text: [1] * len(text), VOCABULARY, data.catalog.names)
    settings = cycle_settings("x", horizon_days=14, interests={"weight": 1.0}, habit={"half_lives_days": [30]})
    found = []
    for users in (1000, 2):
        monkeypatch.setattr(points_module, "CHUNK_USERS", users)
        found.append(points_module.training_points(data, encoder, settings))
    assert len(found[0]) == len(found[1]) >= 9
    for ours, theirs in zip(*found, strict=True):
        for name in ("positions", "moments", "weight", "train", "valid"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("truth", "interests"):
            np.testing.assert_array_equal(getattr(ours, name).dense(), getattr(theirs, name).dense())
            assert len(getattr(ours, name)) == len(ours.moments)
