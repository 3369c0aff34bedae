"""What is loaded as a decoder, what is refused and why, and positions that do not depend on what else is in a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from advprior.predictors.tuning.base import load_base
from advprior.store.errors import AdvpriorError
from tests.families import write_family
from tests.tiny_llm import VOCABULARY, write_tiny_llm, write_tokenizer

TRAINED = 32  # tokens that the longrope model of `tests.families` was trained on


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("phi3"), "phi3")


def states(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("context", [TRAINED, TRAINED + 1])
def test_longrope_says_the_same_of_a_prompt_alone_and_in_a_long_batch(phi3: Path, context: int) -> None:
    ids = torch.randint(3, VOCABULARY, (1, 2 * TRAINED), generator=torch.Generator().manual_seed(0))
    whole, settled = (load_base(str(phi3), context=c).model for c in (None, context))
    alone, beside = (states(settled, ids[:, :stop])[:, :TRAINED] for stop in (TRAINED, 2 * TRAINED))
    size = float(alone.abs().max())
    assert float((alone - beside).abs().max()) <= 1e-5 * size
    # unsettled, what comes later moves what was before: no prior of the past could be read off a long prompt
    short, long = (states(whole, ids[:, :stop])[:, :TRAINED] for stop in (TRAINED, 2 * TRAINED))
    assert float((short - long).abs().max()) > 0.1 * size
    expected = short if context <= TRAINED else long
    assert float((alone - expected).abs().max()) <= 1e-5 * size


def changed(folder: Path, **settings: object) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return str(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    base = changed(write_tiny_llm(tmp_path, layers=1), quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(AdvpriorError, match=r"PRI023(.|\n)*quantised(.|\n)*mxfp4"):
        load_base(base)


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    base = write_tiny_llm(tmp_path, layers=1)
    (base / "own.py").write_text("raise SystemExit('run')")
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    with pytest.raises(AdvpriorError, match="PRI023"):
        load_base(changed(base, **code))


def test_an_encoder_and_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **small)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(AdvpriorError, match=r"PRI022(.|\n)*model type t5"):
        load_base(str(tmp_path))


def test_what_a_model_s_own_code_raises_is_one_error(tmp_path: Path) -> None:
    base = changed(write_tiny_llm(tmp_path, layers=1), num_attention_heads=0)
    with pytest.raises(AdvpriorError, match=r"PRI023(.|\n)*ZeroDivisionError"):
        load_base(base)
