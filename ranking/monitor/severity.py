"""What a population stability index is called, and when it is one to fail on."""

from __future__ import annotations

from typing import Literal

Severity = Literal["stable", "moderate", "major"]
ORDER = ("stable", "moderate", "major")
#: Rules of thumb of credit scoring (Siddiqi, *Credit Risk Scorecards*, 2006): below 0.1 stable, from 0.25 on shifted.
MODERATE, MAJOR = 0.1, 0.25


def severity_of(value: float) -> Severity:
    """What a value of the index is called.

    >>> severity_of(0.0999), severity_of(0.1), severity_of(0.25)
    ('stable', 'moderate', 'major')
    """
    return "major" if value >= MAJOR else "moderate" if value >= MODERATE else "stable"


def at_least(severity: Severity, threshold: str) -> bool:
    """Whether a severity is one to fail on.

    >>> at_least("moderate", "major"), at_least("major", "moderate"), at_least("major", "never")
    (False, True, False)
    """
    return threshold != "never" and ORDER.index(severity) >= ORDER.index(threshold)
