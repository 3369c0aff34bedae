"""From a Hugging Face folder to a decoder and a tokenizer that a predictor can be built on, whatever the family.

What families disagree on is settled here: where the decoder sits inside a causal LM (a vocabulary head and, around
some, a vision tower are left out), which layers are kept, and rotary positions that change with the length of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advprior.predictors.tuning.transformers_import import import_transformers
from advprior.store.errors import AdvpriorError

_CAUSAL = "a causal LM: a token's state depends on no later token (Llama, Mistral, Qwen, Gemma, GPT …)"
_ANOTHER = "set `base` to another model, or leave it at its default"


@dataclass(frozen=True)
class Loaded:
    """A decoder, and what it was taken out of.

    Attributes
    ----------
    model : PreTrainedModel
        Decoder in float32 with its first layers.
    layers_before : int
        How many layers there were.
    whole : PreTrainedModel, optional
        The causal LM around it; None where the folder lacks its vocabulary head.
    """

    model: Any
    layers_before: int
    whole: Any


def load_decoder(
    folder: Path, source: str, layers: int | None, context: int | None, at_most: int | None = None
) -> Loaded:
    """The decoder of a folder in float32 with its first ``layers`` layers, or ``at_most`` so many of them.

    Raises
    ------
    AdvpriorError
        ``PRI022`` when there are fewer layers or it is no causal decoder, ``PRI023`` when it cannot be loaded.
    """
    from advprior.predictors.tuning.anatomy import sliced

    with loading(folder):
        config, text = _configs(folder, source)
    layers_before = int(getattr(text, "num_hidden_layers", 0))
    wanted = min(layers_before, at_most or layers_before) if layers is None else layers
    if not 1 <= wanted <= layers_before:
        raise AdvpriorError(
            "PRI022",
            "the base model has fewer layers than that",
            where=source,
            actual=f"layers: {wanted}",
            expected=f"1 to {layers_before}",
            fix="change `layers` in the configuration",
        )
    text = settle_rope(sliced(text, 0, wanted), context)
    text.use_cache = False
    if config.get_text_config(decoder=True) is config:
        config = text
    else:
        name = next(name for name, value in vars(config).items() if value is config.get_text_config(decoder=True))
        setattr(config, name, text)
    with loading(folder):
        model, whole = _read(folder, config)
        causal = _causal(model)
    if not causal:
        raise AdvpriorError(
            "PRI022",
            "this model is no causal decoder",
            where=source,
            actual=type(model).__name__,
            expected=_CAUSAL,
            fix=_ANOTHER,
        )
    return Loaded(model, layers_before, whole)


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Whatever a model's own code raises on its files, said as one error."""
    try:
        with quiet_transformers():
            yield
    except AdvpriorError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise AdvpriorError(
            "PRI023",
            "the base model cannot be loaded",
            where=str(folder),
            actual=f"{type(error).__name__}: {first}",
            expected="a whole Hugging Face folder of a causal LM",
            fix="fetch or convert the folder again, or set `base` to another model",
        ) from error


def _configs(folder: Path, source: str) -> tuple[Any, Any]:
    """A folder's configuration, and the part of it that describes the decoder."""
    import_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise AdvpriorError(
            "PRI022",
            "this model is no causal decoder",
            where=source,
            actual=f"model type {config.model_type}",
            expected=_CAUSAL,
            fix=_ANOTHER,
        )
    if getattr(config, "quantization_config", None):
        method = dict(config.quantization_config).get("quant_method", "unnamed")
        raise AdvpriorError(
            "PRI023",
            "the base model's weights are quantised",
            where=source,
            actual=f"quantization_config, method {method}",
            expected="weights in float32, bfloat16 or float16, or a GGUF file of the Llama architecture",
            fix="set `base` to the original weights of the same model",
        )
    return config, config.get_text_config(decoder=True)


def settle_rope(config: Any, context: int | None) -> Any:
    """Fix rotary positions that change with the length of a batch (longrope of Phi-3) at those of ``context`` tokens.

    Such a model has two tables of factors, for batches up to the length it was trained on and for longer ones. The
    state of a token then depends on what stands beside it in the batch, a long prompt says other things of its past
    than a short one did, and a graph holds whichever table it was traced with. One table for all is what a server
    that knows its longest prompt takes, too. Scalings that are fixed (linear, yarn, Llama 3) stay as they are; dynamic
    ones begin to change beyond the positions that prompts are held to (``PRI007``).
    """
    scaling = getattr(config, "rope_scaling", None)
    if context is None or not isinstance(scaling, dict) or "long_factor" not in scaling:
        return config
    trained = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    factors = scaling["long_factor" if context > trained else "short_factor"]
    config.rope_scaling = {**scaling, "short_factor": factors, "long_factor": factors}
    return config


def _read(folder: Path, config: Any) -> tuple[Any, Any]:
    """The decoder, with every one of its weights, and the causal LM that it is part of, where that is whole, too."""
    import torch
    from transformers import AutoModelForCausalLM

    from advprior.predictors.tuning.anatomy import decoder_of

    # sdpa, where the architecture has it, needs 0.93 (tuning, 512 tokens) to 0.48 (1,000 tokens, no gradient) of
    # eager's CPU time; same numbers
    whole, report = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    whole = whole.eval()
    model = decoder_of(whole)
    prefix = next(name for name, module in whole.named_modules() if module is model)
    missing = [key.removeprefix(f"{prefix}.") for key in report["missing_keys"] if key.startswith(prefix)]
    if missing:
        # transformers would fill them with random numbers and go on
        raise AdvpriorError(
            "PRI023",
            "the base model lacks weights",
            where=str(folder),
            actual=", ".join(sorted(missing)[:4]),
            expected="every weight of the kept layers",
            fix="fetch or convert the folder again",
        )
    return model, None if report["missing_keys"] else whole


def _causal(model: Any) -> bool:
    """Whether a later token leaves earlier states alone, tried out; priors of the past depend on it."""
    import torch

    table = model.get_input_embeddings()
    if table is None or "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return False
    one = torch.arange(8)[None] % table.weight.shape[0]
    two = one.clone()
    two[0, -1] = 0
    with torch.no_grad():
        first, second = (model(input_ids=ids).last_hidden_state[0, :-1] for ids in (one, two))
    return torch.allclose(first, second, atol=1e-4 * float(first.abs().max()))


def saved_tokenizer(folder: Path, fix: str) -> Any:
    """The tokenizer of a Hugging Face folder as it was saved, marks and all.

    Raises
    ------
    AdvpriorError
        ``PRI023`` when the package ``tokenizers`` does not run it; ``fix`` is what the reader is told to do.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    saved = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)
    if isinstance(saved, PreTrainedTokenizerFast):
        return saved
    raise AdvpriorError(
        "PRI023",
        "the base model's tokenizer has no fast version",
        where=str(folder),
        actual=type(saved).__name__,
        expected="a tokenizer.json",
        fix=fix,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, putting nothing before or after a text, with a pad token if it has one.

    Raises
    ------
    AdvpriorError
        ``PRI023`` when there is none, or none that the package ``tokenizers`` runs.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    with loading(folder):
        saved = saved_tokenizer(folder, _ANOTHER)
        tokens = saved.backend_tokenizer
        # a prompt grows at its end and is never a chat: no BOS, no EOS, no cut, no padding of its own
        tokens.post_processor = processors.ByteLevel(trim_offsets=False)
        tokens.no_truncation()
        tokens.no_padding()
        # marks such as <tool_call> are not special to every tokenizer that has them: none is meant in a user's text
        marks = [token.content for token in tokens.get_added_tokens_decoder().values() if _is_mark(token.content)]
        tokens.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            eos_token=saved.eos_token,
            pad_token=saved.pad_token or saved.eos_token,
            model_max_length=saved.model_max_length,
            clean_up_tokenization_spaces=False,
        )


def _is_mark(content: str) -> bool:
    """Whether an added token is a mark in brackets, not text such as a run of spaces."""
    return len(content) > 2 and content[0] + content[-1] in ("<>", "[]")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only: that the vocabulary head and the dropped layers stay unused is the intention here."""
    import_transformers()
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
