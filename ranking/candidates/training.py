"""Fit the towers: the one module of `ranking` that imports torch, and only while it fits (extra ``[train]``).

Each engaged ad must outscore the ads that were live at that time: a softmax over them, or over a sample where they
are many. What is saved is what torch held, as plain arrays: `towers.Towers` computes the same scores.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, TimePlan
from advprior.store.device import device_name
from advprior.store.errors import AdvpriorError
from advprior.store.existence import ads_exist_from, users_exist_from
from advprior.store.progress import Progress
from advprior.store.times import moment_us
from ranking.candidates.inputs import Pasts, Requests, Vocabulary, requests
from ranking.candidates.towers import Towers

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
        ``CFG012`` without torch, ``PRI031`` without the device that was asked for, ``RNK031`` without engagements in
        train or validation.
    """
    torch = _torch()
    device = device_name(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    examples = TowerExamples.of(users, ads, events, impressions, plan)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            best, arrays, curve = TowerFit(examples, config, device).run()
    finally:
        torch.set_num_threads(threads)
    facts = {
        "label_cutoff": plan.train_end.isoformat(),
        "engaged": {name: len(part) for name, part in examples.engaged.items()},
        "ads": len(ads),
        "users": len(users),
        "valid_loss": round(best, 4),
        "curve": curve,
        "device": device,
    }
    return Towers(examples.vocabulary, arrays, facts)


def _torch() -> Any:
    """torch, whose threads sleep while they wait for one another.

    By default they spin: beside other work on two shared cores a fit took 44 CPU-seconds, and 5 this way, for the same
    arrays. The setting is read when the library loads; a value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
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
    return torch


@dataclass(frozen=True, eq=False)
class TowerExamples:
    """Engaged ads of training and validation requests, and what was known of the users then.

    Parameters
    ----------
    engaged : dict of str to int array [n, 2]
        Request and ad of each, of ``train`` and ``valid``.
    tokens : sparse [used requests, tokens]
    row : int array [requests]
        Row of each request among the tokens, −1 for one that is not used.
    snapshot : int array [requests]
    live : bool array [snapshots, ads]
        Ads that anybody was shown until the next snapshot.
    ad_tokens : int array [ads, 4]
    """

    vocabulary: Vocabulary
    engaged: dict[str, Int]
    tokens: Any
    row: Int
    snapshot: Int
    live: NDArray[np.bool_]
    ad_tokens: Int

    @classmethod
    def of(
        cls,
        users: pd.DataFrame,
        ads: pd.DataFrame,
        events: pd.DataFrame,
        impressions: pd.DataFrame,
        plan: TimePlan,
    ) -> TowerExamples:
        users_from, ads_from = users_exist_from(users, events, impressions), ads_exist_from(ads, impressions)
        end = moment_us(plan.valid_end)  # whom and what a fit at that time could name
        vocabulary = Vocabulary.of(users[users_from <= end], ads[ads_from <= end])
        pasts = Pasts(users, events, vocabulary, users_from)
        made = requests(impressions, pasts.ids, ads[AD_ID].astype(str).tolist(), plan)
        split = made.split[made.engaged[:, 0]]
        engaged = {name: made.engaged[split == name] for name in ("train", "valid")}
        lacking = [name for name, part in engaged.items() if not len(part)]
        if lacking:
            raise AdvpriorError(
                "RNK031",
                "towers need engaged ads to learn from and to stop by",
                where=f"split {', '.join(lacking)}",
                actual="no positive impression",
                fix="take more users, or move the cuts of the time plan",
            )
        used = np.unique(np.concatenate([part[:, 0] for part in engaged.values()]))
        tokens, row = _token_rows(pasts, made, used, plan)
        live = np.zeros((max(made.live) + 1, len(ads)), dtype=bool)
        for snapshot, shown in made.live.items():
            live[snapshot, shown] = True
        return cls(vocabulary, engaged, tokens, row, made.snapshot, live, vocabulary.ad_tokens(ads))


class TowerFit:
    """One fit in progress: module, optimizer, and the draws of batches and pools."""

    def __init__(self, examples: TowerExamples, config: TowerConfig, device: str) -> None:
        import torch

        self.examples, self.config, self.torch, self.device = examples, config, torch, device
        # made on the CPU: the same start on every device
        self.model = _module(examples.vocabulary, config).to(device)
        tokens = np.where(examples.ad_tokens >= 0, examples.ad_tokens, self.model.unknown)
        self.ad_tokens = self.tensor(tokens)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.rng = np.random.default_rng(config.seed)

    def run(self) -> tuple[float, dict[str, NDArray[np.float32]], list[dict[str, float]]]:
        """The lowest validation loss, the arrays of its epoch, and the curve of losses."""
        best, arrays, curve, since = np.inf, self.model.arrays(), [], 0
        with Progress(self.config.epochs, "towers", "epoch") as progress:
            for epoch in range(self.config.epochs):
                train, valid = self.epoch(), self.validate()
                curve.append({"epoch": epoch + 1, "train": round(train, 4), "valid": round(valid, 4)})
                progress.update()
                progress.note(valid=valid)
                since += 1
                if valid < best:
                    best, arrays, since = valid, self.model.arrays(), 0
                if since >= self.config.patience:
                    break
        return best, arrays, curve

    def epoch(self) -> float:
        """One pass over the training examples; their mean loss."""
        self.model.train()
        examples, size, losses = self.examples.engaged["train"], self.config.batch, []
        order = self.rng.permutation(len(examples))
        for first in range(0, len(order), size):
            loss = self.loss(examples[order[first : first + size]], sampled=True)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def validate(self) -> float:
        """Mean loss over the validation examples, against every live ad."""
        self.model.eval()
        held, size = self.examples.engaged["valid"], self.config.batch
        parts = [held[first : first + size] for first in range(0, len(held), size)]
        with self.torch.no_grad():
            return float(np.sum([float(self.loss(part, sampled=False)) * len(part) for part in parts]) / len(held))

    def loss(self, engaged: Int, *, sampled: bool) -> Any:
        """Softmax cross-entropy of each engaged ad among those live at its request, nats."""
        examples = self.examples
        ads = len(self.ad_tokens)
        pool = np.arange(ads)
        if sampled and ads > self.config.pool:
            pool = np.union1d(self.rng.choice(ads, self.config.pool, replace=False), engaged[:, 1])
        bag = examples.tokens[examples.row[engaged[:, 0]]]
        user = self.model.user(
            self.tensor(bag.indices.astype(np.int64)),
            self.tensor(bag.indptr[:-1].astype(np.int64)),
            self.tensor(bag.data),
        )
        vector, bias = self.model.ad(self.ad_tokens[self.tensor(pool)])
        absent = ~examples.live[examples.snapshot[engaged[:, 0]]][:, pool]
        scores = (user @ vector.T + bias).masked_fill(self.tensor(absent), float("-inf"))
        return self.torch.nn.functional.cross_entropy(scores, self.tensor(np.searchsorted(pool, engaged[:, 1])))

    def tensor(self, array: Any) -> Any:
        """An array where the towers are."""
        return self.torch.as_tensor(array, device=self.device)


def _token_rows(pasts: Pasts, made: Requests, used: Int, plan: TimePlan) -> tuple[Any, Int]:
    """Tokens of the used requests, sparse [used, tokens], and the row of each request in it (−1: not used)."""
    moments = [moment_us(s) for s in plan.feature_snapshots()]
    row = np.full(len(made.user), -1, dtype=np.int64)
    blocks, place = [], 0
    for snapshot in np.unique(made.snapshot[used]):
        chosen = used[made.snapshot[used] == snapshot]
        blocks.append(pasts.at(moments[snapshot])[made.user[chosen]])
        row[chosen] = np.arange(place, place + len(chosen))
        place += len(chosen)
    return sparse.vstack(blocks, format="csr"), row


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
                return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)

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
