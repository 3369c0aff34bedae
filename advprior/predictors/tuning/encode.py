"""What a frozen network makes of texts: one vector each, computed once and kept in the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from advprior.predictors.deadline import Deadline
from advprior.predictors.tokens import plain_encoder
from advprior.predictors.tuning.base import load_base
from advprior.predictors.tuning.compute import fit_device, lent, to_device, tokens_at_once, within_memory
from advprior.predictors.tuning.random_weights import forget
from advprior.predictors.tuning.reading import Reading, Row, RowOf, decoder_rows
from advprior.runtime.batching import length_batches, pad_windows
from advprior.store.arrays import Float
from advprior.store.progress import Progress

BATCH_TOKENS = 2048
States = Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class TextEncoder:
    """A network that reads texts.

    Attributes
    ----------
    model : torch.nn.Module
        In eval mode; has a ``config``.
    rows : callable
        Text -> token ids, and the weight of each token's state in each of K pools, float32 [K, tokens].
    states : callable
        (ids [B, T], attention mask [B, T]) -> states [B, T, H] behind each of the layers that are read.
    origin : dict
        What it is, for a manifest.
    after : callable
        What becomes of pooled states [B, K·H].
    """

    model: Any
    rows: RowOf
    states: States
    origin: dict[str, Any] = field(default_factory=dict)
    after: Callable[[torch.Tensor], torch.Tensor] = lambda pooled: pooled


def language_model(base: str, reading: Reading) -> TextEncoder:
    """A causal language model as an encoder.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.tuning.base.load_base`.
    """
    loaded = load_base(base, layers=reading.last, at_most=reading.decoder_layers if reading.last is None else None)
    first, last = reading.span(int(loaded.model.config.num_hidden_layers))
    config, encode = loaded.model.config, plain_encoder(loaded.tokenizer.backend_tokenizer)
    marks = (config.bos_token_id, config.eos_token_id)
    rows = decoder_rows(
        encode,
        reading,
        bos=next((mark for mark in marks if isinstance(mark, int)), 0),
        separator=encode("\n"),
        limit=getattr(config, "max_position_embeddings", None),
    )
    facts = {"encoder": "language model", "pooling": reading.pooling or "mean", "read_layers": [first, last]}
    return TextEncoder(loaded.model, rows, states_of(loaded.model, first, last, use_cache=False), loaded.origin | facts)


def states_of(model: Any, first: int, last: int, **options: bool) -> States:
    """States behind the layers ``first`` to ``last``; the network has no layer behind the last."""
    if first < last:
        options["output_hidden_states"] = True

    def states(ids: torch.Tensor, mask: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = model(input_ids=ids, attention_mask=mask, **options)
        layers: Sequence[torch.Tensor] = [outputs.last_hidden_state]
        return layers if first == last else outputs.hidden_states[first : last + 1]

    return states


def encode_texts(
    texts: Sequence[str], encoder: TextEncoder, *, random_seed: int | None = None, deadline: Deadline | None = None
) -> Float:
    """What an encoder makes of each text [len(texts), E].

    With a ``random_seed`` the network forgets its pre-training first, for good: what random weights make of the texts.

    Raises
    ------
    AdvpriorError
        ``PRI019`` when it would not end by the deadline.
    """
    if random_seed is not None:
        forget(encoder.model, random_seed)
    return pooled_states(encoder, [encoder.rows(text) for text in texts], deadline)


def mean_states(model: Any, ids: Sequence[Sequence[int]], deadline: Deadline | None = None) -> Float:
    """Mean final state [n, H] of the tokens of each row; rows that are equal are computed once.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder without vocabulary head, in eval mode.
    ids : sequence of sequences of int
        At least one token each.
    """
    encoder = TextEncoder(
        model, lambda text: ([0], np.ones((1, 1), np.float32)), states_of(model, 0, 0, use_cache=False)
    )
    rows = [(list(row), np.full((1, len(row)), 1.0 / len(row), np.float32)) for row in ids]
    return pooled_states(encoder, rows, deadline)


@within_memory()
def pooled_states(encoder: TextEncoder, rows: Sequence[Row], deadline: Deadline | None = None) -> Float:
    """Pooled states [n, E] of token rows; those that are equal are computed once."""
    distinct = {tuple(ids): (np.asarray(ids, np.int64), weights) for ids, weights in rows}
    place = {ids: i for i, ids in enumerate(distinct)}
    every, end = list(distinct.values()), deadline or Deadline()
    vectors: dict[int, Float] = {}
    device = fit_device()
    budget, total = tokens_at_once(BATCH_TOKENS, device), len(every)
    # moved outside: what inference mode makes is of no use to a fit
    with lent(encoder.model, device), torch.inference_mode(), Progress(total, "encode texts", "text") as progress:
        for batch in length_batches([len(ids) for ids, _ in every], budget):
            padded, mask, _ = pad_windows([(every[i][0], every[i][0][:0]) for i in batch])
            weights = np.zeros((len(batch), len(every[0][1]), padded.shape[1]), np.float32)
            for row, i in enumerate(batch):
                weights[row, :, : len(every[i][0])] = every[i][1]
            states = encoder.states(to_device(padded, device), to_device(mask, device))
            pooled = encoder.after(_pooled(states, to_device(weights, device))).cpu().numpy()
            for row, i in enumerate(batch):
                vectors[i] = pooled[row]
            progress.update(len(batch))
            end.require(progress, "encoding of texts")
    encodings: Float = np.stack([vectors[place[tuple(ids)]] for ids, _ in rows]).astype(np.float32)
    return encodings


def _pooled(states: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums [B, K·H]; of several layers the mean at unit length: a state grows from layer to layer."""
    sums = [torch.bmm(weights, layer.float()).flatten(1) for layer in states]
    if len(sums) == 1:
        return sums[0]
    return torch.stack([torch.nn.functional.normalize(one, dim=1) for one in sums]).mean(0)
