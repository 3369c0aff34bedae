"""The table under "Sizes" of docs/production.md, as numbers: what the row `sizing` and a test hold it to.

A figure of the table is a size times what one of its units takes, and what a start takes; the text below the table says
how much that is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "production.md"
_SECONDS = {"CPU-s": 1, "min on a core": 60, "core-hours": 3600}
_COUNTS = {"": 1, "M": 1_000_000}


@dataclass(frozen=True)
class Documented:
    """A row of the table.

    Attributes
    ----------
    impressions, users, advertisers : int
    features_s, features_gb, features_disk_gb : float
        CPU-seconds of `rank features`, its memory, what the features take on disk.
    frame_s, frame_gb, disk_gb : float
        CPU-seconds of `rank frame`, its memory, what the frame takes on disk.
    online_s, online_gb, redis_gb : float
        CPU-seconds and memory of a materialization, what Redis holds then. Memory that is not given is NaN.
    """

    impressions: int
    users: int
    advertisers: int
    features_s: float
    features_gb: float
    features_disk_gb: float
    frame_s: float
    frame_gb: float
    disk_gb: float
    online_s: float
    online_gb: float
    redis_gb: float


@dataclass(frozen=True)
class Units:
    """What the text says that a unit takes.

    Attributes
    ----------
    start_s : float
        CPU-seconds of a command before it does anything.
    features_s, features_bytes : float
        CPU-seconds of an impression, and what it takes on disk, of features.
    frame_s, frame_bytes : float
        The same of a frame, at most.
    user_s, advertiser_s : float
        CPU-seconds of a user into Redis, and more for each advertiser.
    user_bytes, advertiser_bytes : float
        Of a user in Redis, likewise.
    """

    start_s: float
    features_s: float
    features_bytes: float
    frame_s: float
    frame_bytes: float
    user_s: float
    advertiser_s: float
    user_bytes: float
    advertiser_bytes: float


def section(page: Path = PAGE) -> str:
    """Text of the section, with the table."""
    (text,) = re.findall(r"^### Sizes\n(.*?)^## ", page.read_text(), re.MULTILINE | re.DOTALL)
    return str(text)


def documented(text: str) -> list[Documented]:
    """Rows of the table in a section."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if size := re.match(r"([\d,]+)(M?) × ([\d,]+)(M?) × ([\d,]+)$", cells[0]):
            many, users, advertisers = _count(*size.group(1, 2)), _count(*size.group(3, 4)), _count(size.group(5), "")
            features, of_features, frame, disk, online, redis = cells[1:]
            costs = [_seconds(features), _gb(features), _gb(of_features), _seconds(frame), _gb(frame), _gb(disk)]
            costs += [_seconds(online), _gb(online), _gb(redis)]
            rows.append(Documented(many, users, advertisers, *costs))
    return rows


def units(text: str) -> Units:
    """What the text of a section says."""
    words = " ".join(text.split())
    patterns = (
        r"take ([\d.]+) CPU-seconds more to start",
        r"Features take ([\d.]+) CPU-seconds a million impressions, and ([\d.]+) bytes",
        r"A frame takes ([\d.]+) CPU-seconds a million impressions",
        r"to ([\d.]+) bytes \(of nine\)",
        r"Redis takes ([\d.]+) \+ ([\d.]+) · N µs a user",
        r"\[([\d,]+) \+ ([\d.]+) · N bytes\]",
    )
    matches = [re.search(pattern, words) for pattern in patterns]
    numbers = [float(number.replace(",", "")) for match in matches if match for number in match.groups()]
    start, features, features_bytes, frame, frame_bytes, user, advertiser, *redis = numbers
    by_row = (features / 1e6, features_bytes, frame / 1e6, frame_bytes)
    return Units(start, *by_row, user / 1e6, advertiser / 1e6, *redis)


def _count(digits: str, unit: str) -> int:
    return int(digits.replace(",", "")) * _COUNTS[unit]


def _seconds(cell: str) -> float:
    number, unit = re.findall(rf"([\d.]+) ({'|'.join(_SECONDS)})", cell)[0]
    return float(number) * _SECONDS[unit]


def _gb(cell: str) -> float:
    numbers = re.findall(r"([\d.]+) GB", cell)
    return float(numbers[0]) if numbers else float("nan")
