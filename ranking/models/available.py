"""Which arms a frame can feed: those whose priors nobody published are left out, a slip of the pen is refused."""

from __future__ import annotations

from collections.abc import Sequence

from advprior.store.contract import prior_service
from advprior.store.features import Feature
from ranking.models.arms import Arm, Arms, arm_features, names_feature


def with_available(
    arms: Arms, features: Sequence[Feature], named: Sequence[str] = (), *, optional: bool = False
) -> tuple[Arms, dict[str, str]]:
    """Arms that the frame can feed, and what the others lack.

    Parameters
    ----------
    arms : Arms
    features : sequence of Feature
        Of the frame.
    named : sequence of str
        Names of arms that must be measured: these and the baseline, no others. Without any: all but optional ones.
    optional : bool
        Without any named: optional ones too.

    Returns
    -------
    Arms
    dict of str to str
        Arms left out because no prior of theirs is in the frame, and what they would add.

    Raises
    ------
    AdvpriorError
        ``RNK021`` for an unknown name, ``RNK022`` when a named arm lacks its features, or when any arm adds a feature
        that a prior in the frame does not have: a slip of the pen, not a predictor that was not run.
    """
    names = {arms.find(name).name for name in named}
    usable: list[Arm] = []
    left_out: dict[str, str] = {}
    for arm in arms.arms:
        if not arm.is_baseline and (arm.name not in names if names else arm.optional and not optional):
            continue
        absent = [entry for entry in arm.adds if not any(names_feature(entry, feature) for feature in features)]
        if absent and not names and not _misspelt(arm, absent, features):
            left_out[arm.name] = ", ".join(absent)
            continue
        arm_features(arm, features)
        usable.append(arm)
    return Arms(arms=tuple(usable), ranker=arms.ranker), left_out


def _misspelt(arm: Arm, absent: Sequence[str], features: Sequence[Feature]) -> bool:
    """Whether the frame has the prior that the arm's service serves, and an absent entry would be a feature of it."""
    served = {f.source for f in features if f.predictor is not None and prior_service(f.predictor) == arm.service}
    return any(entry.startswith(f"{view}_") for entry in absent for view in served)
