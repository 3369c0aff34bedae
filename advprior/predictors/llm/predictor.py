"""The LLM prior: a small open LLM that reads the history as text and answers for the whole catalog at once.

This module holds what scoring needs (settings, prompts, the exported graph) and stays free of torch;
fitting and export import `tuning.train` and `tuning.export` when they run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from advprior.history.catalog import Catalog
from advprior.history.fingerprints import hash64, seen_before
from advprior.history.histories import Histories
from advprior.predictors.base import (
    FitData,
    InterestScorer,
    NetworkPart,
    NetworkScorer,
    Predictor,
    Scorer,
)
from advprior.predictors.llm.prompts import DAY, Detail, Prompt, PromptEncoder, PromptStyle, occasions_before
from advprior.predictors.offset import Offset
from advprior.store.arrays import Float, Int
from advprior.store.contract import INTERESTS_FILE, LLM
from advprior.store.errors import AdvpriorError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptSettings(_Strict):
    """How a history is written (see `advprior.predictors.llm.prompts.PromptStyle`)."""

    profile: bool = True
    gaps: bool = True
    max_gap: int = Field(default=30, ge=1)
    context: int = Field(default=1024, ge=32)
    names: bool = False
    detail: Detail = "none"
    detail_tokens: int = Field(default=24, ge=1)
    advertisers: bool = True

    @model_validator(mode="after")
    def _something_is_written(self) -> PromptSettings:
        if not self.advertisers and self.detail == "none":
            raise ValueError("advertisers: false needs a detail to be written in their place")
        return self


class HabitSettings(_Strict):
    """Habit and drift that the network starts from (see `advprior.predictors.offset`)."""

    popularity_half_life_days: float = Field(default=30.0, gt=0)
    half_lives_days: tuple[float, ...] = (60.0, 14.0)


class DriftSettings(_Strict):
    """What keeps the network from learning fashions instead of users, where labels reach over months.

    With ``around_days`` the logits start, while fitting, from everyone's purchases around the label's own day, both
    sides, decaying by this half-life. Weights of what is known at a snapshot (popularity at ``popular`` half-lives,
    own purchases at those of ``habit``) and the strength of the network beside it are fitted on the validation labels;
    then the network is fitted again on all labels up to the cut-off (``refit``); with ``keep_before``, what it was
    before that stays in ``before/`` of the run: those labels chose its epoch and strength, and nothing else in it.
    Each wait for a label is one training point, from a moment drawn within it, and counts for
    ``(wait / horizon) ** gap_power``.
    """

    around_days: float | None = Field(default=None, gt=0)
    popular: tuple[float, ...] = Field(default=(30.0, 90.0, 365.0), min_length=1)
    gap_power: float = Field(default=0.5, ge=0)
    refit: bool = True
    keep_before: bool = False


class LoraSettings(_Strict):
    """Low-rank adapters of ``mode: lora``, on every projection of attention and MLP in all kept layers."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class InterestSettings(_Strict):
    """The second head, over product categories."""

    weight: float = Field(default=0.0, ge=0)
    most: int = Field(default=500, ge=1)


class RankingSettings(_Strict):
    """The ranking stage after tuning (see `advprior.predictors.llm.tuning.grpo`)."""

    epochs: int = Field(default=0, ge=0)
    group: int = Field(default=8, ge=2)
    lr: float = Field(default=5e-5, gt=0)
    clip: float = Field(default=0.2, gt=0, lt=1)
    kl: float = Field(default=0.02, ge=0)
    inner_steps: int = Field(default=2, ge=1)


class TrainingSettings(_Strict):
    """How the network and its heads are tuned."""

    epochs: int = Field(default=4, ge=1)
    patience: int = Field(default=2, ge=1)
    batch_tokens: int = Field(default=2048, ge=32)
    lr: float = Field(default=1e-4, ge=0)
    head_lr: float = Field(default=2e-3, gt=0)
    free_lr: float = Field(default=1e-4, ge=0)
    adapter_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    rank: int = Field(default=64, ge=1)
    recency_half_life_days: float | None = Field(default=None, gt=0)
    valid_days: float = Field(default=21.0, gt=0)
    max_minutes: float | None = Field(default=None, gt=0)
    seed: int = 0


class LLMSettings(_Strict):
    """Settings of ``advprior finetune`` for the LLM."""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    twin: bool = False
    layers: int = Field(default=10, ge=1)
    mode: Literal["cached", "lora", "full"] = "cached"
    tuned_layers: int = Field(default=2, ge=1)
    horizon_days: float = Field(default=7.0, gt=0)
    target: Literal["all", "first"] = "all"
    texts: bool = False
    prompt: PromptSettings = PromptSettings()
    habit: HabitSettings = HabitSettings()
    drift: DriftSettings = DriftSettings()
    lora: LoraSettings = LoraSettings()
    interests: InterestSettings = InterestSettings()
    training: TrainingSettings = TrainingSettings()
    ranking: RankingSettings = RankingSettings()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved with the model, as a `tokenizers.Tokenizer`: no torch, no transformers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


class LLMPredictor(Predictor):
    """A fine-tuned LLM in a run folder: ``model/`` (weights), tokenizer, prompt style, habit and the catalog."""

    kind = LLM

    @property
    def uses_llm(self) -> bool:
        """Whether pre-trained weights are behind it: not so for a random-weight control."""
        return not json.loads((self.run / "prompt.json").read_text()).get("twin", False)

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> LLMSettings:
        return LLMSettings(**raw)

    @classmethod
    def fit(cls, data: FitData, settings: LLMSettings, out: Path) -> dict[str, Any]:
        from advprior.predictors.llm.tuning.train import finetune

        return finetune(data, settings, out)

    def encoder(self) -> PromptEncoder:
        """The prompt encoder in the style the weights were tuned on."""
        saved = json.loads((self.run / "prompt.json").read_text())
        style = PromptStyle(**saved["style"])
        if style.version != PromptStyle.version:
            raise AdvpriorError(
                "PRI005",
                "the prompt style is of another version",
                where=str(self.run / "prompt.json"),
                actual=str(style.version),
                expected=str(PromptStyle.version),
                fix="advprior finetune, again",
            )
        tokenizer = load_tokenizer(self.run)
        return PromptEncoder(
            style,
            lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
            int(saved["text_vocab_size"]),
            self.catalog.names,
        )

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.predictors.llm.tuning.export import export_onnx, parity, parity_cases
        from advprior.predictors.llm.tuning.model import AdvertiserModel

        model = AdvertiserModel.from_pretrained(self.run / "model").eval()
        facts = export_onnx(model, out)
        return {**facts, **parity(model, out / "model.onnx", parity_cases(model))}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        start = Offset.from_json(json.loads((self.run / "habit.json").read_text()))
        return LLMScorer(self.encoder(), start, len(self.catalog), onnx, device, threads)

    def interest_scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> InterestScorer | None:
        if not (self.run / INTERESTS_FILE).is_file():
            return None
        from advprior.predictors.llm.interest_scores import LLMInterestScorer

        interests = Catalog.load(self.run / INTERESTS_FILE)
        return LLMInterestScorer(self.encoder(), interests, len(self.catalog), onnx, device, threads)


@dataclass
class Job:
    """One forward: token ids [T], the positions that answer, and the rows of the network's part that they fill."""

    ids: Int
    positions: Int
    rows: Int


class LLMScorer(NetworkScorer):
    """Scores histories with the exported graph: all snapshots of a user from as few forwards as the context allows.

    Parameters
    ----------
    encoder : PromptEncoder
    habit : Offset
        What the logits start from, as of each snapshot.
    size : int
        N.
    onnx : Path
        Folder with ``model.onnx``.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    token_budget : int, optional
        Padded tokens in one batch; the engine's own by default.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        habit: Offset,
        size: int,
        onnx: Path,
        device: str = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
    ) -> None:
        from advprior.runtime.session import open_session

        super().__init__()
        self._engine = open_session(onnx / "model.onnx", device=device, threads=threads, many=True)
        self.provider = self._engine.provider
        self._encoder = encoder
        self._habit = habit
        self._size = size
        self._budget = token_budget or self._engine.token_budget
        self._popular: tuple[Histories, bytes, Float] | None = None

    def network(self, histories: Histories, users: Int, cutoffs: Int) -> NetworkPart:
        from advprior.runtime.session import token_budget_batches

        jobs, index = self._jobs(histories, users, cutoffs)
        out = np.empty((sum(len(job.rows) for job in jobs), self._size), np.float32)

        def forward(batch: Int) -> Float:
            ids, mask, positions = pad_windows([(jobs[b].ids, jobs[b].positions) for b in batch])
            # the offset is left out of the graph: it changes with time where the network's part does not
            return self._engine.run(ids, mask, positions, np.zeros((*positions.shape, self._size), np.float32))

        batches = token_budget_batches([len(job.ids) for job in jobs], self._budget, self._engine.lanes)
        for batch, log_probs in self._engine.each(batches, forward):
            for row, b in enumerate(batch):
                out[jobs[b].rows] = log_probs[row, : len(jobs[b].positions)]
        self.forwarded += len(jobs)
        return NetworkPart(out, index)

    def offset(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        user, cutoff = np.repeat(users, len(cutoffs)), np.tile(cutoffs, len(users))
        everyone = np.tile(self._everyone(histories, cutoffs), (len(users), 1))
        logits = self._habit.logits(histories, user, cutoff, self._size, everyone)
        return logits.reshape(len(users), len(cutoffs), self._size)

    def alike(self, histories: Histories, cutoff: int) -> npt.NDArray[np.uint64]:
        """By profile, and by what the prompt says of each purchase: the advertiser, and the days since the last."""
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

    def _jobs(self, histories: Histories, users: Int, cutoffs: Int) -> tuple[list[Job], Int]:
        """Distinct forwards, and the row of their output for every user and cut-off."""
        jobs: dict[int, Job] = {}
        index = np.empty((len(users), len(cutoffs)), np.int64)
        rows = 0
        for i, user in enumerate(users):
            prompt: Prompt = self._encoder.prompt(histories, int(user))
            seen = occasions_before(prompt, cutoffs)
            for window in self._encoder.windows(prompt, seen):
                self.prompts += 1
                key = hash64(window.ids.tobytes(), window.positions.tobytes())
                job = jobs.get(key)
                if job is None:
                    job = Job(window.ids, window.positions, np.arange(rows, rows + len(window.positions)))
                    jobs[key] = job
                    rows += len(window.positions)
                columns = np.flatnonzero(np.isin(seen, window.occasions))
                index[i, columns] = job.rows[np.searchsorted(window.occasions, seen[columns])]
        return list(jobs.values()), index


def pad_windows(windows: Sequence[tuple[Int, Int]]) -> tuple[Int, Int, Int]:
    """Right-padded ``input_ids`` [B, T], ``attention_mask`` [B, T], ``positions`` [B, P] of (ids, positions) pairs."""
    length = max(len(ids) for ids, _ in windows)
    points = max(len(positions) for _, positions in windows)
    input_ids = np.zeros((len(windows), length), np.int64)
    mask = np.zeros((len(windows), length), np.int64)
    padded = np.zeros((len(windows), points), np.int64)
    for row, (ids, positions) in enumerate(windows):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
        padded[row, : len(positions)] = positions
    return input_ids, mask, padded
