"""Devices: every network computes where it is put, and what is random there is what the CPU draws."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from advprior.predictors.encoding.encode import open_encoder
from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.tuning.batches import Answer, TrainingBatches, share_loss
from advprior.predictors.llm.tuning.grpo import RankingOptions, policy_step
from advprior.predictors.llm.tuning.loop import copy_of, on_cpu
from advprior.predictors.llm.tuning.modes import tuned_weights
from advprior.predictors.llm.tuning.networks import Networks, build_networks
from advprior.predictors.llm.tuning.points import training_points
from advprior.predictors.sequence.settings import NetworkSettings
from advprior.predictors.sequence.tokens import GAPS, PRICES, Vocabulary
from advprior.predictors.sequence.tuning.network import SequenceNetwork, as_tensors
from advprior.predictors.tokens import plain_encoder
from advprior.predictors.tuning.base import load_base
from advprior.predictors.tuning.compute import Compute, Dropout, drawn_mask, placed, within_memory
from advprior.predictors.tuning.softmax import Sampler
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.tuning.cycles import SIZE, cycle_data, cycle_settings
from tests.families import write_family
from tests.tiny_llm import write_tiny_llm
from tests.tiny_sentence import write_tiny_sentence_encoder

META = torch.device("meta")
#: every way of telling positions: rotary tables, learned ones, biases of attention, layers of two kinds
FAMILIES = ("bloom", "gemma3_text", "gpt2", "llama", "opt")


class Unread(TorchFunctionMode):
    """`transformers` asks whether the mask is all ones, which it is, and whether a prompt is long, which it is not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.all, torch.all):
            return torch.tensor(True)
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch):
    """The `meta` device: it refuses to compute with a tensor of any other, and computes no value."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no device of that name
    with Unread():
        yield META


def batches_of(base_folder: Path, device: torch.device, **changes: Any) -> tuple[Networks, TrainingBatches]:
    """Networks and batches as a fit makes them, on a device."""
    data, settings = cycle_data(users=6, weeks=12), cycle_settings(base_folder, interests={"weight": 0.5}, **changes)
    base = load_base(str(base_folder), layers=3, context=128)
    encode = plain_encoder(base.tokenizer.backend_tokenizer)
    style = PromptStyle(**{**settings.prompt.model_dump(), "title": "Purchases:"})
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    points = training_points(data, PromptEncoder(style, encode, vocabulary, data.catalog.names), settings)
    networks = build_networks(base, data, settings, points, encode)
    tuned_weights(networks.model, settings)
    networks.to(device)
    return networks, TrainingBatches(networks.model, networks.head, networks.interest_head, points, 128)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_llm_computes_where_it_is(family: str, tmp_path: Path, on_meta: torch.device) -> None:
    """Any constant that stays on the CPU (masks, rotary tables, positions, targets, offsets) is an error."""
    networks, batches = batches_of(write_family(tmp_path, family), on_meta)
    networks.model.train()
    answer = batches.answer(0, "train")
    assert isinstance(answer, Answer)
    for softmax, sampler in (("full", None), ("blockwise", None), ("sampled", Sampler(np.ones(SIZE), 4))):
        batches.softmax, batches.sampler = softmax, sampler
        losses = batches.losses(0)
        assert losses is not None
        losses.nll.backward()
    for parameter in (*networks.tuned().values(), *vars(answer).values()):
        assert parameter.device == on_meta


def test_the_ranking_stage_computes_where_it_is(tmp_path: Path, on_meta: torch.device) -> None:
    """All but its two sums, which are numbers: lists are drawn, rewarded and made likelier on the device."""
    _, batches = batches_of(write_tiny_llm(tmp_path), on_meta, ranking={"epochs": 1})
    ranking = cycle_settings("x", ranking={"epochs": 1}).ranking
    step = policy_step(batches, RankingOptions(ranking, 0.5, 1, 0.0, 0), 0.1, [batches.answer(0, "train")])
    with pytest.raises(RuntimeError, match="item"):  # of the first sum
        step(0, lambda *_: None)


@pytest.mark.parametrize("kind", ["decoder", "sentence encoder"])
def test_an_encoder_computes_where_it_is(kind: str, tmp_path: Path, on_meta: torch.device) -> None:
    write = write_tiny_llm if kind == "decoder" else partial(write_tiny_sentence_encoder, dense=4)
    encoder = open_encoder(Encoding(base=str(write(tmp_path)), layers=(1, 2)))
    encoder.model.to(on_meta)
    ids = torch.zeros(2, 5, dtype=torch.int64, device=on_meta)
    states = encoder.states(ids, torch.ones_like(ids))
    assert {state.device for state in states} == {on_meta}
    assert encoder.after(states[0].mean(1)).device == on_meta


VOCABULARY = Vocabulary(("tea",), ("profile_age",), (("young", "old"),))


@pytest.mark.parametrize("encodings", [None, torch.ones(5, 3)])
def test_a_sequence_network_computes_where_it_is(encodings: torch.Tensor | None, on_meta: torch.device) -> None:
    rng = np.random.default_rng(0)
    network = SequenceNetwork(5, VOCABULARY, NetworkSettings(width=8, layers=1, context=8), encodings).to(on_meta)
    sizes = {"advertiser": 5, "category": 2, "price": PRICES, "gap": GAPS}
    batch = {name: rng.integers(0, size, (2, 4)) for name, size in sizes.items()}
    batch |= {"profile": rng.integers(0, 3, (2, 1)), "positions": rng.integers(0, 5, (2, 3))}
    batch |= {"since": rng.integers(0, GAPS, (2, 3)), "offset": np.zeros((2, 3, 5), np.float32)}
    log_probs = network.train()(*as_tensors(batch, on_meta).values())
    log_probs.sum().backward()
    assert log_probs.device == on_meta


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    p=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
    turned=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_another_device_leaves_out_what_the_cpu_does(shape: list[int], p: float, seed: int, turned: bool) -> None:
    values = torch.ones(shape).transpose(0, -1) if turned else torch.ones(shape)
    torch.manual_seed(seed)
    here = nn.functional.dropout(values, p)
    torch.manual_seed(seed)
    torch.testing.assert_close(values * drawn_mask(values, p), here)
    dropout = Dropout(p).train()
    torch.manual_seed(seed)
    dropout(values.to(META))
    after = torch.rand(3)
    torch.manual_seed(seed)
    dropout(values)
    assert torch.equal(torch.rand(3), after)  # whatever is drawn next is the same, too


def test_a_placed_network_draws_all_of_its_dropout_on_the_cpu() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": nn.Dropout(0.3)}), nn.Dropout(0.0)).eval()
    names = list(network.state_dict())
    placed(network, META)
    active = [m for m in network.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert [type(m) for m in active] == [Dropout]
    assert not active[0].training
    assert list(network.state_dict()) == names


def test_what_is_kept_of_a_fit_is_copied_out_of_its_device() -> None:
    """Weights and the optimizer's state: of `meta` there is nothing that could be copied, and it is tried."""
    parameter = nn.Parameter(torch.zeros(2, device=META))
    for keep in (lambda: copy_of({"a": parameter}), lambda: on_cpu({"state": {0: [{"m": parameter.detach()}]}})):
        with pytest.raises(NotImplementedError, match="no data"):
            keep()


def test_a_full_card_is_one_error() -> None:
    with pytest.raises(AdvpriorError, match="PRI035"), within_memory():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")


def test_through_accelerate_or_plain_the_numbers_are_the_same(tmp_path: Path) -> None:
    """In float32 on a CPU; in bf16 they are near."""
    folder = write_tiny_llm(tmp_path)
    losses = {}
    for name, compute in {
        "plain": Compute(torch.device("cpu")),
        "accelerate": Compute.of(),
        "bf16": Compute.of("bf16"),
    }.items():
        torch.manual_seed(0)
        networks, batches = batches_of(folder, torch.device("cpu"))
        networks.head.query.weight.data.normal_()
        batches.compute = compute
        answer = batches.answer(0, "train")
        assert answer is not None
        assert answer.log_probs.dtype == torch.float32
        losses[name] = share_loss(answer.log_probs, answer.truth, answer.weight).item()
    assert losses["accelerate"] == losses["plain"]
    assert losses["bf16"] != losses["plain"]
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.05)
