"""How fast the LLM scores: against this machine's matmul peak, and all snapshots of a user against one.

    python -m benchmarks.scoring [--repeats 5]

The peak is a large float32 matrix product, measured in turn with the scoring runs, so that both sides see the
same machine. Floating-point operations count real tokens only, so padding and everything that is no matrix
product show as a rate below the peak.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advprior.llm.engine import Engine, open_session, real_cores, token_budget_batches

N = 664  # advertisers, as in the demo
LAYERS = 10
SNAPSHOTS = 40


def build(folder: Path) -> tuple[Engine, dict[str, int]]:
    """The demo's network with an untuned head, exported; speed does not depend on what it learned."""
    import torch

    from advprior.llm.base import DEFAULT_BASE, load_base
    from advprior.llm.export import export_onnx
    from advprior.llm.model import from_base

    base = load_base(DEFAULT_BASE, layers=LAYERS).model
    shape = {k: int(getattr(base.config, k)) for k in ("hidden_size", "intermediate_size")}
    shape["kv"] = shape["hidden_size"] * base.config.num_key_value_heads // base.config.num_attention_heads
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    model = from_base(
        base, catalog_size=N, text_vocab_size=vocabulary, frozen_layers=LAYERS - 2,
        advertiser_embeddings=torch.zeros(N, shape["hidden_size"]),
    )  # fmt: skip
    torch.nn.init.normal_(model.head.weight, std=0.02)
    export_onnx(model, folder)
    return open_session(folder / "model.onnx", device="cpu"), {**shape, "vocabulary": vocabulary}


def operations(shape: dict[str, int], tokens: int, points: int) -> float:
    """Floating-point operations of one prompt: projections, feed-forward, attention, head (2 a multiply-add)."""
    h, m, kv = shape["hidden_size"], shape["intermediate_size"], shape["kv"]
    layer = tokens * (2 * h * h + 2 * h * kv + 3 * h * m) + 2 * tokens * tokens * h
    return 2.0 * (LAYERS * layer + points * h * N)


def score(engine: Engine, shape: dict[str, int], lengths: np.ndarray, points: int, budget: int) -> None:
    """Score prompts of random tokens, ``points`` snapshots each."""
    rng = np.random.default_rng(0)
    for batch in token_budget_batches(lengths, budget):
        longest = int(lengths[batch].max())
        mask = (np.arange(longest) < lengths[batch][:, None]).astype(np.int64)
        ids = rng.integers(0, shape["vocabulary"], mask.shape) * mask
        positions = np.sort(rng.integers(0, lengths[batch][:, None], (len(batch), points)), axis=1)
        engine.run(ids, mask, positions, np.zeros((len(batch), points, N), np.float32))


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def line(name: str, values: list[float], bar: str) -> None:
    print(f"{name:<58} {np.median(values):6.2f}   [{min(values):.2f}, {max(values):.2f}]   {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(1)
    side = 2048
    left, right = (rng.normal(size=(side, side)).astype(np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        engine, shape = build(Path(folder))
        uniform = np.full(8, 256)
        mixed = np.clip(rng.lognormal(5.9, 0.6, 24), 60, 1024).astype(np.int64)  # as long as the demo's prompts
        score(engine, shape, uniform, 1, 1024)  # warm up
        peaks, same, real, backfill = [], [], [], []
        for _ in range(repeats):
            peaks.append(max(2.0 * side**3 / seconds(lambda: left @ right) for _ in range(3)))
            took = seconds(lambda: score(engine, shape, uniform, 1, 1024))
            same.append(sum(operations(shape, int(n), 1) for n in uniform) / took / peaks[-1])
            one = seconds(lambda: score(engine, shape, mixed, 1, 1024))
            real.append(sum(operations(shape, int(n), 1) for n in mixed) / one / peaks[-1])
            backfill.append(seconds(lambda: score(engine, shape, mixed, SNAPSHOTS, 1024)) / one)
    print(
        f"{real_cores()} cores, load {os.getloadavg()[0]:.1f}, float32 matmul peak {np.median(peaks) / 1e9:.0f} GFLOP/s"
    )
    print(f"{'ratio':<58} median   [min, max]     aim")
    line("scoring rate / matmul peak, prompts of 256 tokens", same, ">= 0.85")
    line("scoring rate / matmul peak, mixed lengths", real, ">= 0.75")
    line(f"time of {SNAPSHOTS} snapshots / time of one, same users", backfill, "<= 1.50")


if __name__ == "__main__":
    main()
