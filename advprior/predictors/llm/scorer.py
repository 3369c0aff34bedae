"""Priors from the exported graph of the LLM: distinct prompts, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.catalog import Catalog
from advprior.history.counts import crowd_of
from advprior.history.fingerprints import hash64, seen_before
from advprior.history.histories import Histories
from advprior.predictors.base import NetworkPart, NetworkScorer
from advprior.predictors.llm.prompt_windows import PromptWindows
from advprior.predictors.llm.prompts import DAY, PromptEncoder
from advprior.predictors.offset import Offset
from advprior.runtime import cuda
from advprior.runtime.batching import Budget, Outputs, token_budget_batches
from advprior.runtime.session import Engine, SessionChoice, open_graph, open_session
from advprior.runtime.top_graph import TOP_FILE, Cells, TopHead, TopRows, states_with_bias
from advprior.runtime.tuning import tune_budget
from advprior.store.arrays import Float, Int

_OUTPUT, _INTERESTS, _STATES = "log_probs", "interest_log_probs", "states"  # of the graph
TUNED_USERS = 4_096  # whose prompts a budget is tuned on
HEAD_BYTES_CPU = 32 << 20  # of one matrix [rows, N] behind the network; a handful of them are held


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
        Padded tokens in one batch; the engine's own until it is tuned.
    output_budget : int, optional
        Bytes of one batch's outputs.
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
        self.provider, self.on_gpu = self._engine.provider, self._engine.on_cuda
        self._encoder = encoder
        self._habit = habit
        self._size = encoder.catalog_size
        self._top_graph, self._choice = onnx / TOP_FILE, SessionChoice(device, threads)
        self._head: TopHead | None = None
        self.token_budget, self.output_budget = self._engine.budget.tokens, self._engine.budget.output_bytes
        self._zero = np.zeros((1, 1, self._size), np.float32)
        self._zero.setflags(write=False)
        self._popular: tuple[object, bytes, Float] | None = None

    @property
    def engine(self) -> Engine:
        """The open session of the network."""
        return self._engine

    def answer_states(self) -> int | None:
        if _STATES not in self._engine.outputs or not self._top_graph.is_file():  # exported before there was one
            return None
        if self._head is None:
            # what the budget allows one batch's outputs is a matrix of the head's
            most = (self.output_budget or HEAD_BYTES_CPU) if self._engine.on_cuda else HEAD_BYTES_CPU
            self._head = TopHead(open_graph(self._top_graph, self._choice), most)
        self.answers_states = True
        return self._head.width

    def stop(self, stopped: bool = True) -> None:
        self._engine.stopped = stopped

    def prepare(self, histories: Histories, users: Int, cutoffs: Int) -> PromptWindows:
        return self._encoder.many(histories, users, cutoffs)

    def forward(self, prepared: PromptWindows) -> NetworkPart:
        windows, states = prepared, self.answers_states
        names = (_STATES if states else _OUTPUT, *(() if self.interests is None else (_INTERESTS,)))
        out: dict[str, Float] = {}

        def run(batch: Int) -> dict[str, Float]:
            return self._run(windows, batch, names)

        for batch, outputs in self._engine.each(self._batches(windows), run):
            rows, answers = windows.rows_of(batch), windows.answers[batch]
            answered = np.arange(answers.max()) < answers[:, None]
            for name, values in outputs.items():
                if name not in out:
                    out[name] = np.empty((len(windows.positions), values.shape[-1]), np.float32)
                out[name][rows] = values[answered]
        if not out:
            out = {name: np.empty((0, self._size), np.float32) for name in names}
        network = states_with_bias(out[_STATES]) if states else out[_OUTPUT]
        if not self.profile_answers:  # the offset that is added to it is all that counts
            silent = windows.position_offsets[:-1][windows.no_history]
            network[silent] = 0.0 if states else -np.log(self._size)
        return NetworkPart(network, windows.index, out.get(_INTERESTS), windows.prompts, len(windows))

    def _batches(self, windows: PromptWindows, budget: Budget | None = None) -> list[Int]:
        budget = budget or Budget(self.token_budget, self.output_budget)
        return token_budget_batches(windows.lengths, budget, self._engine.lanes, self._outputs(windows))

    def _outputs(self, windows: PromptWindows) -> Outputs:
        # where the head is left out, so are its outputs: states are some hundred numbers
        width = 0 if self.answers_states else self._size
        return Outputs(windows.answers, 4 * (width + (0 if self.interests is None else len(self.interests))))

    def _run(self, windows: PromptWindows, batch: Int, names: tuple[str, ...]) -> dict[str, Float]:
        ids, mask, positions = windows.padded(batch)
        # no offset here: it changes with time where the network's part does not
        inputs = {"input_ids": ids, "attention_mask": mask, "positions": positions, "offset": self._zero}
        every = len(names) == len(self._engine.outputs)
        return self._engine.run_all(inputs, () if every else names)

    def tune(self, histories: Histories, users: Int, cutoffs: Int) -> dict[str, Any]:
        if self._engine.on_cuda:
            some = users[:: max(1, len(users) // TUNED_USERS)][:TUNED_USERS]
            windows = self.prepare(histories, some, cutoffs)
            names = (_STATES if self.answers_states else _OUTPUT,)

            def run(batches: Sequence[Int]) -> None:
                for _ in self._engine.each(batches, lambda batch: self._run(windows, batch, names)):
                    pass

            def free() -> int | None:
                memory = cuda.free_memory(self._engine.device_id)
                return None if memory is None else memory[0]

            if len(windows):
                tuned = tune_budget(windows.lengths, self._outputs(windows), run, free)
                self.token_budget, self.output_budget = tuned.budget.tokens, tuned.budget.output_bytes
                return {"budget": tuned.to_json()}
        return {"budget": {"tokens": self.token_budget, "output_bytes": self.output_budget, "tried": []}}

    def likeliest(self, states: Float, histories: Histories, users: Int, cutoffs: Int, k: int) -> TopRows:
        assert self._head is not None
        user, cutoff = np.repeat(users, len(cutoffs)), np.tile(cutoffs, len(users))
        cells = Cells(*self._habit.habit_cells(histories, user, cutoff, self._size))
        snapshot = np.tile(np.arange(len(cutoffs)), len(users))
        flat = states.reshape(len(user), states.shape[-1])
        return self._head.run(flat, self._everyone(histories, cutoffs), snapshot, cells, k)

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
        if self._popular is None or self._popular[0] is not crowd_of(histories) or self._popular[1] != key:
            fresh = np.ascontiguousarray(self._habit.everyone(histories, cutoffs, self._size), np.float32)
            fresh.setflags(write=False)  # copied to a device once
            self._popular = (crowd_of(histories), key, fresh)
        return self._popular[2]
