"""How fast the LLM scores: against this machine's matmul peak, snapshots against one, a refresh against everyone.

    python -m benchmarks.scoring [--repeats 5] [--users 120]

The peak is a large float32 matrix product, measured in turn with the scoring runs, so that both sides see the
same machine. Floating-point operations count real tokens only, so padding and everything that is no matrix
product show as a rate below the peak.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advprior.runtime.batching import token_budget_batches
from advprior.runtime.parity import allowed_difference, largest_difference
from advprior.runtime.session import Engine, open_session, real_cores
from advprior.store.matrix import open_matrix
from advprior.store.times import DAY_US

N = 664  # advertisers, as in the demo
LAYERS = 10
SNAPSHOTS = 40
DAY = DAY_US


CHANGED = 0.05  # of the users, in the refresh
NAMES, NAMES_TIMED = 100, 10  # each costs the same: a tenth is timed
NAME_TOKENS, PROMPT_TOKENS = 4, 256
PROMPTS_TIMED = 8


def build(folder: Path) -> tuple[Engine, dict[str, int], Any]:
    """The demo's network with an untuned head, exported; speed does not depend on what it learned."""
    from advprior.predictors.llm.tuning.export import export_onnx

    model, shape = untuned(LAYERS)
    export_onnx(model, folder)
    return open_session(folder / "model.onnx", device="cpu", many=True), shape, model.eval()


def untuned(layers: int, advertisers: int = N) -> tuple[Any, dict[str, int]]:
    """The first layers of the base with a head of random numbers, and its sizes by name."""
    import torch

    from advprior.predictors.llm.tuning.model import from_base
    from advprior.predictors.tuning.base import DEFAULT_BASE, load_base

    base = load_base(DEFAULT_BASE, layers=layers).model
    shape = {k: int(getattr(base.config, k)) for k in ("hidden_size", "intermediate_size")}
    shape["kv"] = shape["hidden_size"] * base.config.num_key_value_heads // base.config.num_attention_heads
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    model = from_base(
        base,
        catalog_size=advertisers,
        text_vocab_size=vocabulary,
        frozen_layers=layers - 2,
        advertiser_embeddings=torch.zeros(advertisers, shape["hidden_size"]),
    )
    torch.nn.init.normal_(model.head.weight, std=0.02)
    return model, {**shape, "vocabulary": vocabulary, "layers": layers, "advertisers": advertisers}


def operations(shape: dict[str, int], tokens: int, points: int) -> float:
    """Floating-point operations of one prompt: projections, feed-forward, attention, head (2 a multiply-add)."""
    h, m, kv = shape["hidden_size"], shape["intermediate_size"], shape["kv"]
    layer = tokens * (2 * h * h + 2 * h * kv + 3 * h * m) + 2 * tokens * tokens * h
    return 2.0 * (shape["layers"] * layer + points * h * shape["advertisers"])


def score(engine: Engine, shape: dict[str, int], lengths: np.ndarray, points: int) -> None:
    """Score prompts of random tokens, ``points`` snapshots each."""

    def forward(batch: np.ndarray) -> None:
        rng = np.random.default_rng(int(batch[0]))
        longest = int(lengths[batch].max())
        mask = (np.arange(longest) < lengths[batch][:, None]).astype(np.int64)
        ids = rng.integers(0, shape["vocabulary"], mask.shape) * mask
        positions = np.sort(rng.integers(0, lengths[batch][:, None], (len(batch), points)), axis=1)
        engine.run(ids, mask, positions, np.zeros((len(batch), points, N), np.float32))

    for _ in engine.each(token_budget_batches(lengths, engine.token_budget, engine.lanes), forward):
        pass


def refresh(folder: Path, vocabulary: int, users: int) -> Callable[[], float]:
    """A measurement: time of scoring when 5 % of the users bought something, against scoring all of them.

    Both sides hash inputs, write prompts, forward, add habit and drift, and write rows to disk; opening the graph
    and reading tables, the same for both, are left out.
    """
    from advprior.history.histories import Histories
    from advprior.pipeline.score_carried import Carried, save_keys
    from advprior.pipeline.score_files import ScoreFiles
    from advprior.pipeline.score_shards import Scoring, score_shards
    from advprior.predictors.forwarding import here
    from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
    from advprior.predictors.llm.scorer import LLMScorer
    from advprior.predictors.offset import Offset, OffsetTerms

    rng = np.random.default_rng(2)
    counts = rng.poisson(60, users) + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    time_ = np.concatenate([np.sort(rng.integers(1, 300 * DAY, n)) for n in counts])
    ids = tuple(f"u{i:05d}" for i in range(users))
    histories = Histories(ids, ("",) * users, offsets, time_, rng.integers(0, N, len(time_)))
    later = histories.time.copy()
    changed = rng.choice(users, round(CHANGED * users), replace=False)
    later[histories.offsets[changed + 1] - 1] = 303 * DAY  # between the two snapshots
    after = Histories(ids, histories.profiles, offsets, later, histories.advertiser)
    encoder = PromptEncoder(PromptStyle(), lambda text: [ord(c) % 256 for c in text], vocabulary, ["x"] * N)
    start = Offset(OffsetTerms((30.0,), (60.0, 14.0), monthly=False), (0.5, 1.0, 1.0))
    scorer = LLMScorer(encoder, start, folder, "cpu")

    def run(name: str, data: Histories, day: int, since: Path | None) -> float:
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        cutoffs = np.asarray([day * DAY], np.int64)
        started = time.perf_counter()
        files = ScoreFiles(out, (users, 1, N), network=True)
        carried = None if since is None else Carried.open(since, data, cutoffs, "m")
        score_shards(Scoring(scorer, data, cutoffs, files, carried), here(scorer, data, cutoffs))
        save_keys(out, data, int(cutoffs[0]), "m")
        files.close()
        return time.perf_counter() - started

    run("before", histories, 301, None)

    def measure() -> float:
        everyone = run("everyone", after, 308, None)
        some = run("some", after, 308, folder / "before")
        difference = share(*(open_matrix(folder / one / "log_probs.npy")[:] for one in ("some", "everyone")))
        assert difference <= 1, f"a refresh differs from scoring everyone by {difference:.1f} times what rounding may"
        return some / everyone

    return measure


def naive(model: Any, engine: Engine, shape: dict[str, int]) -> float:
    """Time of log P(name | prompt) by one forward a name in torch, against one forward for the whole catalog.

    A prompt's share of the time of scoring ``PROMPTS_TIMED`` of them; both sides have all threads.
    """
    import torch

    rng = np.random.default_rng(3)
    vocabulary = shape["vocabulary"]
    prompt = rng.integers(0, vocabulary, PROMPT_TOKENS)
    table = model.lower.get_input_embeddings().weight[:vocabulary]

    def by_name() -> None:
        for _ in range(NAMES_TIMED):
            ids = torch.from_numpy(np.concatenate([prompt, rng.integers(0, vocabulary, NAME_TOKENS)]))[None]
            with torch.inference_mode():
                mask = torch.ones_like(ids)
                states = model.upper_states(model.lower_states(ids, mask), ids, mask)
                # vocabulary logits at the name's tokens only, not at all positions: the cheaper way
                torch.log_softmax(states[:, -NAME_TOKENS - 1 : -1] @ table.T, -1)

    torch.set_num_threads(engine.threads * engine.lanes)
    lengths = np.full(PROMPTS_TIMED, PROMPT_TOKENS)
    one = min(seconds(lambda: score(engine, shape, lengths, 1)) for _ in range(3)) / PROMPTS_TIMED
    return seconds(by_name) * NAMES / NAMES_TIMED / one


def alone_against_batch(engine: Engine, vocabulary: int) -> float:
    """Difference between prompts scored one by one and in one padded batch, as a share of what rounding may be."""
    rng = np.random.default_rng(4)
    lengths = np.asarray([200, 150, 90, 17])
    mask = (np.arange(200) < lengths[:, None]).astype(np.int64)
    ids, last = rng.integers(0, vocabulary, mask.shape) * mask, lengths[:, None] - 1
    offset = np.zeros((4, 1, N), np.float32)
    batch = engine.run(ids, mask, last, offset)
    worst = 0.0
    for i, n in enumerate(lengths):
        one = engine.run(ids[i : i + 1, :n], mask[i : i + 1, :n], last[i : i + 1], offset[:1])
        worst = max(worst, share(one[0], batch[i]))
    return worst


def trie_against_naive() -> float:
    """Names packed as a trie in one forward against a forward for each, as a share of what rounding may be."""
    import torch

    from advprior.predictors.llm.name_trie import name_tokens
    from advprior.predictors.llm.tuning.names import name_model
    from advprior.predictors.tuning.base import DEFAULT_BASE, load_base
    from tests.advprior.predictors.llm.naive_names import naive_log_probs

    base = load_base(DEFAULT_BASE, layers=LAYERS, head=True)
    encode = base.tokenizer.backend_tokenizer.encode
    places, goods = ("Green", "Green Hill", "North", "Old Mill"), ("Tea", "Tea house", "Soap", "Bakery", "Books")
    names = [f"{place} {good}" for place in places for good in goods]
    model = name_model(base, name_tokens(names, lambda text: encode(text, add_special_tokens=False).ids))
    prompt = encode("Purchases, oldest first: Old Mill Tea;3North Soap;", add_special_tokens=False).ids
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        packed = model(ids, torch.ones_like(ids), torch.zeros(1, len(names)))["log_probs"].numpy()[0]
    return share(packed, naive_log_probs(model, prompt))


def share(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of log-probs as a share of what `advprior.runtime.parity` allows."""
    return largest_difference(actual, expected) / allowed_difference(expected)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def line(name: str, values: list[float], bar: str) -> None:
    print(f"{name:<58} {np.median(values):6.2f}   [{min(values):.2f}, {max(values):.2f}]   {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--users", type=int, default=120, help="in the refresh")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    rng = np.random.default_rng(1)
    side = 2048
    left, right = (rng.normal(size=(side, side)).astype(np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        engine, shape, model = build(Path(folder))
        vocabulary = shape["vocabulary"]
        uniform = np.full(48, 256)  # of fewer, a lane that waits for the last batch is a share of the time
        mixed = np.clip(rng.lognormal(5.9, 0.6, 24), 60, 1024).astype(np.int64)  # as long as the demo's prompts
        score(engine, shape, uniform, 1)  # warm up
        peaks, same, real, backfill, names, refreshed = [], [], [], [], [], []
        again = refresh(Path(folder), vocabulary, arguments.users)
        for _ in range(repeats):
            peaks.append(max(2.0 * side**3 / seconds(lambda: left @ right) for _ in range(3)))
            took = seconds(lambda: score(engine, shape, uniform, 1))
            same.append(sum(operations(shape, int(n), 1) for n in uniform) / took / peaks[-1])
            one = seconds(lambda: score(engine, shape, mixed, 1))
            real.append(sum(operations(shape, int(n), 1) for n in mixed) / one / peaks[-1])
            backfill.append(seconds(lambda: score(engine, shape, mixed, SNAPSHOTS)) / one)
            names.append(naive(model, engine, shape))
            refreshed.append(again())
        from advprior.predictors.llm.tuning.export import parity, parity_cases

        alone = alone_against_batch(engine, vocabulary)
        torch_difference = parity(model, Path(folder) / "model.onnx", parity_cases(model)[:5])
    print(
        f"{real_cores()} cores, load {os.getloadavg()[0]:.1f}, float32 matmul peak {np.median(peaks) / 1e9:.0f} GFLOP/s"
    )
    print(f"{'ratio':<58} median   [min, max]     aim")
    line("scoring rate / matmul peak, prompts of 256 tokens", same, ">= 0.85")
    line("scoring rate / matmul peak, mixed lengths", real, ">= 0.75")
    line(f"time of {SNAPSHOTS} snapshots / time of one, same users", backfill, "<= 1.50")
    line(f"a forward for each of {NAMES} names / one for the catalog", names, ">= 120")
    line(f"refresh, {CHANGED:.0%} of users changed / scoring everyone", refreshed, "<= 0.08")
    print("differences in log-prob, as shares of what is allowed for log-probs of their size")
    line("batched against one by one", [alone], "<= 1")
    line("ORT against torch", [torch_difference["parity"] / torch_difference["parity_allowed"]], "<= 1")
    line("names as a trie against one by one", [trie_against_naive()], "<= 1")


if __name__ == "__main__":
    main()
