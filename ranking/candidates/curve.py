"""What priors do to retrieval: recall of engaged ads, what it costs in concentration, for every quota.

Every ad that anybody was shown between two snapshots is retrievable for a request of that time. An ad that this user
was not shown cannot have been engaged with: recall counts what could be seen, and is unbiased for shown ads only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, ADVERTISER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, write_json
from advprior.store.tables import load_tables, load_time_plan
from ranking.candidates.choose import Sorted, choose, concentration
from ranking.candidates.inputs import Pasts, Requests, blocks, requests
from ranking.candidates.priors import predicted, prior_rows
from ranking.candidates.towers import Towers
from ranking.evidence.lift import user_weights
from ranking.evidence.metrics import Floats
from ranking.frame.counts import Ints, moment_us

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank candidates"
CURVE_FILE = "candidates.json"
QUOTAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
TOP_ADVERTISERS = 20
_BLOCK = 512
_COLUMNS = [
    "predictor",
    "split",
    "quota",
    "recall",
    "gain",
    "low",
    "high",
    "hits",
    "unique_hits",
    "lost_hits",
    "engaged",
    "hhi",
    "requests",
]


@dataclass
class CandidateCurve:
    """Recall and concentration against quota.

    Parameters
    ----------
    table : DataFrame
        One row per predictor, split and quota: ``recall`` of engaged ads among k candidates, its ``gain`` over the
        towers alone with a 95 % interval (users resampled), ``unique_hits`` that only the priors' slots brought and
        ``lost_hits`` that they displaced, ``hhi`` of advertisers over all slots.
    chosen : dict of str to float
        Predictor to the quota with the highest recall on validation (the smaller of equals).
    about : dict
        k, advertisers per prior, provenance.
    """

    table: pd.DataFrame
    chosen: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per predictor, split and quota."""
        return self.table

    def at_choice(self, predictor: str, split: str = "test") -> pd.Series[Any]:
        """The row of the chosen quota."""
        rows = self.table.query("predictor == @predictor and split == @split and quota == @self.chosen[@predictor]")
        return rows.iloc[0]

    def sentence(self, predictor: str) -> str:
        """What the choice gives on test rows, in words."""
        from ranking.evidence.verdict import signed

        row, quota = self.at_choice(predictor), self.chosen[predictor]
        if quota == 0:
            return f"{predictor}: validation gives its advertisers no slot; the towers alone recall {row.recall:.4f}"
        alone = self.table.query("predictor == @predictor and split == 'test' and quota == 0").iloc[0]
        word = "a clear gain" if row.low > 0 else "a clear loss" if row.high < 0 else "no clear effect"
        return (
            f"{predictor}: with {quota:.0%} of {self.about['k']} slots (chosen on validation) test recall is "
            f"{row.recall:.4f}, {signed(row.gain)} [{signed(row.low)}, {signed(row.high)}] over the towers alone: "
            f"{word}; "
            f"{row.unique_hits:,.0f} unique hits, {row.lost_hits:,.0f} lost, HHI {alone.hhi:.4f} → {row.hhi:.4f}"
        )

    def plot(self) -> Figure:
        """Recall gain and concentration against quota, on test requests."""
        from ranking.evidence.plots import candidate_curve

        return candidate_curve(self)

    def _repr_html_(self) -> str:
        from html import escape

        lines = "".join(f"<li>{escape(self.sentence(name))}</li>" for name in self.chosen)
        test = self.table[self.table["split"] == "test"]
        return f"<ul>{lines}</ul>{test.round(4).to_html(index=False)}"

    def save(self, folder: Path) -> None:
        """Write ``candidates.json``."""
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        write_json(Path(folder) / CURVE_FILE, {"table": rows, "chosen": self.chosen, **self.about})

    @classmethod
    def load(cls, folder: Path) -> CandidateCurve:
        """Read a finished ``advprior rank candidates`` run.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003``, ``RNK032`` when its file cannot be read.
        """
        fix = "advprior rank candidates --tables TABLES --repo FEATURE_REPO --towers TOWERS --out OUT"
        read_manifest(folder, step=STEP, fix=fix)
        path = Path(folder) / CURVE_FILE
        try:
            about = json.loads(path.read_text())
            numbers = dict.fromkeys(_COLUMNS[2:], np.float64)
            return cls(pd.DataFrame(about.pop("table"), columns=_COLUMNS).astype(numbers), about.pop("chosen"), about)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdvpriorError(
                "RNK032",
                "the candidate curve cannot be read",
                where=str(path),
                actual=str(error).splitlines()[0],
                fix=fix,
            ) from error


def candidate_curve(
    tables: Path,
    repo: Path,
    towers: Towers,
    predictors: Sequence[str],
    *,
    k: int = 20,
    top: int = TOP_ADVERTISERS,
    quotas: Sequence[float] = QUOTAS,
    replicates: int = 1000,
) -> CandidateCurve:
    """Retrieve for every request of validation and test, at every quota.

    Parameters
    ----------
    tables, repo : Path
        Canonical tables; the feature repository whose priors are joined.
    towers : Towers
    predictors : sequence of str
        Whose predicted advertisers get slots.
    k : int
        Candidates per request.
    top : int
        Advertisers per prior that count as predicted.
    quotas : sequence of float
        Shares of slots; 0, the towers alone, is always among them.
    replicates : int
        Resamplings of users behind the intervals.
    """
    from tqdm.auto import tqdm

    plan = load_time_plan(tables)
    loaded = load_tables(tables, "users", "ads", "events", "impressions")
    users, ads = loaded["users"], loaded["ads"].reset_index(drop=True)
    pasts = Pasts(users, loaded["events"], towers.vocabulary)
    asked = requests(
        loaded["impressions"], pasts.ids, ads[AD_ID].astype(str).tolist(), plan, start=moment_us(plan.train_end)
    )
    vectors, bias = towers.ads(ads)
    advertiser, _ = pd.factorize(ads[ADVERTISER_ID].astype(str))
    quotas = sorted({0.0, *quotas})
    ids = [pasts.ids[u] for u in asked.user]
    pointers = {name: prior_rows(repo, name, ids, asked.time) for name in predictors}
    won = np.zeros(len(asked.user), dtype=np.int64)
    np.add.at(won, asked.engaged[:, 0], 1)

    hits = {(p, q): np.zeros(len(asked.user)) for p in predictors for q in quotas}
    extra = {(p, q): np.zeros(len(asked.user)) for p in predictors for q in quotas}
    shown = {(p, q, s): np.zeros(advertiser.max() + 1) for p in predictors for q in quotas for s in ("valid", "test")}
    moments = [moment_us(s) for s in plan.feature_snapshots()]
    bar = tqdm(total=len(asked.user), desc="candidates", unit="request", disable=None)
    for snapshot in np.unique(asked.snapshot):
        tokens = pasts.at(moments[snapshot])
        there = asked.live[int(snapshot)]
        for part in blocks(np.flatnonzero(asked.snapshot == snapshot), _BLOCK):
            score = towers.users(tokens[asked.user[part]]) @ vectors[there].T + bias[there]
            request = np.repeat(np.arange(len(part)), len(there))
            rows = Sorted.of(request, score.ravel())
            engaged = _engaged(asked, part, there)
            for name in predictors:
                wanted = predicted(repo, name, pointers[name][part], ads.iloc[there], top)
                alone = None
                for q in quotas:
                    taken = choose(rows, wanted.ravel(), k, q).reshape(len(part), len(there))
                    found = taken & engaged
                    alone = found if alone is None else alone
                    hits[name, q][part] = found.sum(axis=1)
                    extra[name, q][part] = (found & ~alone).sum(axis=1)
                    for split in ("valid", "test"):
                        mine = asked.split[part] == split
                        shown[name, q, split] += np.bincount(
                            advertiser[there], weights=taken[mine].sum(axis=0), minlength=advertiser.max() + 1
                        )
            bar.update(len(part))
    bar.close()

    table = []
    for name in predictors:
        for split in ("valid", "test"):
            mine = asked.split == split
            for q in quotas:
                base, got = hits[name, 0.0][mine], hits[name, q][mine]
                gain, low, high = _gain(asked.user[mine], got - base, won[mine].astype(np.float64), replicates)
                total, found = float(won[mine].sum()), float(got.sum())
                unique = float(extra[name, q][mine].sum())
                values = [
                    name,
                    split,
                    q,
                    found / total if total else np.nan,
                    gain,
                    low,
                    high,
                    found,
                    unique,
                    unique - (found - float(base.sum())),
                    total,
                    concentration(np.arange(advertiser.max() + 1), shown[name, q, split]),
                    int(mine.sum()),
                ]
                table.append(dict(zip(_COLUMNS, values, strict=True)))
    curve = pd.DataFrame(table, columns=_COLUMNS)
    valid = curve[curve["split"] == "valid"]
    best = valid.sort_values(["recall", "quota"], ascending=[False, True]).groupby("predictor")["quota"].first()
    chosen = {name: float(best[name]) for name in predictors}
    about = {
        "k": k,
        "top": top,
        "replicates": replicates,
        "data": read_manifest(tables)["facts"].get("note"),
        "towers": towers.facts,
    }
    return CandidateCurve(curve, chosen, about)


def _engaged(asked: Requests, part: Ints, there: Ints) -> Any:
    """bool [part, there]: what the user of each request engaged with."""
    place = np.full(len(asked.user), -1, dtype=np.int64)
    place[part] = np.arange(len(part))
    mine = asked.engaged[place[asked.engaged[:, 0]] >= 0]
    out = np.zeros((len(part), len(there)), dtype=bool)
    out[place[mine[:, 0]], np.searchsorted(there, mine[:, 1])] = True
    return out


def _gain(user: Ints, change: Floats, engaged: Floats, replicates: int, seed: int = 0) -> tuple[float, float, float]:
    """Change of hits over engaged ads, and its 95 % interval, users resampled."""
    _, who = np.unique(user, return_inverse=True)
    top, bottom = np.bincount(who, weights=change), np.bincount(who, weights=engaged)
    if not bottom.sum():
        return float("nan"), float("nan"), float("nan")
    weights = user_weights(len(top), replicates, seed).astype(np.float64)
    below = weights @ bottom
    found = (weights @ top)[below > 0] / below[below > 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(top.sum() / bottom.sum()), float(low), float(high)
