"""A tiny random sentence encoder for tests: a BERT in the file layout of sentence-transformers, no download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.tiny_llm import VOCABULARY, tiny_tokenizer

HIDDEN, LAYERS = 16, 3
START, END = 1, 2


def write_tiny_sentence_encoder(
    folder: Path,
    *,
    pooling: Sequence[str] = ("mean_tokens",),
    normalise: bool = True,
    dense: int = 0,
    longest: int = 64,
) -> Path:
    """Write one as a folder that says its ``pooling``, perhaps a dense layer to so many dimensions, a normalisation."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=128,
        initializer_range=0.2,  # attention far from uniform: a wrong mask must show
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        linear = torch.nn.Linear(HIDDEN, dense or 1)
    tokens = tiny_tokenizer()
    marks = ("<|im_start|>", START), ("<|im_end|>", END)
    tokens.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=list(marks)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<|im_end|>", model_max_length=128).save_pretrained(
        folder
    )
    parts = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    paths = ["", *(f"{i}_{part}" for i, part in enumerate(parts) if i)]
    module = "sentence_transformers.models"
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{module}.{part}"}
        for i, (path, part) in enumerate(zip(paths, parts, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "weightedmean_tokens", "lasttoken")
    switches = {f"pooling_mode_{mode}": mode in pooling for mode in modes}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **switches}))
    if dense:
        (folder / "2_Dense").mkdir(exist_ok=True)
        about = {"in_features": linear.in_features, "out_features": dense, "bias": True}
        activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
        (folder / "2_Dense/config.json").write_text(json.dumps(about | activation))
        save_file(
            {f"linear.{k}": v.detach() for k, v in linear.state_dict().items()}, folder / "2_Dense/model.safetensors"
        )
    return folder
