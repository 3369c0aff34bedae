"""Prompts: a history as token ids, append-only, so that one forward serves every snapshot of a user.

Profile first, then occasions in time order, nothing that depends on "today"::

    Age: 45-54. Income: 50-74K
    History, oldest first:
    <advertiser 12><advertiser 301>;3<advertiser 12>;...

One input token per advertiser keeps a year of events inside the context. An occasion ends with a
separator token; the hidden state there has seen all of that occasion and nothing later, and gives the
prior of every snapshot up to the next occasion. The number after a separator is the days that passed
until the next occasion (capped), written when that occasion is: known then, never before.

Where ids know little (new advertisers, few events), an advertiser may be followed by what the event says of it::

    <advertiser 12> Clay Mask, masks, 30<advertiser 301> Night Oil, oils, 52;

A history longer than the context starts later, at a block boundary that depends only on how much there
was before the snapshot: the long forward and the truncated prompt always hold the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.llm.cut_prompts import CutPrompts
from advprior.predictors.tokens import end_mark
from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError
from advprior.store.times import DAY_US

DAY = DAY_US
Detail = Literal["none", "category", "product", "full"]
KEPT_TEXTS = 100_000  # distinct texts whose tokens are remembered
TITLE = "History, oldest first:"  # of prompts whose settings give none; whatever the events are, it is true of them
LEAST_ROOM = 8  # tokens of a history that every prompt has room for


@dataclass(frozen=True)
class PromptStyle:
    """How a history is written; saved beside the weights, since they only understand their own style.

    Parameters
    ----------
    profile : bool
        Write the profile line.
    gaps : bool
        Write the days between occasions.
    max_gap : int
        Largest number of days written.
    context : int
        Longest prompt in tokens.
    names : bool
        Write advertisers by their names' tokens in place of one token each.
    detail : {"none", "category", "product", "full"}
        What is written of each event: its category, its text (the product's name), or text, category and price.
    detail_tokens : int
        Most tokens of it an event (a text is cut first); fewer where an occasion would take more than half the room.
    advertisers : bool
        Write the advertiser; else its event's detail stands for it, where there is one.
    title : str
        What stands before the occasions. Runs that were fitted when it could not be chosen have the default.
    """

    profile: bool = True
    gaps: bool = True
    max_gap: int = 30
    context: int = 1024
    names: bool = False
    detail: Detail = "none"
    detail_tokens: int = 24
    advertisers: bool = True
    title: str = "Purchases, oldest first:"
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """What a prompt holds, in words, for the model card."""
        detail = {
            "none": (),
            "category": ("the category of each event",),
            "product": ("the text of each event",),
            "full": ("the text, category and value of each event",),
        }[self.detail]
        names = ", by their names" if self.names else ""
        return (
            f"which advertisers the user turned to{names}, in their order" + (", and when" if self.gaps else ""),
            *detail,
            *(("the profile (one line of the `profile_*` columns)",) if self.profile else ()),
        )


@dataclass(frozen=True)
class Prompt:
    """Token ids of one user's history, and where each occasion ends.

    Attributes
    ----------
    head : int64 [h]
        Profile and introduction: stays when the start of a long history is dropped.
    body : int64 [b]
        Occasions.
    ends : int64 [K]
        Index in ``body`` of each occasion's separator.
    times : int64 [K]
        Time of each occasion, microseconds.
    events : int64 [E]
        Index in ``body`` of each event's first token.
    """

    head: Int
    body: Int
    ends: Int
    times: Int
    events: Int


@dataclass(frozen=True)
class PromptWindow:
    """One forward: token ids, and the positions that answer for occasions.

    Attributes
    ----------
    ids : int64 [T]
    positions : int64 [P]
        Position of the last token that each answer may see.
    occasions : int64 [P]
        Number of occasions that each answer has seen (0: profile only).
    """

    ids: Int
    positions: Int
    occasions: Int


class PromptEncoder:
    """Writes histories in one style with one tokenizer.

    Parameters
    ----------
    style : PromptStyle
    encode : callable
        Text -> token ids, without special tokens.
    text_vocab_size : int
        Ids from here on are advertisers.
    names : sequence of str
        Advertiser names, for ``style.names``.

    Attributes
    ----------
    catalog_size : int
        N.
    """

    def __init__(
        self, style: PromptStyle, encode: Callable[[str], list[int]], text_vocab_size: int, names: Sequence[str]
    ) -> None:
        self.style = style
        self.text_vocab_size = text_vocab_size
        self._encode = encode
        self._tokens = [
            np.asarray(encode(" " + name + ","), np.int64)
            if style.names
            else np.asarray([text_vocab_size + index], np.int64)
            for index, name in enumerate(names)
        ]
        self.catalog_size = len(names)
        self._separator = np.asarray([end_mark(encode, ";")], np.int64)
        self._beside = list(encode(" +"))  # between events that no advertiser starts
        self._piece = lru_cache(KEPT_TEXTS)(encode)
        self._gaps = [np.asarray(encode(str(days)), np.int64) for days in range(style.max_gap + 1)]
        self._lengths = np.asarray([len(tokens) for tokens in self._tokens], np.int64)
        self._require_room()

    def prompt(self, histories: Histories, user: int) -> Prompt:
        """The whole history of one user."""
        self._require_detail(histories)
        rows = histories.rows(user)
        time, advertiser = histories.time[rows], histories.advertiser[rows]
        profile = histories.profiles[user] if self.style.profile else ""
        head = np.asarray(self._head(profile), np.int64)
        half = max(self.style.context - len(head), 0) // 2
        starts, stops = np.zeros(0, np.int64), []
        if len(time):
            starts = np.concatenate([[0], np.flatnonzero(np.diff(time)) + 1])
            stops = [*starts[1:], len(time)]
        pieces: list[Int] = []
        ends, events, length = [], [], 0
        for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            occasion = [self._tokens[a] for a in advertiser[start:stop]]
            if self.style.detail != "none":
                # an occasion of many events is told in fewer words each; nothing but the occasion decides on that
                fixed = sum(map(len, occasion)) + 4
                limit = min(self.style.detail_tokens, max(half - fixed, 0) // len(occasion))
                first = rows.start + start
                occasion = [
                    self._event(histories, first + i, tokens, limit, i > 0) for i, tokens in enumerate(occasion)
                ]
            if self.style.gaps and k:
                days = int((time[start] - time[starts[k - 1]]) // DAY)
                pieces.append(self._gaps[min(days, self.style.max_gap)])
                length += len(pieces[-1])
            begins = length + np.cumsum([0, *map(len, occasion)])
            events.append(begins[:-1])
            pieces += [*occasion, self._separator]
            length = int(begins[-1]) + len(self._separator)
            ends.append(length - 1)
        return Prompt(
            head,
            np.concatenate(pieces) if pieces else np.zeros(0, np.int64),
            np.asarray(ends, np.int64),
            time[starts] if len(time) else np.zeros(0, np.int64),
            np.concatenate(events) if events else np.zeros(0, np.int64),
        )

    def _head(self, profile: str) -> list[int]:
        """The start of a prompt; a profile is cut where it would take more than half of the context."""
        title, most = self.style.title + "\n", self.style.context // 2
        head = self._encode((profile + "\n" if profile else "") + title)
        if not profile or len(head) <= most:
            return head
        title_tokens = self._encode("\n" + title)
        return [*self._encode(profile)[: max(most - len(title_tokens), 0)], *title_tokens]

    def _require_room(self) -> None:
        """Refuse a context that the title and a profile would fill.

        Raises
        ------
        AdvpriorError
            ``PRI053``.
        """
        longest = max(self.style.context // 2 if self.style.profile else 0, len(self._head("")))
        room = self.style.context - longest
        if room < LEAST_ROOM:
            raise AdvpriorError(
                "PRI053",
                "the context leaves no room for a history",
                where="settings, prompt.context",
                actual=f"{self.style.context} tokens, of which title and profile may take {longest}",
                expected=f"room for {LEAST_ROOM} tokens at least",
                fix="raise prompt.context, or shorten prompt.title",
            )

    def cut(self, histories: Histories) -> CutPrompts:
        """Whose profile or occasions do not fit, so that their prompts hold a part of them."""
        # a token is a byte at least: most profiles need not be encoded to know that they fit
        title, half = self.style.title.encode(), self.style.context // 2
        profiles = [
            user
            for user, profile in enumerate(histories.profiles)
            if self.style.profile
            and len(profile.encode()) + len(title) + 2 > half
            and len(self._encode(profile + "\n" + self.style.title + "\n")) > half
        ]
        occasions: list[int] = []
        if len(histories.time):
            who, time = histories.user_of_row, histories.time
            begins = np.flatnonzero(np.r_[True, (np.diff(who) != 0) | (np.diff(time) != 0)])
            sizes = np.add.reduceat(self._lengths[histories.advertiser], begins) + len(self._separator)
            for user in np.unique(who[begins[sizes > half - LEAST_ROOM]]).tolist():
                room = self.style.context - len(self._head(histories.profiles[user] if self.style.profile else ""))
                if int(sizes[who[begins] == user].max()) > room:
                    occasions.append(user)
        return CutPrompts(*(tuple(histories.users[u] for u in part) for part in (profiles, occasions)))

    def _event(self, histories: Histories, row: int, advertiser: Int, limit: int, follows: bool) -> Int:
        """Tokens of one event: its advertiser and at most ``limit`` tokens of detail."""
        style = self.style
        product, rest = "", []
        if style.detail in ("product", "full") and histories.text[row] >= 0:
            product = " " + _without_separator(histories.texts[histories.text[row]])
        if style.detail in ("category", "full") and histories.category[row] >= 0:
            rest.append(_without_separator(histories.categories[histories.category[row]]))
        if style.detail == "full" and len(histories.value) and np.isfinite(histories.value[row]):
            rest.append(price(float(histories.value[row])))
        detail = [token for i, part in enumerate(rest) for token in self._piece((", " if product or i else " ") + part)]
        detail = (self._piece(product)[: max(limit - len(detail), 0)] if product else []) + detail
        detail = detail[:limit]
        if style.advertisers or not detail:
            return np.concatenate([advertiser, np.asarray(detail, np.int64)])
        return np.asarray((self._beside if follows else []) + detail, np.int64)

    def _require_detail(self, histories: Histories) -> None:
        """Refuse to write details of histories that have none: the prompt would silently be another.

        Raises
        ------
        AdvpriorError
            ``PRI013``.
        """
        wanted = {
            "none": {},
            "category": {"category": histories.categories},
            "product": {"text": histories.texts},
            "full": {"text": histories.texts},
        }[self.style.detail]
        missing = [column for column, values in wanted.items() if not values]
        if missing and len(histories.time):
            raise AdvpriorError(
                "PRI013",
                f"the prompt's detail needs what no event has: {', '.join(missing)}",
                where="events.parquet",
                actual="no such column, or no value in it",
                expected=f"values of {', '.join(missing)}",
                fix=f"fill the column, or fit with another prompt.detail than {self.style.detail}",
            )

    def windows(self, prompt: Prompt, occasions: Int) -> list[PromptWindow]:
        """Forwards that answer for ``occasions`` (how many occasions each answer has seen), longest shared first.

        Answers that see the same start of the history share a forward. Where the history outgrows the
        context, its oldest tokens are dropped in blocks of half the context (whole occasions), by a rule
        that looks only at tokens up to the answer. Of an occasion that fills the context alone the last events are
        kept.
        """
        room = self.style.context - len(prompt.head)
        block = max(room // 2, 1)
        occasions = np.unique(occasions)
        begins = np.concatenate([[0], prompt.ends + 1])
        seen = begins[occasions]  # tokens of the body that each answer may see
        drop = np.maximum(-(-(seen - room) // block), 0) * block
        # start at the first occasion that begins at or after the dropped block
        first = np.minimum(begins[np.searchsorted(begins, drop)], seen)
        first = np.where((first == seen) & (seen > 0), _last_events(prompt, seen, room), first)
        windows = []
        for start in np.unique(first):
            chosen = first == start
            stop = int(seen[chosen].max())
            ids = np.concatenate([prompt.head, prompt.body[start:stop]])
            positions = len(prompt.head) + (seen[chosen] - start) - 1
            windows.append(PromptWindow(ids, positions.astype(np.int64), occasions[chosen]))
        return windows

    def newest(self, prompt: Prompt, occasions: int) -> PromptWindow:
        """A forward of its own for one answer: as many of the newest events as the context holds.

        `windows` drops more than it must, so that answers share a forward; whoever shares none would lose half of the
        context by that.
        """
        seen = np.concatenate([[0], prompt.ends + 1])[[occasions]]
        start = _last_events(prompt, seen, self.style.context - len(prompt.head))
        ids = np.concatenate([prompt.head, prompt.body[int(start[0]) : int(seen[0])]])
        return PromptWindow(ids, np.asarray([len(ids) - 1]), np.asarray([occasions]))


def _last_events(prompt: Prompt, seen: Int, room: int) -> Int:
    """Where the last events before ``seen`` begin that fit; within an event only where the last is too long itself."""
    begins = np.append(prompt.events, len(prompt.body))
    start = begins[np.searchsorted(begins, seen - room)]
    return np.where(start < seen, start, np.maximum(seen - room, 0)).astype(np.int64)


def _without_separator(text: str) -> str:
    """The separator is left to the ends of occasions."""
    return text.replace(";", ",")


def occasions_before(prompt: Prompt, cutoffs: Int) -> Int:
    """How many occasions lie strictly before each cut-off (microseconds)."""
    return np.searchsorted(prompt.times, cutoffs, side="left").astype(np.int64)


def price(value: float) -> str:
    """A value to two digits, which is what a reader would remember of it.

    >>> [price(v) for v in (59.23, 7.46, 123.0, 0.0, 0.5)]
    ['59', '7.5', '120', '0', '0.5']
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 else f"{rounded:g}"
