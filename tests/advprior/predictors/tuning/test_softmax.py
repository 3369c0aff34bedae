"""The likelihood of a wide catalog: block by block it is that of the whole array, gradients and all; of a sample, right
on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advprior.history.targets import Targets
from advprior.predictors.starts import Logits, Nothing
from advprior.predictors.tuning.softmax import Sampler, WideBatch, blockwise_loss, sampled_loss

POINTS, SIZE, HIDDEN = 6, 50, 5


class Layer(torch.nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(SIZE, HIDDEN, generator=torch.Generator().manual_seed(1)))
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, SIZE)) if bias else None

    def rows(self, columns=None):
        if columns is None:
            return self.weight, self.bias
        return self.weight[columns], None if self.bias is None else self.bias[columns]


def batch_of(seed: int = 0) -> WideBatch:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(POINTS, SIZE)).astype(np.float32)
    point, index = np.array([0, 0, 3, 5]), np.array([4, 9, 9, 0])
    start = Logits(
        lambda columns: base.copy() if columns is None else base[:, columns],
        point,
        index,
        np.full(4, 2.5, np.float32),
        SIZE,
    )
    truth = (rng.random((POINTS, SIZE)) < 0.05) * np.array([0, 1, 1, 0.5, 2, 1])[:, None]
    states = torch.from_numpy(rng.normal(size=(POINTS, HIDDEN)).astype(np.float32)).requires_grad_()
    return WideBatch(states, start, Targets.from_dense(truth))


def whole_loss(batch: WideBatch, layer: Layer) -> torch.Tensor:
    logits = batch.states @ layer.weight.T + torch.from_numpy(batch.start.at())
    log_probs = torch.log_softmax(logits if layer.bias is None else logits + layer.bias, dim=1)
    return -(torch.from_numpy(batch.truth.dense()) * log_probs).sum()


def with_gradients(loss_of, bias: bool, seed: int = 0):
    batch, layer = batch_of(seed), Layer(bias)
    loss = loss_of(batch, layer)
    loss.backward()
    return [loss.detach(), batch.states.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [1, 7, 50, 64])
def test_block_by_block_is_the_whole_softmax(bias: bool, block: int) -> None:
    ours = with_gradients(lambda *both: blockwise_loss(*both, block=block), bias)
    for one, whole in zip(ours, with_gradients(whole_loss, bias), strict=True):
        assert float((one - whole).abs().max()) <= 2e-5 * float(whole.abs().max())


def test_a_sample_of_everything_is_the_whole_softmax() -> None:
    sampler = Sampler(np.ones(SIZE), SIZE)
    assert (sampler.chance == 1.0).all()
    ours = with_gradients(lambda *both: sampled_loss(*both, sampler), True)
    for one, whole in zip(ours, with_gradients(whole_loss, True), strict=True):
        assert float((one - whole).abs().max()) <= 2e-5 * float(whole.abs().max())


def test_the_norm_of_a_sample_is_right_on_average() -> None:
    """``exp(loss)`` of one point with one target is Z over the target's share: its mean is that of the whole."""
    layer, seen = Layer(False), np.arange(SIZE) ** 2
    batch = batch_of()
    alone = Targets.of(np.array([0, 1, *[1] * (POINTS - 1)]), np.array([4]), SIZE)
    batch = WideBatch(batch.states, batch.start, alone)
    sampler = Sampler(seen, 12)
    assert sampler.chance.sum() == pytest.approx(12, rel=1e-3)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = np.array([float(sampled_loss(batch, layer, sampler).exp()) for _ in range(3000)])
        whole = float(whole_loss(batch, layer).exp())
    assert abs(drawn.mean() - whole) < 5 * drawn.std() / np.sqrt(len(drawn))
    assert drawn.std() > 0.01 * whole


def test_what_is_certain_is_always_among_the_drawn() -> None:
    sampler = Sampler(np.zeros(SIZE), 5)
    certain = np.array([3, 17, 40])
    torch.manual_seed(1)
    for _ in range(20):
        columns, correction = sampler.draw(certain)
        assert np.isin(certain, columns).all()
        assert (correction[np.isin(columns, certain)] == 0).all()
        assert (correction[~np.isin(columns, certain)] > 1).all()
        assert (np.diff(columns) > 0).all()


def test_nothing_to_start_from() -> None:
    zero = Nothing(SIZE).logits(*np.zeros((3, 4), np.int64))
    assert zero.at().shape == (4, SIZE)
    assert not zero.at(np.array([2, 1])).any()
