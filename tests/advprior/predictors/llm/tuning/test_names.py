"""Name scoring: the trie says of each name what a forward of its own says, in torch and in the exported graph."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from advprior.predictors.llm.name_trie import NameTrie, name_tokens
from advprior.predictors.llm.tuning.names import NameModel, export_names, name_model, require_own_scores
from advprior.predictors.tuning.base import load_base
from advprior.runtime.session import open_session
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.naive_names import naive_log_probs, naive_scores
from tests.families import write_family
from tests.parity import assert_distributions, assert_same_log_probs
from tests.tiny_llm import VOCABULARY, write_tiny_llm

# a name that starts another, one that ends alike, one with the end marker inside, a name twice
NAMES = ["Tea", "Tea house", "The Tea house", "Bakery 12", "Tea, and more", "Soap", "Soap"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[NameModel, list[list[int]]]:
    base = load_base(str(write_tiny_llm(tmp_path_factory.mktemp("base"))), head=True)
    tokenizer = base.tokenizer.backend_tokenizer
    tokens = name_tokens(NAMES, lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    return name_model(base, tokens), tokens


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in (1, 4, 19)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, prompts()))
    ids, mask = torch.zeros(3, length, dtype=torch.long), torch.zeros(3, length, dtype=torch.long)
    for row, prompt in enumerate(prompts()):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return ids, mask


def test_the_trie_equals_a_forward_for_each_name(made) -> None:
    model, _ = made
    ids, mask = batch()
    with torch.inference_mode():
        scores = model.scores(ids, mask).numpy()
        priors = model(ids, mask, torch.zeros(3, len(NAMES)))["log_probs"].numpy()
    for row, prompt in enumerate(prompts()):
        assert_same_log_probs(scores[row], naive_scores(model, prompt))
        assert_same_log_probs(priors[row], naive_log_probs(model, prompt))
    # it could fail: prompts and names differ
    assert np.abs(priors[1] - priors[2]).max() > 0.1
    assert np.ptp(priors[1]) > 1
    assert priors[0, 5] == pytest.approx(priors[0, 6])  # the same name twice


def test_without_the_tree_mask_names_disturb_each_other(made) -> None:
    model, _ = made
    ids, mask = batch()
    with torch.inference_mode():
        right = model.scores(ids, mask)
        tree = model.tries[0]
        whole = tree.ancestors.clone()
        tree.ancestors.fill_(True)
        try:
            wrong = model.scores(ids, mask)
        finally:
            tree.ancestors.copy_(whole)
    assert float((right - wrong).abs().max()) > 0.01


def test_the_end_marker_parts_a_name_from_its_longer_one(made) -> None:
    """P(Tea) and P(Tea house) share the first edges; the marker makes them exclude each other."""
    model, tokens = made
    assert tokens[1][: len(tokens[0]) - 1] == tokens[0][:-1]
    score = naive_scores(model, prompts()[1])
    assert math.exp(score[0]) + math.exp(score[1]) < 1
    trie = NameTrie.build(tokens)
    assert len(trie.tokens) < sum(len(t) - 1 for t in tokens), "nothing is shared"
    assert (np.diagonal(trie.ancestors)).all()
    assert (trie.ancestors.sum(1) == trie.depths + 1).all()


def test_the_exported_graph_equals_torch(made, tmp_path) -> None:
    model, _ = made
    facts = export_names(model, tmp_path)
    assert facts["parity"] <= facts["parity_allowed"]
    assert facts["cases"] >= 4
    engine = open_session(tmp_path / "model.onnx", device="cpu", threads=1)
    ids, mask = batch()
    offset = np.random.default_rng(0).normal(size=(3, len(NAMES))).astype(np.float32)
    theirs = engine.run_inputs({"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "offset": offset})
    with torch.inference_mode():
        ours = model(ids, mask, torch.from_numpy(offset))["log_probs"].numpy()
    assert_same_log_probs(theirs, ours)
    assert_distributions(theirs, 1)
    for row, prompt in enumerate(prompts()):  # and so the graph equals the naive oracle
        plain = naive_scores(model, prompt) + offset[row]
        assert_same_log_probs(theirs[row], plain - np.logaddexp.reduce(plain))


def test_a_head_of_its_own_is_found_and_its_absence_said(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_llm(tmp_path / "untied")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    with pytest.raises(AdvpriorError, match="PRI063"):
        name_model(load_base(str(folder), head=True), [[1, 2]])
    weights = load_file(folder / "model.safetensors")
    head = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(0))
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(name_model(load_base(str(folder), head=True), [[1, 2]]).vocabulary, head)


@pytest.mark.parametrize(
    ("family", "factor"),
    [
        ("cohere", {"logit_scale": 0.5}),
        ("gemma2", {"final_logit_softcapping": 2.0, "sliding_window": 512}),
        ("granite", {"logits_scaling": 4.0}),
        ("phi", {}),
    ],
)
def test_heads_that_scale_cap_and_shift(family: str, factor: dict[str, float], tmp_path) -> None:
    """Each is held to its own causal LM when it is made; with another scale, cap or bias it is refused."""
    base = load_base(str(write_family(tmp_path, family, **factor)), head=True)
    if family == "phi":  # a new head's bias is zero
        torch.nn.init.normal_(base.whole.lm_head.bias)
    tokens = [[5, 9, 11], [7, 11]]
    model = name_model(base, tokens)
    if family == "phi":
        model.bias = None
    for name in factor:
        model.config.backbone[name] = 1.0
    with pytest.raises(AdvpriorError, match=r"PRI063(.|\n)*off that of a prompt of its own"):
        require_own_scores(model, base.whole, 64)


@pytest.mark.parametrize("family", ["bloom", "mistral"])
def test_a_family_that_makes_its_own_mask_is_refused(family: str, tmp_path) -> None:
    """BLOOM reads a mask [B, T] only; Mistral's window of attention is shorter than the prompt."""
    base = load_base(str(write_family(tmp_path, family)), head=True)
    with pytest.raises(AdvpriorError, match=rf"(?i)PRI063(.|\n)*{family}ForCausalLM"):
        name_model(base, [[5, 9, 11], [7, 11]])


def test_a_trie_refuses_empty_names() -> None:
    with pytest.raises(ValueError, match="every name a token"):
        NameTrie.build([[1, 2], []])
