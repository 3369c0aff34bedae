"""Which labels a fit has seen: those that trained it, and those that chose among what was trained.

A network that stopped learning in May, whose epoch, strength and offset were chosen in June, has seen June. Both ends
stand in a run's facts, the later of them is its model cut-off, and whoever reads the cut-off checks it against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from advprior.predictors.base import BEFORE
from advprior.store.contract import MODEL_CUTOFF
from advprior.store.errors import AdvpriorError

#: What helps where there is no label of either kind.
MORE_EVENTS = "map more events: some users need two at different times, within the horizon of each other"
TRAINED_UNTIL, CHOSEN_UNTIL = "trained_until", "chosen_until"


@dataclass(frozen=True)
class LabelSpan:
    """Where the labels end that a fit has seen.

    Attributes
    ----------
    trained_until : datetime
        No label at or after it moved a weight of the model.
    chosen_until : datetime
        No label at or after it chose the model's epoch, its strength or what its logits start from.

    >>> may, june = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
    >>> LabelSpan(may, june).model_cutoff == june
    True
    """

    trained_until: datetime
    chosen_until: datetime

    @classmethod
    def micros(cls, trained_until: int, chosen_until: int) -> LabelSpan:
        """From microseconds since the epoch."""
        return cls(*(datetime.fromtimestamp(end / 1e6, UTC) for end in (trained_until, chosen_until)))

    @property
    def model_cutoff(self) -> datetime:
        """No label at or after it touched the model in any way."""
        return max(self.trained_until, self.chosen_until)

    def to_json(self) -> dict[str, str]:
        """As facts of a run, the model cut-off among them."""
        return {
            TRAINED_UNTIL: self.trained_until.isoformat(),
            CHOSEN_UNTIL: self.chosen_until.isoformat(),
            MODEL_CUTOFF: self.model_cutoff.isoformat(),
        }

    @classmethod
    def of_run(cls, manifest: Mapping[str, Any], where: str) -> LabelSpan:
        """What a fitted run says of its labels.

        Raises
        ------
        AdvpriorError
            ``PRI017`` when it states an earlier model cut-off than its labels have, or was kept from before its last
            fit by a version that did not tell which labels had chosen it.
        """
        facts = manifest["facts"]
        stated = datetime.fromisoformat(facts[MODEL_CUTOFF])
        untold = TRAINED_UNTIL not in facts
        ends = [stated if untold else datetime.fromisoformat(facts[name]) for name in (TRAINED_UNTIL, CHOSEN_UNTIL)]
        span = cls(*ends)
        if stated < span.model_cutoff or (untold and manifest["config"].get(BEFORE)):
            raise AdvpriorError(
                "PRI017",
                "the run states an earlier model cut-off than its labels have",
                where=where,
                actual=f"model_cutoff {stated.isoformat()}, "
                + ("labels that chose it not told" if untold else f"labels until {span.model_cutoff.isoformat()}"),
                expected="the end of the newest label that trained it or chose its offset, strength and epoch",
                fix="advprior finetune, again",
            )
        return span


def require_choosing_labels(horizon_days: float, valid_days: float, setting: str) -> None:
    """Refuse a horizon that reaches from the labels that choose back into those that train.

    A label that chooses lies up to a horizon after its snapshot, the last snapshot a horizon before the cut-off. Where
    that is before the border, ``valid_days`` before the cut-off, no label chooses that did not train.

    Parameters
    ----------
    setting : str
        The key of ``valid_days`` in the predictor's settings.

    Raises
    ------
    AdvpriorError
        ``PRI018``.
    """
    if horizon_days > valid_days:
        raise AdvpriorError(
            "PRI018",
            "the labels that choose would be labels that trained",
            where=f"settings, {setting}",
            actual=f"{setting} {valid_days:g}, horizon_days {horizon_days:g}",
            expected=f"{setting} of at least horizon_days",
            fix=f"raise {setting} to {horizon_days:g} or more, or lower horizon_days",
        )
