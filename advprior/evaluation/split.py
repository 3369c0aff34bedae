"""Histories on both sides of a cut-off, and the earlier cut-off whose labels weigh controls and blends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from advprior.evaluation.als import AlsSettings, als_installed, tune_als
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.terms import Terms, pace_of
from advprior.history.catalog import Catalog
from advprior.history.counts import DAY
from advprior.history.histories import Histories


@dataclass(frozen=True)
class Split:
    """Everything that an evaluation reads, by time.

    Attributes
    ----------
    histories : Histories
        All events, labels included.
    catalog : Catalog
    now, ahead : int
        The cut-off and the horizon, in microseconds.
    seed : int
        Of ALS.
    """

    histories: Histories
    catalog: Catalog
    now: int
    ahead: int
    seed: int = 0

    @property
    def size(self) -> int:
        """N advertisers."""
        return len(self.catalog)

    @cached_property
    def past(self) -> Histories:
        """Events before the cut-off: all that anything is fitted on or scored from."""
        return self.histories.before(self.now)

    @cached_property
    def back(self) -> int:
        """How long before the cut-off labels to fit on start.

        A horizon; where the data before the cut-off is shorter than two, half of it is history.
        """
        times = self.past.time
        return min(self.ahead, int(self.now - times.min()) // 2) if len(times) else 1

    @cached_property
    def pace(self) -> float:
        """What half-lives are multiplied by: that of the cut-off, at earlier ones too."""
        times = self.past.time
        return pace_of((self.now - int(times.min())) / DAY) if len(times) else 1.0

    @property
    def then(self) -> int:
        """The earlier cut-off; labels to fit on lie between it and the cut-off."""
        return self.now - self.back

    @cached_property
    def before(self) -> Histories:
        """Events before the earlier cut-off."""
        return self.histories.before(self.then)

    def terms_at(self, moment: int) -> Terms:
        """Terms as of a moment, from events before it: the same for every population."""
        if moment not in self._terms:
            past = self.histories.before(moment)
            self._terms[moment] = Terms(past, moment, self.size, self.seed, pace=self.pace).tuned(self.als[0])
        return self._terms[moment]

    @cached_property
    def als(self) -> tuple[AlsSettings, dict[str, float]]:
        """Settings of ALS that explain the labels between the earlier cut-off and the cut-off best; `als.tune_als`."""
        if not als_installed():
            return AlsSettings(), {}
        labels = first_labels(self.past, self.then, self.now - self.then)
        return tune_als(self.before, labels, self.size, self.seed)

    @cached_property
    def _terms(self) -> dict[int, Terms]:
        return {}
