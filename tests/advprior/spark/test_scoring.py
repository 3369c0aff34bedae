"""Scoring on Spark writes what one machine writes, goes on where it stopped, and says what went wrong on a worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.pipeline.fit import finetune
from advprior.pipeline.rowfiles import Journal
from advprior.predictors.registry import predictor_class
from advprior.spark import cluster
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from tests.advprior.conftest import Fitted, export, llm_settings
from tests.advprior.scoring import score
from tests.spark import CONF, needs_spark, open_session, quiet, spark_block

pytestmark = [needs_spark, *quiet]
MASTER = CONF["spark.master"]
SMALL: dict[str, Any] = {"device": "cpu", "threads": 1, "shard_users": 7}


@pytest.fixture(scope="module")
def session() -> Any:
    return open_session()


@pytest.fixture(scope="module")
def llm(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM with a head of interests."""
    out = tmp_path_factory.mktemp("spark") / "llm"
    raw = {**llm_settings(fitted.folder / "base", epochs=1), "interests": {"weight": 0.5}}
    assert finetune(fitted.tables, out, "llm", predictor_class("llm").settings(raw))
    export(out)
    return out


def assert_same(ours: Path, theirs: Path) -> None:
    """Same files, same rows; priors within 1e-6 of the largest: batches of another size round otherwise."""
    names = {path.name for path in ours.iterdir()}
    assert names == {path.name for path in theirs.iterdir()}
    for name in sorted(names - {"manifest.json"}):
        if name.endswith(".npy"):
            first, second = np.load(ours / name), np.load(theirs / name)
            assert first.dtype == second.dtype
            scale = np.abs(first).max() if first.dtype.kind == "f" else 0
            np.testing.assert_allclose(second, first, rtol=0, atol=1e-6 * scale, err_msg=name)
        elif name.endswith(".parquet"):
            rows = [pd.read_parquet(folder / name) for folder in (ours, theirs)]
            pd.testing.assert_frame_equal(*rows, rtol=1e-5, atol=1e-6)
        else:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_the_llm_s_priors_and_interests_are_those_of_one_machine(
    session: Any, fitted: Fitted, llm: Path, tmp_path: Path
) -> None:
    assert score(llm, fitted.tables, tmp_path / "local", **SMALL)
    assert score(llm, fitted.tables, tmp_path / "spark", spark=MASTER, **SMALL)
    assert_same(tmp_path / "local", tmp_path / "spark")
    local, remote = (read_manifest(tmp_path / name) for name in ("local", "spark"))
    assert remote["facts"]["spark"] | {"version": ""} == {
        "master": MASTER,
        "cores": 2,
        "version": "",
        "threads": 1,
        "providers": ["CPUExecutionProvider"],
    }
    assert remote["key"] == local["key"]
    for name in ("prompts", "forwarded", "max_sum_error", "interests_version"):
        assert remote["facts"][name] == local["facts"][name]
    # a refresh forwards on Spark only whose input changed: here nobody's
    assert score(llm, fitted.tables, tmp_path / "again", since=tmp_path / "local", spark=MASTER, **SMALL)
    assert score(llm, fitted.tables, tmp_path / "here", since=tmp_path / "local", **SMALL)
    assert read_manifest(tmp_path / "again")["facts"]["carried"] == 40
    assert_same(tmp_path / "here", tmp_path / "again")


@pytest.mark.parametrize("kind", ["sasrec", "neighbours"])
def test_who_asks_for_everyone_s_purchases_gets_them(session: Any, fitted: Fitted, tmp_path: Path, kind: str) -> None:
    for name, spark in (("local", None), ("spark", MASTER)):
        assert score(fitted.model(kind), fitted.tables, tmp_path / name, spark=spark, top_k=5, last=3, **SMALL)
    assert_same(tmp_path / "local", tmp_path / "spark")


def test_spark_goes_on_where_one_machine_stopped(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = fitted.model("llm"), {**SMALL, "shard_users": 5, "last": 2}
    assert score(run, fitted.tables, tmp_path / "calm", **options)

    def interrupted(after: int, **more: Any) -> None:
        """Stop right after so many shards are on disk."""
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "add", _stopping(Journal.add, after))
            with pytest.raises(KeyboardInterrupt):
                score(run, fitted.tables, tmp_path / "out", **options, **more)
        assert not (tmp_path / "out").exists()

    interrupted(3)
    interrupted(4, spark=MASTER)  # what is under way is given up, what was written counts
    sent: list[int] = []
    take = cluster.part_of

    def counted(histories: Any, users: Any) -> Any:
        sent.extend(users)
        return take(histories, users)

    monkeypatch.setattr(cluster, "part_of", counted)
    assert score(run, fitted.tables, tmp_path / "out", spark=MASTER, **options)
    assert len(sent) == len(set(sent)) == 40 - 4 * 5
    assert_same(tmp_path / "calm", tmp_path / "out")


def _stopping(note: Any, after: int) -> Any:
    def add(journal: Journal, shard: int, facts: dict[str, float]) -> None:
        note(journal, shard, facts)
        if len(journal.done) == after:
            raise KeyboardInterrupt

    return add


def test_a_coded_error_of_a_worker_comes_back_as_it_was(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_graph(run: Path, archive: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        (copy / "onnx" / "model.onnx").write_bytes(b"torn")
        whole(copy, archive)

    whole = cluster.pack
    monkeypatch.setattr(cluster, "pack", without_a_graph)
    with pytest.raises(AdvpriorError, match="PRI030"):
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER, **SMALL)
    assert not (tmp_path / "out").exists()


def test_any_other_failure_of_a_worker_is_named(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "packed", lambda histories: b"no pickle")
    with pytest.raises(AdvpriorError, match="PRI072") as failed:
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER, **SMALL)
    assert "UnpicklingError" in str(failed.value.actual)


def test_by_configuration_alone(fitted: Fitted, tmp_path: Path) -> None:
    """The same command, its session taken from the store's own file; then nothing is left to do, Spark or not."""
    conf = tmp_path / "feature_store.yaml"
    conf.write_text("project: advprior\noffline_store:\n" + spark_block())
    call = [
        sys.executable,
        "-m",
        "advprior",
        "score",
        fitted.model("popularity"),
        "--tables",
        fitted.tables,
        "--out",
        tmp_path / "out",
        "--last",
        "2",
    ]
    environment = {**os.environ, "ADVPRIOR_SPARK": str(conf), "PYTHONHASHSEED": "0"}
    environment.pop("PYSPARK_PYTHON", None)
    done = subprocess.run(list(map(str, call)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "on Spark (local[2], 2 cores): 40 users x 2 snapshots" in done.stdout
    assert not score(fitted.model("popularity"), fitted.tables, tmp_path / "out", last=2)


@pytest.mark.parametrize("content", [None, "a: [", "offline_store: duckdb", "spark_conf: {spark.ui.enabled: false}"])
def test_a_file_without_settings_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "spark.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AdvpriorError, match="PRI071"):
        cluster.read_conf(str(path))


def test_settings_at_the_top_or_beside_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_MASTER", "spark://host:7077")
    path = tmp_path / "spark.yaml"
    path.write_text("spark_conf:\n  spark.master: ${SPARK_MASTER}\n  spark.executor.cores: 4\n")
    assert cluster.read_conf(str(path)) == {"spark.master": "spark://host:7077", "spark.executor.cores": "4"}


def test_spark_without_java_is_refused(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(AdvpriorError, match=r"PRI070(.|\n)*Java"):
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER)
