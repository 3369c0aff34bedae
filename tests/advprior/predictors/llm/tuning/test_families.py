"""Every family of base models, from loading to parity: what is exported says what was fitted, extended or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advprior.history.catalog import Catalog
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.extend import extend_llm
from advprior.predictors.llm.tuning.families import FAMILIES, ROPES, is_measured, rope_kind
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.tuning.anatomy import behind_layers, decoder_of, keep_lower
from advprior.predictors.tuning.base import load_base
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.tuning.cycles import SIZE, cycle_data, cycle_settings
from tests.families import HIDDEN, LAYERS, SETTINGS, write_family
from tests.parity import assert_same_log_probs
from tests.tiny_llm import VOCABULARY, write_tokenizer

DATA = cycle_data(users=6, weeks=12)
QUICK = {"layers": 2, "tuned_layers": 1, "training": {"epochs": 1, "batch_tokens": 1024}}
#: the token table has another name by family and by whether layers are cut off
MODES = {"gpt2": ("cached", "lora"), "gemma3_text": ("cached", "full")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: write_family(folder / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_fit_to_parity(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    for mode in MODES.get(family, ("cached",)):
        run = tmp_path / mode
        run.mkdir()
        settings = cycle_settings(bases[family], mode=mode, **QUICK)
        LLMPredictor.fit(DATA, settings, run)
        if mode == "cached":  # the largest graph: both parts, cut
            exported = LLMPredictor(run).export(run / "onnx")
            assert 0 < exported["parity"] <= exported["parity_allowed"]
            assert max(shape["sequence"] for shape in exported["parity_by_shape"]) == settings.prompt.context
        keeps_priors_when_extended(run, settings)


def keeps_priors_when_extended(run: Path, settings: LLMSettings) -> None:
    """A new advertiser among the fitted ones: those keep their priors among themselves, whatever they follow."""
    fitted = Catalog.load(run / "catalog.json")
    places = [i if i < 3 else i + 1 for i in range(SIZE)]
    ids, names = (*fitted.ids[:3], "new", *fitted.ids[3:]), (*fitted.names[:3], "Tea garden", *fitted.names[3:])
    out = run.with_name(f"{run.name}-wide")
    out.mkdir()
    facts = extend_llm(run, Catalog(ids, names), settings.model_dump(mode="json"), out)
    assert facts["new_advertisers"] == ["new"]
    narrow, wide = (AdvertiserModel.from_pretrained(folder / "model").eval() for folder in (run, out))
    text = [*np.random.default_rng(0).integers(3, VOCABULARY, 24)]
    bought = (0, 5, 2, 7)
    before = log_probs(narrow, [*text, *(VOCABULARY + a for a in bought)])
    after = log_probs(wide, [*text, *(VOCABULARY + places[a] for a in bought)])
    assert_same_log_probs(torch.log_softmax(after[:, places], -1), before)
    follows_the_new_one = log_probs(wide, [*text, *(VOCABULARY + a for a in (0, 6, 3))])
    assert torch.isfinite(follows_the_new_one).all()


def log_probs(model: AdvertiserModel, prompt: list[int]) -> torch.Tensor:
    """Log-probs [2, N] at the last two positions of a prompt, without any offset."""
    ids = torch.tensor([prompt])
    last = torch.tensor([[len(prompt) - 2, len(prompt) - 1]])
    with torch.no_grad():
        none = torch.zeros(1, 2, model.config.catalog_size)
        return model(ids, torch.ones_like(ids), last, none)["log_probs"][0]


def test_what_is_measured_is_what_these_tests_fit(bases: dict[str, Path]) -> None:
    from transformers import AutoConfig

    configs = {family: AutoConfig.from_pretrained(bases[family]) for family in FAMILIES}
    assert list(SETTINGS) == list(FAMILIES)
    assert all(is_measured(config) for config in configs.values())
    assert {rope_kind(config) for config in configs.values()} == set(ROPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_are_those_of_the_whole_model(family: str, bases: dict[str, Path]) -> None:
    """What a configuration lists layer by layer is cut with the layers."""
    from transformers import AutoModelForCausalLM

    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    whole = decoder_of(AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32).eval())
    part = load_base(str(bases[family]), layers=2).model
    assert (part.config.num_hidden_layers, whole.config.num_hidden_layers) == (2, LAYERS)
    with torch.no_grad(), behind_layers(part) as ours:
        part(input_ids=ids)
    keep_lower(whole, 2)
    with torch.no_grad(), behind_layers(whole) as theirs:
        whole(input_ids=ids)
    assert float((ours[0] - theirs[0]).abs().max()) <= 1e-5 * float(theirs[0].abs().max())


def test_a_model_that_is_another_one_when_cut_is_refused(tmp_path: Path) -> None:
    """XGLM scales what it looks up, but not what it is fed."""
    base = write_family(tmp_path / "base", "xglm", d_model=HIDDEN, num_layers=LAYERS, attention_heads=2, ffn_dim=64)
    with pytest.raises(AdvpriorError, match=r"PRI050(.|\n)*another model"):
        LLMPredictor.fit(DATA, cycle_settings(base, mode="full", **QUICK), tmp_path)


def test_what_cannot_be_exported_is_refused_before_the_fit(tmp_path: Path) -> None:
    """Granite's mixture of experts splits by counts that its trace makes constants of."""
    base = write_family(tmp_path / "base", "granitemoe", intermediate_size=64, num_local_experts=8)
    with pytest.raises(AdvpriorError, match=r"PRI054(.|\n)*granitemoe(.|\n)*gpt_oss(.|\n)*llama"):
        LLMPredictor.fit(DATA, cycle_settings(base, **QUICK), tmp_path)


def test_an_unmeasured_kind_that_can_be_exported_is_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    base = write_family(tmp_path / "apertus", "apertus", intermediate_size=64)
    LLMPredictor.fit(DATA, cycle_settings(base, **QUICK), tmp_path / "run")
    assert "kind apertus: trying its export before the fit" in capsys.readouterr().err


def test_a_decoder_inside_a_model_of_text_and_images(tmp_path: Path) -> None:
    """Gemma 3 from 4B on: the decoder is taken, the tower left."""
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    text = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    picture = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**text, **SETTINGS["gemma3_text"]},
        vision_config={**picture, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    base = load_base(str(tmp_path), layers=2)
    assert (base.model.config.model_type, base.origin["layers"], base.origin["of_layers"]) == ("gemma3_text", 2, 3)
    ours, theirs = (m.get_input_embeddings().weight for m in (base.model, model))
    assert torch.equal(ours, theirs)
