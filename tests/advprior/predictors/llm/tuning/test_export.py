"""The exported graph: the same numbers as torch, whatever the shape, the padding and the later tokens."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from transformers.models.llama import modeling_llama

from advprior.pipeline.precision import damage
from advprior.predictors.llm.tuning.export import GraphForm, cast, export_onnx, parity, parity_cases
from advprior.predictors.llm.tuning.fused import can_fuse
from advprior.predictors.llm.tuning.model import AdvertiserModel, from_base
from advprior.predictors.tuning.base import load_base
from advprior.runtime.parity import allowed_difference, largest_difference
from advprior.runtime.precision import ROUNDING, precision_of
from advprior.runtime.session import open_session
from advprior.store.errors import AdvpriorError
from tests.parity import assert_distributions, assert_other_log_probs, assert_same_log_probs
from tests.tiny_llm import VOCABULARY, write_tiny_llm

ADVERTISERS = 13
PAD = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> AdvertiserModel:
    """A tiny random model, saved and loaded as a finetune run does; its head far from uniform."""
    folder = tmp_path_factory.mktemp("llm")
    base = load_base(str(write_tiny_llm(folder / "base")))
    generator = torch.Generator().manual_seed(1)
    made = from_base(
        base.model,
        catalog_size=ADVERTISERS,
        text_vocab_size=VOCABULARY,
        frozen_layers=1,
        advertiser_embeddings=torch.randn(ADVERTISERS, 32, generator=generator) * 0.2,
    )
    with torch.no_grad():
        made.head.weight.normal_(std=0.5, generator=generator)
        made.head.bias.normal_(generator=generator)
        made.adapter.weight[1:].normal_(std=0.1, generator=generator)
    made.save_pretrained(folder / "model")
    return AdvertiserModel.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    facts = export_onnx(model, folder)
    return folder / "model.onnx", facts


@pytest.fixture(scope="module")
def engine(exported):
    return open_session(exported[0], device="cpu", threads=1)


def run(engine, ids, mask, positions, offset=None):
    """Log-probs [B, P, N]; no offset unless given."""
    none = np.zeros((*np.shape(positions), ADVERTISERS), np.float32)
    return engine.run(ids, mask, positions, none if offset is None else offset)


def one(engine, ids, positions):
    """Log-probs [P, N] of one prompt without padding."""
    ids, positions = np.asarray([ids], np.int64), np.asarray([positions], np.int64)
    return run(engine, ids, np.ones_like(ids), positions)[0]


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY + ADVERTISERS, length).tolist()


def test_parity_over_shapes_and_padding(model, exported):
    cases = parity_cases(model)
    assert {case[0].shape[1] for case in cases} >= {1, 2, 1000}
    assert any((case[1] == 0).any() for case in cases), "no case is padded"
    report = parity(model, exported[0], cases)
    assert 0 < report["parity"] <= report["parity_allowed"] < 1e-3
    assert report["probability_sum_error"] <= report["parity_allowed"]
    assert report["cases"] == len(cases)
    # the test could not fail if all outputs were alike
    with torch.inference_mode():
        log_probs = model(*map(torch.from_numpy, cases[-1]))["log_probs"]
    assert float(log_probs.std(1).mean()) > 0.1


def test_parity_refuses_a_graph_of_another_model(model, exported):
    with torch.no_grad():
        model.head.bias[3] += 0.01
    try:
        with pytest.raises(AdvpriorError, match="PRI004"):
            parity(model, exported[0], parity_cases(model))
    finally:
        with torch.no_grad():
            model.head.bias[3] -= 0.01


def test_facts_name_the_file_and_its_interface(exported):
    path, facts = exported
    assert facts["inputs"] == ["input_ids", "attention_mask", "positions", "offset"]
    assert facts["outputs"] == ["log_probs", "states"]
    assert facts["bytes"] == path.stat().st_size


def test_axes_are_free_and_the_catalog_is_fixed(exported):
    graph = onnx.load(str(exported[0])).graph
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert sizes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "positions": ["batch", "points"],
        "offset": ["offset_batch", "offset_points", ADVERTISERS],  # or one for all
        "log_probs": ["batch", "points", ADVERTISERS],
        "states": ["batch", "points", 32],
    }


def test_no_vocabulary_logits(exported):
    """Weights with a row or column per token are looked up, never multiplied with."""
    graph = onnx.load(str(exported[0])).graph
    tables = {w.name for w in graph.initializer if VOCABULARY in w.dims or VOCABULARY + ADVERTISERS in w.dims}
    assert tables
    assert {node.op_type for node in graph.node if tables & set(node.input)} == {"Gather"}


def test_torch_keeps_its_own_attention_after_the_export(model, exported):
    assert {part.config._attn_implementation for part in (model.lower, model.upper)} == {"sdpa"}


def test_padded_batch_equals_one_by_one(engine):
    prompts = [prompt(length, seed) for seed, length in enumerate((1, 4, 31, 9))]
    # ids that end with the pad token's id are prompts as good as any other
    prompts[3][-2:] = [PAD, PAD]
    ids, mask = np.full((4, 31), PAD, np.int64), np.zeros((4, 31), np.int64)
    for row, tokens in enumerate(prompts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    positions = np.asarray([[0, len(p) - 1] for p in prompts], np.int64)
    batch = run(engine, ids, mask, positions)
    for row, tokens in enumerate(prompts):
        assert_same_log_probs(batch[row], one(engine, tokens, positions[row]))
    # what stands in the padding changes nothing
    ids[mask == 0] = VOCABULARY + 1
    assert_same_log_probs(run(engine, ids, mask, positions), batch)


def test_log_probs_sum_to_one(engine):
    log_probs = one(engine, prompt(50), list(range(50)))
    assert log_probs.shape == (50, ADVERTISERS)
    assert_distributions(log_probs)


def test_offset_is_added_to_the_logits_before_normalising(engine):
    ids, positions = np.asarray([prompt(20)], np.int64), np.asarray([[4, 19]], np.int64)
    offset = np.random.default_rng(3).normal(0, 2, (1, 2, ADVERTISERS)).astype(np.float32)
    shifted = run(engine, ids, np.ones_like(ids), positions) + offset
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    assert_same_log_probs(run(engine, ids, np.ones_like(ids), positions, offset), expected)


def test_long_forward_equals_truncated_prompts(engine):
    """What makes a backfill one forward: a position has seen nothing later than itself."""
    ids = prompt(64)
    long = one(engine, ids, list(range(64)))
    for cut in (1, 2, 17, 63):
        assert_same_log_probs(long[cut - 1], one(engine, ids[:cut], [cut - 1])[0])


def test_earlier_tokens_matter_and_later_ones_do_not(engine):
    ids = prompt(40)
    changed = [*ids[:20], (ids[20] + 7) % VOCABULARY, *ids[21:]]
    before, after = one(engine, ids, list(range(40))), one(engine, changed, list(range(40)))
    assert_same_log_probs(before[:20], after[:20])
    for position in range(20, 40):
        assert_other_log_probs(before[position], after[position])


# -- precisions and fused attention ------------------------------------------------------------------------


def _types(path) -> tuple[dict[str, int], dict[str, list]]:
    """Element type of every value of a graph, as far as it can be inferred, and its nodes by operator."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    types = {w.name: w.data_type for w in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    nodes: dict[str, list] = {}
    for node in graph.node:
        nodes.setdefault(node.op_type, []).append(node)
    return types, nodes


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_has_islands_of_fp32(model, tmp_path, precision):
    """Layers multiply in half precision; angles, norms, the head and what comes after it do not."""
    facts = export_onnx(model, tmp_path, GraphForm(precision))
    assert facts["precision"] == precision_of(tmp_path / "model.onnx") == precision
    half = {"bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}[precision]
    types, nodes = _types(tmp_path / "model.onnx")
    fp32 = onnx.TensorProto.FLOAT
    products = [types[node.input[1]] for node in nodes["MatMul"] if node.input[1] in types]
    assert products.count(half) >= 3 * 7  # of three layers, and attention's own besides
    for operator in ("Cos", "Sin", "Pow", "Sqrt", "LogSoftmax", "Softmax"):
        assert {types[node.input[0]] for node in nodes[operator]} == {fp32}, operator
    head = next(node for node in nodes["MatMul"] if ADVERTISERS in _shape(tmp_path / "model.onnx", node.input[1]))
    assert {types[name] for name in (*head.input, *head.output)} == {fp32}
    # the model itself is as it was, and torch's own forward in that precision is near it
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    case = parity_cases(model)[3]
    with torch.inference_mode():
        full, reduced = (m(*map(torch.from_numpy, case))["log_probs"].numpy() for m in (model, cast(model, precision)))
    assert 0 < largest_difference(reduced, full) <= 40 * ROUNDING[precision]
    if precision == "bf16":  # whose kernels are CUDA's alone
        with pytest.raises(AdvpriorError, match=r"PRI033(.|\n)*bf16 on the CPU"):
            open_session(tmp_path / "model.onnx", device="cpu")


def _shape(path, name) -> list[int]:
    return next((list(w.dims) for w in onnx.load(str(path)).graph.initializer if w.name == name), [])


@pytest.mark.parametrize(("precision", "operator"), [("tf32", "MultiHeadAttention"), ("fp16", "GroupQueryAttention")])
def test_fused_attention_says_the_same(model, tmp_path, precision, operator):
    assert can_fuse(model)
    export_onnx(model, tmp_path, GraphForm(precision, "fused"))
    _, nodes = _types(tmp_path / "model.onnx")
    assert len(nodes[operator]) == 3
    assert len(nodes["RotaryEmbedding"]) == 2 * 3
    assert "Softmax" not in nodes
    cases = parity_cases(model)
    if precision == "tf32":  # on a CPU the same as fp32
        assert parity(model, tmp_path / "model.onnx", cases)["cases"] == len(cases)
    half = cast(model, precision)
    fused_engine = open_session(tmp_path / "model.onnx", device="cpu", threads=1)
    assert fused_engine.precision == precision
    for case in cases[:4]:
        with torch.inference_mode():
            expected = half(*map(torch.from_numpy, case))["log_probs"].numpy()
        assert largest_difference(fused_engine.run(*case), expected) <= 10 * ROUNDING[precision]
    # nothing of the decoder's own is left changed
    assert {part.config._attn_implementation for part in (model.lower, model.upper)} == {"sdpa"}
    assert modeling_llama.apply_rotary_pos_emb.__module__ == modeling_llama.__name__


def test_attention_that_is_not_plain_is_not_fused(tmp_path):
    base = load_base(str(write_tiny_llm(tmp_path / "base", architecture="gpt_neox")))
    windowed = from_base(
        base.model,
        catalog_size=ADVERTISERS,
        text_vocab_size=VOCABULARY,
        frozen_layers=1,
        advertiser_embeddings=torch.zeros(ADVERTISERS, 32),
    )
    windowed.upper.config.sliding_window = 16
    with pytest.raises(AdvpriorError, match="PRI034"):
        export_onnx(windowed, tmp_path / "onnx", GraphForm(attention="fused"))


def test_weights_beyond_one_file_lie_beside_the_graph(model, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # Optimum's own switch for what 2 GB bring about
    facts = export_onnx(model, tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    inside = {w.name for w in graph.initializer if w.data_location != onnx.TensorProto.EXTERNAL}
    assert not any(len(w.dims) == 2 for w in graph.initializer if w.name in inside)
    assert facts["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("model.onnx*"))
    parity(model, tmp_path / "model.onnx", parity_cases(model)[:2])


def _to_ten_bits(values: torch.Tensor) -> torch.Tensor:
    """fp32 rounded to the 10 bits of mantissa that TF32 has, to nearest, as a tensor core reads its inputs."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_is_more_than_a_rounding_of_fp32_and_passes_the_gate(model) -> None:
    """Products emulated in TF32: past what fp32 may differ by (so it is never taken unasked), and within the gate."""
    model = copy.deepcopy(model)
    cases = [tuple(map(torch.from_numpy, case)) for case in parity_cases(model, 200)]
    with torch.inference_mode():
        full = [model(*case)["log_probs"].numpy() for case in cases]
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(_to_ten_bits(layer.weight))
                layer.register_forward_pre_hook(lambda _, inputs: (_to_ten_bits(inputs[0]), *inputs[1:]))
        rounded = [model(*case)["log_probs"].numpy() for case in cases]
    size = full[0].shape[-1]
    flat, tf32 = (np.concatenate([x.reshape(-1, size) for x in side]) for side in (full, rounded))
    measured = damage(flat, tf32)
    assert measured.exceeded() == []
    assert allowed_difference(flat) < measured.max_difference < allowed_difference(flat, 5 * ROUNDING["tf32"])
