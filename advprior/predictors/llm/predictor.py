"""The LLM prior: a small open LLM that reads the history as text and answers for the whole catalog at once.

Free of torch: fitting and export import `tuning.train` and `tuning.export` when they run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advprior.history.catalog import Catalog
from advprior.predictors.base import EVERYONE, FitData, Predictor, Scorer
from advprior.predictors.llm.prompts import PromptEncoder
from advprior.predictors.llm.saved_prompt import PROMPT_FILE, load_encoder, load_style, profile_answers
from advprior.predictors.llm.scorer import LLMScorer
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.offset import Offset
from advprior.runtime.precision import FP32, TF32
from advprior.store.contract import INTERESTS_FILE, LLM


class LLMPredictor(Predictor):
    """A fine-tuned LLM in a run folder: ``model/`` (weights), tokenizer, prompt style, habit and the catalog."""

    kind = LLM

    @property
    def uses_llm(self) -> bool:
        """Whether pre-trained weights are behind it: not so for a random-weight control."""
        return not json.loads((self.run / PROMPT_FILE).read_text()).get("twin", False)

    @property
    def reads_profile(self) -> bool:  # type: ignore[override]
        """Whether its prompts have a profile line."""
        return load_style(self.run).profile

    @property
    def reads(self) -> tuple[str, ...]:
        return (EVERYONE, *load_style(self.run).reads)

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> LLMSettings:
        return LLMSettings(**raw)

    @classmethod
    def fit(cls, data: FitData, settings: LLMSettings, out: Path) -> dict[str, Any]:
        from advprior.predictors.llm.tuning.train import finetune

        return finetune(data, settings, out)

    def encoder(self) -> PromptEncoder:
        """The prompt encoder in the style the weights were tuned on."""
        masked = bool(json.loads((self.run / PROMPT_FILE).read_text()).get("masked"))
        return load_encoder(self.run, self.catalog.to_read(masked=masked).names)

    def export(self, out: Path) -> dict[str, Any]:
        return self.export_as(out)

    def export_as(self, out: Path, precision: str = FP32, attention: str = "blocks") -> dict[str, Any]:
        """`export` in another form (`tuning.export.GraphForm`).

        Half precision is not held to the model's log-probs: what it damages is for `advprior.pipeline.precision` to
        measure. Everything else is.
        """
        from advprior.predictors.llm.tuning.export import GraphForm, export_onnx, parity, parity_cases
        from advprior.predictors.llm.tuning.model import AdvertiserModel

        model = AdvertiserModel.from_pretrained(self.run / "model").eval()
        facts = export_onnx(model, out, GraphForm(precision, attention))
        if precision not in (FP32, TF32):
            return facts
        context = int(json.loads((self.run / PROMPT_FILE).read_text())["style"]["context"])
        return {**facts, **parity(model, out / "model.onnx", parity_cases(model, context))}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        start = Offset.from_json(json.loads((self.run / "habit.json").read_text()))
        file = self.run / INTERESTS_FILE
        interests = Catalog.load(file) if file.is_file() else None
        scorer = LLMScorer(self.encoder(), start, onnx, device, threads, interests)
        scorer.profile_answers = profile_answers(self.run)
        return scorer
