"""A Spark session that cannot be had: one error, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advprior.store.errors import AdvpriorError
from ranking.frame.publish import publish_features
from tests.ranking.frame.logs import log_at, publish_log
from tests.ranking.stores import copy_repo
from tests.spark import needs_spark, quiet, use_spark

pytestmark = [needs_spark, *quiet]


def test_a_session_that_does_not_start_is_named_before_the_log_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Feast asks for it fails as Java does."""
    from feast.infra.offline_stores.contrib.spark_offline_store import spark

    def unreachable(store: Any) -> Any:
        raise RuntimeError(": org.apache.spark.SparkException: Could not parse Master URL\n\tat java.base/x(Y.java:1)")

    monkeypatch.setattr(spark, "get_spark_session_or_start_new_with_repoconfig", unreachable)
    publish_log(tmp_path / "tables", tmp_path / "whole", 25, log_at(25))
    repo = use_spark(copy_repo(tmp_path / "spark"))
    with pytest.raises(AdvpriorError, match=r"STO024(.|\n)*does not start(.|\n)*found:    org.apache(.|\n)*Master URL"):
        publish_features(tmp_path / "tables", repo)
    assert not list((repo / "data").rglob("*.parquet"))
