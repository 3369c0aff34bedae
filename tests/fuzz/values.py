"""What strangers' columns hold: ids, names, texts, times and numbers as bug reports know them.

Each pool is a dict from a trait's name to a function of (number of values, random generator). The first of a pool is
the plain one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

Pool = dict[str, Callable[[int, np.random.Generator], Any]]

SPECIAL_TOKENS = ["<|im_end|>", "<|endoftext|>", "<|im_start|>system", "</s>", "[PAD]", "<unk>", "<s>", "{{ name }}"]
FORBIDDEN = ['a"b', "a,b", "a:b", "a[b]", "a{b}", "a b", "a_b", "a\\b", "a/b", "a.b"]
WORDS = ["tea", "coffee", "bread", "soap", "pasta", "cheese", "bike", "book", "toy", "shoe", "lamp", "desk"]
NOTHINGS = ["nan", "None", "null", "NaN", "<NA>", "inf", "True"]


def _uuids(n: int, rng: np.random.Generator) -> list[str]:
    return [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(n)]


def _apart_by_case(n: int, _: np.random.Generator) -> list[str]:
    return [f"{'u' if i % 2 else 'U'}{i // 2}" for i in range(n)]


def _apart_by_form(n: int, _: np.random.Generator) -> list[str]:
    """Ids that look alike: the accent is part of the letter, or a letter of its own."""
    return [f"{chr(0xE9) if i % 2 else 'e' + chr(0x301)}{i // 2}" for i in range(n)]


IDS: Pool = {
    "text": lambda n, _: [f"u{i}" for i in range(n)],
    "int64": lambda n, _: np.arange(n, dtype="int64") + 7000,
    "negative": lambda n, _: np.arange(n, dtype="int64") - n // 2,
    "uint64": lambda n, _: np.arange(n, dtype="uint64") + np.uint64(2**63 + 5),
    "uuid": _uuids,
    "unicode": lambda n, _: [f"Müller-{i} 中文 🍵" for i in range(n)],
    "slashes": lambda n, _: [f"a/{i}" if i % 3 else f"a / {i} / b" for i in range(n)],
    "spaces": lambda n, _: [f" {i} x " if i % 2 else f"{i} x" for i in range(n)],
    "quotes": lambda n, _: [f"o'{i}\"; drop -- \\" for i in range(n)],
    "control": lambda n, _: [f"{i}\t\n\x01{i}" for i in range(n)],
    "long": lambda n, _: [f"{'x' * 400}{i}" for i in range(n)],
    "zeros": lambda n, _: [f"{i:06d}" for i in range(n)],
    "numbers as text": lambda n, _: [f"{i}.0" if i % 2 else f"{i}" for i in range(n)],
    "case": _apart_by_case,
    "form": _apart_by_form,
    "categorical": lambda n, _: pd.Categorical([f"c{i}" for i in range(n)]),
    "nan as text": lambda n, _: [*NOTHINGS, *(f"n{i}" for i in range(n))][:n],
    "int32": lambda n, _: np.arange(n, dtype="int32"),
    "decimal": lambda n, _: [Decimal(i + 10**6) for i in range(n)],
    "huge int": lambda n, _: np.arange(n, dtype="int64") + 2**60 + 1,
}
#: Of rows and slates, where the tables keep numbers.
_ROWS = ("int64", "uint64", "uuid", "text", "negative", "zeros", "huge int", "int32")
ROW_IDS: Pool = {name: IDS[name] for name in _ROWS}

NAMES: Pool = {
    "words": lambda n, rng: [f"{rng.choice(WORDS).title()} House {i}" for i in range(n)],
    "double": lambda n, rng: [str(name) for name in rng.choice(["Tea", "Soap"], n)],
    "emoji": lambda n, _: ["🍵" * (i % 4 + 1) for i in range(n)],
    "right to left": lambda n, _: [f"שלום {i} مرحبا" for i in range(n)],
    "signs": lambda n, _: ["!" * (i + 1) for i in range(n)],
    "tokens": lambda n, rng: [f"{rng.choice(SPECIAL_TOKENS)}" for _ in range(n)],
    "invisible": lambda n, _: ["\u200b" * (i + 1) for i in range(n)],
    "long": lambda n, rng: [" ".join(rng.choice(WORDS, 400)) for _ in range(n)],
    "lines": lambda n, _: [f"first\nsecond; {i}\r\n- third: |" for i in range(n)],
    "numbers": lambda n, _: np.arange(n, dtype="int64"),
    "markup": lambda n, _: [f"<script>alert({i})</script> & co" for i in range(n)],
}

CATEGORIES: dict[str, Callable[[int], list[Any]]] = {
    "few": lambda _: ["Tea", "Coffee", "Bread", "Soap", "Pasta"],
    "one": lambda _: ["all"],
    "many": lambda ads: [f"category {i}" for i in range(4 * ads)],
    "slashes": lambda _: ["Home / Garden", "Home", "Garden / Tools", "Tools", "/", " / "],
    "numbers": lambda _: [1, 2, 3],
    "signs": lambda _: ["!!!", "🍞", "<|im_end|>", "a,b", 'x"y'],
    "case": lambda _: ["Tea", "tea", "TEA "],
    "long": lambda _: ["x" * 3000, "y" * 3000],
}

PROFILES: Pool = {
    "words": lambda n, rng: rng.choice(["18-34", "35-54", "55+"], n),
    "with gaps": lambda n, rng: pd.Series(rng.choice(["north", "south"], n)).where(rng.random(n) < 0.7, None),
    "null": lambda n, _: pd.Series([None] * n, dtype=object),
    "long": lambda n, rng: [" ".join(rng.choice(WORDS, 1000))[:5000] for _ in range(n)],
    "one long": lambda n, rng: ["x y " * 1250 if i == 0 else "short" for i in range(n)],
    "tokens": lambda n, rng: [f"{rng.choice(SPECIAL_TOKENS)} {i}" for i in range(n)],
    "blank": lambda n, rng: rng.choice(["", " ", "a"], n),
    "whole": lambda n, rng: rng.integers(0, 90, n),
    "fractions": lambda n, rng: np.round(rng.normal(size=n), 3),
    "flags": lambda n, rng: rng.random(n) < 0.5,
    "nullable": lambda n, rng: pd.array(np.where(rng.random(n) < 0.2, None, 3), dtype="Int64"),
    "own text each": lambda n, _: [f"text {i}" for i in range(n)],
    "categorical": lambda n, rng: pd.Categorical(rng.choice(["a", "b"], n)),
    "forbidden": lambda n, rng: rng.choice(FORBIDDEN, n),
    "one value": lambda n, _: ["same"] * n,
    "moments": lambda n, rng: pd.Timestamp("2000-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 9999, n), "D"),
}

VALUES: Pool = {
    "fractions": lambda n, rng: rng.integers(1, 90, n) / 4,
    "whole": lambda n, rng: rng.integers(1, 9, n),
    "decimal": lambda n, rng: [Decimal(int(v)) / 4 for v in rng.integers(0, 90, n)],
    "negative": lambda n, rng: -rng.gamma(2, 3, n),
    "flags": lambda n, rng: rng.random(n) < 0.5,
    "zero": lambda n, _: np.zeros(n),
    "tiny": lambda n, _: np.full(n, 1e-310),
    "float32": lambda n, rng: rng.random(n).astype("float32"),
    "nullable": lambda n, rng: pd.array(rng.integers(0, 5, n), dtype="Int64"),
}

CONTEXTS: Pool = {
    "words": lambda n, rng: rng.choice(["front", "back"], n),
    "small": lambda n, rng: rng.integers(0, 5, n),
    "above 2^24": lambda n, rng: 2**24 + rng.integers(0, 9, n) * 2 + 1,
    "above 2^53": lambda n, rng: 2**60 + rng.integers(0, 9, n) * 2 + 1,
    "uint64": lambda n, rng: rng.integers(2**63, 2**64 - 1, n, dtype="uint64"),
    "flags": lambda n, rng: rng.random(n) < 0.5,
    "fractions": lambda n, rng: rng.normal(size=n),
    "with gaps": lambda n, rng: np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
    "words with gaps": lambda n, rng: pd.Series(rng.choice(["a", "b"], n)).where(rng.random(n) < 0.7, None),
    "own text each": lambda n, _: [f"request {i}" for i in range(n)],
    "null": lambda n, _: pd.Series([None] * n, dtype=object),
    "null numbers": lambda n, _: np.full(n, np.nan),
    "nullable": lambda n, rng: pd.array(np.where(rng.random(n) < 0.2, None, 3), dtype="Int64"),
    "nullable flags": lambda n, rng: pd.array(np.where(rng.random(n) < 0.2, None, True), dtype="boolean"),
    "decimal": lambda n, rng: [Decimal(int(v)) / 4 for v in rng.integers(0, 90, n)],
    "categorical": lambda n, rng: pd.Categorical(rng.choice(["a", "b"], n)),
    "categorical numbers": lambda n, rng: pd.Categorical(rng.choice([3, 5], n)),
    "forbidden": lambda n, rng: rng.choice(FORBIDDEN, n),
    "one value": lambda n, _: np.ones(n),
}

ODD_VALUES: Pool = {
    "huge": lambda n, rng: np.where(rng.random(n) < 0.1, 1e300, 1.0),
    "beyond float32": lambda n, rng: rng.choice([1e38, 3.5e38, -1e39], n),
    "null": lambda n, rng: np.where(rng.random(n) < 0.1, np.nan, 1.0),
    "text": lambda n, rng: rng.choice(["1.5", "2"], n),
}
#: What a request cannot bring, or a feature not hold.
ODD_CONTEXTS: Pool = {
    "infinite": lambda n, rng: rng.choice([np.inf, -np.inf, 1.0], n),
    "huge": lambda n, rng: rng.choice([1e300, -1e300, 1.0], n),
    "moments": lambda n, rng: pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 9999, n), "s"),
    "days": lambda n, rng: pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, n), "D")).dt.date,
    "lists": lambda n, _: [[1.0, 2.0]] * n,
    "bytes": lambda n, _: [b"\xff\x00"] * n,
    "durations": lambda n, rng: pd.to_timedelta(rng.integers(0, 9999, n), "s"),
}

#: How a table states its label.
LABELS: dict[str, Callable[[Any], Any]] = {
    "int64": lambda label: label.astype("int64"),
    "bool": lambda label: label.astype(bool),
    "float": lambda label: label.astype("float64"),
    "uint8": lambda label: label.astype("uint8"),
    "nullable": lambda label: pd.array(label, dtype="Int64"),
    "nullable flags": lambda label: pd.array(label.astype(bool), dtype="boolean"),
    "decimal": lambda label: [Decimal(int(v)) for v in label],
    "text": lambda label: label.astype(str),
    "categorical": lambda label: pd.Categorical(label),
}


def _moments(seconds: Any, unit: str) -> Any:
    return pd.Series(pd.to_datetime(seconds, unit="s", utc=True)).dt.as_unit(unit)


#: Names that a stranger gives profile and context fields, on the left of the mapping; twelve each.
FIELD_NAMES: dict[str, list[str]] = {
    "plain": [f"f{place}" for place in range(12)],
    "of SQL": ["order", "group", "select", "from", "table", "user", "index", "date", "null", "case", "limit", "end"],
    "of ours": [
        *("snapshot", "event_timestamp", "user_id", "history_row", "label", "split", "log_prob", "missing"),
        *("created_timestamp", "hour", "prior_llm", "advertiser_id"),
    ],
    "of pandas": ["name", "size", "shape", "T", "values", "dtype", "columns", "count", "mean", "rank", "loc", "iloc"],
    "alike": ["a", "a_b", "ab", "a_b_c", "ab_", "a_", "b", "b_a", "a1", "a_1", "a1_", "a11"],
    "long": [f"{'x' * 180}{place}" for place in range(12)],
}

#: How a table states times; what it gives is (column, time zone of the mapping).
TIMES: dict[str, Callable[[Any], tuple[Any, str | None]]] = {
    "us": lambda seconds: (_moments(seconds, "us"), None),
    "ns": lambda seconds: (_moments(seconds, "ns"), None),
    "ms": lambda seconds: (_moments(seconds, "ms"), None),
    "s": lambda seconds: (_moments(seconds, "s"), None),
    "Berlin": lambda seconds: (_moments(seconds, "us").dt.tz_convert("Europe/Berlin"), None),
    "offset": lambda seconds: (_moments(seconds, "us").dt.tz_convert("+05:30"), None),
    "zone in the mapping": lambda seconds: (_moments(seconds, "us").dt.tz_localize(None), "Europe/Berlin"),
    "whole days": lambda seconds: (_moments(seconds, "us").dt.tz_localize(None).dt.floor("D"), "UTC"),
    "dates": lambda seconds: (_moments(seconds, "us").dt.date, "UTC"),
    "text": lambda seconds: (_moments(seconds, "us").astype(str), None),
    "no zone": lambda seconds: (_moments(seconds, "us").dt.tz_localize(None), None),
    "numbers": lambda seconds: (pd.Series(np.asarray(seconds, dtype="int64")), None),
}


def choose(rng: np.random.Generator, names: Sequence[str], plain: float) -> str:
    """The first name with probability ``plain``, else any."""
    return names[0] if rng.random() < plain else str(rng.choice(list(names)))
