"""What a frozen LLM makes of texts: one vector each, computed once and kept in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from advprior.predictors.deadline import Deadline
from advprior.predictors.tokens import plain_encoder
from advprior.predictors.tuning.base import load_base
from advprior.predictors.tuning.random_weights import forget
from advprior.runtime.batching import length_batches, pad_windows
from advprior.store.arrays import Float
from advprior.store.progress import Progress

BATCH_TOKENS = 2048


def encode_texts(
    texts: Sequence[str],
    base: str,
    *,
    layers: int,
    tokens: int,
    twin_seed: int | None = None,
    deadline: Deadline | None = None,
) -> tuple[Float, dict[str, Any]]:
    """Mean final state of each text's first ``tokens`` tokens [len(texts), H], and which base model it was.

    A text without a token is read as the vocabulary's first one. With a ``twin_seed`` the model forgets its
    pre-training first: what a network of random weights makes of the texts.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.tuning.base.load_base`; ``PRI019`` when it would not end by the deadline.
    """
    loaded = load_base(base, layers=layers)
    if twin_seed is not None:
        forget(loaded.model, twin_seed)
    encode = plain_encoder(loaded.tokenizer.backend_tokenizer)
    ids = [encode(text)[:tokens] or [0] for text in texts]
    return mean_states(loaded.model, ids, deadline), loaded.origin


def mean_states(model: Any, ids: Sequence[Sequence[int]], deadline: Deadline | None = None) -> Float:
    """Mean final state [n, H] of the tokens of each row; rows that are equal are computed once.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder without vocabulary head, in eval mode.
    ids : sequence of sequences of int
        At least one token each.
    """
    distinct = {row: i for i, row in enumerate(dict.fromkeys(tuple(row) for row in ids))}
    rows = [np.asarray(row, np.int64) for row in distinct]
    out = np.empty((len(rows), int(model.config.hidden_size)), np.float32)
    end = deadline or Deadline()
    with torch.inference_mode(), Progress(len(rows), "encode texts", "text") as progress:
        for batch in length_batches([len(row) for row in rows], BATCH_TOKENS):
            padded, mask, _ = pad_windows([(rows[i], rows[i][:0]) for i in batch])
            real = torch.from_numpy(mask)
            states = model(input_ids=torch.from_numpy(padded), attention_mask=real, use_cache=False).last_hidden_state
            out[batch] = ((states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)).numpy()
            progress.update(len(batch))
            end.require(progress, "encoding of texts")
    encodings: Float = out[np.asarray([distinct[tuple(row)] for row in ids], np.int64)]
    return encodings
