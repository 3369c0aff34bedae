"""Spark for tests: one small local session a process, and the reason for a skip where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advprior.store.offline import STORE_FILE, missing_for_spark

CONF = {
    "spark.master": "local[2]",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    # small queries, each run once: compiling them costs more than it saves
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.adaptive.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}

_MISSING = missing_for_spark()
needs_spark = pytest.mark.skipif(bool(_MISSING), reason=f"no {_MISSING}: pip install 'advprior[spark]', and Java 17")
#: pyspark leaves its sockets to the end of the process; Feast calls its Spark store experimental
quiet = (
    pytest.mark.filterwarnings("ignore:The spark :RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
)


def spark_block(conf: dict[str, str] = CONF) -> str:
    """``offline_store`` of a feature_store.yaml."""
    return "\n".join(
        ["  type: spark", "  spark_conf:", *(f'    {name}: "{value}"' for name, value in conf.items()), ""]
    )


def use_spark(repo: Path, conf: dict[str, str] = CONF) -> Path:
    """Turn a repository to Spark by its configuration alone."""
    path = repo / STORE_FILE
    text = path.read_text()
    assert "  type: duckdb\n" in text
    path.write_text(text.replace("  type: duckdb\n", spark_block(conf)))
    return repo


def open_session() -> Any:
    """The process's one session, as both the joins and the scoring would open it."""
    from pyspark.sql import SparkSession

    return SparkSession.builder.config(map=CONF).getOrCreate()
