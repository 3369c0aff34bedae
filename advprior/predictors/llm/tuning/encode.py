"""What a frozen LLM makes of texts: one vector each, computed once and kept in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from advprior.predictors.llm.tuning.base import load_base
from advprior.predictors.llm.tuning.modes import forget
from advprior.store.arrays import Float

BATCH_TOKENS = 2048


def encode_texts(
    texts: Sequence[str], base: str, *, layers: int, tokens: int, twin_seed: int | None = None
) -> tuple[Float, dict[str, Any]]:
    """Mean final state of each text's first ``tokens`` tokens [len(texts), H], and which base model it was.

    With a ``twin_seed`` the model forgets its pre-training first: what a network of random weights makes of the texts.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.llm.tuning.base.load_base`.
    """
    loaded = load_base(base, layers=layers)
    if twin_seed is not None:
        forget(loaded.model, twin_seed)
    tokenizer = loaded.tokenizer.backend_tokenizer
    ids = [tokenizer.encode(text, add_special_tokens=False).ids[:tokens] or [0] for text in texts]
    out = np.empty((len(ids), int(loaded.model.config.hidden_size)), np.float32)
    order = np.argsort([len(i) for i in ids], kind="stable")
    with torch.inference_mode(), tqdm(total=len(ids), desc="texts", unit="text", disable=None) as bar:
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= BATCH_TOKENS:
                stop += 1
            rows = order[start:stop]
            length = len(ids[rows[-1]])
            padded = torch.zeros(len(rows), length, dtype=torch.long)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(rows):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            states = loaded.model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
            out[rows] = ((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)).numpy()
            bar.update(len(rows))
            start = stop
    return out, loaded.origin
