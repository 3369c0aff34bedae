"""How many tokens one batch should hold on this device: tried on real batches, in the time of some seconds.

On a CPU the best budget is known (`Engine.budget`). On a GPU it depends on the card, the network and the precision: too
few tokens leave multiprocessors idle, too many cost memory and gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from advprior.runtime.batching import Budget, Outputs, token_budget_batches
from advprior.store.arrays import Int

LADDER = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 262_144)  # padded tokens
GAIN = 1.03  # what a larger budget must bring to be worth its memory
PATIENCE = 2  # rungs in a row without a gain
TIMED = 3  # batches of a rung at most
SHARE = 0.7  # of the free memory that batches may take

#: Free bytes of the device, None where nobody says.
FreeMemory = Callable[[], int | None]


@dataclass(frozen=True)
class Tuned:
    """A budget and what it was chosen from.

    Attributes
    ----------
    budget : Budget
    tried : tuple of dict
        ``tokens``, ``tokens_per_second`` (real tokens, no padding), ``bytes`` (what the device took for it).
    """

    budget: Budget
    tried: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "tokens": self.budget.tokens,
            "output_bytes": self.budget.output_bytes,
            "tried": [dict(rung) for rung in self.tried],
        }


def tune_budget(
    lengths: Int,
    outputs: Outputs,
    run: Callable[[Sequence[Int]], object],
    free: FreeMemory,
    *,
    ladder: Sequence[int] = LADDER,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuned:
    """Try budgets from small to large until a larger one brings nothing, or memory would not last.

    Parameters
    ----------
    lengths : int64 [n]
        Tokens of real prompts.
    outputs : Outputs
        What each of them returns.
    run : callable
        Runs batches as the score will, as many at a time.
    free : callable
        Free bytes of the device.
    ladder, clock
        Padded tokens to try; seconds.

    Returns
    -------
    Tuned
        The first rung's budget at least, whatever it took.

    Raises
    ------
    Exception
        What ``run`` raises on the first rung: nothing smaller is left to try.
    """
    at_start = free()
    # a batch's outputs, and what the end of the network needs beside them, within a quarter of the memory
    output_bytes = 1 << 30 if at_start is None else max(int(at_start * SHARE / 4), 1 << 20)
    best, rate, worse = Budget(ladder[0], output_bytes), 0.0, 0
    tried: list[dict[str, Any]] = []
    for tokens in ladder:
        budget = Budget(tokens, output_bytes)
        batches = token_budget_batches(lengths, budget, outputs=outputs)
        # the longest prompts take the most memory, those in the middle say how fast it is
        middle = max(0, min(len(batches) // 2, len(batches) - TIMED))
        full = batches[middle : middle + TIMED]
        before = free()
        try:
            run([*batches[:1], *full[:1]])  # allocates, and chooses its kernels
            started = clock()
            run(full)
            seconds = max(clock() - started, 1e-9)
        except Exception as error:  # ONNX Runtime has no class of its own for memory that does not suffice
            if not tried:
                raise
            tried.append({"tokens": tokens, "failed": str(error).splitlines()[0][:120]})
            break
        after = free()
        taken = 0 if before is None or after is None else max(before - after, 0)
        speed = float(sum(lengths[batch].sum() for batch in full)) / seconds
        tried.append({"tokens": tokens, "tokens_per_second": round(speed), "bytes": taken})
        if speed > rate * GAIN:
            best, rate, worse = budget, speed, 0
        else:
            worse += 1
        is_last = len(batches) == 1  # all prompts in one batch: a larger budget is the same
        held = 0 if at_start is None or after is None else at_start - after
        too_large = at_start is not None and held * 2 > at_start * SHARE  # the next rung takes twice as much
        if worse >= PATIENCE or is_last or too_large:
            break
    return Tuned(best, tuple(tried))
