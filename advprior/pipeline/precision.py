"""Other precisions for a faster graph on GPUs, behind a gate: what they damage is measured on real histories first.

The graph is exported from the model in that precision, rotary angles, norms, heads and log-softmax in fp32, and
measured on the device that will score. It is never taken on trust: a log-probability that is off reorders the tail of a
catalog long before anything looks broken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.runtime.parity import allowed_difference, largest_difference
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    from advprior.history.histories import Histories
    from advprior.predictors.base import Scorer
    from advprior.store.contract import TimePlan

CPU = "CPUExecutionProvider"
#: The gate. Nats, nats, share of the ten likeliest, nats.
LIMITS = {"mean_difference": 0.02, "max_difference": 1.0, "top10_overlap": 0.95, "nll_change": 0.005}
#: Priors that are also scored one by one: products round by the shape of the batch
ALONE_SAMPLE = 5
#: fp32 on a GPU against fp32 on the CPU, of the largest log-prob: sums in another order, in kernels of others
BETWEEN_PROVIDERS = 1e-3
SAMPLE = 200  # users that damage is measured on


@dataclass(frozen=True)
class Damage:
    """What a reduced graph does to priors, against the full one.

    Attributes
    ----------
    mean_difference, max_difference : float
        Absolute, of log-probabilities.
    top10_overlap : float
        Mean share of the ten likeliest advertisers that stay among them.
    nll_change : float
        Of labels after the cut-off, in nats; NaN without labels.
    priors : int
        Rows compared.
    """

    mean_difference: float
    max_difference: float
    top10_overlap: float
    nll_change: float
    priors: int

    def exceeded(self) -> list[str]:
        """What is beyond `LIMITS`, in words."""
        problems = []
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if name == "nll_change" and np.isnan(value):
                continue
            good = value >= limit if name == "top10_overlap" else value <= limit  # a NaN is not good
            if not good:
                problems.append(f"{name} {value:.3f} (limit {limit})")
        return problems


def damage(full: Float, reduced: Float, truth: Float | None = None) -> Damage:
    """Compare log-probs [R, N]; ``truth`` [R, N] is multi-hot, rows of zeros have no label.

    Examples
    --------
    >>> full = np.log(np.asarray([[0.5, 0.3, 0.2]], np.float32))
    >>> swapped = np.log(np.asarray([[0.3, 0.5, 0.2]], np.float32))
    >>> measured = damage(full, swapped, np.asarray([[1, 0, 0]], np.float32))
    >>> round(measured.nll_change, 3), round(measured.max_difference, 3), measured.top10_overlap
    (0.511, 0.511, 1.0)
    """
    difference = np.abs(full.astype(np.float64) - reduced)
    k = min(10, full.shape[1])
    best = [np.argsort(-x, axis=1, kind="stable")[:, :k] for x in (full, reduced)]
    overlap = np.mean([len(set(a) & set(b)) / k for a, b in zip(*best, strict=True)])
    change = float("nan")
    if truth is not None and truth.sum():
        change = float(((full.astype(np.float64) - reduced) * truth).sum() / truth.sum())
    return Damage(float(difference.mean()), float(difference.max()), float(overlap), change, len(full))


@dataclass(frozen=True)
class Reduction:
    """What takes the place of a graph in fp32.

    Parameters
    ----------
    precision : {"fp32", "tf32", "bf16", "fp16"}
    attention : {"blocks", "fused"}
    device : str
        Where it will score, and so where it is measured: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    """

    precision: str
    attention: str = "blocks"
    device: str = "auto"


def reduce_export(run: Path, folder: Path, tables: Path, reduction: Reduction) -> dict[str, Any]:
    """Put a graph in another precision in the place of ``folder/model.onnx``, or refuse.

    Parameters
    ----------
    run : Path
        Finetune run of the LLM.
    folder : Path
        Holds the fp32 ``model.onnx``, which the other is measured against, on the same device.
    tables : Path
        Canonical tables: priors of up to 200 users at the end of fine-tuning are compared, and the labels after it.
    reduction : Reduction

    Returns
    -------
    dict
        ``precision``, ``attention``, ``damage``, ``gate`` (``provider`` and ``device`` that it was measured on).

    Raises
    ------
    AdvpriorError
        ``PRI014`` for a predictor without a network to reduce, ``PRI015`` when the damage is above `LIMITS`, ``PRI033``
        when the device has no kernels for it.
    """
    from advprior.history.read import load_histories
    from advprior.predictors.llm.predictor import LLMPredictor
    from advprior.predictors.registry import load_predictor
    from advprior.runtime import cuda
    from advprior.runtime.precision import ROUNDING
    from advprior.store.tables import load_time_plan

    predictor = load_predictor(run)
    if not isinstance(predictor, LLMPredictor):
        raise AdvpriorError(
            "PRI014",
            f"{predictor.kind} has no network to reduce",
            where=str(run),
            expected="the LLM's run",
            fix="advprior export RUN, without --precision",
        )
    histories, catalog = load_histories(tables)
    predictor.catalog.require_same(catalog, where=f"{tables}/advertisers.parquet against {run}", fix="take its tables")
    beside = folder / "reduced"
    facts = predictor.export_as(beside, reduction.precision, reduction.attention)
    sample = _Sample.of(histories, load_time_plan(tables))
    small = predictor.scorer(beside, reduction.device)
    full = predictor.scorer(folder, reduction.device)
    reduced, exact = sample.priors(small), sample.priors(full)
    measured = damage(exact, reduced, sample.labels(len(catalog)))
    alone, allowed = sample.alone(small, reduced, ROUNDING[reduction.precision])
    beyond = measured.exceeded()
    if not alone <= allowed:
        beyond.append(f"alone and in a batch differ by {alone:.1e} (limit {allowed:.1e})")
    between = 0.0
    if small.provider != CPU:  # the reference of the reference
        few = sample.first(ALONE_SAMPLE)
        cpu = few.priors(predictor.scorer(folder, "cpu"))
        between = largest_difference(exact[: len(cpu)], cpu)
        if not between <= allowed_difference(cpu, BETWEEN_PROVIDERS):
            beyond.append(f"fp32 on {small.provider} and on the CPU differ by {between:.1e}")
    if beyond:
        raise AdvpriorError(
            "PRI015",
            f"{reduction.precision} damages the priors",
            where=f"{run} on {small.provider}",
            actual=", ".join(beyond),
            expected=", ".join(f"{n} {'>=' if n == 'top10_overlap' else '<='} {v}" for n, v in LIMITS.items()),
            fix=f"advprior export {run}, in fp32",
        )
    _replace(folder, beside)
    return {
        "precision": reduction.precision,
        "attention": reduction.attention,
        "outputs": facts["outputs"],
        "damage": asdict(measured) | {"alone_difference": alone, "provider_difference": between},
        "gate": {"provider": small.provider, "device": _device(small.provider, reduction.device, cuda)},
    }


def _device(provider: str, device: str, cuda: Any) -> str:
    """The GPU's name, or the CPU."""
    if provider == CPU:
        return "CPU"
    return cuda.device_name((cuda.device_ids(device) or [0])[0]) or "CUDA"


def _replace(folder: Path, beside: Path) -> None:
    """Put the files of ``beside`` in the place of those of ``folder``."""
    for file in (*folder.glob("model.onnx*"), *folder.glob("top.onnx*")):
        file.unlink()
    for file in beside.iterdir():
        file.rename(folder / file.name)
    beside.rmdir()


@dataclass(frozen=True)
class _Sample:
    """Users that damage is measured on, at the end of fine-tuning."""

    histories: Histories
    users: Int
    cutoff: Int
    horizon: int

    @classmethod
    def of(cls, histories: Histories, plan: TimePlan) -> _Sample:
        from advprior.history.histories import micros

        cutoff = np.asarray([micros(plan.finetune_end)], np.int64)
        rng = np.random.default_rng(0)
        users = np.sort(rng.choice(len(histories), min(SAMPLE, len(histories)), replace=False)).astype(np.int64)
        return cls(histories, users, cutoff, micros(plan.train_end) - int(cutoff[0]))

    def first(self, count: int) -> _Sample:
        return replace(self, users=self.users[:count])

    def priors(self, scorer: Scorer) -> Float:
        """[n, N]."""
        return scorer.score(self.histories, self.users, self.cutoff)[:, 0]

    def labels(self, size: int) -> Float:
        """Multi-hot [n, N]: what the users turned to after the cut-off."""
        from advprior.history.targets import dense, next_advertisers

        moments = np.repeat(self.cutoff - 1, len(self.users))
        return dense(*next_advertisers(self.histories, self.users, moments, self.horizon), size)

    def alone(self, scorer: Scorer, together: Float, relative: float) -> tuple[float, float]:
        """Largest difference between priors scored one by one and ``together``, and what is allowed."""
        few = self.users[:ALONE_SAMPLE]
        again = [scorer.score(self.histories, few[i : i + 1], self.cutoff)[0, 0] for i in range(len(few))]
        difference = largest_difference(np.stack(again), together[: len(few)])
        return difference, allowed_difference(together[: len(few)], relative)
