"""Fine-tuning: from histories before the cut-off to a tuned network, its heads and what scoring needs, in a folder.

The network learns what habit and drift (`advprior.predictors.habit`) do not say: logits start from those. What is
tuned is a matter of `tuning.modes`, at which points of `tuning.points`, how of `tuning.loop`;
the ranking stage (`advprior.predictors.llm.tuning.grpo`) comes after, if asked for, and stays only where it pays.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.history.interests import Interests
from advprior.history.targets import quality
from advprior.predictors.base import BEFORE, FitData
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.batches import TrainingBatches, share_loss
from advprior.predictors.llm.tuning.curve import write_curve
from advprior.predictors.llm.tuning.drift import Drift
from advprior.predictors.llm.tuning.extend import TEXT_TOKENS, save_name_head
from advprior.predictors.llm.tuning.grpo import judge, ranking_stage
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.loop import Course, Stage, Update, copy_of, restore, run_stage
from advprior.predictors.llm.tuning.model import AdvertiserModel, from_base
from advprior.predictors.llm.tuning.modes import frozen_layers, merge, optimizer_for, tuned_weights
from advprior.predictors.llm.tuning.points import Points, fit_habit, training_points
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import Offset
from advprior.predictors.tuning.base import Base, load_base
from advprior.predictors.tuning.encode import mean_states
from advprior.predictors.tuning.random_weights import forget
from advprior.store.contract import CATALOG_FILE, INTERESTS_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json


def finetune(data: FitData, settings: LLMSettings, out: Path) -> dict[str, Any]:
    """Tune a base model on histories before the cut-off and write the predictor into ``out``.

    Returns
    -------
    dict
        Facts for the manifest: base, points, the curve by epoch, best epoch, validation quality beside that of
        habit and drift alone on the same points; the ranking stage's figures before and after, where there was one.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when the histories hold no training or validation point, ``PRI007`` when prompts may outgrow the
        base model, ``PRI050`` and ``PRI051`` when it cannot be tuned in this mode, ``PRI052`` when interests are
        asked for and the events tell no category.
    """
    config = settings.training
    torch.manual_seed(config.seed)
    data = _with_interests(data, settings)
    base = load_base(settings.base, layers=settings.layers)
    if settings.twin:
        forget(base.model, config.seed)
    tokenizer = base.tokenizer.backend_tokenizer

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    text_vocab_size = int(base.model.get_input_embeddings().weight.shape[0])
    encoder = PromptEncoder(_style(base, settings), encode, text_vocab_size, data.catalog.names)
    points = training_points(data, encoder, settings)
    counts = _require_points(points)
    drift: Drift | None = None
    habit: Offset
    if settings.drift.around_days is None:
        habit = fit_habit(data, points, settings)

    model, head, interest_head = _network(base, data, settings, encode)
    origin = base.origin
    del base
    if interest_head is not None:
        _start_at_popularity(interest_head, points)
    heads = [head] if interest_head is None else [head, interest_head]
    weights = tuned_weights(model, settings)
    optimizer = optimizer_for(model, heads, weights, settings)
    modules = nn.ModuleDict({"model": model, "head": head})
    if interest_head is not None:
        modules["interest_head"] = interest_head
    tuned = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    batches = TrainingBatches(model, head, interest_head, points, config.batch_tokens)

    # all stay until the end: a fit that is interrupted in a later stage keeps the ones before
    checkpoint, second, third = (out / f"checkpoint{part}.pt" for part in ("", "-ranking", "-again"))
    truth = batches.valid("truth")
    facts: dict[str, Any] = {}
    start = copy_of(tuned)
    stage = _likelihood_stage(batches, settings)
    if settings.drift.around_days is None:
        alone = batches.valid("offset")
    else:
        drift = Drift(data, points, batches.order, settings)
        alone = drift.alone()
        stage.validate = partial(drift.judge, batches)
    base_quality = quality(log_softmax(alone), truth)
    course = run_stage(stage, optimizer, tuned, len(batches), config.seed, checkpoint)
    curves = {"sft": course.curve}
    if drift is not None:
        habit, facts["strength"] = drift.settle(batches)
        head.scale(facts["strength"])
    if settings.ranking.epochs:
        ranked, facts["ranking"] = ranking_stage(
            batches,
            tuned,
            settings.ranking,
            interest_weight=settings.interests.weight,
            patience=config.patience,
            weight_decay=config.weight_decay,
            seed=config.seed + 1,
            checkpoint=second,
        )
        curves["ranking"] = facts["ranking"]["curve"] = ranked.curve
    # a ranking stage that pays has no validation labels left to be chosen by once they are fitted on
    again_on_all = settings.drift.refit and not facts.get("ranking", {"kept": False})["kept"]
    if drift is not None and again_on_all and settings.drift.keep_before:
        before = out / BEFORE
        before.mkdir(exist_ok=True)
        _write(before, *deepcopy((model, head, interest_head)), settings, habit, encoder, tokenizer, data)
        facts[BEFORE] = {"model_cutoff": datetime.fromtimestamp(drift.border / 1e6, UTC).isoformat()}
    if drift is not None and again_on_all and facts["strength"] > 0:  # without a say there is nothing to fit
        restore(tuned, start)
        facts["refit"] = {"points": drift.up_to_cutoff()}
        again = replace(
            _likelihood_stage(batches, settings),
            name="fine-tune again",
            validate=dict,
            score=lambda row: -float(row["epoch"]),
            epochs=course.best_epoch,
            planned=config.epochs,
            max_minutes=None,
        )
        optimizer = optimizer_for(model, heads, weights, settings)
        facts["refit"]["curve"] = run_stage(again, optimizer, tuned, len(batches), config.seed, third).curve
        head.scale(facts["strength"])

    _write(out, model, head, interest_head, settings, habit, encoder, tokenizer, data)
    write_curve(out, curves)
    for file in (checkpoint, second, third):
        file.unlink(missing_ok=True)
    return {
        "base": origin,
        "mode": settings.mode,
        "habit": habit.to_json(),
        "points": counts,
        "tokens": int(sum(len(p.window.ids) for p in points)),
        "curve": course.curve,
        "best_epoch": course.best_epoch,
        "valid": {"llm": _best(course), "habit": base_quality},
        "interests": len(data.interests.catalog) if data.interests is not None else 0,
        "parameters": {
            "trained": sum(p.numel() for p in tuned.values()),
            "model": sum(p.numel() for p in model.parameters()),
        },
        **facts,
    }


def _write(
    out: Path,
    model: AdvertiserModel,
    head: NameHead,
    interest_head: NameHead | None,
    settings: LLMSettings,
    habit: Offset,
    encoder: PromptEncoder,
    tokenizer: Any,
    data: FitData,
) -> None:
    """Everything that scoring needs; folds adapters and heads into the network."""
    merge(model, settings)
    head.write(model.head)
    save_name_head(out, head)
    if interest_head is not None and model.interest_head is not None:
        interest_head.write(model.interest_head)
    model.eval()
    model.save_pretrained(out / "model")
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "prompt.json",
        {"style": encoder.style.to_json(), "text_vocab_size": encoder.text_vocab_size, "twin": settings.twin},
    )
    write_json(out / "habit.json", habit.to_json())
    data.catalog.save(out / CATALOG_FILE)
    if data.interests is not None:
        data.interests.catalog.save(out / INTERESTS_FILE)


def _best(course: Course) -> dict[str, Any]:
    return min(course.curve, key=lambda row: row["valid_nll"])


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
    kept: Interests = data.interests.most_frequent(settings.interests.most)
    return replace(data, interests=kept)


def _style(base: Base, settings: LLMSettings) -> PromptStyle:
    style = PromptStyle(**settings.prompt.model_dump())
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


def _require_points(points: list[Points]) -> dict[str, int]:
    counts = {which: int(sum(getattr(p, which).sum() for p in points)) for which in ("train", "valid")}
    if not all(counts.values()):
        raise AdvpriorError(
            "PRI006",
            "the histories hold too little to fit on",
            where="events before finetune_end",
            actual=f"{counts['train']} training and {counts['valid']} validation points",
            expected="at least one of each",
            fix="move finetune_end later, lower valid_days, or add events",
        )
    return counts


def _network(
    base: Base, data: FitData, settings: LLMSettings, encode: Any
) -> tuple[AdvertiserModel, NameHead, NameHead | None]:
    """The network with an advertiser's token at the mean of its name's, and heads over what the base makes of names."""
    table = base.model.get_input_embeddings().weight.detach()
    tokens = [encode(name) for name in data.catalog.names]
    embeddings = torch.stack([table[torch.tensor(ids)].mean(0) for ids in tokens])
    hidden, rank = int(base.model.config.hidden_size), settings.training.rank
    said = [encode(text)[:TEXT_TOKENS] for text in data.catalog.descriptions()] if settings.texts else tokens
    head = NameHead(torch.from_numpy(mean_states(base.model, said)), hidden, rank)
    interest_head = None
    if data.interests is not None:
        names = torch.from_numpy(mean_states(base.model, [encode(name) for name in data.interests.catalog.names]))
        interest_head = NameHead(names, hidden, rank)
    model = from_base(
        base.model,
        catalog_size=len(data.catalog),
        text_vocab_size=table.shape[0],
        frozen_layers=frozen_layers(settings, int(base.model.config.num_hidden_layers)),
        advertiser_embeddings=embeddings,
        interests=len(data.interests.catalog) if data.interests is not None else 0,
    )
    return model, head, interest_head


def _start_at_popularity(head: NameHead, points: list[Points]) -> None:
    """Bias of the second head at the log of how often each category was a training target."""
    seen = np.sum([p.interests[p.train].sum(0) for p in points], axis=0)
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log((seen + 0.5) / (seen + 0.5).sum())).float())


def _likelihood_stage(batches: TrainingBatches, settings: LLMSettings) -> Stage:
    """Supervised fine-tuning: likelihood of the next advertisers, and of the next interests beside it."""
    config, weight_of_interests = settings.training, settings.interests.weight
    truth, interest_truth = batches.valid("truth"), batches.valid("interests")

    def step(batch: int, update: Update) -> tuple[float, float]:
        batches.model.train()
        answer = batches.answer(batch, "train")
        if answer is None:
            return 0.0, 0.0
        weight = answer.weight.sum()
        nll = share_loss(answer.log_probs, answer.truth, answer.weight)
        loss = nll
        if answer.interests.shape[1]:
            loss = nll + weight_of_interests * share_loss(answer.interests, answer.interest_truth, answer.weight)
        update(loss / weight)
        return float(nll.detach()), float(weight)

    return Stage(
        name="fine-tune",
        measure="train_nll",
        step=step,
        validate=lambda: judge(batches, truth, interest_truth),
        score=lambda row: float(row["valid_nll"]),
        epochs=config.epochs,
        patience=config.patience,
        max_minutes=config.max_minutes,
    )
