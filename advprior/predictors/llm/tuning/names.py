"""Name scoring: log P(name | prompt) of every advertiser by the untuned LLM, all names in one forward.

The names lie behind the prompt as a token trie (those of a wide catalog as several, a forward each); a tree attention
mask lets each node see the prompt and what leads to it, and positions count by depth, so that the forward says of each
name what its own forward would. Then

    score(a) = Σ log P(token | prompt, tokens before)  over the name's tokens and its end marker
    prior(a) = softmax over the catalog of score(a) + offset(a)

A sum, not a mean: with the end marker it is the log-likelihood that the name is what follows. Long names are
less likely before any prompt; `advprior.predictors.llm.zero_shot` can take that out by the offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.exporters.onnx import OnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils.normalized_config import NormalizedTextConfig
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from advprior.predictors.llm.name_trie import NameTrie, name_blocks
from advprior.predictors.tuning.base import Base
from advprior.runtime.parity import allowed_difference, largest_difference, require_parity, worst
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError

#: input_ids [B, T], attention_mask [B, T], offset [B, N]
NameCase = tuple[Int, Int, Float]

_MASKED = float(torch.finfo(torch.float32).min)
_TASK = "feature-extraction"
# no prompt is shorter than its introduction; behind a token or two alone, 30 layers of single precision differ by 2e-3
_SHORTEST = 6
_CHECKED = 2  # names
_SHAPES = ((1, 6), (3, 9), (5, 33), (2, 130))
_register = TasksManager.create_register("onnx", overwrite_existing=True)


class NameConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of `NameModel`: the base model's own and the names' tokens.

    Parameters
    ----------
    backbone : dict
        ``PretrainedConfig.to_dict()`` of the base decoder.
    names : list of list of int
        Token sequences with end marker, in catalog order.
    """

    model_type = "advprior_names"

    def __init__(self, backbone: dict[str, Any] | None = None, names: list[list[int]] | None = None, **kwargs: Any):
        self.backbone = backbone or {}
        self.names = names or []
        super().__init__(**kwargs)


class _Trie(nn.Module):
    """The arrays of a `NameTrie`, where the network is."""

    def __init__(self, names: list[list[int]]) -> None:
        super().__init__()
        trie = NameTrie.build(names)
        for name in ("tokens", "depths", "ancestors", "edge_parents", "edge_tokens", "paths"):
            self.register_buffer(name, torch.from_numpy(getattr(trie, name)), persistent=False)


class NameModel(PreTrainedModel):  # type: ignore[misc]
    """``forward(input_ids [B, T], attention_mask [B, T], offset [B, N]) -> {"log_probs": [B, N]}``; right padding.

    Parameters
    ----------
    config : NameConfig
    decoder : PreTrainedModel
        Without a vocabulary head.
    vocabulary : Tensor [V, H]
        The vocabulary head's weights.
    bias : Tensor [V], optional
    """

    config_class = NameConfig
    _supports_sdpa = True

    def __init__(
        self, config: NameConfig, decoder: Any, vocabulary: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__(config)
        self.decoder = decoder
        self.vocabulary = nn.Parameter(vocabulary, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        blocks = name_blocks(config.names)
        self.tries = nn.ModuleList([_Trie([config.names[i] for i in block]) for block in blocks])
        self.register_buffer("places", torch.from_numpy(np.argsort(np.concatenate(blocks))), persistent=False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, offset: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Log-probabilities [B, N] after each whole prompt, with ``offset`` [B, N] added to the names' scores."""
        return {"log_probs": torch.log_softmax(self.scores(input_ids, attention_mask) + offset, dim=-1)}

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits of final states, with what Cohere, Granite and Gemma make of them."""
        config = self.config.backbone
        logits = (states @ self.vocabulary.T).float()
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits * (config.get("logit_scale") or 1.0) / (config.get("logits_scaling") or 1.0)
        cap = config.get("final_logit_softcapping")
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Log-likelihood [B, N] of each name and its end marker after each prompt."""
        parts = [self._scores(trie, input_ids, attention_mask) for trie in self.tries]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1).index_select(1, self.places)

    def _scores(self, trie: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`scores` of the names of one trie, in its order."""
        batch, length = input_ids.shape
        nodes = trie.tokens.shape[0]
        real = attention_mask.sum(-1)
        ids = torch.cat([input_ids, trie.tokens.expand(batch, nodes)], dim=1)
        before = torch.arange(length, device=ids.device)
        positions = torch.cat([before.expand(batch, length), real[:, None] + trie.depths], dim=1)
        padded = (attention_mask > 0)[:, None, :]
        # four blocks: prompt sees prompt before it, never names; names see the prompt and what leads to them. Padding
        # sees the first token, so that no row is empty
        prompt = (before[:, None] >= before)[None] & padded
        nothing = torch.zeros(batch, length, nodes, dtype=torch.bool, device=ids.device)
        top = torch.cat([prompt, nothing], dim=2)
        bottom = torch.cat([padded.expand(batch, nodes, length), trie.ancestors.expand(batch, nodes, nodes)], dim=2)
        seen = torch.cat([top, bottom], dim=1)[:, None]
        mask = torch.zeros(seen.shape, dtype=torch.float32, device=ids.device).masked_fill(~seen, _MASKED)
        states = self.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        last = torch.gather(states, 1, (real - 1)[:, None, None].expand(batch, 1, states.shape[-1]))
        logits = self.logits(torch.cat([last, states[:, length:]], dim=1))
        # log_softmax, not logsumexp: with a vocabulary of 49,000 the latter's graph was off by 1e-3 in a name's score
        log_probs = torch.log_softmax(logits, dim=-1)
        # one pick per edge: flattened, since a pair of indices would become one more full gather
        index = trie.edge_parents * logits.shape[-1] + trie.edge_tokens
        edges = log_probs.flatten(1).index_select(1, index)
        edges = torch.cat([edges, torch.zeros_like(edges[:, :1])], dim=1)
        return edges.index_select(1, trie.paths.flatten()).view(batch, *trie.paths.shape).sum(-1)


def name_model(base: Base, names: list[list[int]], context: int = 64) -> NameModel:
    """A `NameModel` on a base that was loaded with its head, held to the causal LM on a prompt of ``context`` tokens.

    Raises
    ------
    AdvpriorError
        ``PRI063`` when the base model has no vocabulary head, or names in a tree score otherwise than one by one.
    """
    config = NameConfig(backbone=base.model.config.to_dict(), names=names)
    weights, bias = _head(base)
    model: NameModel = NameModel(config, base.model, weights, bias).eval()
    require_own_scores(model, base.whole, context)
    return model


def empty_scores(model: NameModel, prompt: Int) -> Float:
    """Log-likelihood [N] of each name behind one prompt, in one forward."""
    ids = torch.from_numpy(prompt)[None]
    with torch.inference_mode():
        scores: Float = model.scores(ids, torch.ones_like(ids))[0].numpy()
    return scores


def require_own_scores(model: NameModel, whole: Any, context: int) -> None:
    """Hold the trie to the causal LM itself, a name at a time: families differ in heads, masks and positions.

    One may make its own mask or positions, whatever is given, or see a window of the prompt only.

    Raises
    ------
    AdvpriorError
        ``PRI063`` when a name's score is another, or the decoder does not take a tree.
    """
    vocabulary = int(whole.get_input_embeddings().weight.shape[0])
    prompt: list[int] = np.random.default_rng(0).integers(0, vocabulary, context).tolist()
    ids = torch.tensor([prompt])
    try:
        with torch.inference_mode():
            scores = model.scores(ids, torch.ones_like(ids))[0, :_CHECKED].numpy()
            expected = [_own_score(whole, prompt, name) for name in model.config.names[:_CHECKED]]
    except Exception as error:  # whatever an architecture's own code raises
        first = (str(error).strip() or "no reason given").splitlines()[0][:120]
        raise _no_names(whole, f"{type(error).__name__}: {first}") from error
    difference = largest_difference(scores, expected)
    if not difference <= allowed_difference(expected):
        raise _no_names(whole, f"a name's score {difference:.1e} off that of a prompt of its own")


def _own_score(whole: Any, prompt: list[int], name: list[int]) -> float:
    """Log-likelihood of one name after a prompt, by the causal LM."""
    logits = whole(input_ids=torch.tensor([prompt + name[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
    return float(torch.log_softmax(logits.float(), dim=-1)[torch.arange(len(name)), torch.tensor(name)].sum())


def _no_names(whole: Any, actual: str) -> AdvpriorError:
    return AdvpriorError(
        "PRI063",
        "this base model cannot score all names in one forward",
        where=type(whole).__name__,
        actual=actual,
        expected="what it says of each name by itself",
        fix="set `base` of the zero-shot prior to another model, such as Llama, Qwen or SmolLM",
    )


def _head(base: Base) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights [V, H] and, where it has one, bias [V] that turn a state into logits."""
    head = None if base.whole is None else base.whole.get_output_embeddings()
    if head is None:
        raise AdvpriorError(
            "PRI063",
            "the base model has no vocabulary head: it cannot say how likely a name is",
            where=str(base.origin.get("source")),
            actual="embeddings that are not tied, and no head among the weights",
            expected="a causal LM",
            fix="set `base` to a causal LM with its head",
        )
    return head.weight.detach(), None if getattr(head, "bias", None) is None else head.bias.detach()


@_register("advprior_names", _TASK)
class NameOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """Inputs, outputs and free axes of the exported graph; the catalog's trie is part of it."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "input_ids": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "sequence"},
            "offset": {0: "batch"},
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"log_probs": {0: "batch"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        """A padded batch with all sizes different and none of them 1, so that no axis is taken for another."""
        case = dict(zip(self.inputs, _case(np.random.default_rng(0), 3, 17, self._config), strict=True))
        return {name: torch.from_numpy(value) if framework == "pt" else value for name, value in case.items()}


def export_names(model: NameModel, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx`` and run it beside torch; see `advprior.predictors.llm.tuning.export`.

    Raises
    ------
    AdvpriorError
        ``PRI004`` when the graph computes something else.
    """
    from advprior.predictors.llm.tuning.export import export_onnx
    from advprior.runtime.session import open_session

    facts = export_onnx(model, out)
    engine = open_session(Path(out) / "model.onnx", device="cpu")
    checks = []
    cases = name_cases(model)
    for case in cases:
        with torch.inference_mode():
            ours = model(*map(torch.from_numpy, case))["log_probs"].numpy()
        theirs = engine.run_inputs(dict(zip(("input_ids", "attention_mask", "offset"), case, strict=True)))
        batch, sequence = case[0].shape
        checks.append(require_parity(theirs, ours, f"{out} at batch {batch}, sequence {sequence}"))
    return {**facts, **worst(checks)}


def name_cases(model: NameModel, seed: int = 0) -> list[NameCase]:
    """Random right-padded batches of several sizes."""
    rng = np.random.default_rng(seed)
    return [_case(rng, batch, sequence, model.config) for batch, sequence in _SHAPES]


def _case(rng: np.random.Generator, batch: int, sequence: int, config: Any) -> NameCase:
    lengths = rng.integers(min(_SHORTEST, sequence), sequence + 1, batch)
    lengths[0] = sequence
    mask = (np.arange(sequence) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, int(config.backbone["vocab_size"]), (batch, sequence)) * mask
    offset = rng.normal(0.0, 2.0, (batch, len(config.names))).astype(np.float32)
    return ids.astype(np.int64), mask, offset
