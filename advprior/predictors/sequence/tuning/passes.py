"""Passes over the labels: one learner, its learning rate, and the judge that looks on after each pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import quality_of_blocks
from advprior.predictors.around import Around
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import Offset, OffsetTerms, weigh
from advprior.predictors.sequence.points import Target, Waits
from advprior.predictors.sequence.settings import SequenceSettings
from advprior.predictors.sequence.tokens import Tokens, TokenWindow, Vocabulary, windows
from advprior.predictors.sequence.tuning.network import SequenceNetwork, as_tensors
from advprior.predictors.sequence.tuning.snapshots import CELLS, Snapshots
from advprior.predictors.starts import AroundLabel, SoFar, Start
from advprior.predictors.tuning.compute import fit_device, to_device, tokens_at_once
from advprior.predictors.tuning.schedule import learning_rate
from advprior.predictors.tuning.softmax import Sampler, WideBatch, wide_loss
from advprior.predictors.wide import softmax_of
from advprior.runtime.batching import length_batches
from advprior.store.arrays import Float, Int
from advprior.store.progress import Progress

SAMPLE = 6000  # points that weigh what the logits start from
JUDGED_TOKENS = 8192  # of one batch when nothing is learnt
Curve = list[dict[str, Any]]
Weighing = tuple[tuple[float, ...], float]  # of the offset's terms, and the strength of the deviation


@dataclass(frozen=True)
class Recipe:
    """What a learner follows.

    Attributes
    ----------
    settings : SequenceSettings
    target : Target
    planned : int
        Passes that the learning rate falls over.
    encodings : float32 [N, D], optional
        Of the advertisers' texts.
    device : torch.device
    """

    settings: SequenceSettings
    target: Target
    planned: int
    encodings: Float | None = None
    device: torch.device = field(default_factory=fit_device)


class Judge:
    """Figures on the labels that choose, of network and offset weighed together.

    Parameters
    ----------
    histories : Histories
    points : Snapshots
    shape : OffsetTerms

    Attributes
    ----------
    terms : Terms
        What is known at each point without the network: drift so far, then habit.
    """

    def __init__(self, histories: Histories, points: Snapshots, shape: OffsetTerms) -> None:
        self._histories, self._points, self.shape = histories, points, shape
        self.terms = shape.sparse(histories, points.user, points.moment, points.target.size)

    def __call__(self, network: SequenceNetwork, vocabulary: Vocabulary) -> tuple[dict[str, float], Weighing]:
        """Columns of the curve, and what was weighed."""
        points = self._points
        away = deviations(network, Tokens(self._histories, vocabulary), points)
        weights, strength = weigh(self.terms, points.target, away)
        logits = self.terms.beside(away).blocks([*weights, strength])
        now = quality_of_blocks(map(log_softmax, logits), points.target)
        columns = {f"valid_{name}": now[name] for name in ("nll", "recall@5", "recall@20")}
        return columns | {"strength": strength}, (weights, strength)


def deviations(network: SequenceNetwork, tokens: Tokens, points: Snapshots) -> Float:
    """How each point differs from everyone [P, N], before its strength."""
    out = np.zeros((len(points), points.target.size), np.float32)
    network.eval()
    device = network.start.device
    with torch.inference_mode():
        every = list(windows(tokens.histories, points.user, points.moment, network.context))
        score = network.rows()[0].T
        for part in batches(every, tokens_at_once(JUDGED_TOKENS, device)):
            outputs = network.outputs(as_tensors(tokens.batch(part, points.moment), device))
            row, column, point = places_of(part)
            outputs = outputs[to_device(row, device), to_device(column, device)]
            step = max(CELLS // out.shape[1], 1)
            for start in range(0, len(point), step):
                out[point[start : start + step]] = (outputs[start : start + step] @ score).cpu().numpy()
    return out


class Learner:
    """Fits a network on waits, on top of the drift around each label (or so far) and of habit.

    Parameters
    ----------
    past : Histories
        Whatever the labels may be: none of them lies after it.
    vocabulary : Vocabulary
    waits : Waits
    recipe : Recipe
    """

    def __init__(self, past: Histories, vocabulary: Vocabulary, waits: Waits, recipe: Recipe) -> None:
        self.vocabulary, self.waits = vocabulary, waits
        self._past, self._recipe = past, recipe
        around, size = recipe.settings.offset.around, recipe.target.size
        self._shape = OffsetTerms(recipe.settings.offset.popular, recipe.settings.offset.own)
        self._around = None if around is None else Around(past, around, size)
        self._softmax = softmax_of(recipe.settings.training.softmax, size)
        self._sampler: Sampler | None = None
        if self._softmax == "sampled":
            self._sampler = Sampler(np.bincount(past.advertiser, minlength=size), recipe.settings.training.sampled)
        self._end: float | None = None

    def learn(
        self, passes: int, judge: Judge | None = None, limit_s: float | None = None
    ) -> tuple[SequenceNetwork, Curve, list[Weighing]]:
        """The network after ``passes``, its curve, and what the judge weighed after each pass.

        With a judge it ends early, after ``patience`` passes without a better likelihood, and the network is that of
        the best one. A pass that outlasts ``limit_s`` is the last one, and ends there.
        """
        training = self._recipe.settings.training
        torch.manual_seed(training.seed)
        rng = np.random.default_rng(training.seed)
        self._begin()
        moment = self.waits.draw(rng)
        self._from = self._starting(moment)
        curve: Curve = []
        weighings: list[Weighing] = []
        kept: dict[str, torch.Tensor] = {}
        what = "fit" if judge else "fit again"
        with Progress(passes * len(self.waits), what, "label") as progress:
            self._end = None if limit_s is None else time.monotonic() + limit_s
            for number in range(passes):
                clock = time.monotonic()
                if number:
                    moment = self.waits.draw(rng)
                line: dict[str, Any] = {"epoch": number + 1, "train_nll": self._pass(moment, rng, progress)}
                if judge is not None:
                    columns, weighing = judge(self._network, self.vocabulary)
                    line |= columns
                    weighings.append(weighing)
                curve.append({**line, "seconds": round(time.monotonic() - clock, 1)})
                progress.note(**{k: v for k, v in line.items() if k in ("train_nll", "valid_nll")})
                if judge is not None and best_pass(curve) == number:
                    kept = {name: value.to("cpu", copy=True) for name, value in self._network.state_dict().items()}
                patient = judge is None or number - best_pass(curve) < training.patience
                if self.late or not patient:
                    break
        if kept:
            self._network.load_state_dict(kept)
        return self._network, curve, weighings

    @property
    def late(self) -> bool:
        """Whether the time for its passes is over."""
        return self._end is not None and time.monotonic() > self._end

    def _begin(self) -> None:
        recipe, training = self._recipe, self._recipe.settings.training
        encodings = None if recipe.encodings is None else torch.from_numpy(recipe.encodings)
        self._network = SequenceNetwork(recipe.target.size, self.vocabulary, recipe.settings.network, encodings)
        self._network.to(recipe.device)
        self._tokens = Tokens(self._past, self.vocabulary)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._step, self._steps = 0, 0

    def _pass(self, moment: Int, rng: np.random.Generator, progress: Progress) -> float:
        """One pass over all waits, asked at ``moment`` [W]; the mean loss."""
        training = self._recipe.settings.training
        every = list(windows(self._past, self.waits.user, moment, self._network.context))
        parts = batches(every, training.batch_tokens, rng)
        self._steps = self._steps or len(parts) * self._recipe.planned
        sums = torch.zeros(2, dtype=torch.float64, device=self._recipe.device)
        self._network.train()
        for number, part in enumerate(parts):
            if number and self.late:
                break
            for group in self._optimizer.param_groups:
                group["lr"] = training.lr * learning_rate(min(self._step / self._steps, 1.0))
            self._step += 1
            loss, weight = self._loss(part, moment)
            self._optimizer.zero_grad()
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
            self._optimizer.step()
            sums += torch.stack([loss.detach(), weight])
            progress.update(sum(len(w.points) for w in part))
        loss_sum, weight_sum = sums.tolist()
        return float(loss_sum / weight_sum)

    def _loss(self, part: list[TokenWindow], moment: Int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighed negative log-likelihood of the points of some windows, and their weight."""
        row, column, points = places_of(part)
        user, at, end = self.waits.user[points], moment[points], self.waits.end[points]
        device = self._recipe.device
        shares = self._recipe.target.shares(self._past, user, at, end)
        weight = to_device(self.waits.weight[points], device)
        tokens = as_tensors(self._tokens.batch(part, moment), device)
        chosen = to_device(row, device), to_device(column, device)
        if self._softmax != "full":
            states = self._network.outputs(tokens)[chosen]
            wide = WideBatch(states, self._from.logits(user, at, end), shares.times(self.waits.weight[points]))
            return wide_loss(wide, self._network, self._sampler), weight.sum()
        target = to_device(shares.dense(), device)
        offset = to_device(self._from(user, at, end), device)
        deviation = self._network.deviation(tokens)[chosen]
        log_probs = torch.log_softmax(deviation + offset, dim=-1)
        return -((log_probs * target).sum(1) * weight).sum(), weight.sum()

    def _starting(self, moment: Int) -> Start:
        """What logits start from, weighed on a sample of the points before any network: drift and habit."""
        waits, target, shape = self.waits, self._recipe.target, self._shape
        sample = np.random.default_rng(0).choice(len(waits), min(len(waits), SAMPLE), replace=False)
        user, at, end = waits.user[sample], moment[sample], waits.end[sample]
        truth = target.shares(self._past, user, at, end).times(waits.weight[sample])
        if self._around is None:  # popularity hardly moves within a day
            terms = shape.sparse(self._past, user, at, target.size, everyone_at=at // DAY * DAY)
        else:
            terms = self._around.terms(shape, user, at, end)
        drifts = len(terms) - len(shape.own)
        centre = [1.0 / drifts] * drifts + [0.5] * len(shape.own)
        weights = tuple(map(float, fit_logit(terms, truth, centre=centre)))
        if self._around is None:
            return SoFar(Offset(shape, weights), self._past, target.size)
        return AroundLabel(self._around, shape, weights)


def places_of(part: list[TokenWindow]) -> tuple[Int, Int, Int]:
    """Of every point of some windows: its window, its place among that window's points, and its number [P] each."""
    counts = [len(w.points) for w in part]
    column = np.concatenate([np.arange(count) for count in counts])
    return np.repeat(np.arange(len(part)), counts), column, np.concatenate([w.points for w in part])


def best_pass(curve: Curve) -> int:
    """Index of the pass with the best likelihood on the labels that choose."""
    return int(np.argmin([row["valid_nll"] for row in curve]))


def batches(every: list[TokenWindow], budget: int, rng: np.random.Generator | None = None) -> list[list[TokenWindow]]:
    """Windows of like length together, at most ``budget`` tokens with padding; in random order with ``rng``."""
    ties = rng.random(len(every)) if rng is not None else None
    parts = [[every[i] for i in part] for part in length_batches([len(w) for w in every], budget, ties=ties)]
    if rng is not None:
        rng.shuffle(parts)  # type: ignore[arg-type]
    return parts
