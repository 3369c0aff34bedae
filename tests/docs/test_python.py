"""The Python of README and docs/python.md runs as it stands, in order, beside a small project."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from advprior.pipeline.fit import finetune
from advprior.pipeline.score import score
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import manifest_digest, new_run
from tests.docs.markdown import DOCS, PAGES, ROOT, split
from tests.ranking.frames import write_frame
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``my-project``: tables, a cheap predictor, its priors; a frame of its own users."""
    folder = tmp_path_factory.mktemp("python") / "my-project"
    tables, run = folder / "tables", folder / "models" / "neighbours"
    write_tiny(tables)
    finetune(tables, run, "neighbours", predictor_class("neighbours").settings({}))
    with new_run(run / "onnx", "export", config={}, inputs={"run": manifest_digest(run)}, key="x") as work:
        work.facts.update(load_predictor(run).export(work.path))
    score(run, tables, folder / "priors" / "neighbours")
    write_frame(folder / "frame")
    return folder.parent


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "python.md"], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    blocks = [block for block in split(page.read_text())[0] if block.language == "python"]
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile("\n" * block.line + block.text, page.name, "exec"), names)
    priors, result = names["priors"], names["result"]
    assert priors.of("u001").array().shape[1] == 12  # type: ignore[attr-defined]
    assert [lift.arm for lift in result.compare("hour", "neighbours")][:1] == ["hour"]  # type: ignore[attr-defined]
    if page.name == "python.md":
        assert names["top"].groupby("user_id").size().to_dict() == {"u001": 10, "u002": 10}  # type: ignore[attr-defined]
        assert (project / "my-ablation" / "manifest.json").is_file()


def test_all_other_python_parses() -> None:
    for page in PAGES:
        for block in split(page.read_text())[0]:
            if block.language == "python":
                ast.parse(block.text, f"{page.name}:{block.line}")
