"""Fine-tuning: dense next-advertiser targets on cached lower states.

Every occasion of a history and every snapshot within it is a training point (what does the user turn to
within the horizon after it?), and one causal forward serves all points of a user. Frozen layers are
computed once and cached, so an epoch costs only the tuned layers. The head is ``W = K(E_names)·Q + F``:
low rank over what the base model makes of the advertisers' names, plus a free part that starts at zero, so
that rare advertisers share strength; it collapses to one matrix for export. Logits start from habit and
drift (`advprior.predictors.habit`), so that the network learns what those do not say.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from advprior.llm.base import load_base
from advprior.llm.extend import save_name_head
from advprior.llm.model import AdvertiserModel, from_base
from advprior.predictors.base import FitData, Float, log_softmax
from advprior.predictors.counts import DAY, own_points
from advprior.predictors.habit import Habit, fit_weights, habit_terms
from advprior.predictors.llm import LLMSettings, pad_windows
from advprior.prompts import PromptEncoder, PromptStyle, Window, occasions_before
from advprior.targets import dense, next_advertisers, quality
from feature_repo.contract import CATALOG_FILE
from feature_repo.errors import AdvpriorError
from feature_repo.runs import write_json

CACHE_LIMIT_BYTES = 3 << 30  # cached lower states beyond this are recomputed batch by batch


class NameHead(nn.Module):
    """Weights [N, H] as ``K(E)·Q + F`` over standardised name encodings E [N, E_dim]."""

    def __init__(self, names: torch.Tensor, hidden: int, rank: int) -> None:
        super().__init__()
        standard = (names - names.mean(0)) / (names.std(0) + 1e-6) / names.shape[1] ** 0.5
        self.register_buffer("names", standard)
        self.key = nn.Linear(names.shape[1], rank, bias=False)
        self.query = nn.Linear(hidden, rank, bias=False)
        nn.init.zeros_(self.query.weight)  # logits start as the offset alone
        self.free = nn.Parameter(torch.zeros(names.shape[0], hidden))
        self.bias = nn.Parameter(torch.zeros(names.shape[0]))

    def weight(self) -> torch.Tensor:
        """The collapsed matrix [N, H]."""
        matrix: torch.Tensor = self.key(self.names) @ self.query.weight + self.free
        return matrix

    def forward(self, states: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [..., N]."""
        return torch.log_softmax(states @ self.weight().T + self.bias + offset, dim=-1)


@dataclass
class Points:
    """Training points of one window of one user.

    Attributes
    ----------
    window : Window
    user : int
    positions, moments : int64 [P]
        Position in the window; the point sees events before this moment (microseconds).
    weight : float32 [P]
        Of the point in the loss: 1, or less for old ones.
    train, valid : bool [P]
    truth, offset : float32 [P, N]
        Multi-hot targets; what the logits start from (filled in once habit is fitted).
    """

    window: Window
    user: int
    positions: Any
    moments: Any
    weight: Any
    train: Any
    valid: Any
    truth: Float
    offset: Float


def training_points(data: FitData, encoder: PromptEncoder, settings: LLMSettings) -> list[Points]:
    """Points whose whole target window ends by the cut-off, split in time.

    Training points are all occasions (just after each) and weekly snapshots with targets that end before
    ``cutoff - valid_days``; validation points are the weekly snapshots after that, the way priors are used.
    """
    horizon = int(settings.horizon_days * DAY)
    border = data.cutoff - int(settings.training.valid_days * DAY)
    half_life = settings.training.recency_half_life_days
    weeks = np.arange(data.cutoff - horizon, data.start, -data.snapshot_every, dtype=np.int64)[::-1]
    found = []
    for user in range(len(data.histories)):
        prompt = encoder.prompt(data.histories, user)
        if not len(prompt.times):
            continue
        moments = np.concatenate([prompt.times + 1, weeks[weeks > prompt.times[0]]])
        weekly = np.arange(len(moments)) >= len(prompt.times)
        offsets, advertiser = next_advertisers(data.histories, np.full(len(moments), user), moments - 1, horizon)
        truth = dense(offsets, advertiser, len(data.catalog))
        train, valid = moments + horizon <= border, (moments >= border) & weekly
        keep = (truth.sum(1) > 0) & (train | valid)
        if not keep.any():
            continue
        moments, truth, train, valid = moments[keep], truth[keep], train[keep], valid[keep]
        seen = occasions_before(prompt, moments)
        for window in encoder.windows(prompt, seen):
            rows = np.isin(seen, window.occasions)
            positions = window.positions[np.searchsorted(window.occasions, seen[rows])]
            empty = np.zeros((0, len(data.catalog)), np.float32)
            age = np.maximum(data.cutoff - moments[rows], 0) / DAY
            weight = np.ones(len(age)) if half_life is None else 0.5 ** (age / half_life)
            found.append(
                Points(
                    window,
                    user,
                    positions,
                    moments[rows],
                    weight.astype(np.float32),
                    train[rows],
                    valid[rows],
                    truth[rows],
                    empty,
                )
            )
    return found


def fit_habit(data: FitData, points: list[Points], settings: LLMSettings, limit: int = 6000) -> Habit:
    """Habit and drift weights on (a sample of) the training points; fills in every point's offset."""
    user = np.concatenate([np.full(len(p.moments), p.user) for p in points])
    moment = np.concatenate([p.moments for p in points])
    train = np.flatnonzero(np.concatenate([p.train for p in points]))
    # a point's whole truth scaled is a weight of the point in the likelihood
    truth = np.concatenate([p.truth * p.weight[:, None] for p in points])
    if len(train) > limit:
        train = np.random.default_rng(settings.training.seed).choice(train, limit, replace=False)
    half_life, half_lives = settings.habit.popularity_half_life_days, settings.habit.half_lives_days
    size = len(data.catalog)
    # occasions are many distinct moments; popularity hardly moves within a day
    terms = habit_terms(data.histories, user[train], moment[train] // DAY * DAY, half_life, (), size)
    own = [own_points(data.histories, user[train], moment[train], h, size) for h in half_lives]
    weights, _ = fit_weights(
        np.concatenate([terms, np.log1p(own).reshape(-1, len(train), size)]), truth[train], [1.0, *[0.0] * len(own)]
    )
    habit = Habit(half_life, tuple(half_lives), tuple(map(float, weights)))
    for p in points:
        p.offset = habit.logits(data.histories, np.full(len(p.moments), p.user), p.moments, size)
    return habit


def finetune(data: FitData, settings: LLMSettings, out: Path) -> dict[str, Any]:
    """Tune a base model on histories before the cut-off and write the predictor into ``out``.

    Returns
    -------
    dict
        Facts for the manifest: base, points, the curve by epoch, best epoch, validation quality beside that of
        habit and drift alone on the same points.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when the histories hold no training or validation point.
    """
    config = settings.training
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    base = load_base(settings.base, layers=settings.layers)
    if settings.twin:
        forget(base.model, config.seed)
    tokenizer = base.tokenizer.backend_tokenizer
    text_vocab_size = int(base.model.get_input_embeddings().weight.shape[0])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    style = PromptStyle(**settings.prompt.model_dump())
    limit = getattr(base.model.config, "max_position_embeddings", style.context)
    if style.context > limit:
        raise AdvpriorError(
            "PRI007", "the context is longer than the base model's", where="config, prompt.context",
            found=str(style.context), expected=f"at most {limit}", fix="lower prompt.context",
        )  # fmt: skip
    encoder = PromptEncoder(style, encode, text_vocab_size, data.catalog.names)
    points = training_points(data, encoder, settings)
    train_count, valid_count = (int(sum(getattr(p, s).sum() for p in points)) for s in ("train", "valid"))
    if not train_count or not valid_count:
        raise AdvpriorError(
            "PRI006", "the histories hold too little to fit on", where="events before finetune_end",
            found=f"{train_count} training and {valid_count} validation points", expected="at least one of each",
            fix="move finetune_end later, lower valid_days, or add events",
        )  # fmt: skip

    name_tokens = [encode(name) for name in data.catalog.names]
    table = base.model.get_input_embeddings().weight.detach()
    embeddings = torch.stack([table[torch.tensor(tokens)].mean(0) for tokens in name_tokens])
    names = _encode_names(base.model, name_tokens)
    hidden = embeddings.shape[1]
    frozen = max(settings.layers - settings.tuned_layers, 0)
    model = from_base(
        base.model, catalog_size=len(data.catalog), text_vocab_size=text_vocab_size, frozen_layers=frozen,
        advertiser_embeddings=embeddings,
    )  # fmt: skip
    origin = base.origin
    del base

    habit = fit_habit(data, points, settings)
    head = NameHead(names, hidden, config.rank)
    model.lower.requires_grad_(False)
    model.head.requires_grad_(False)  # filled in from `head` at the end

    batches = _batches([len(p.window.ids) for p in points], config.batch_tokens)
    cache = _LowerStates(model, [points[i].window for b in batches for i in b], [i for b in batches for i in b])
    optimizer = torch.optim.AdamW(
        _parameter_groups(
            config.weight_decay,
            (config.lr, [*model.upper.layers.parameters(), *model.upper.norm.parameters()]),
            (config.adapter_lr, [model.adapter.weight]),
            (config.free_lr, [head.free]),
            (config.head_lr, [*head.key.parameters(), *head.query.parameters(), head.bias]),
        ),
        betas=(0.9, 0.98),
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    total = config.epochs * len(batches)
    trained = nn.ModuleDict({"upper": model.upper, "adapter": model.adapter, "head": head})
    checkpoint = out / "checkpoint.pt"
    curve: list[dict[str, Any]] = []
    best, best_state, first_epoch = float("inf"), _copy(trained), 0
    if checkpoint.is_file():  # an interrupted run of the same key: go on after its last whole epoch
        saved = torch.load(checkpoint, weights_only=False)
        trained.load_state_dict(saved["state"])
        optimizer.load_state_dict(saved["optimizer"])
        curve, best, best_state, first_epoch = saved["curve"], saved["best"], saved["best_state"], len(saved["curve"])
        rng.bit_generator.state = saved["rng"]
    truth_valid = _ordered(points, batches, "truth")
    base_quality = quality(log_softmax(_ordered(points, batches, "offset")), truth_valid)
    started = time.monotonic() - sum(row["seconds"] for row in curve)
    bar = tqdm(total=total, initial=first_epoch * len(batches), desc="fine-tune", unit="batch", disable=None)
    for epoch in range(first_epoch, config.epochs):
        if curve and epoch - 1 - int(np.argmin([r["valid_nll"] for r in curve])) >= config.patience:
            break
        clock, loss_sum, weight_sum = time.monotonic(), 0.0, 0.0
        model.train()
        for step, b in enumerate(rng.permutation(len(batches))):
            progress = (epoch * len(batches) + step) / total
            scale = min(progress / 0.05, 1.0) * (0.5 * (1 + np.cos(np.pi * progress)) * 0.95 + 0.05)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            loss, weight = _batch_loss(model, head, cache, [points[i] for i in batches[b]], batches[b])
            bar.update()
            if weight == 0:
                continue
            optimizer.zero_grad()
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            loss_sum += float(loss.detach())
            weight_sum += weight
        valid = quality(_validate(model, head, cache, points, batches), truth_valid)
        curve.append({
            "epoch": epoch + 1, "train_nll": loss_sum / max(weight_sum, 1.0), "valid_nll": valid["nll"],
            "valid_recall@5": valid["recall@5"], "valid_recall@20": valid["recall@20"],
            "seconds": round(time.monotonic() - clock, 1),
        })  # fmt: skip
        bar.set_postfix(train=f"{curve[-1]['train_nll']:.3f}", valid=f"{valid['nll']:.3f}")
        if valid["nll"] < best:
            best, best_state = valid["nll"], _copy(trained)
        _save_checkpoint(checkpoint, trained, optimizer, curve, best, best_state, rng)
        if config.max_minutes is not None and time.monotonic() - started > config.max_minutes * 60:
            break
    bar.close()
    trained.load_state_dict(best_state)
    checkpoint.unlink(missing_ok=True)

    with torch.no_grad():
        model.head.weight.copy_(head.weight())
        model.head.bias.copy_(head.bias)
    model.eval()
    save_name_head(out, head)
    model.save_pretrained(out / "model")
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "prompt.json", {"style": style.to_json(), "text_vocab_size": text_vocab_size, "twin": settings.twin}
    )
    write_json(out / "habit.json", habit.to_json())
    data.catalog.save(out / CATALOG_FILE)
    return {
        "base": origin,
        "habit": habit.to_json(),
        "points": {"train": train_count, "valid": valid_count},
        "tokens": int(sum(len(p.window.ids) for p in points)),
        "curve": curve,
        "best_epoch": int(np.argmin([r["valid_nll"] for r in curve])) + 1,
        "valid": {"llm": min(curve, key=lambda r: r["valid_nll"]), "habit": base_quality},
        "parameters": {"trained": sum(p.numel() for p in trained.parameters()),
                       "model": sum(p.numel() for p in model.parameters())},
    }  # fmt: skip


def forget(model: Any, seed: int) -> None:
    """Give a base model fresh random weights, as before its pre-training: what is left is the *twin*.

    The twin tells whether pre-training earned anything: the same network, tokens, head and tuning.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread, generator=generator)
            else:  # biases start at zero, scales of norms at one
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _parameter_groups(weight_decay: float, *parts: tuple[float, list[torch.Tensor]]) -> list[dict[str, Any]]:
    """Optimizer groups of the parts with a learning rate; the others are frozen."""
    for rate, parameters in parts:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
    return [{"params": p, "lr": rate, "weight_decay": weight_decay} for rate, p in parts if rate > 0]


def _encode_names(model: Any, name_tokens: list[list[int]]) -> torch.Tensor:
    """Mean final state of each name's tokens [N, H]: what the base model makes of the name."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(name_tokens), 64):
            part = name_tokens[start : start + 64]
            length = max(map(len, part))
            ids = torch.zeros(len(part), length, dtype=torch.long)
            mask = torch.zeros(len(part), length, dtype=torch.long)
            for row, tokens in enumerate(part):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            rows.append((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(rows)


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Length-sorted batches whose padded size stays within ``budget`` tokens (one window at least)."""
    batches: list[list[int]] = []
    for i in np.argsort(lengths, kind="stable"):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(int(i))
        else:
            batches.append([int(i)])
    return batches


class _LowerStates:
    """Frozen layers' output by window, computed once, in half the memory where it would not fit."""

    def __init__(self, model: AdvertiserModel, windows: list[Window], order: list[int]) -> None:
        self._model = model
        size = sum(len(w.ids) for w in windows) * int(model.config.backbone["hidden_size"]) * 4
        self._states: dict[int, torch.Tensor] | None = {} if size <= CACHE_LIMIT_BYTES else None
        if self._states is None:
            return
        with torch.no_grad():
            for start in tqdm(range(0, len(windows), 4), desc="frozen layers", unit="batch", disable=None):
                chunk = windows[start : start + 4]
                states = self._compute(chunk)
                for row, window in enumerate(chunk):
                    self._states[order[start + row]] = states[row, : len(window.ids)].clone()

    def _compute(self, windows: list[Window]) -> torch.Tensor:
        ids, mask, _ = (torch.from_numpy(x) for x in pad_windows([(w.ids, w.positions) for w in windows]))
        with torch.no_grad():
            return self._model.lower_states(ids, mask)

    def batch(self, indices: list[int], windows: list[Window]) -> torch.Tensor:
        """Padded states [B, T, H]."""
        if self._states is None:
            return self._compute(windows)
        return nn.utils.rnn.pad_sequence([self._states[i] for i in indices], batch_first=True)


def _log_probs(
    model: AdvertiserModel, head: NameHead, cache: _LowerStates, part: list[Points], indices: list[int], which: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [P, N] and truth [P, N] of the chosen points of a batch."""
    windows = [p.window for p in part]
    ids, mask, _ = (torch.from_numpy(x) for x in pad_windows([(w.ids, w.positions) for w in windows]))
    states = model.upper_states(cache.batch(indices, windows), ids, mask)
    row = np.concatenate([np.full(int(getattr(p, which).sum()), i) for i, p in enumerate(part)])
    position = np.concatenate([p.positions[getattr(p, which)] for p in part])
    truth = torch.from_numpy(np.concatenate([p.truth[getattr(p, which)] for p in part]))
    offset = torch.from_numpy(np.concatenate([p.offset[getattr(p, which)] for p in part]))
    picked = states[torch.from_numpy(row), torch.from_numpy(position)]
    return head(picked, offset), truth


def _batch_loss(
    model: AdvertiserModel, head: NameHead, cache: _LowerStates, part: list[Points], indices: list[int]
) -> tuple[torch.Tensor, float]:
    if not any(p.train.any() for p in part):
        return torch.zeros(()), 0.0
    log_probs, truth = _log_probs(model, head, cache, part, indices, "train")
    # each point weighs the same, however much was bought: a big basket is one decision to shop
    share = truth / truth.sum(1, keepdim=True)
    weight = torch.from_numpy(np.concatenate([p.weight[p.train] for p in part]))
    return -(weight[:, None] * share * log_probs).sum(), float(weight.sum())


def _validate(
    model: AdvertiserModel, head: NameHead, cache: _LowerStates, points: list[Points], batches: list[list[int]]
) -> Float:
    model.eval()
    with torch.no_grad():
        return np.concatenate([
            _log_probs(model, head, cache, [points[i] for i in batch], batch, "valid")[0].numpy()
            for batch in batches
            if any(points[i].valid.any() for i in batch)
        ])  # fmt: skip


def _ordered(points: list[Points], batches: list[list[int]], what: str) -> Float:
    """Validation points' truth or offset, in the order of `_validate`."""
    return np.concatenate([getattr(points[i], what)[points[i].valid] for batch in batches for i in batch])


def _copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _save_checkpoint(
    path: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, curve: list[dict[str, Any]], best: float,
    best_state: dict[str, torch.Tensor], rng: np.random.Generator,
) -> None:  # fmt: skip
    beside = path.with_suffix(".tmp")
    torch.save(
        {
            "state": trained.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve, "best": best,
            "best_state": best_state, "rng": rng.bit_generator.state,
        },
        beside,
    )  # fmt: skip
    beside.replace(path)
