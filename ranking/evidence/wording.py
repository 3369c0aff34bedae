"""How numbers and segments are written, in sentences, tables and pictures alike. Strings in, strings out."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

_SEGMENTS = {
    "overall": "All test impressions",
    "never_advertiser": "Advertisers new to the user",
    "never_ad": "Ads new to the user",
    "few_events": "Users with the fewest events",
    "tail_advertiser": "Advertisers of the tail (outside 80 % of events)",
    "profile_known": "Users with a profile",
    "profile_unknown": "Users without a profile",
}


def segment_label(name: str) -> str:
    """How a segment is called in a report.

    >>> segment_label("never_advertiser"), segment_label("new_users")
    ('Advertisers new to the user', 'new users')
    """
    return _SEGMENTS.get(name, name.replace("_", " "))


def uncapitalised(text: str) -> str:
    """A label in the middle of a sentence; an abbreviation or a name such as LightGBM at its start stays.

    >>> uncapitalised("History baseline"), uncapitalised("LLM prior"), uncapitalised("LightGBM, no priors")
    ('history baseline', 'LLM prior', 'LightGBM, no priors')
    """
    first = text.partition(" ")[0]
    return text if first[1:] != first[1:].lower() else text[:1].lower() + text[1:]


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, a true minus.

    >>> signed(0.00123), signed(-0.5, 1), signed(-0.00001)
    ('+0.0012', '−0.5', '0.0000')
    """
    if isnan(value):
        return "undefined"
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def interval(low: float, high: float, digits: int = 4) -> str:
    """Both ends of an interval.

    >>> interval(-0.0003, 0.0027)
    '[−0.0003, +0.0027]'
    """
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def plain_label(label: str) -> str:
    """An arm's label without its leading plus and what stands in brackets.

    >>> plain_label("+ placebo (LLM priors of other users)"), plain_label("History baseline")
    ('placebo', 'History baseline')
    """
    return label.removeprefix("+").split("(")[0].strip()


def at_cutoffs(labels: Sequence[str]) -> str:
    """What was chosen at each cut-off, each choice once; a label may hold a comma itself.

    >>> at_cutoffs(["words, no network", "neighbours", "words, no network"])
    'words, no network at 1 and 3; neighbours at 2'
    """
    places: dict[str, list[str]] = {}
    for number, label in enumerate(labels, start=1):
        places.setdefault(label, []).append(str(number))
    return "; ".join(f"{label} at {' and '.join(at)}" for label, at in places.items())


def outcome(better: bool, worse: bool, *, one_seed: bool = False) -> str:
    """What an interval says, in words. With one seed, the noise of training is not in it: then nothing is clear.

    Of the difference alone: what may be called a gain beside its control and placebo, `ranking.evidence.claims` says.

    >>> outcome(True, False), outcome(False, False), outcome(False, False, one_seed=True)
    ('above zero', 'no clear effect', 'of one seed: the noise of training is not in it')
    """
    if one_seed:
        return "of one seed: the noise of training is not in it"
    return "above zero" if better else "below zero" if worse else "no clear effect"
