"""How many slots of a request's candidates go to ads of predicted advertisers, as validation chose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, read_manifest

CANDIDATES_FIX = "advprior rank candidates --tables TABLES --repo REPO --towers TOWERS --out CANDIDATES"


@dataclass(frozen=True)
class Quota:
    """Slots that ads of a prior's likeliest advertisers get, as validation chose it.

    Attributes
    ----------
    predictor : str
        Whose priors.
    share : float
        Of the slots.
    top : int
        Advertisers of a prior that count as predicted.
    k : int
        Candidates per request that it was chosen for.
    """

    predictor: str
    share: float
    top: int
    k: int


def read_quota(folder: Path, towers: Path, predictors: Sequence[str]) -> Quota:
    """What ``rank candidates`` chose for the ranker's own predictor.

    Raises
    ------
    AdvpriorError
        ``RUN00x`` and ``RNK032`` when it cannot be read, ``SRV012`` when it was chosen for other towers or for priors
        that the ranker does not read.
    """
    from ranking.candidates.curve import CandidateCurve

    curve = CandidateCurve.load(folder)
    made, wanted = read_manifest(folder)["inputs"].get("towers"), manifest_digest(towers)
    served = [name for name in curve.chosen if name in predictors]
    if made != wanted or not served:
        raise AdvpriorError(
            "SRV012",
            "the quota was not chosen for what is served",
            where=str(folder),
            actual=f"towers {made}" if made != wanted else f"priors of {', '.join(curve.chosen) or 'none'}",
            expected=f"towers {wanted}" if made != wanted else f"priors of {', '.join(predictors)}",
            fix=CANDIDATES_FIX,
        )
    name = max(served, key=lambda predictor: float(curve.at_choice(predictor, "valid")["recall"]))
    return Quota(name, curve.chosen[name], int(curve.about["top"]), int(curve.about["k"]))
