"""The network by itself: tokens a second by precision, attention and budget, and whether it still says the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advprior.predictors.llm.tuning.export import GraphForm, export_onnx
from advprior.runtime import cuda
from advprior.runtime.batching import Budget, Outputs, token_budget_batches
from advprior.runtime.session import Engine, SessionChoice, open_graph
from advprior.store.arrays import Float, Int
from benchmarks.gpu.peak import cpu_matmul_rate, matmul_rate
from benchmarks.gpu.table import Table
from benchmarks.scoring import alone_against_batch, operations, share, untuned

PROMPTS, PROMPTS_CPU = 1500, 48
BUDGETS = (4_096, 16_384, 65_536)
FORMS = [(precision, attention) for precision in ("fp32", "tf32", "fp16", "bf16") for attention in ("blocks", "fused")]
PLAIN = ("fp32", "blocks")
LONGEST = 1024
HALF = {"fp16", "bf16", "tf32"}


@dataclass(frozen=True)
class Network:
    """An untuned network in every form that could be exported.

    Attributes
    ----------
    shape : dict
        Of `benchmarks.scoring.untuned`.
    folders : dict
        By (precision, attention).
    """

    shape: dict[str, int]
    folders: dict[tuple[str, str], Path]

    @classmethod
    def export(cls, folder: Path, layers: int, advertisers: int, table: Table) -> Network:
        """Every form; one that cannot be exported is a row."""
        model, shape = untuned(layers, advertisers)
        folders: dict[tuple[str, str], Path] = {}
        for form in FORMS:
            if form[0] == "tf32":  # the graph of fp32
                folders |= {form: folders["fp32", form[1]]} if ("fp32", form[1]) in folders else {}
                continue
            place = folder / "-".join(form)
            try:
                export_onnx(model, place, GraphForm(*form))
                folders[form] = place
            except Exception as error:  # the table goes on without it
                table.row(f"{' '.join(form)}: no export", str(error).splitlines()[0][:60])
        return cls(shape, folders)

    def open(self, form: tuple[str, str], device: str) -> Engine:
        """A session of one form."""
        choice = SessionChoice(device=device, many=True, precision=form[0])
        return open_graph(self.folders[form] / "model.onnx", choice)


def prompt_lengths(count: int) -> Int:
    """As long as the demo's prompts are (see `benchmarks.scoring`)."""
    return np.clip(np.random.default_rng(1).lognormal(5.9, 0.6, count), 60, LONGEST).astype(np.int64)


def batches_of(lengths: Int, budget: Budget, engine: Engine, size: int) -> list[Int]:
    """Indices of prompts by batch, as a score makes them."""
    return token_budget_batches(lengths, budget, engine.lanes, Outputs(np.ones(len(lengths), np.int64), 4 * size))


def inputs_of(lengths: Int, vocabulary: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Inputs of one batch: random tokens, the last of them read."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, vocabulary, mask.shape) * mask
    offset = np.zeros((1, 1, size), np.float32)
    return {"input_ids": ids, "attention_mask": mask, "positions": lengths[:, None] - 1, "offset": offset}


def tokens_a_second(engine: Engine, shape: dict[str, int], lengths: Int, budget: Budget) -> float:
    """Real tokens, padding not counted, of the second pass over the prompts."""
    size = shape["advertisers"]
    batches = batches_of(lengths, budget, engine, size)
    ready = [inputs_of(lengths[batch], shape["vocabulary"], size, place) for place, batch in enumerate(batches)]

    def once() -> None:
        for _ in engine.each(ready, lambda one: engine.run_all(one, ("log_probs",))):
            pass

    once()
    started = time.perf_counter()
    once()
    return float(lengths.sum()) / (time.perf_counter() - started)


def speed(network: Network, table: Table) -> None:
    """Tokens a second by form and budget, and the share of the peak of its precision."""
    shape = network.shape
    lengths, few = prompt_lengths(PROMPTS), prompt_lengths(PROMPTS_CPU)
    per_token = sum(operations(shape, int(n), 1) for n in lengths) / lengths.sum()
    cpu_peak = cpu_matmul_rate()
    engine = network.open(PLAIN, "cpu")
    cpu = tokens_a_second(engine, shape, few, engine.budget)
    table.heading(f"network of {shape['layers']} layers, {shape['advertisers']:,} advertisers: tokens a second")
    table.row("peak of a matrix product, fp32, TFLOP/s", "", f"{cpu_peak / 1e12:.2f}")
    table.row("fp32 blocks", "", f"{cpu:,.0f}")
    table.row("  share of the peak", "", f"{cpu * per_token / cpu_peak:.2f}")
    peaks = {precision: matmul_rate(precision) for precision in dict.fromkeys(p for p, _ in FORMS)}
    for precision, peak in peaks.items():
        table.row(f"peak of a matrix product, {precision}, TFLOP/s", f"{peak / 1e12:.0f}")
    for form in network.folders:
        try:
            engine = network.open(form, "cuda")
            for tokens in BUDGETS:
                rate = tokens_a_second(engine, shape, lengths, Budget(tokens, 4 << 30))
                table.row(f"{' '.join(form)}, batches of {tokens:,} tokens", f"{rate:,.0f}", f"x {rate / cpu:.0f}")
                table.row("  share of the peak", f"{rate * per_token / peaks[form[0]]:.2f}")
        except Exception as error:  # a form without kernels is a row, not the end
            table.row(f"{' '.join(form)}: does not run", str(error).splitlines()[0][:60])


def agreement(network: Network, table: Table) -> None:
    """Parity with the CPU, batch invariance and causality of every form, as shares of what rounding may be."""
    shape = network.shape
    size, vocabulary = shape["advertisers"], shape["vocabulary"]
    lengths = np.asarray([900, 400, 150, 60])
    inputs = inputs_of(lengths, vocabulary, size)
    expected = network.open(PLAIN, "cpu").run_all(inputs, ("log_probs",))["log_probs"][:, 0]
    table.heading("the same log-probabilities (1 is what rounding of float32 may be)")
    for form, engine in _engines(network, table):
        name = " ".join(form)
        actual = engine.run_all(inputs, ("log_probs",))["log_probs"][:, 0]
        measured = {
            "against the CPU in fp32": share(actual, expected),
            "alone against in a batch": alone_against_batch(engine, vocabulary),
            "cut prompt against the same tokens of a longer one": _causality(engine, inputs, lengths),
        }
        for what, value in measured.items():
            if form[0] in HALF:  # the gate of an export judges them, on real histories
                table.row(f"{name}: {what}", f"{value:.3g}")
            else:
                table.at_most(f"{name}: {what}", value, 1.0)
        if form[0] in HALF:
            overlap = _overlap(actual, expected)
            table.row(f"{name}: mean difference in nats; ten likeliest in common", f"{_mean(actual, expected):.1e}")
            table.row("", f"{overlap:.2f}")


def _engines(network: Network, table: Table) -> Iterator[tuple[tuple[str, str], Engine]]:
    for form in network.folders:
        try:
            engine = network.open(form, "cuda")
            engine.run_all(inputs_of(np.asarray([8]), network.shape["vocabulary"], network.shape["advertisers"]))
        except Exception as error:  # a form without kernels is a row, not the end
            table.row(f"{' '.join(form)}: does not run", str(error).splitlines()[0][:60])
            continue
        yield form, engine


def _causality(engine: Engine, inputs: dict[str, Any], lengths: Int) -> float:
    """The longest prompt cut in half, against the same place read in the whole."""
    half = int(lengths[0]) // 2
    whole = {name: value[:1] for name, value in inputs.items() if name != "offset"}
    cut = {name: value[:, :half] for name, value in whole.items() if name != "positions"}
    offset, place = {"offset": inputs["offset"]}, {"positions": np.asarray([[half - 1]])}
    long, short = (engine.run_all({**one, **place, **offset}, ("log_probs",))["log_probs"] for one in (whole, cut))
    return share(short, long)


def _mean(actual: Float, expected: Float) -> float:
    return float(np.abs(actual.astype(np.float64) - expected).mean())


def _overlap(actual: Float, expected: Float) -> float:
    likeliest = [np.argsort(-one, axis=1, kind="stable")[:, :10] for one in (actual, expected)]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*likeliest, strict=True)]))


def flat_memory(network: Network, table: Table) -> None:
    """Memory of the card after the first and the last of three sweeps over shapes."""
    engine, shape = network.open(PLAIN, "cuda"), network.shape
    lengths = prompt_lengths(PROMPTS)
    held = []
    free = cuda.free_memory(engine.device_id)
    for sweep in range(3):
        order = np.random.default_rng(sweep).permutation(len(lengths))
        for batch in batches_of(lengths[order], Budget(65_536, 4 << 30), engine, shape["advertisers"]):
            inputs = inputs_of(lengths[order][batch], shape["vocabulary"], shape["advertisers"], sweep)
            engine.run_all(inputs, ("log_probs",))
        now = cuda.free_memory(engine.device_id)
        held.append(free[0] - now[0] if free and now else -1)
    table.heading("memory over three sweeps of shapes")
    table.row("held after the first sweep, GB", f"{held[0] / 1e9:.2f}")
    table.at_most("after the third, relative to the first", held[-1] / max(held[0], 1), 1.02)
