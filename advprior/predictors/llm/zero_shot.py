"""The zero-shot prior: the untuned LLM, asked how likely each advertiser's name is to come next.

Nothing is fitted: the history is written with names, and every name of the catalog is scored behind it by the base
model with all its layers (`tuning.names`). ``calibration`` subtracts that share of what each name scores behind
an empty history, so that a name is not preferred for being short or common. It costs a forward of the whole base
model over prompt and catalog: 10 to 140 times a tuned head. It tells what tuning earns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from advprior.history.histories import Histories
from advprior.predictors.base import FitData, Predictor, Scorer
from advprior.predictors.deadline import Deadline
from advprior.predictors.llm.name_trie import name_tokens, widest_trie
from advprior.predictors.llm.prompts import TITLE, PromptEncoder, PromptStyle, occasions_before
from advprior.predictors.llm.saved_prompt import PROMPT_FILE, TOKENIZER_FILE, load_encoder, load_style
from advprior.predictors.tokens import plain_encoder, readable
from advprior.runtime.batching import pad_windows, token_budget_batches
from advprior.runtime.session import open_session
from advprior.store.arrays import Float, Int
from advprior.store.contract import CATALOG_FILE, ZERO_SHOT
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import write_json

KIND = ZERO_SHOT
NAMES, EMPTY = "names.json", "empty.npy"
MEASURED = 16  # every so many-th name is scored first, where there is a limit of time
TOKEN_BUDGET = 2048  # padded tokens in one batch, the trie's included


class ZeroShotSettings(BaseModel):
    """Settings of the zero-shot prior; ``layers`` none keeps them all."""

    model_config = ConfigDict(extra="forbid")
    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    layers: int | None = Field(default=None, ge=1)
    profile: bool = True
    context: int = Field(default=256, ge=32)
    calibration: float = Field(default=1.0, ge=0, le=1)
    max_minutes: float | None = Field(default=None, gt=0)


class ZeroShotPredictor(Predictor):
    """A base LLM, the catalog's names as tokens, and what they score behind an empty history."""

    kind = KIND
    uses_llm = True

    @property
    def reads_profile(self) -> bool:  # type: ignore[override]
        """Whether its prompts have a profile line."""
        return load_style(self.run).profile

    @property
    def reads(self) -> tuple[str, ...]:
        return load_style(self.run).reads

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> ZeroShotSettings:
        return ZeroShotSettings(**raw)

    @classmethod
    def fit(cls, data: FitData, settings: ZeroShotSettings, out: Path) -> dict[str, Any]:
        from advprior.predictors.llm.tuning.names import empty_scores, name_model
        from advprior.predictors.tuning.base import load_base

        deadline = Deadline(settings.max_minutes)
        base = load_base(settings.base, layers=settings.layers, context=settings.context, head=True)
        tokenizer = base.tokenizer.backend_tokenizer
        encode = plain_encoder(tokenizer)
        names = name_tokens(readable(data.catalog.names, data.catalog.ids, encode), encode)
        style = PromptStyle(profile=settings.profile, gaps=False, context=settings.context, names=True, title=TITLE)
        vocabulary = int(base.model.config.vocab_size)
        encoder = PromptEncoder(style, encode, vocabulary, data.catalog.names)
        nobody = Histories(("",), ("",), np.zeros(2, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        head = encoder.prompt(nobody, 0).head
        if settings.max_minutes is not None:  # all names are one forward: a part of them tells how long it takes
            with Progress(len(names), "names behind an empty history", "name") as progress:
                empty_scores(name_model(base, part := names[::MEASURED], settings.context), head)
                progress.update(len(part))
                deadline.require(progress, "forward of the names")
        empty = empty_scores(name_model(base, names, settings.context), head)
        np.save(out / EMPTY, empty)
        write_json(out / NAMES, names)
        write_json(
            out / PROMPT_FILE,
            {
                "style": style.to_json(),
                "text_vocab_size": vocabulary,
                "calibration": settings.calibration,
                "base": settings.base,
                "layers": settings.layers,
                "sha256": base.origin["sha256"],
            },
        )
        tokenizer.save(str(out / TOKENIZER_FILE))
        data.catalog.save(out / CATALOG_FILE)
        return {
            "base": base.origin,
            "valid": {},
            "cut_prompts": encoder.cut(data.histories).to_json(),
            "name_tokens": sum(map(len, names)),
            "trie_nodes": widest_trie(names),
        }

    def _saved(self) -> dict[str, Any]:
        saved: dict[str, Any] = json.loads((self.run / PROMPT_FILE).read_text())
        return saved

    def _names(self) -> list[list[int]]:
        names: list[list[int]] = json.loads((self.run / NAMES).read_text())
        return names

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.predictors.llm.tuning.names import export_names, name_model
        from advprior.predictors.tuning.base import load_base

        saved = self._saved()
        base = load_base(saved["base"], layers=saved["layers"], context=saved["style"]["context"], head=True)
        if base.origin["sha256"] != saved["sha256"]:
            raise AdvpriorError(
                "PRI062",
                "the base model is not the one that was fitted",
                where=saved["base"],
                actual=f"weights {base.origin['sha256'][:12]}",
                expected=saved["sha256"][:12],
                fix="advprior finetune --predictor zero_shot, again",
            )
        return export_names(name_model(base, self._names(), saved["style"]["context"]), out)

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        saved = self._saved()
        encoder = load_encoder(self.run, self.catalog.names)
        offset: Float = (-float(saved["calibration"]) * np.load(self.run / EMPTY)).astype(np.float32)
        return ZeroShotScorer(encoder, offset, widest_trie(self._names()), onnx, device, threads)


class ZeroShotScorer(Scorer):
    """Scores histories with the exported graph: one forward for each distinct prompt.

    Parameters
    ----------
    encoder : PromptEncoder
    offset : float32 [N]
        Added to each name's score.
    nodes : int
        Of the trie, which lies behind every prompt.
    onnx : Path
        Folder with ``model.onnx``.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        offset: Float,
        nodes: int,
        onnx: Path,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._engine = open_session(onnx / "model.onnx", device=device, threads=threads, many=True)
        self.provider = self._engine.provider
        self._encoder = encoder
        self._offset = offset
        self._nodes = nodes

    def cut_prompts(self, histories: Histories) -> dict[str, Any]:
        return self._encoder.cut(histories).to_json()

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        prompts: dict[bytes, tuple[Int, list[tuple[int, int]]]] = {}
        for row, user in enumerate(users):
            prompt = self._encoder.prompt(histories, int(user))
            for column, seen in enumerate(occasions_before(prompt, cutoffs)):
                window = self._encoder.newest(prompt, int(seen))
                prompts.setdefault(window.ids.tobytes(), (window.ids, []))[1].append((row, column))
        jobs = list(prompts.values())
        out = np.empty((len(users), len(cutoffs), len(self._offset)), np.float32)

        def forward(batch: Int) -> Float:
            ids, mask, _ = pad_windows([(jobs[b][0], np.zeros(1, np.int64)) for b in batch])
            offset = np.broadcast_to(self._offset, (len(batch), len(self._offset))).copy()
            return self._engine.run_inputs({"input_ids": ids, "attention_mask": mask, "offset": offset})

        batches = token_budget_batches([len(ids) + self._nodes for ids, _ in jobs], TOKEN_BUDGET, self._engine.lanes)
        for batch, rows in self._engine.each(batches, forward):
            for log_probs, b in zip(rows, batch, strict=True):
                for row, column in jobs[b][1]:
                    out[row, column] = log_probs
        return out
