"""GGUF to a Hugging Face folder: weights dequantised, tokenizer rebuilt from the file's own tokens and merges.

Small models travel as quantised GGUF files (inside a Python package, for one); tuning needs full-precision
weights in the Hugging Face layout. The ready-made converter puts a wrong token before every text, which
more than doubles the perplexity, so the tokenizer is built here, from what the file says.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from advprior.predictors.tuning.transformers_import import import_transformers
from advprior.store.errors import AdvpriorError

#: raised when a conversion would come out differently: an older cached folder is then not used
CONVERTER_VERSION = 1

#: in a converted folder: how most of its weights were stored. One of an older version lacks it until it is asked.
PRECISION_FILE = "stored_as.txt"

_ARCHITECTURE = "llama"
_CONTROL = 3  # GGUF's type of a special token
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_USE_A_FOLDER = "give a Hugging Face folder or id of the same model in place of the .gguf file"


def convert_gguf(source: Path, folder: Path) -> Path:
    """Write ``source`` as a Hugging Face folder (float32 safetensors, config, tokenizer), whole or not at all.

    Parameters
    ----------
    source : Path
        A GGUF file of the Llama architecture with a byte-level BPE tokenizer; any quantisation that the
        package ``gguf`` can read.
    folder : Path
        Where to; replaced only if it does not exist yet.

    Raises
    ------
    AdvpriorError
        ``PRI023`` when the file is not whole or not GGUF, ``PRI024`` when it holds something else.
    """
    import gguf
    from safetensors.numpy import save_file

    try:
        reader = _reader(source)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise AdvpriorError(
            "PRI023",
            "the model file cannot be read",
            where=str(source),
            actual=str(error) or type(error).__name__,
            expected="a whole GGUF file",
            fix="fetch or install the file again",
        ) from error
    config = _config(reader, source)
    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name, source)
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            weights = _unpermute(weights, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weights = _unpermute(weights, config["num_key_value_heads"])
        tensors[name] = weights
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors

    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (beside / PRECISION_FILE).write_text(_precision(reader))
        _tokenizer(reader, config, source).save_pretrained(beside)
        try:
            os.rename(beside, folder)
        except OSError:
            # another process was first: its folder was made from the same bytes
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def stored_precision(source: Path, converted: Path) -> str:
    """How most of a GGUF file's weights are stored, by GGUF's name for it, such as ``Q4_1``: 4 bits a weight.

    Reading the file takes seconds, for its 100,000 tokens and merges: what a conversion has noted is taken.

    Parameters
    ----------
    source : Path
        The GGUF file.
    converted : Path
        What `convert_gguf` made of it.
    """
    note = converted / PRECISION_FILE
    name = note.read_text() if note.is_file() else ""
    if not name:
        name = _precision(_reader(source))
        with suppress(OSError):
            note.write_text(name)
    return name


def _precision(reader: Any) -> str:
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _reader(source: Path) -> Any:
    """GGUF's reader on a plain array of the mapped file: a memmap makes each of a million slices anew in Python."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._mapped

        @data.setter
        def data(self, mapped: Any) -> None:
            self._mapped = np.asarray(mapped)

    return Reader(source)


def _value(reader: Any, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _config(reader: Any, source: Path) -> dict[str, Any]:
    """The Llama configuration that the file's fields describe."""
    architecture = _value(reader, "general.architecture")
    scaling = _value(reader, "llama.rope.scaling.type", "none")
    if architecture != _ARCHITECTURE or scaling != "none":
        raise AdvpriorError(
            "PRI024",
            "this kind of GGUF model is not converted",
            where=str(source),
            actual=f"architecture {architecture}, rope scaling {scaling}",
            expected="architecture llama, no rope scaling",
            fix=_USE_A_FOLDER,
        )

    def get(key: str, default: Any = None) -> Any:
        value = _value(reader, f"llama.{key}", default)
        if value is None:
            raise AdvpriorError(
                "PRI023", "the model file lacks a field", where=str(source), expected=f"llama.{key}", fix=_USE_A_FOLDER
            )
        return value

    eos = _value(reader, "tokenizer.ggml.eos_token_id")
    heads, hidden = int(get("attention.head_count")), int(get("embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(_value(reader, "tokenizer.ggml.tokens", ())),
        "hidden_size": hidden,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": int(get("rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "max_position_embeddings": int(get("context_length")),
        # stored as float32: 9.99999e-06 is 1e-05
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(get("rope.freq_base", 10_000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id", eos),
        "torch_dtype": "float32",
    }


def _name(name: str, source: Path) -> str:
    """Hugging Face name of a GGUF tensor.

    >>> _name("blk.3.attn_q.weight", Path("a.gguf"))
    'model.layers.3.self_attn.q_proj.weight'
    """
    if name in _OUTER:
        return _OUTER[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight"
    raise AdvpriorError(
        "PRI024",
        "the GGUF file holds a tensor that a plain Llama does not have",
        where=str(source),
        actual=name,
        fix=_USE_A_FOLDER,
    )


def _unpermute(weights: Any, heads: int) -> Any:
    """Rows of a query or key projection from GGUF's order (rotary pairs side by side) to halves, head by head."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, weights.shape[1])
    return pairs.swapaxes(1, 2).reshape(weights.shape).copy()


def _tokenizer(reader: Any, config: dict[str, Any], source: Path) -> Any:
    """Byte-level BPE from the file's tokens and merges; special tokens by their type; nothing put before a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    import_transformers()
    from transformers import PreTrainedTokenizerFast

    kind, split = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre", "gpt-2")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitters: dict[str, Callable[[], Any]] = {
        "gpt-2": lambda: level,
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]),
    }
    if kind != "gpt2" or split not in splitters:
        raise AdvpriorError(
            "PRI024",
            "this kind of GGUF tokenizer is not converted",
            where=str(source),
            actual=f"{kind}, {split}",
            expected="gpt2 with " + " or ".join(splitters),
            fix=_USE_A_FOLDER,
        )
    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splitters[split]()
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tokens[config["eos_token_id"]],
        pad_token=tokens[config["pad_token_id"]],
        model_max_length=config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
