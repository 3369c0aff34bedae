"""One sentence on a user's own data: is a prior from texts worth anything at their number of users, and for whom?

It names whose prior it is, the best control, the same network with random weights, the segment and the number of users,
and takes its words from the one rule for claims (`advprior.store.claims`). On fewer than three cut-offs it claims
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from advprior.evaluation.learning_curve.arms import LEXICAL
from advprior.evaluation.learning_curve.cells import ADVERTISER, SEGMENTS
from advprior.evaluation.learning_curve.result import BEST_RANDOM, BEST_WITH, BEST_WITHOUT, HIGHER_IS_BETTER
from advprior.evaluation.terms import LOGIT
from advprior.store.claims import Bounds, kind_of

METRIC = "nll"  # what is decided on: lower is better
CONTROLS = (BEST_WITHOUT, LEXICAL, BEST_RANDOM)  # a clear gain is one over each
OVERALL = SEGMENTS[0]
ENOUGH_CUTOFFS = 3
OUTCOMES = {
    "win": "a clear gain, also over every control",
    "win_not_over_control": "a gain, but not over every control: a prior without a language model may do as well",
    "loss": "a clear loss",
    "loss_unchecked": "a loss",
    "unclear": "no clear effect",
    "undefined": "not measurable",
}


def verdict_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """``users``, ``kind`` by the rule for claims, ``segments`` that gain over the best control, and ``sentence``.

    Parameters
    ----------
    result : mapping
        ``curve``, ``crossing`` and ``chosen`` of a learning curve.
    """
    rows = _pooled(result)
    sizes = sorted({users for users, _, _ in rows})
    if not sizes:
        words = "Nothing could be measured: no chosen user has a label before a cut-off."
        return {"users": None, "kind": "undefined", "segments": [], "sentence": words}
    users = sizes[-1]
    at = {(base, segment): row for (size, base, segment), row in rows.items() if size == users}
    doubts = _doubts(result, at)
    kind = _kind(at, OVERALL, doubts=bool(doubts))
    gaining = [
        segment for segment in SEGMENTS[1:] if _kind(at, segment, doubts=bool(doubts), joint=True) in ("win", "gain")
    ]
    outcome = "; ".join(["a gain", *doubts]) if kind == "gain" else OUTCOMES[kind]
    words = f"{_numbers(result, at, users)}: {outcome}. {_by_segment(at, gaining, kind)} {_by_users(result, rows)}"
    return {"users": users, "kind": kind, "segments": gaining, "sentence": words.strip()}


def _pooled(result: Mapping[str, Any]) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    """Pooled rows of the best arm with a language model, by number of users, baseline and segment."""
    return {
        (row["users"], row["baseline"], row["segment"]): row
        for row in result["curve"]
        if row["cutoff"] is None and row["arm"] == BEST_WITH and row["metric"] == METRIC
    }


def _kind(at: Mapping[tuple[str, str], Mapping[str, Any]], segment: str, *, doubts: bool, joint: bool = False) -> str:
    """What may be said of a segment: by intervals that hold for all segments together where it is one of them."""
    own = _bounds(at.get((LOGIT, segment)), joint=joint)
    over = _over_controls({base: row for (base, name), row in at.items() if name == segment}, joint=joint)
    if own is None or over is None:
        return "undefined"
    return kind_of(own, unbeaten=not over.above, doubts=doubts)


def _over_controls(by_baseline: Mapping[str, Mapping[str, Any]], *, joint: bool = False) -> Bounds | None:
    """Over the control that it gains least over: the best one may have been picked by luck, so all of them count."""
    overs = [_bounds(by_baseline.get(base), joint=joint) for base in CONTROLS]
    if overs[0] is None:
        return None
    return max((over for over in overs if over is not None), key=lambda over: over.high)


def _bounds(row: Mapping[str, Any] | None, *, joint: bool = False) -> Bounds | None:
    if row is None:
        return None
    low, high = (row[f"joint_{end}" if joint else end] for end in ("low", "high"))
    return Bounds(low, high, HIGHER_IS_BETTER[METRIC])


def _doubts(result: Mapping[str, Any], at: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """What a gain lacks to be called clear."""
    doubts = []
    cutoffs = len({row["cutoff"] for row in result["curve"]} - {None})
    if cutoffs < ENOUGH_CUTOFFS:
        doubts.append(f"by {cutoffs} cut-off{'s' * (cutoffs > 1)}: no claim is made on fewer than {ENOUGH_CUTOFFS}")
    if (BEST_RANDOM, OVERALL) not in at:
        doubts.append("whether random weights do as well was not measured")
    return doubts


def _numbers(result: Mapping[str, Any], at: Mapping[tuple[str, str], Mapping[str, Any]], users: int) -> str:
    """Whose prior, its effect, and those over the best control and over random weights."""
    latest = max(row["users"] for row in result["chosen"])
    arms, controls = (
        Counter(row[which] for row in result["chosen"] if row["users"] == latest).most_common(1)[0][0]
        for which in (BEST_WITH, BEST_WITHOUT)
    )
    text = f"At your {users:,} users a prior from texts ({arms}) changes the NLL by {_signed(at.get((LOGIT, OVERALL)))}"
    text += (
        f" against counts alone, by {_signed(at.get((BEST_WITHOUT, OVERALL)))} against the best control ({controls})"
    )
    return f"{text} and by {_signed(at.get((BEST_RANDOM, OVERALL)))} against the same with random weights"


def _by_segment(at: Mapping[tuple[str, str], Mapping[str, Any]], gaining: list[str], kind: str) -> str:
    """Who gains over the best control, by intervals that hold for all of them together."""
    if not gaining:
        return "By itself no kind of advertiser or user gains clearly."
    named = ", ".join(f"{_called(segment)} ({_signed(at[BEST_WITHOUT, segment])})" for segment in gaining)
    return f"It gains over every control for {named}{'' if kind == 'win' else ', and for nothing else'}."


def _by_users(result: Mapping[str, Any], rows: Mapping[tuple[int, str, str], Mapping[str, Any]]) -> str:
    """At which numbers of users it is clear of the best control, and where the line through them crosses zero."""
    over = {
        size: _over_controls({base: row for (n, base, name), row in rows.items() if (n, name) == (size, OVERALL)})
        for size in sorted({size for size, _, _ in rows})
    }
    clear = [f"{size:,}" for size, bounds in sorted(over.items()) if bounds is not None and bounds.above]
    text = f"Of {', '.join(f'{size:,}' for size in sorted(over))} users, it gains clearly over every control "
    text += f"at {' and '.join(clear)}." if clear else "at none."
    fading = next(
        (
            row
            for row in result["crossing"]
            if (row["arm"], row["baseline"], row["metric"]) == (BEST_WITH, BEST_WITHOUT, METRIC)
        ),
        None,
    )
    if clear and fading and fading["users"]:
        ends = [f"{fading[end]:,.0f}" if fading[end] else "unknown" for end in ("low", "high")]
        text += f" The gain fades to nothing at about {fading['users']:,.0f} users [{', '.join(ends)}]."
    return text


def _signed(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "an unknown amount"
    text = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    return text.replace("-", "−")


def _called(segment: str) -> str:
    kind, _, size = segment.partition(" ")
    return f"advertisers with {size} events" if kind == ADVERTISER else f"users with {size} events"
