"""`advprior export`: one command for every predictor, reused when nothing changed, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from advprior.cli import main
from advprior.store.runs import read_manifest
from tests.tiny import write_tiny


def _run(*arguments: object) -> int:
    """Exit code of ``advprior …``."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tables") / "tables")


@pytest.fixture
def fitted(tables, tmp_path, capsys):
    out = tmp_path / "popularity"
    assert _run("finetune", "--tables", tables, "--out", out, "--predictor", "popularity") == 0
    capsys.readouterr()
    return out


def test_writes_a_run_of_its_own_and_reuses_it(fitted, capsys):
    assert _run("export", fitted) == 0
    assert "in log-prob" in capsys.readouterr().out
    manifest = read_manifest(fitted / "onnx", step="export")
    assert manifest["facts"]["parity"] <= manifest["facts"]["parity_allowed"]
    assert manifest["facts"]["predictor"] == "popularity"
    assert "model.onnx" in manifest["outputs"]
    assert _run("export", fitted) == 0
    assert "unchanged, reused" in capsys.readouterr().out
    assert _run("export", fitted, "--force") == 0
    assert "in log-prob" in capsys.readouterr().out
    # the finetune run is as it was
    read_manifest(fitted, step="finetune")


def test_reuse_imports_nothing_heavy(fitted):
    assert _run("export", fitted) == 0
    code = (
        "import sys; from advprior.cli import main\n"
        f"try: main(['export', {str(fitted)!r}])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'onnxruntime', 'onnx', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "unchanged, reused" in done.stdout


def test_exported_again_after_another_fit(fitted, capsys):
    assert _run("export", fitted) == 0
    manifest = json.loads((fitted / "manifest.json").read_text())
    manifest["key"] = "another"
    (fitted / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert _run("export", fitted) == 0
    assert "unchanged" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["nothing", "another step"])
def test_refuses_what_is_no_finetune_run(tables, tmp_path, capsys, kind):
    folder = tables if kind == "another step" else tmp_path / "nothing"
    assert _run("export", folder) == 2
    error = capsys.readouterr().err
    assert ("RUN003" if kind == "another step" else "RUN001") in error
    assert "advprior finetune" in error
    assert not (folder / "onnx").exists()


def test_a_failing_export_leaves_nothing(fitted, capsys):
    for file in fitted.iterdir():
        if file.is_file() and file.name != "manifest.json":
            file.write_bytes(b"")
    assert _run("export", fitted) != 0
    assert not (fitted / "onnx").exists()
    assert not list(fitted.glob(".*partial"))
