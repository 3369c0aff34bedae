"""One learning curve of several cut-offs: users resampled over all of them at once, by what each one's rankers gave.

The best control of a share is chosen at each cut-off on its own validation rows, as `ranking.evidence.rolling` does for
an ablation; what stands for unlike choices is named by all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import LABEL, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import write_json
from advprior.store.tables import read_parquet
from ranking.evidence.bootstrap import Draws, Outcomes, Resampler, Resampling, lifts_of
from ranking.evidence.deciding import metrics_at
from ranking.evidence.result import without_nan
from ranking.evidence.segments import SEGMENT_PREFIX
from ranking.evidence.user_shares import SHARE_SCORES_FILE, USER_SHARES_FILE, ShareRow, ShareScores, lines_of
from ranking.models.arms import Arms

_STANDS_IN = "best control of "  # each cut-off's own, of the arm behind it
_FIX = "advprior rank ablate --frame FRAME --out ABLATION --user-shares 0.1,0.3,1 --force"


def pool_user_shares(folders: Sequence[Path], out: Path, arms: Arms, *, slots: int, replicates: int) -> list[str]:
    """Pool the learning curves of ablations that have one, write `USER_SHARES_FILE` into ``out``; terminal lines.

    Parameters
    ----------
    folders : sequence of Path
        Ablations of the same arms and seeds, in time order.
    out : Path
    arms : Arms
        Those of the ablations.
    slots : int
        Shown ads of a slate when conversions are counted.
    replicates : int

    Returns
    -------
    list of str
        AUC of the arms on trial, a line each; or which ablations have no curve. Nothing where none has one.

    Raises
    ------
    AdvpriorError
        ``RNK026``, ``DAT001``, ``DAT002`` when a file cannot be read.
    """
    without = [folder for folder in folders if not (folder / SHARE_SCORES_FILE).is_file()]
    if without:
        told = f"rank pool: no curve by share of users: {', '.join(map(str, without))} measured none it could take"
        return [told] if len(without) < len(folders) else []
    loaded = [_load(folder) for folder in folders]
    common = sorted(set.intersection(*({one.share for one in by_share} for _, by_share in loaded)))
    rows = pd.concat([table for table, _ in loaded], ignore_index=True)
    cutoff = np.repeat(np.arange(len(loaded)), [len(table) for table, _ in loaded])
    resampler = Resampler.of(_outcomes(rows, cutoff), Resampling(metrics_at(slots), replicates))
    curve: list[ShareRow] = []
    seeds = len(next(iter(loaded[0][1][0].scores.values())))
    with Progress(len(common) * len(arms.arms) * seeds, "bootstrap by share of users", "ranker") as progress:
        for share in common:
            at = [next(one for one in by_share if one.share == share) for _, by_share in loaded]
            curve += _pooled(at, arms, resampler, progress)
    content = {"curve": [row.to_json() for row in curve], "cutoffs": len(folders)}
    write_json(out / USER_SHARES_FILE, without_nan(content))
    return lines_of(curve, arms)


def _load(folder: Path) -> tuple[pd.DataFrame, list[ShareScores]]:
    """Test rows with their segments, and the scores of each share."""
    table = read_parquet(folder / SHARE_SCORES_FILE, fix=_FIX)
    path = folder / USER_SHARES_FILE
    try:
        by_share = json.loads(path.read_text())["by_share"]
        shares = [
            ShareScores(
                one["share"], one["users"], {}, {a: np.nan if v is None else v for a, v in one["valid_auc"].items()}
            )
            for one in by_share
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvpriorError(
            "RNK026", "the curve by share of users cannot be read", where=str(path), actual=str(error), fix=_FIX
        ) from error
    names = [USER_ID, SLATE_ID, LABEL, *(c for c in table.columns if str(c).startswith(SEGMENT_PREFIX))]
    for column in (str(c) for c in table.columns if ":" in str(c)):
        share, arm, _ = column.split(":")
        of_share = next(one for one in shares if f"{one.share:g}" == share)
        of_share.scores.setdefault(arm, []).append(table[column].to_numpy(np.float64))
    return table[names], shares


def _outcomes(rows: pd.DataFrame, cutoff: np.ndarray) -> Outcomes:
    """What happened at all cut-offs; a segment that one of them lacks is nobody there."""
    names = [str(c) for c in rows if str(c).startswith(SEGMENT_PREFIX)]
    segments = {name.removeprefix(SEGMENT_PREFIX): (rows[name] == True).to_numpy(bool) for name in names}  # noqa: E712
    slate = pd.factorize(pd.MultiIndex.from_arrays([cutoff, rows[SLATE_ID]]))[0]
    return Outcomes.of(rows[LABEL], rows[USER_ID].astype(str), slate=slate, segments=segments, cutoff=cutoff)


def _pooled(at: Sequence[ShareScores], arms: Arms, resampler: Resampler, progress: Progress) -> list[ShareRow]:
    """Rows of one share; ``at`` holds it at each cut-off."""
    seeds = len(next(iter(at[0].scores.values())))
    draws: dict[str, list[Draws]] = {}
    for arm in arms.arms:
        draws[arm.name] = []
        for seed in range(seeds):
            score: Double = np.concatenate([one.scores[arm.name][seed] for one in at])
            draws[arm.name].append(resampler.draws(score)[0])
            progress.update()
    base = arms.baseline.name
    pairs = [(arm.name, base) for arm in arms.arms if not arm.is_baseline]
    chosen: dict[str, str] = {}
    best = [one.best_controls(arms) for one in at]
    for arm in arms.of_role("treatment"):
        choices = [of_one[arm.name] for of_one in best if arm.name in of_one]
        if len(choices) == len(at):
            stands_in = _STANDS_IN + arm.name
            chosen[arm.name] = ", ".join(dict.fromkeys(choices))
            draws[stands_in] = _each_own(draws, choices)
            pairs.append((arm.name, stands_in))
    lifts = lifts_of(draws, pairs, resampler.options, resampler.outcomes.telling)
    users = round(float(np.mean([one.users for one in at])))
    return [ShareRow(at[0].share, users, "" if lift.baseline == base else chosen[lift.arm], lift) for lift in lifts]


def _each_own(draws: dict[str, list[Draws]], choices: Sequence[str]) -> list[Draws]:
    """Values of a control that is another arm at each cut-off: every cut-off's row is taken from its own choice."""
    return [
        {
            key: np.stack([draws[chosen][seed][key][place] for place, chosen in enumerate(choices)])
            for key in draws[choices[0]][seed]
        }
        for seed in range(len(draws[choices[0]]))
    ]
