"""Prompts written one user, occasion and event at a time: what building many at once must equal, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.llm.prompt_details import price
from advprior.predictors.llm.prompts import DAY, PromptStyle

Window = tuple[list[int], list[int], list[int]]  # ids, positions, occasions


class PlainPrompts:
    """As `PromptEncoder`, by loops."""

    def __init__(
        self, style: PromptStyle, encode: Callable[[str], list[int]], text_vocab_size: int, names: Sequence[str]
    ) -> None:
        self.style, self.encode = style, encode
        self.names = [
            encode(" " + name + ",") if style.names else [text_vocab_size + index] for index, name in enumerate(names)
        ]

    def head(self, profile: str) -> list[int]:
        title, most = self.style.title + "\n", self.style.context // 2
        head = self.encode((profile + "\n" if profile else "") + title)
        if not profile or len(head) <= most:
            return head
        title_tokens = self.encode("\n" + title)
        return [*self.encode(profile)[: max(most - len(title_tokens), 0)], *title_tokens]

    def prompt(self, histories: Histories, user: int) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        """Head, body, ends of occasions, their times, starts of events."""
        style, rows = self.style, range(int(histories.offsets[user]), int(histories.offsets[user + 1]))
        head = self.head(histories.profiles[user] if style.profile else "")
        half = max(style.context - len(head), 0) // 2
        times = sorted({int(histories.time[row]) for row in rows})
        body: list[int] = []
        ends, events = [], []
        for k, time in enumerate(times):
            of_time = [row for row in rows if histories.time[row] == time]
            if style.gaps and k:
                body += self.encode(str(min((time - times[k - 1]) // DAY, style.max_gap)))
            names = [self.names[histories.advertiser[row]] for row in of_time]
            fixed = sum(map(len, names)) + 4
            limit = min(style.detail_tokens, max(half - fixed, 0) // len(of_time))
            for i, row in enumerate(of_time):
                events.append(len(body))
                body += names[i] if style.detail == "none" else self.event(histories, row, names[i], limit, i > 0)
            body.append(self.encode(";")[-1])
            ends.append(len(body) - 1)
        return head, body, ends, times, events

    def event(self, histories: Histories, row: int, advertiser: list[int], limit: int, follows: bool) -> list[int]:
        style = self.style
        product, rest = "", []
        if style.detail in ("product", "full") and histories.text[row] >= 0:
            product = " " + histories.texts[histories.text[row]].replace(";", ",")
        if style.detail in ("category", "full") and histories.category[row] >= 0:
            rest.append(histories.categories[histories.category[row]].replace(";", ","))
        if style.detail == "full" and len(histories.value) and np.isfinite(histories.value[row]):
            rest.append(price(float(histories.value[row])))
        detail = [token for i, part in enumerate(rest) for token in self.encode((", " if product or i else " ") + part)]
        detail = (self.encode(product)[: max(limit - len(detail), 0)] if product else []) + detail
        detail = detail[:limit]
        if style.advertisers or not detail:
            return [*advertiser, *detail]
        return [*(self.encode(" +") if follows else []), *detail]

    def windows(self, histories: Histories, user: int, cutoffs: Sequence[int]) -> list[Window]:
        """Forwards that answer for the occasions seen at the cut-offs."""
        head, body, ends, times, events = self.prompt(histories, user)
        room = self.style.context - len(head)
        block = max(room // 2, 1)
        begins = [0, *(end + 1 for end in ends)]
        by_start: dict[int, list[int]] = {}
        for seen in sorted({sum(time < cutoff for time in times) for cutoff in cutoffs}):
            tokens = begins[seen]
            drop = max(-(-(tokens - room) // block), 0) * block
            start = min(*(begin for begin in [*begins, tokens] if begin >= drop), tokens)
            if start == tokens > 0:
                fitting = [event for event in events if tokens - room <= event < tokens]
                start = fitting[0] if fitting else max(tokens - room, 0)
            by_start.setdefault(start, []).append(seen)
        return [
            (
                [*head, *body[start : begins[seen[-1]]]],
                [len(head) + begins[k] - start - 1 for k in seen],
                seen,
            )
            for start, seen in sorted(by_start.items())
        ]
