"""A fitted run as scoring and export read it: network, tokenizer, prompt style, what the logits start from, catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advprior.predictors.base import FitData
from advprior.predictors.llm.prompts import PromptEncoder
from advprior.predictors.llm.saved_prompt import NO_HISTORY, OFFSET_ALONE, PROMPT_FILE, TOKENIZER_FILE
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.extend import save_name_head
from advprior.predictors.llm.tuning.modes import merge
from advprior.predictors.llm.tuning.networks import Networks
from advprior.predictors.offset import Offset
from advprior.store.contract import CATALOG_FILE, INTERESTS_FILE
from advprior.store.runs import write_json


@dataclass(frozen=True)
class RunParts:
    """What a run keeps beside its network.

    Attributes
    ----------
    data : FitData
    settings : LLMSettings
    encoder : PromptEncoder
    tokenizer : tokenizers.Tokenizer
    no_history : str
        What users without a history are given (`tuning.no_history`).
    """

    data: FitData
    settings: LLMSettings
    encoder: PromptEncoder
    tokenizer: Any
    no_history: str = OFFSET_ALONE


def save_run(out: Path, networks: Networks, start: Offset, parts: RunParts) -> None:
    """Write everything that scoring needs; folds adapters and heads into the network, which is of no use after it."""
    networks.to(torch.device("cpu"))
    model = networks.model
    merge(model, parts.settings)
    networks.head.write(model.head)
    save_name_head(out, networks.head)
    if networks.interest_head is not None and model.interest_head is not None:
        networks.interest_head.write(model.interest_head)
    model.eval()
    model.save_pretrained(out / "model")
    parts.tokenizer.save(str(out / TOKENIZER_FILE))
    encoder = parts.encoder
    write_json(
        out / PROMPT_FILE,
        {
            "style": encoder.style.to_json(),
            "text_vocab_size": encoder.text_vocab_size,
            "twin": parts.settings.twin,
            "masked": parts.settings.masked,
            NO_HISTORY: parts.no_history,
        },
    )
    write_json(out / "habit.json", start.to_json())
    parts.data.catalog.save(out / CATALOG_FILE)
    if parts.data.interests is not None:
        parts.data.interests.catalog.save(out / INTERESTS_FILE)
