"""The budget of a batch: tried from small to large on real batches, until more brings nothing or memory ends."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.runtime.batching import Budget, Outputs, token_budget_batches
from advprior.runtime.tuning import SHARE, tune_budget

LENGTHS = np.random.default_rng(0).integers(140, 160, 12_000)
OUTPUTS = Outputs(np.ones_like(LENGTHS), 400)


class Card:
    """A device by its figures: seconds of a batch, bytes that stay taken, and where it fails."""

    def __init__(self, memory: int, rate: float = 1e-6, start: float = 1e-2, bytes_a_token: int = 100) -> None:
        self.memory, self.free_bytes, self.now = memory, memory, 0.0
        self.rate, self.start, self.bytes_a_token = rate, start, bytes_a_token

    def run(self, batches) -> None:
        for batch in batches:
            tokens = len(batch) * int(LENGTHS[batch].max())
            self.free_bytes = min(self.free_bytes, self.memory - tokens * self.bytes_a_token)
            if self.free_bytes < 0:
                raise RuntimeError("Failed to allocate memory for requested buffer")
            self.now += self.start + tokens * self.rate

    def tune(self, **options):
        return tune_budget(LENGTHS, OUTPUTS, self.run, lambda: self.free_bytes, clock=lambda: self.now, **options)


def test_larger_batches_are_taken_while_they_pay() -> None:
    """A batch costs 10 ms and 1 µs a token: at 64k tokens the start is a seventh of it, at 4k nearly all."""
    tuned = Card(10**12).tune()
    rates = [rung["tokens_per_second"] for rung in tuned.tried]
    assert tuned.budget.tokens == 262_144
    assert rates[-1] == max(rates) > 2 * rates[0]
    assert tuned.budget.output_bytes == int(10**12 * SHARE / 4)
    flat = Card(10**12, start=0.0).tune()
    assert flat.budget.tokens == 4_096
    assert len(flat.tried) == 3  # two that bring nothing are enough


def test_memory_bounds_the_ladder() -> None:
    tuned = Card(10_000_000).tune()  # 100,000 tokens
    assert tuned.budget.tokens == 65_536
    assert tuned.tried[-1]["tokens"] == 65_536
    assert "failed" not in tuned.tried[-1]


def test_what_fails_ends_the_ladder_and_nothing_smaller_is_an_error() -> None:
    card = Card(10_000_000)
    tuned = tune_budget(LENGTHS, OUTPUTS, card.run, lambda: None, clock=lambda: card.now)  # nobody says what is free
    assert tuned.budget.tokens == 65_536
    assert tuned.tried[-1]["failed"].startswith("Failed to allocate")
    assert tuned.to_json()["tried"][-1]["tokens"] == 131_072
    with pytest.raises(RuntimeError, match="allocate"):
        Card(1_000).tune()


def test_few_prompts_end_the_ladder() -> None:
    some, outputs, card = LENGTHS[:80], Outputs(np.ones(80, np.int64), 4), Card(10**12)
    tuned = tune_budget(some, outputs, card.run, lambda: None, clock=lambda: card.now)
    assert tuned.tried[-1]["tokens"] == 16_384


def test_batches_hold_to_both_budgets_and_every_row_comes_once() -> None:
    rng = np.random.default_rng(1)
    points = rng.integers(1, 40, len(LENGTHS))
    budget = Budget(4_096, 1_000_000)
    batches = token_budget_batches(LENGTHS, budget, 2, Outputs(points, 4 * 1_000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
    for batch in batches:
        assert len(batch) * LENGTHS[batch].max() <= budget.tokens
        assert len(batch) * points[batch].max() * 4_000 <= budget.output_bytes
    # a row beyond either has a batch of its own
    alone = token_budget_batches([9_000, 5, 5], Budget(100, 10), 1, Outputs(np.array([1, 9, 1]), 4))
    assert sorted(map(len, alone)) == [1, 1, 1]
