"""Fine-tuning: from histories before the cut-off to a tuned network, its heads and what scoring needs, in a folder.

The network learns what habit and drift (`advprior.predictors.offset`) do not say: logits start from those. What is
tuned is a matter of `tuning.modes`, at which points of `tuning.points`, how of `tuning.loop`;
the ranking stage (`advprior.predictors.llm.tuning.grpo`) comes after, if asked for, and stays only where it pays.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advprior.history.counts import DAY
from advprior.history.interests import Interests
from advprior.history.targets import quality_of_blocks
from advprior.predictors.base import BEFORE, FitData
from advprior.predictors.deadline import Deadline
from advprior.predictors.labels import MORE_EVENTS, LabelSpan, require_choosing_labels
from advprior.predictors.llm.prompts import TITLE, PromptEncoder, PromptStyle
from advprior.predictors.llm.saved_prompt import NO_HISTORY
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.llm.tuning.curve import write_curve
from advprior.predictors.llm.tuning.drift import Drift
from advprior.predictors.llm.tuning.grpo import RankingOptions, judge, ranking_stage
from advprior.predictors.llm.tuning.loop import Course, Measured, Stage, Update, copy_of, restore, run_stage
from advprior.predictors.llm.tuning.modes import frozen_layers, optimizer_for, tuned_weights
from advprior.predictors.llm.tuning.networks import Networks, build_networks
from advprior.predictors.llm.tuning.no_history import judge_no_history
from advprior.predictors.llm.tuning.points import WindowPoints, fit_habit, training_points
from advprior.predictors.llm.tuning.saved_run import RunParts, save_run
from advprior.predictors.llm.tuning.trial import require_export
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import Offset
from advprior.predictors.quality import MODEL, POPULAR, START, figures, popularity_quality
from advprior.predictors.starts import AsOf
from advprior.predictors.tokens import plain_encoder
from advprior.predictors.tuning.base import Base, load_base
from advprior.predictors.tuning.compute import fit_device, within_memory
from advprior.predictors.tuning.random_weights import forget
from advprior.predictors.tuning.softmax import Sampler
from advprior.predictors.wide import softmax_of
from advprior.store.errors import AdvpriorError


@within_memory()
def finetune(data: FitData, settings: LLMSettings, out: Path) -> dict[str, Any]:
    """Tune a base model on histories before the cut-off and write the predictor into ``out``.

    Returns
    -------
    dict
        Facts for the manifest: base, points, the curve by epoch, best epoch, validation quality beside that of
        habit and drift alone on the same points; the ranking stage's figures before and after, where there was one;
        what users without a history are given.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when the histories hold no training or validation point, ``PRI007`` when prompts may outgrow the
        base model, ``PRI018`` when the horizon is longer than ``valid_days``, ``PRI050`` and ``PRI051`` when it
        cannot be tuned in this mode, ``PRI052`` when interests are asked for and the events tell no category,
        ``PRI054`` when its kind cannot be exported, ``PRI055`` when its tokenizer reads nothing in a name; ``PRI031``
        without the device that was asked for, ``PRI035`` when a card's memory is too small.
    """
    require_choosing_labels(settings.horizon_days, settings.training.valid_days, "training.valid_days")
    deadline = Deadline(settings.training.max_minutes)
    fit_device()  # refused now, not after the points
    torch.manual_seed(settings.training.seed)
    data = _with_interests(data, settings)
    base = load_base(settings.base, layers=settings.layers, context=settings.prompt.context)
    style = _style(base, settings)
    frozen = frozen_layers(settings, int(base.model.config.num_hidden_layers)) > 0
    require_export(base.model, frozen=frozen, context=style.context)
    if settings.twin:
        forget(base.model, settings.training.seed)
    tokenizer = base.tokenizer.backend_tokenizer
    encode = plain_encoder(tokenizer)
    text_vocab_size = int(base.model.get_input_embeddings().weight.shape[0])
    names = data.catalog.to_read(masked=settings.masked).names
    encoder = PromptEncoder(style, encode, text_vocab_size, names)
    points = training_points(data, encoder, settings)
    counts = _require_points(points)
    start = fit_habit(data, points, settings) if settings.drift.around_days is None else None
    networks = build_networks(base, data, settings, points, encode)
    origin = base.origin
    del base
    fit = _Fit(networks, points, RunParts(data, settings, encoder, tokenizer), out, deadline, start)
    start = fit.run()
    save_run(out, networks, start, fit.parts)
    write_curve(out, fit.curves)
    for file in fit.checkpoints.values():
        file.unlink(missing_ok=True)
    return {
        "base": origin,
        "mode": settings.mode,
        "compute": networks.compute.facts(),
        "habit": start.to_json(),
        "points": counts,
        "cut_prompts": encoder.cut(data.histories).to_json(),
        "tokens": int(sum(len(p.window.ids) for p in points)),
        "interests": len(data.interests.catalog) if data.interests is not None else 0,
        "parameters": {
            "trained": sum(p.numel() for p in fit.tuned.values()),
            "model": sum(p.numel() for p in networks.model.parameters()),
        },
        **LabelSpan.micros(data.cutoff if "refit" in fit.facts else fit.border, data.cutoff).to_json(),
        **fit.facts,
    }


class _Fit:
    """The stages of one fit, in order.

    Attributes
    ----------
    border : int
        Microseconds: where training labels end and validation labels start.
    facts : dict
        What the manifest says of the stages.
    curves : dict of str to list
        By stage.
    tuned : dict of str to Parameter
    checkpoints : dict of str to Path
        By stage, and of each trial of the ranking stage; all stay until the end: a fit that is interrupted in a later
        stage keeps the ones before.
    """

    def __init__(
        self,
        networks: Networks,
        points: list[WindowPoints],
        parts: RunParts,
        out: Path,
        deadline: Deadline,
        start: Offset | None,
    ) -> None:
        self._start = start
        self.networks, self.parts, self._points, self._out = networks, parts, points, out
        self._deadline, self._compute = deadline, networks.compute
        self._settings = settings = parts.settings
        self._weights = tuned_weights(networks.model, settings)
        networks.to(self._compute.device)
        self._optimizer = self._new_optimizer()
        self.tuned = networks.tuned()
        self._batches = TrainingBatches(
            networks.model, networks.head, networks.interest_head, points, settings.training.batch_tokens, deadline
        )
        if start is not None:
            as_of = AsOf(start, parts.data.histories, len(parts.data.catalog))
            self._batches.starts = {"train": as_of, "valid": as_of, "no_history": as_of}
        self._batches.compute = self._compute
        self._batches.softmax = softmax_of(settings.training.softmax, len(parts.data.catalog))
        if self._batches.softmax == "sampled":
            seen = np.bincount(parts.data.histories.advertiser, minlength=len(parts.data.catalog))
            self._batches.sampler = Sampler(seen, settings.training.sampled)
        self.border = parts.data.cutoff - int(settings.training.valid_days * DAY)
        self.facts: dict[str, Any] = {"stopped_by_max_minutes": []}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.checkpoints = {"sft": out / "checkpoint.pt", "again": out / "checkpoint-again.pt"}
        self._trials = [out / f"checkpoint-ranking-{i}.pt" for i in range(len(settings.ranking.trials))]
        self.checkpoints |= {file.stem: file for file in self._trials}

    def run(self) -> Offset:
        """Run all stages; gives what scoring starts from: ``start``, or what is weighed beside the network."""
        start = self._start
        refit = start is None and self._settings.drift.refit
        untuned = copy_of(self.tuned) if refit else {}
        self._stages = 1 + bool(self._settings.ranking.epochs) + refit
        drift = None if start is not None else Drift(self.parts.data, self._points, self._batches, self._settings)
        course = self._likelihood(drift)
        if drift is not None:
            start, self.facts["strength"] = drift.settle()
            self.networks.head.scale(self.facts["strength"])
        if self._settings.ranking.epochs:
            self._ranking()
        assert start is not None
        self.facts[NO_HISTORY] = judge_no_history(self._batches)
        self.parts = replace(self.parts, no_history=self.facts[NO_HISTORY]["given"])
        # a ranking stage that pays has no validation labels left to be chosen by once they are fitted on
        if drift is not None and refit and not self.facts.get("ranking", {"kept": False})["kept"]:
            if self._settings.drift.keep_before:
                self._keep_before(drift, start)
            if self.facts["strength"] > 0 and self._has_time(course):  # without a say there is nothing to fit
                restore(self.tuned, untuned)
                self._again(drift, course.best_epoch)
        return start

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return optimizer_for(self.networks.model, self.networks.heads, self._weights, self._settings)

    def _likelihood(self, drift: Drift | None) -> Course:
        """Fine-tune; facts: the curve, and the best epoch beside what the logits start from alone."""
        batches, seed = self._batches, self._settings.training.seed
        stage = _likelihood_stage(batches, self._settings)
        stage.limit_s = self._next_part()
        if drift is None:
            alone = batches.valid_start()
        else:
            alone = drift.alone()
            stage.validate = drift.judge
        habit = quality_of_blocks(map(log_softmax, alone), batches.valid("truth"))
        course = run_stage(stage, self._optimizer, self.tuned, seed, self.checkpoints["sft"], self._compute)
        self._note(stage.name, course.late)
        self.curves["sft"] = course.curve
        best = min(course.curve, key=lambda row: row["valid_nll"])
        self.facts |= {
            "curve": course.curve,
            "best_epoch": course.best_epoch,
            "valid": {MODEL: figures(best), START: habit, POPULAR: self._popularity()},
        }
        return course

    def _ranking(self) -> None:
        """Move the tuned network by rewards of lists."""
        training = self._settings.training
        options = RankingOptions(
            self._settings.ranking,
            self._settings.interests.weight,
            training.patience,
            training.weight_decay,
            training.seed + 1,
            self._next_part(),
        )
        course, facts = ranking_stage(self._batches, self.tuned, options, self._trials)
        self._note("ranking stage", course.late)
        self.curves["ranking"] = course.curve
        self.facts["ranking"] = {**facts, "curve": course.curve}

    def _popularity(self) -> dict[str, float]:
        """Quality of popularity at the validation points, in their order."""
        truth = self._batches.valid("truth")
        if self._settings.drift.around_days is not None:  # as there: a point's targets share it
            truth = truth.shares()
        return popularity_quality(self.parts.data.histories, self._batches.valid("moments"), truth)

    def _next_part(self) -> float | None:
        """Seconds for the next stage: those that are left share the time that is."""
        seconds = self._deadline.part(self._stages)
        self._stages -= 1
        return seconds

    def _has_time(self, course: Course) -> bool:
        """Whether fitting again would end by the deadline, by what the same epochs took before."""
        seconds = sum(row["seconds"] for row in course.curve[: course.best_epoch])
        again, before = (sum(int(getattr(p, which).sum()) for p in self._points) for which in ("again", "train"))
        late = seconds * again / max(before, 1) > self._deadline.left
        self._note("fine-tune again", late)
        return not late

    def _note(self, stage: str, late: bool) -> None:
        if late:
            self.facts["stopped_by_max_minutes"].append(stage)

    def _keep_before(self, drift: Drift, start: Offset) -> None:
        """Write the run as it is before it sees the labels that validated it."""
        before = self._out / BEFORE
        before.mkdir(exist_ok=True)
        save_run(before, deepcopy(self.networks), start, self.parts)
        self.facts[BEFORE] = LabelSpan.micros(drift.border, self.parts.data.cutoff).to_json()

    def _again(self, drift: Drift, epochs: int) -> None:
        """Fit again, from the start, on all labels up to the cut-off."""
        training, facts = self._settings.training, {"points": drift.up_to_cutoff()}
        stage = replace(
            _likelihood_stage(self._batches, self._settings),
            name="fine-tune again",
            validate=dict,
            score=lambda row: -float(row["epoch"]),
            epochs=epochs,
            planned=training.epochs,
        )
        optimizer, checkpoint = self._new_optimizer(), self.checkpoints["again"]
        course = run_stage(stage, optimizer, self.tuned, training.seed, checkpoint, self._compute)
        self.facts["refit"] = {**facts, "curve": course.curve}
        self.networks.head.scale(self.facts["strength"])


def _with_interests(data: FitData, settings: LLMSettings) -> FitData:
    """The data with the interests that the settings ask for, or with none."""
    if not settings.interests.weight:
        return replace(data, interests=None)
    if data.interests is None:
        raise AdvpriorError(
            "PRI052",
            "interests need categories, and no event has one",
            where="events, column category",
            actual="no category before finetune_end",
            expected="a category for some events",
            fix="set `interests.weight: 0`, or map a column to `category`",
        )
    frequent: Interests = data.interests.most_frequent(settings.interests.most)
    return replace(data, interests=frequent)


def _style(base: Base, settings: LLMSettings) -> PromptStyle:
    style = PromptStyle(**{**settings.prompt.model_dump(), "title": settings.prompt.title or TITLE})
    limit = getattr(base.model.config, "max_position_embeddings", None) or style.context
    if style.context > limit:
        raise AdvpriorError(
            "PRI007",
            "the context is longer than the base model's",
            where="config, prompt.context",
            actual=str(style.context),
            expected=f"at most {limit}",
            fix="lower prompt.context",
        )
    return style


def _require_points(points: list[WindowPoints]) -> dict[str, int]:
    counts = {which: int(sum(getattr(p, which).sum() for p in points)) for which in ("train", "valid")}
    if not all(counts.values()):
        raise AdvpriorError(
            "PRI006",
            "the histories hold too little to fit on",
            where="events before finetune_end",
            actual=f"{counts['train']} training and {counts['valid']} validation points",
            expected="at least one of each",
            fix=MORE_EVENTS
            if not any(counts.values())
            else f"{'lower' if counts['valid'] else 'raise'} training.valid_days, or move finetune_end later",
        )
    return counts


def _likelihood_stage(batches: TrainingBatches, settings: LLMSettings) -> Stage:
    """Supervised fine-tuning: likelihood of the next advertisers, and of the next interests beside it."""
    config, weight_of_interests = settings.training, settings.interests.weight
    truth, interest_truth = batches.valid("truth"), batches.valid("interests")

    def step(batch: int, update: Update) -> Measured:
        batches.model.train()
        losses = batches.losses(batch)
        if losses is None:
            return 0.0, 0.0
        loss = losses.nll
        if losses.interests is not None:
            loss = loss + weight_of_interests * losses.interests
        update(loss, losses.weight)
        return losses.nll.detach(), losses.weight

    return Stage(
        name="fine-tune",
        measure="train_nll",
        step=step,
        batches=len(batches),
        validate=lambda: judge(batches, truth, interest_truth),
        score=lambda row: float(row["valid_nll"]),
        epochs=config.epochs,
        patience=config.patience,
    )
