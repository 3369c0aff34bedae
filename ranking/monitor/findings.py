"""What a drift report says: each column's move, and what moved, where a prior with all its columns is one thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ranking.monitor.severity import ORDER, Severity


@dataclass(frozen=True)
class Drift:
    """One feature's move.

    Attributes
    ----------
    of : str
        What moved: a prior's view for all columns that are worked out from it, else the feature itself.
    kind : str
        ``feature`` of shown ads, or ``prior`` of a snapshot's users.
    noise : float
        The mean index that chance gives two samples of as many users, or ads.
    expected : float
        Up to which chance and the feature's own pace during training explain the index: no move to speak of.
    gain : float or None
        The feature's share of the ranker's gain.
    reference, current : list of int
        Counts by bin.
    """

    name: str
    of: str
    kind: Literal["feature", "prior"]
    psi: float
    severity: Severity
    noise: float
    expected: float
    gain: float | None
    labels: list[str]
    reference: list[int]
    current: list[int]


@dataclass(frozen=True)
class Finding:
    """What moved, once: a feature, or a prior with all columns that are worked out from it.

    Attributes
    ----------
    name : str
        The feature, or the prior's view.
    severity : str
        Of the column that moved most severely.
    psi : float
        Its index.
    columns : list of str
        That are at least moderate, those that moved most first.
    """

    name: str
    severity: Severity
    psi: float
    columns: list[str]

    def text(self) -> str:
        """One line."""
        columns = "" if self.columns == [self.name] else f" ({', '.join(self.columns)})"
        return f"{self.severity:<8} {self.psi:.3f} {self.name}{columns}"


@dataclass(frozen=True)
class DriftReport:
    """All moves, largest first, and which rows they were measured on."""

    drifts: list[Drift]
    about: dict[str, Any]

    def worst(self) -> Severity:
        """The severest of them."""
        return max((one.severity for one in self.drifts), key=ORDER.index, default="stable")

    def of(self, severity: Severity) -> list[Drift]:
        """Moves of one severity."""
        return [one for one in self.drifts if one.severity == severity]

    def findings(self) -> list[Finding]:
        """What moved, the severest first: a prior moves with all of its columns, and is one finding."""
        moved: dict[str, list[Drift]] = {}
        for one in self.drifts:
            if one.severity != "stable":
                moved.setdefault(one.of, []).append(one)
        findings = []
        for name, columns in moved.items():
            columns.sort(key=_by_severity)
            names = list(dict.fromkeys(one.name for one in columns))  # a prior's own entropy may be a feature, too
            findings.append(Finding(name, columns[0].severity, columns[0].psi, names))
        return sorted(findings, key=_by_severity)

    def to_json(self) -> dict[str, Any]:
        """For ``drift.json``."""
        return {
            "worst": self.worst(),
            "about": self.about,
            "findings": [asdict(one) for one in self.findings()],
            "drifts": [asdict(one) for one in self.drifts],
        }


def _by_severity(one: Drift | Finding) -> tuple[int, float]:
    """A key to sort by: the severest first."""
    return -ORDER.index(one.severity), -one.psi
