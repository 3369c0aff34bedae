"""Fitting the sequence network: choose on the last labels, then fit again on all.

1. The network is fitted on labels before ``cutoff - valid_days``, on top of the drift around each label.
2. The labels after that, asked for from one or a few snapshots, choose the number of passes. On the same labels a
   conditional logit then weighs what is known at a snapshot: drift so far, habit, and the strength of the deviation.
3. The network is fitted again on all labels before ``cutoff`` for that many passes; the weights stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import quality
from advprior.predictors.base import FitData
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import Around, Offset, own_terms, popular_terms, weigh
from advprior.predictors.sequence.points import Waits, draw, truth, waits
from advprior.predictors.sequence.settings import SequenceSettings
from advprior.predictors.sequence.tokens import Tokens, Vocabulary, windows
from advprior.predictors.sequence.tuning.network import SequenceNetwork, as_tensors
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json

WEIGHTS, PARAMETERS = "network.pt", "parameters.json"
CELLS = 8_000_000  # of points × advertisers that anything dense may have: fewer points where the catalog is large
LEAST_SHARE = 0.05  # of the peak learning rate, at the end


def fit_sequence(
    data: FitData, settings: SequenceSettings, out: Path, encodings: Float | None = None
) -> dict[str, Any]:
    """Fit a network and write it into ``out``.

    Parameters
    ----------
    data : FitData
    settings : SequenceSettings
    out : Path
    encodings : float32 [N, D], optional
        Of the advertisers' texts.

    Returns
    -------
    dict
        Facts for the manifest: the curve, the epoch chosen, weights, quality on the labels that chose them beside that
        of the offset alone.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when there is nothing to fit on or to choose with.
    """
    with _one_thread():
        return _fit_sequence(data, settings, out, encodings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second thread, and wait for it where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_sequence(data: FitData, settings: SequenceSettings, out: Path, encodings: Float | None) -> dict[str, Any]:
    training, horizon = settings.training, int(settings.horizon_days * DAY)
    size, border = len(data.catalog), data.cutoff - int(settings.valid_days * DAY)
    early = data.histories.before(border)
    vocabulary = Vocabulary.of(early)
    limits = {
        "half_life_days": training.recency_half_life_days,
        "gap_power": training.gap_power,
        "most": training.points_a_history,
        "seed": training.seed,
    }
    found = waits(early, horizon, cutoff=border, **limits)  # type: ignore[arg-type]
    asked = snapshots(data, border, horizon, settings)
    if not len(found) or not len(asked[0]):
        raise AdvpriorError(
            "PRI006",
            "the histories hold too little to fit on",
            where="events before finetune_end",
            actual=f"{len(found)} labels to fit on, {len(asked[0])} to choose with",
            expected="at least one of each",
            fix="move finetune_end later, lower valid_days, or add events",
        )

    network, curve, states = _train(data, early, vocabulary, settings, found, encodings, training.epochs, asked)
    best = int(np.argmin([row["valid_nll"] for row in curve]))
    user, moment, target = asked
    terms = offset_terms(data.histories, user, moment, settings, size)
    weights, strength = states[best]
    offset = Offset(settings.offset.popular, settings.offset.own, weights)
    alone = quality(log_softmax(np.tensordot(np.asarray(weigh(terms, target)[0], np.float32), terms, 1)), target)
    valid = {name.removeprefix("valid_"): value for name, value in curve[best].items() if name.startswith("valid_")}
    count = len(found)
    if training.refit:
        vocabulary = Vocabulary.of(data.histories)
        found = waits(data.histories, horizon, cutoff=data.cutoff, **limits)  # type: ignore[arg-type]
        network, again, _ = _train(
            data, data.histories, vocabulary, settings, found, encodings, best + 1, None, training.epochs
        )
    else:
        again = []
        network, *_ = _train(data, early, vocabulary, settings, found, encodings, best + 1, None, training.epochs)
    network.strength.fill_(strength)
    torch.save(network.state_dict(), out / WEIGHTS)
    write_json(
        out / PARAMETERS,
        {
            "settings": settings.model_dump(mode="json"),
            "offset": offset.to_json(),
            "vocabulary": {
                "categories": vocabulary.categories,
                "profile_fields": vocabulary.profile_fields,
                "profile_levels": vocabulary.profile_levels,
            },
        },
    )
    return {
        "labels": {"train": count, "refit": len(found), "valid": len(user)},
        "curve": curve,
        "refit_curve": again,
        "best_epoch": best + 1,
        "strength": strength,
        "offset": offset.to_json(),
        "valid": {"network": valid, "offset": alone},
        "parameters": {"trained": sum(p.numel() for p in network.parameters())},
    }


def snapshots(data: FitData, border: int, horizon: int, settings: SequenceSettings) -> tuple[Int, Int, Float]:
    """Points (user, moment) from ``border`` on whose whole horizon is known, as priors are used, and their targets.

    A sample of them where their targets would not fit into memory.
    """
    histories, size = data.histories, len(data.catalog)
    last = data.cutoff - horizon
    grid = np.arange(min(border, last), last + 1, data.snapshot_every, dtype=np.int64)
    known = np.diff(histories.offsets) > 0
    began = np.full(len(histories), np.iinfo(np.int64).max)
    began[known] = histories.time[histories.offsets[:-1][known]]
    users, moments, ends = [], [], []
    for moment in grid:
        user = np.flatnonzero(began < moment)
        at = np.full(len(user), moment, np.int64)
        row = histories.seek(user, at)
        end = np.where(row < histories.offsets[user + 1], histories.time[np.minimum(row, len(histories.time) - 1)], -1)
        some = (end >= moment) & (end < moment + horizon)
        user, at, end = user[some], at[some], end[some]
        users.append(user)
        moments.append(at)
        ends.append(end)
    asked, when, until = np.concatenate(users), np.concatenate(moments), np.concatenate(ends)
    most = max(CELLS // size, 1000)
    if len(asked) > most:
        some = np.sort(np.random.default_rng(settings.training.seed).choice(len(asked), most, replace=False))
        asked, when, until = asked[some], when[some], until[some]
    return asked, when, truth(histories, asked, when, until, horizon, size, first=settings.target == "first")


def offset_terms(histories: Histories, user: Int, moment: Int, settings: SequenceSettings, size: int) -> Float:
    """What is known at each point [K, P, N]: drift so far, then habit."""
    return np.concatenate(
        [
            popular_terms(histories, moment, settings.offset.popular, size),
            own_terms(histories, user, moment, settings.offset.own, size),
        ]
    )


def deviations(
    network: SequenceNetwork, histories: Histories, vocabulary: Vocabulary, user: Int, moment: Int, size: int
) -> Float:
    """How each (user, moment) point differs from everyone [P, N], before its strength."""
    tokens, out = Tokens(histories, vocabulary), np.zeros((len(user), size), np.float32)
    network.eval()
    with torch.inference_mode():
        for part in _batches(list(windows(histories, user, moment, network.context)), 8192):
            found = network.deviation(**as_tensors(tokens.batch(part, moment))).numpy()
            for row, window in enumerate(part):
                out[window.points] = found[row, : len(window.points)]
    return out


def _batches(found: list[Any], budget: int, rng: np.random.Generator | None = None) -> list[list[Any]]:
    """Windows of like length together, at most ``budget`` tokens with padding; in random order when asked."""
    length = np.asarray([w.rows.stop - w.rows.start + 1 for w in found])
    order = np.argsort(length + (rng.random(len(length)) if rng is not None else 0.0), kind="stable")
    parts, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and length[order[stop]] * (stop + 1 - start) <= budget:
            stop += 1
        parts.append([found[i] for i in order[start:stop]])
        start = stop
    if rng is not None:
        rng.shuffle(parts)  # type: ignore[arg-type]
    return parts


def _train(
    data: FitData,
    past: Histories,
    vocabulary: Vocabulary,
    settings: SequenceSettings,
    found: Waits,
    encodings: Float | None,
    epochs: int,
    asked: tuple[Int, Int, Float] | None,
    planned: int | None = None,
) -> tuple[SequenceNetwork, list[dict[str, Any]], list[tuple[tuple[float, ...], float]]]:
    """Fit on ``found``, labels in ``past``, for ``epochs`` of the ``planned`` that the learning rate falls over.

    With the validation curve, and what weighs the deviation after each epoch, when ``asked``.
    """
    training, size, horizon = settings.training, len(data.catalog), int(settings.horizon_days * DAY)
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    network = SequenceNetwork(
        size, vocabulary, settings.network, None if encodings is None else torch.from_numpy(encodings)
    )
    tokens, around = Tokens(past, vocabulary), None
    if settings.offset.around is not None:
        around = Around(past, settings.offset.around, size)
    moment = draw(found, rng)
    habit = _start(past, found, moment, settings, around, size)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.lr, weight_decay=training.weight_decay, betas=(0.9, 0.98)
    )
    terms = None if asked is None else offset_terms(data.histories, *asked[:2], settings, size)
    curve, states, step = [], [], 0
    bar = tqdm(total=epochs, desc="fit" if asked else "fit again", unit="pass", disable=None)
    total = 0
    for epoch in range(epochs):
        clock, loss_sum, weight_sum = time.monotonic(), 0.0, 0.0
        if epoch:
            moment = draw(found, rng)
        parts = _batches(list(windows(past, found.user, moment, network.context)), training.batch_tokens, rng)
        total = total or len(parts) * (planned or epochs)
        network.train()
        for part in parts:
            progress = min(step / total, 1.0)
            rate = min(progress / 0.05, 1.0) * (0.5 * (1 + np.cos(np.pi * progress)) * (1 - LEAST_SHARE) + LEAST_SHARE)
            for group in optimizer.param_groups:
                group["lr"] = training.lr * max(rate, 1e-3)
            step += 1
            points = np.concatenate([w.points for w in part])
            row = np.repeat(np.arange(len(part)), [len(w.points) for w in part])
            column = np.concatenate([np.arange(len(w.points)) for w in part])
            user, at, end = found.user[points], moment[points], found.end[points]
            target = torch.from_numpy(truth(past, user, at, end, horizon, size, first=settings.target == "first"))
            weight = torch.from_numpy(found.weight[points])
            offset = torch.from_numpy(_offset(past, user, at, end, settings, around, habit, size))
            deviation = network.deviation(**as_tensors(tokens.batch(part, moment)))[row, column]
            log_probs = torch.log_softmax(deviation + offset, dim=-1)
            loss = -((log_probs * target).sum(1) * weight).sum()
            optimizer.zero_grad()
            (loss / weight.sum()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss_sum += float(loss.detach())
            weight_sum += float(weight.sum())
        line: dict[str, Any] = {"epoch": epoch + 1, "train_nll": loss_sum / weight_sum}
        if asked is not None and terms is not None:
            away = deviations(network, data.histories, vocabulary, asked[0], asked[1], size)
            weights, strength = weigh(terms, asked[2], away)
            logits = np.tensordot(np.asarray(weights, np.float32), terms, 1) + strength * away
            now = quality(log_softmax(logits), asked[2])
            line |= {f"valid_{name}": now[name] for name in ("nll", "recall@5", "recall@20")} | {"strength": strength}
            states.append((weights, strength))
        curve.append({**line, "seconds": round(time.monotonic() - clock, 1)})
        bar.update()
        bar.set_postfix({k: f"{v:.3f}" for k, v in line.items() if k in ("train_nll", "valid_nll")})
    bar.close()
    return network, curve, states


def _start(
    past: Histories, found: Waits, moment: Int, settings: SequenceSettings, around: Around | None, size: int
) -> list[float]:
    """Weights of the drift around a label (or so far) and of habit, on a sample of the points, before any network."""
    some = np.random.default_rng(0).choice(len(found), min(len(found), 6000, max(CELLS // size, 500)), replace=False)
    user, at, end = found.user[some], moment[some], found.end[some]
    popular = around(end)[None] if around else popular_terms(past, at // DAY * DAY, settings.offset.popular, size)
    terms = np.concatenate([popular, own_terms(past, user, at, settings.offset.own, size)])
    horizon = int(settings.horizon_days * DAY)
    target = truth(past, user, at, end, horizon, size, first=settings.target == "first")
    start = [1.0 / len(popular)] * len(popular) + [0.5] * len(settings.offset.own)
    return list(map(float, fit_logit(terms, target * found.weight[some][:, None], centre=start)))


def _offset(
    past: Histories,
    user: Int,
    moment: Int,
    end: Int,
    settings: SequenceSettings,
    around: Around | None,
    weights: list[float],
    size: int,
) -> Float:
    popular = around(end)[None] if around else popular_terms(past, moment // DAY * DAY, settings.offset.popular, size)
    terms = np.concatenate([popular, own_terms(past, user, moment, settings.offset.own, size)])
    logits: Float = np.tensordot(np.asarray(weights, np.float32), terms, 1)
    return logits
