"""Fit the towers: the one module of `ranking` that imports torch, and only while it fits (extra ``[train]``).

Each engaged ad must outscore the ads that were live at that time: a softmax over them, or over a sample where they
are many. What is saved is what torch held, as plain arrays: `towers.Towers` computes the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from advprior.store.contract import AD_ID, TimePlan
from advprior.store.errors import AdvpriorError
from ranking.candidates.inputs import Pasts, Requests, Vocabulary, requests
from ranking.candidates.towers import Towers
from ranking.frame.counts import Ints, moment_us

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TowerConfig:
    """Settings of a fit."""

    size: int = 32
    hidden: int = 64
    epochs: int = 30
    patience: int = 3
    batch: int = 512
    learning_rate: float = 0.003
    weight_decay: float = 1e-4
    pool: int = 4096  # ads beyond it are sampled, anew for each batch
    seed: int = 0
    threads: int = 2


def fit_towers(
    users: pd.DataFrame,
    ads: pd.DataFrame,
    events: pd.DataFrame,
    impressions: pd.DataFrame,
    plan: TimePlan,
    config: TowerConfig,
) -> Towers:
    """Fit on engagements before ``train_end``, stop by those of validation.

    Parameters
    ----------
    users, ads, events, impressions : DataFrame
        Canonical tables.
    plan : TimePlan
    config : TowerConfig

    Returns
    -------
    Towers
        Those of the epoch with the lowest validation loss (mean over engaged ads, nats).

    Raises
    ------
    AdvpriorError
        ``CFG012`` without torch, ``RNK031`` without engagements in train or validation.
    """
    try:
        import torch
    except ImportError as error:
        raise AdvpriorError(
            "CFG012",
            "fitting towers needs torch",
            actual="no module torch",
            expected="the extra [train]",
            fix="pip install 'advprior[train]'; serving fitted towers needs none of it",
        ) from error
    from tqdm.auto import tqdm

    vocabulary = Vocabulary.of(users, ads)
    pasts = Pasts(users, events, vocabulary)
    asked = requests(impressions, pasts.ids, ads[AD_ID].astype(str).tolist(), plan)
    split = asked.split[asked.engaged[:, 0]]
    parts = {name: asked.engaged[split == name] for name in ("train", "valid")}
    lacking = [name for name, part in parts.items() if not len(part)]
    if lacking:
        raise AdvpriorError(
            "RNK031",
            "towers need engaged ads to learn from and to stop by",
            where=f"split {', '.join(lacking)}",
            actual="no positive impression",
            fix="take more users, or move the cuts of the time plan",
        )
    used = np.unique(np.concatenate([part[:, 0] for part in parts.values()]))
    tokens, row = _token_rows(pasts, asked, used, plan)
    live = np.zeros((max(asked.live) + 1, len(ads)), dtype=bool)
    for snapshot, there in asked.live.items():
        live[snapshot, there] = True

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _module(vocabulary, config)
        ad_tokens = torch.as_tensor(np.where((t := vocabulary.ad_tokens(ads)) >= 0, t, model.unknown))
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        rng = np.random.default_rng(config.seed)

        def loss_of(pairs: Ints, *, sampled: bool) -> Any:
            pool = np.arange(len(ads))
            if sampled and len(ads) > config.pool:
                pool = np.union1d(rng.choice(len(ads), config.pool, replace=False), pairs[:, 1])
            bag = tokens[row[pairs[:, 0]]]
            user = model.user(
                torch.as_tensor(bag.indices.astype(np.int64)),
                torch.as_tensor(bag.indptr[:-1].astype(np.int64)),
                torch.as_tensor(bag.data),
            )
            vector, bias = model.ad(ad_tokens[pool])
            scores = user @ vector.T + bias
            there = live[asked.snapshot[pairs[:, 0]]][:, pool]
            scores = scores.masked_fill(torch.as_tensor(~there), float("-inf"))
            return torch.nn.functional.cross_entropy(scores, torch.as_tensor(np.searchsorted(pool, pairs[:, 1])))

        best, arrays, curve, since = np.inf, model.arrays(), [], 0
        bar = tqdm(range(config.epochs), desc="towers", unit="epoch", disable=None)
        for epoch in bar:
            model.train()
            order = rng.permutation(len(parts["train"]))
            train = []
            for first in range(0, len(order), config.batch):
                loss = loss_of(parts["train"][order[first : first + config.batch]], sampled=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                train.append(float(loss.detach()))
            model.eval()
            with torch.no_grad():
                held = parts["valid"]
                sums = [
                    float(loss_of(held[i : i + config.batch], sampled=False)) * len(held[i : i + config.batch])
                    for i in range(0, len(held), config.batch)
                ]
            valid = float(np.sum(sums) / len(held))
            curve.append({"epoch": epoch + 1, "train": round(float(np.mean(train)), 4), "valid": round(valid, 4)})
            bar.set_postfix(valid=f"{valid:.4f}")
            since += 1
            if valid < best:
                best, arrays, since = valid, model.arrays(), 0
            if since >= config.patience:
                break
        bar.close()
    torch.set_num_threads(threads)
    facts = {
        "label_cutoff": plan.train_end.isoformat(),
        "engaged": {name: len(part) for name, part in parts.items()},
        "ads": len(ads),
        "users": len(users),
        "valid_loss": round(best, 4),
        "curve": curve,
    }
    return Towers(vocabulary, arrays, facts)


def _token_rows(pasts: Pasts, asked: Requests, used: Ints, plan: TimePlan) -> tuple[Any, Ints]:
    """Tokens of the used requests, sparse [used, tokens], and the row of each request in it (−1: not used)."""
    moments = [moment_us(s) for s in plan.feature_snapshots()]
    row = np.full(len(asked.user), -1, dtype=np.int64)
    found, place = [], 0
    for snapshot in np.unique(asked.snapshot[used]):
        mine = used[asked.snapshot[used] == snapshot]
        found.append(pasts.at(moments[snapshot])[asked.user[mine]])
        row[mine] = np.arange(place, place + len(mine))
        place += len(mine)
    return sparse.vstack(found, format="csr"), row


def _module(vocabulary: Vocabulary, config: TowerConfig) -> Any:
    """The towers as a torch module; embeddings start small, biases at zero."""
    import torch

    ad_tokens = len(vocabulary.ads) + sum(vocabulary.sizes.values())

    class Module(torch.nn.Module):
        unknown = ad_tokens  # one more row, always zero

        def __init__(self) -> None:
            super().__init__()
            nn = torch.nn
            self.user_in = nn.EmbeddingBag(max(vocabulary.user_tokens, 1), config.hidden, mode="sum")
            self.user_in_bias = nn.Parameter(torch.zeros(config.hidden))
            self.user_out = nn.Linear(config.hidden, config.size, bias=False)
            self.ad_in = nn.Embedding(ad_tokens + 1, config.hidden, padding_idx=ad_tokens)
            self.ad_in_bias = nn.Parameter(torch.zeros(config.hidden))
            self.ad_out = nn.Linear(config.hidden, config.size, bias=False)
            self.ad_bias = nn.Embedding(ad_tokens + 1, 1, padding_idx=ad_tokens)
            nn.init.normal_(self.user_in.weight, std=0.3)
            nn.init.normal_(self.ad_in.weight[:-1], std=0.3)
            nn.init.zeros_(self.ad_bias.weight)

        def user(self, indices: Any, offsets: Any, weights: Any) -> Any:
            hidden = self.user_in(indices, offsets, per_sample_weights=weights) + self.user_in_bias
            return self.user_out(torch.relu(hidden))

        def ad(self, tokens: Any) -> tuple[Any, Any]:
            hidden = self.ad_in(tokens).sum(dim=1) + self.ad_in_bias
            return self.ad_out(torch.relu(hidden)), self.ad_bias(tokens).sum(dim=1)[:, 0]

        def arrays(self) -> dict[str, NDArray[np.float32]]:
            def plain(tensor: Any) -> NDArray[np.float32]:
                return np.array(tensor.detach().numpy(), dtype=np.float32)

            return {
                "user_in": plain(self.user_in.weight),
                "user_in_bias": plain(self.user_in_bias),
                "user_out": plain(self.user_out.weight.T),
                "ad_in": plain(self.ad_in.weight[:-1]),
                "ad_in_bias": plain(self.ad_in_bias),
                "ad_out": plain(self.ad_out.weight.T),
                "ad_bias": plain(self.ad_bias.weight[:-1, 0]),
            }

    return Module()
