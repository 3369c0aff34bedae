"""What an arm's conversions cost: hours of computing against conversions, and the value that a conversion must have.

All is of a million slates, and all is measured: conversions are the arm's lift on test slates, hours are what the
scoring run recorded, and how many slates a user sees between two refreshes is counted in the test window, over every
user that was scored for it. A network reads a user's whole history for however many snapshots are asked, so its cost is
that of a user; any other predictor's is that of a user at one snapshot. Fitting is paid once a model, and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any

from advprior.store.contract import TimePlan
from ranking.evidence.claims import Claim, jointly
from ranking.evidence.lift import Lift

MILLION = 1_000_000
_HOUR = 3600.0


@dataclass(frozen=True)
class Price:
    """What an hour of computing costs.

    Parameters
    ----------
    cpu_hour, gpu_hour : float, optional
        None where it is not counted.
    currency : str
    """

    cpu_hour: float | None = None
    gpu_hour: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Hours:
    """What priors of a million users take at one refresh.

    Parameters
    ----------
    cpu : float
        Hours of one core.
    gpu : float
        Hours of one GPU; 0 where none was used.
    at_most : bool
        Every user is read anew; a refresh reads only those with something new.
    """

    cpu: float
    gpu: float = 0.0
    at_most: bool = False

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.cpu + other.cpu, self.gpu + other.gpu, self.at_most or other.at_most)

    def text(self) -> str:
        """In the largest fitting unit.

        >>> Hours(75.6, at_most=True).text(), Hours(0.025).text(), Hours(2.0, 0.5).text()
        ('at most 75.6 CPU-hours', '1.5 CPU-minutes', '30.0 GPU-minutes and 2.0 CPU-hours')
        """
        parts = [duration(self.gpu * _HOUR, "GPU")] if self.gpu else []
        words = " and ".join([*parts, duration(self.cpu * _HOUR)])
        return f"at most {words}" if self.at_most else words

    def cost(self, price: Price) -> float | None:
        """In the price's currency; None where the hours that were spent have no price."""
        if self.gpu and price.gpu_hour is None:
            return None
        if not self.gpu and price.cpu_hour is None:
            return None
        return self.cpu * (price.cpu_hour or 0.0) + self.gpu * (price.gpu_hour or 0.0)


def duration(seconds: float, unit: str = "CPU") -> str:
    """Processor time in its largest fitting unit.

    >>> duration(25000.0), duration(90.0), duration(12.3), duration(0.2)
    ('6.9 CPU-hours', '1.5 CPU-minutes', '12 CPU-seconds', '0.2 CPU-seconds')
    """
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:,.1f} {unit}-hours"
    if seconds >= 60:
        return f"{seconds / 60:.1f} {unit}-minutes"
    return f"{seconds:.0f} {unit}-seconds" if seconds >= 1 else f"{seconds:.1g} {unit}-seconds"


def refresh_hours(prior: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> Hours | None:
    """What a million users' priors take at one refresh, from what a run recorded; None where it did not.

    Parameters
    ----------
    prior : mapping
        Facts of the published prior: ``users``, ``rows`` (users × snapshots), ``forwarded``, ``provider``,
        ``score_seconds`` and ``score_cpu_seconds``.
    run : mapping, optional
        Manifest of the scoring run, where it was handed to the report.

    Examples
    --------
    >>> refresh_hours({"users": 200, "rows": 7000, "forwarded": 212, "score_cpu_seconds": 54.0})
    Hours(cpu=75.0, gpu=0.0, at_most=True)
    >>> round(refresh_hours({"users": 200, "rows": 7200, "forwarded": 0, "score_cpu_seconds": 0.5}).cpu, 4)
    0.0193
    """
    facts = {**prior, **(run["facts"] if run else {})}
    seconds = run.get("cpu_seconds") if run else facts.get("score_cpu_seconds")
    elapsed = run.get("seconds") if run else facts.get("score_seconds")
    forwarded = int(facts.get("forwarded") or 0)
    # a later run reads only users with something new: their share of the cost is theirs
    readers = forwarded if facts.get("carried") else int(facts.get("users") or 0)
    units = readers if forwarded else int(facts.get("rows") or 0)
    if not seconds or not units:
        return None
    each = MILLION / units / _HOUR
    on_gpu = str(facts.get("provider", "")).startswith(("CUDA", "Tensorrt"))
    return Hours(float(seconds) * each, float(elapsed or 0.0) * each if on_gpu else 0.0, bool(forwarded))


@dataclass(frozen=True)
class Traffic:
    """Slates that scored users saw in the test window.

    Parameters
    ----------
    slates, users : int
        Test slates; users whose priors were scored, with or without a slate.
    days : float
        Of the test window.
    every : float
        Days between refreshes.
    """

    slates: int
    users: int
    days: float
    every: float

    @property
    def between(self) -> float:
        """Slates of a scored user between two refreshes."""
        return self.slates / self.users * self.every / self.days

    def text(self) -> str:
        """How it was counted.

        >>> Traffic(2009, 200, 71.0, 7.0).text()
        'in the 71 test days 200 scored users saw 2,009 slates, 0.99 each between two refreshes (every 7 days)'
        """
        return (
            f"in the {self.days:.0f} test days {self.users:,} scored users saw {self.slates:,} slates, "
            f"{self.between:.2g} each between two refreshes (every {self.every:g} day{'s' * (self.every != 1)})"
        )


def traffic_of(about: Mapping[str, Any], users: int | None) -> Traffic | None:
    """Traffic of an ablation's test window; None where its tables have no time plan.

    Parameters
    ----------
    about : mapping
        Of the ablation's result: ``splits``, ``frame_facts`` and, of a pooled one, ``cutoffs``.
    users : int, optional
        That were scored; else those who were shown something.
    """
    plan = about.get("frame_facts", {}).get("time_plan")
    test = about["splits"]["test"]
    users = users or int(test["users"])
    if not plan or not users or not test["slates"]:
        return None
    times = TimePlan.from_json(plan)
    windows = [cut["test"].split(" to ") for cut in about.get("cutoffs", [])]
    whole = sum((datetime.fromisoformat(b) - datetime.fromisoformat(a) for a, b in windows), timedelta())
    days = (whole or times.end - times.valid_end) / timedelta(days=1)
    return Traffic(int(test["slates"]), users, days, times.snapshot_every / timedelta(days=1))


def gained(lift: Lift) -> str:
    """Conversions per million slates, with their interval.

    >>> gained(Lift("llm", "baseline", "conversions_5", "overall", 0.5, 0.5, 0.0012, 0.0, -0.005, 0.0074, 1000))
    '+1,200 [−5,000, +7,400]'
    """
    value, low, high = (_whole(part * MILLION) for part in (lift.difference, lift.low, lift.high))
    return f"{value} [{low}, {high}]"


def _whole(value: float) -> str:
    """A signed number to two or three digits, without decimals."""
    rounded = round(value, -1 if abs(value) >= 1000 else 0)
    return "0" if rounded == 0 else f"{rounded:+,.0f}".replace("-", "−")


def break_even(cost: float, lift: Lift) -> tuple[float, float, float]:
    """Value that a conversion must have for a cost of a million slates: as measured, and at the interval's two ends.

    Infinite where nothing is gained.

    >>> break_even(38.0, Lift("a", "b", "conversions_5", "overall", 0.5, 0.5, 0.001, 0.0, -0.001, 0.002, 1000))
    (0.038, 0.019, inf)
    """
    value, best, worst = (
        cost / (part * MILLION) if part > 0 else inf for part in (lift.difference, lift.high, lift.low)
    )
    return value, best, worst


def worth_text(
    claim: Claim, hours: Mapping[str, Hours | None], arms: Sequence[str | None], traffic: Traffic, price: Price | None
) -> str:
    """What an arm's conversions cost, in words, with its best control's beside it.

    Parameters
    ----------
    claim : Claim
        On conversions per slate.
    hours : mapping of arm to Hours or None
        Per million users at one refresh.
    arms : (arm, control or None)
        Whose the claim is, and its best control.
    traffic : Traffic
    price : Price, optional
    """
    own = hours.get(str(arms[0]))
    lead = f"{_capital(claim.name)}: {gained(claim.lift)} conversions per million slates"
    if claim.control is not None:
        lead += f" (best control, {claim.control.name}: {gained(jointly(claim.control.own))}"
        other = hours.get(str(arms[1]))
        lead += f", for {other.text()})" if other is not None else ")"
    if own is None:
        return f"{lead}. What they cost was not recorded: name the scoring run with --predictor-run."
    slates = Hours(own.cpu / traffic.between, own.gpu / traffic.between, own.at_most)
    text = f"{lead}, for {own.text()} per million users at each refresh, {slates.text()} per million slates."
    return f"{text} {_break_even_text(claim.lift, slates, price)}"


def _break_even_text(lift: Lift, hours: Hours, price: Price | None) -> str:
    """The value that a conversion must have, or how to be told it."""
    unit = "gpu_hour" if hours.gpu else "cpu_hour"
    cost = None if price is None else hours.cost(price)
    if price is None or cost is None:
        return (
            f"For the value that a conversion must have, set price: {{{unit}: 0.05, currency: USD}} in advprior.yaml."
        )
    value, best, worst = break_even(cost, lift)
    each = " and ".join(
        f"{amount:g} {price.currency} a {name}"
        for name, amount in (("CPU-hour", price.cpu_hour), ("GPU-hour", price.gpu_hour if hours.gpu else None))
        if amount is not None
    )
    lead = f"At {each} that is {_money(cost, price)}"
    if best == inf:
        return f"{lead}: no value of a conversion pays for it, even at the interval's upper end."
    if value == inf:
        return (
            f"{lead}: at the measured change no value of a conversion pays for it; at the interval's upper end one of "
            f"{_money(best, price)} would."
        )
    ends = f"{_money(best, price)} at the interval's upper end, "
    ends += "at its lower end no value pays" if worst == inf else f"{_money(worst, price)} at its lower"
    true = " if the true change is the measured one," if worst == inf else ""
    return f"{lead}:{true} it pays where a conversion is worth more than {_money(value, price)} ({ends})."


def _money(amount: float, price: Price) -> str:
    """Two significant digits, or whole units.

    >>> _money(0.00317, Price()), _money(38.4, Price()), _money(12345.0, Price())
    ('0.0032 USD', '38 USD', '12,345 USD')
    """
    return f"{amount:,.0f} {price.currency}" if amount >= 100 else f"{amount:.2g} {price.currency}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
