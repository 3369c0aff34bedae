"""Priors from the exported graph of the LLM: distinct prompts, in batches of like length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.catalog import Catalog
from advprior.history.fingerprints import hash64, seen_before
from advprior.history.histories import Histories
from advprior.predictors.base import NetworkPart, NetworkScorer
from advprior.predictors.llm.prompts import DAY, PromptEncoder
from advprior.predictors.offset import Offset
from advprior.runtime.batching import token_budget_batches
from advprior.runtime.session import open_session
from advprior.store.arrays import Float, Int

_OUTPUT, _INTERESTS = "log_probs", "interest_log_probs"  # of the graph


class LLMScorer(NetworkScorer):
    """Scores histories with the exported graph: all snapshots of a user from as few forwards as the context allows.

    Parameters
    ----------
    encoder : PromptEncoder
    habit : Offset
        What the logits start from, as of each snapshot.
    onnx : Path
        Folder with ``model.onnx``.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    interests : Catalog, optional
        C product categories, where the graph answers for them too.

    Attributes
    ----------
    token_budget : int
        Padded tokens in one batch; the engine's own.
    profile_answers : bool
        Whether the network has a say on users without a history; else they are given the offset alone.
    """

    profile_answers: bool = True

    def __init__(
        self,
        encoder: PromptEncoder,
        habit: Offset,
        onnx: Path,
        device: str = "auto",
        threads: int | None = None,
        interests: Catalog | None = None,
    ) -> None:
        super().__init__()
        self.interests = interests
        self._engine = open_session(onnx / "model.onnx", device=device, threads=threads, many=True)
        self.provider = self._engine.provider
        self._encoder = encoder
        self._habit = habit
        self._size = encoder.catalog_size
        self.token_budget = self._engine.token_budget
        self._popular: tuple[Histories, bytes, Float] | None = None

    def network(self, histories: Histories, users: Int, cutoffs: Int) -> NetworkPart:
        windows = self._encoder.many(histories, users, cutoffs)
        sizes = {_OUTPUT: self._size} | ({} if self.interests is None else {_INTERESTS: len(self.interests)})
        out = {name: np.empty((len(windows.positions), size), np.float32) for name, size in sizes.items()}

        def forward(batch: Int) -> dict[str, Float]:
            ids, mask, positions = windows.padded(batch)
            # the offset is left out of the graph: it changes with time where the network's part does not
            inputs = {"input_ids": ids, "attention_mask": mask, "positions": positions}
            return self._engine.run_all(inputs | {"offset": np.zeros((*positions.shape, self._size), np.float32)})

        batches = token_budget_batches(windows.lengths, self.token_budget, self._engine.lanes)
        for batch, outputs in self._engine.each(batches, forward):
            rows, answers = windows.rows_of(batch), windows.answers[batch]
            answered = np.arange(answers.max()) < answers[:, None]
            for name, values in out.items():
                values[rows] = outputs[name][answered]
        if not self.profile_answers:  # uniform: what is added to it is all that counts
            out[_OUTPUT][windows.position_offsets[:-1][windows.no_history]] = -np.log(self._size)
        self.prompts += windows.prompts
        self.forwarded += len(windows)
        return NetworkPart(out[_OUTPUT], windows.index, out.get(_INTERESTS))

    def offset(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        user, cutoff = np.repeat(users, len(cutoffs)), np.tile(cutoffs, len(users))
        everyone = np.tile(self._everyone(histories, cutoffs), (len(users), 1))
        logits = self._habit.logits(histories, user, cutoff, self._size, everyone)
        return logits.reshape(len(users), len(cutoffs), self._size)

    def cut_prompts(self, histories: Histories) -> dict[str, Any]:
        return self._encoder.cut(histories).to_json()

    def alike(self, histories: Histories, cutoff: int) -> npt.NDArray[np.uint64]:
        """By profile, and by what the prompt says of each event: the advertiser, and the days since the last."""
        style = self._encoder.style
        first = np.zeros(len(histories.time), bool)
        first[histories.offsets[:-1][np.diff(histories.offsets) > 0]] = True
        since = np.diff(histories.time, prepend=histories.time[:1])
        gap = np.where(first, 0, np.minimum(since // DAY, style.max_gap) if style.gaps else 0)
        same = (since == 0) & ~first  # of one occasion with the row before
        code = (histories.advertiser * 2 + same) * (style.max_gap + 1) + gap
        stops = seen_before(histories, cutoff)
        out = np.empty(len(histories), np.uint64)
        for user, (start, stop) in enumerate(zip(histories.offsets[:-1], stops, strict=True)):
            profile = histories.profiles[user].encode() if style.profile else b""
            out[user] = hash64(profile, code[start:stop].tobytes())
        return out

    def _everyone(self, histories: Histories, cutoffs: Int) -> Float:
        """The same for all users of a run."""
        key = cutoffs.tobytes()
        if self._popular is None or self._popular[0] is not histories or self._popular[1] != key:
            fresh = self._habit.everyone(histories, cutoffs, self._size)
            self._popular = (histories, key, fresh)
        return self._popular[2]
