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
from typing import Any

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.llm.cut_prompts import CutPrompts
from advprior.predictors.llm.prompt_details import Detail, Details
from advprior.predictors.llm.prompt_layout import Bodies, Occasions, Piece, lay_out
from advprior.predictors.llm.prompt_windows import PromptWindows, last_events, prompt_windows, window_starts
from advprior.predictors.llm.token_table import TokenTable, offsets_of, ragged
from advprior.predictors.tokens import end_mark
from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError
from advprior.store.times import DAY_US

DAY = DAY_US
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
        self._names = TokenTable.of(
            encode(" " + name + ",") if style.names else [text_vocab_size + index] for index, name in enumerate(names)
        )
        self.catalog_size = len(names)
        self._separator = end_mark(encode, ";")
        self._details = Details(style.detail, style.detail_tokens, style.advertisers, lru_cache(KEPT_TEXTS)(encode))
        self._start = lru_cache(KEPT_TEXTS)(self._head)
        self._gaps = TokenTable.of(encode(str(days)) for days in range(style.max_gap + 1))
        self._require_room()

    def prompt(self, histories: Histories, user: int) -> Prompt:
        """The whole history of one user."""
        users = np.asarray([user], np.int64)
        heads, _ = self._heads(histories, users)
        bodies, times = self._bodies(histories, users, histories.offsets[users + 1], heads.lengths)
        return Prompt(heads.tokens, bodies.tokens, bodies.ends, times, bodies.events)

    def many(self, histories: Histories, users: Int, cutoffs: Int) -> PromptWindows:
        """Distinct forwards that answer for users [U] at cut-offs [S], built for all of them at once.

        Token by token what `prompt` and `windows` give one by one; events at or after the last cut-off cost nothing.

        Parameters
        ----------
        histories : Histories
        users : int64 [U]
        cutoffs : int64 [S]
            Microseconds.
        """
        heads, head = self._heads(histories, users)
        stops = histories.seek(users, np.full(len(users), cutoffs.max(initial=0)))
        bodies, times = self._bodies(histories, users, stops, heads.lengths[head])
        user, cutoff = np.repeat(np.arange(len(users)), len(cutoffs)), np.tile(cutoffs, len(users))
        seen = _occasions_before(times, bodies.occasion_offsets, user, cutoff)
        return prompt_windows(bodies, heads, head, seen.reshape(len(users), len(cutoffs)), self.style.context)

    def _heads(self, histories: Histories, users: Int) -> tuple[TokenTable, Int]:
        """Distinct starts of prompts, and which of them each user [U] has."""
        if not self.style.profile:
            return TokenTable.of([self._start("")]), np.zeros(len(users), np.int64)
        distinct: dict[str, int] = {}
        which = [distinct.setdefault(histories.profiles[user], len(distinct)) for user in users.tolist()]
        return TokenTable.of(map(self._start, distinct)), np.asarray(which, np.int64)

    def _bodies(self, histories: Histories, users: Int, stops: Int, heads: Int) -> tuple[Bodies, Int]:
        """Bodies of users' histories up to some rows, and the times of their occasions.

        Parameters
        ----------
        stops : int64 [U]
            Row after the last that is written.
        heads : int64 [U]
            Tokens of each user's head.
        """
        self._require_detail(histories)
        starts = histories.offsets[users]
        offsets = offsets_of(stops - starts)
        rows = ragged(starts, stops - starts)
        occasions = Occasions.of(histories.time[rows], offsets)
        advertiser = histories.advertiser[rows]
        pieces = [Piece(self._names, advertiser, self._names.lengths[advertiser])]
        if self.style.detail != "none":
            half = np.maximum(self.style.context - heads, 0) // 2
            of_occasion = np.repeat(half, np.diff(occasions.offsets))
            pieces = self._details.pieces(histories, rows, pieces[0], occasions, of_occasion)
        gaps = self._gaps if self.style.gaps else None
        return lay_out(occasions, offsets, pieces, gaps, self._separator), occasions.times

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
            sizes = np.add.reduceat(self._names.lengths[histories.advertiser], begins) + 1
            for user in np.unique(who[begins[sizes > half - LEAST_ROOM]]).tolist():
                room = self.style.context - len(self._head(histories.profiles[user] if self.style.profile else ""))
                if int(sizes[who[begins] == user].max()) > room:
                    occasions.append(user)
        return CutPrompts(*(tuple(histories.users[u] for u in part) for part in (profiles, occasions)))

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
        occasions = np.unique(occasions)
        seen = np.concatenate([[0], prompt.ends + 1])[occasions]  # tokens of the body that each answer may see
        room = np.full(len(seen), self.style.context - len(prompt.head))
        first = window_starts(_alone(prompt), np.zeros(len(seen), np.int64), seen, room)
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
        room = np.asarray([self.style.context - len(prompt.head)])
        start = last_events(_alone(prompt), np.zeros(1, np.int64), seen, room)
        ids = np.concatenate([prompt.head, prompt.body[int(start[0]) : int(seen[0])]])
        return PromptWindow(ids, np.asarray([len(ids) - 1]), np.asarray([occasions]))


def _alone(prompt: Prompt) -> Bodies:
    """A prompt as the only one of many."""
    offsets = (np.asarray([0, len(part)]) for part in (prompt.body, prompt.ends, prompt.events))
    body, occasions, events = offsets
    return Bodies(prompt.body, body, prompt.ends, prompt.events, occasions, events)


def _occasions_before(times: Int, offsets: Int, user: Int, cutoff: Int) -> Int:
    """How many of each user's occasions lie strictly before a moment [n]; a search within each user's own."""
    low, high = offsets[user], offsets[user + 1]
    while (wide := low < high).any():
        middle = (low + high) // 2
        earlier = wide & (times[np.where(wide, middle, 0)] < cutoff)
        low, high = np.where(earlier, middle + 1, low), np.where(wide & ~earlier, middle, high)
    return low - offsets[user]


def occasions_before(prompt: Prompt, cutoffs: Int) -> Int:
    """How many occasions lie strictly before each cut-off (microseconds)."""
    return np.searchsorted(prompt.times, cutoffs, side="left").astype(np.int64)
