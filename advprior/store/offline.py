"""Which offline store ``feature_store.yaml`` names, and what Spark needs before it may join.

Read by `definitions`, which gives Spark sources of its own kind, and by the preflight of joins: both must go by the
same line of the same file. Imports neither Feast nor Spark.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError

STORE_FILE = "feature_store.yaml"
SPARK = "spark"
TIME_ZONE = "spark.sql.session.timeZone"
INSTALL_SPARK = "pip install 'advprior[spark]', and Java 17 (Debian: openjdk-17-jre-headless)"


def store_config(repo: Path) -> dict[str, Any]:
    """What ``feature_store.yaml`` says, with ${VARIABLES} filled in.

    Raises
    ------
    AdvpriorError
        ``STO001`` when there is none that can be read.
    """
    import yaml

    path = Path(repo) / STORE_FILE
    try:
        config: Any = yaml.safe_load(os.path.expandvars(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        config = error
    if not isinstance(config, dict):
        raise AdvpriorError(
            "STO001",
            "not a feature repository",
            where=str(path),
            actual=str(config).splitlines()[0],
            expected=f"a {STORE_FILE}",
            fix="advprior init DIR",
        )
    require_current_repo(repo)
    return config


def require_current_repo(repo: Path) -> None:
    """Refuse definitions that import what an earlier version called ``feature_repo.contract``.

    Raises
    ------
    AdvpriorError
        ``STO023``.
    """
    path = Path(repo) / "definitions.py"
    text = path.read_text(errors="replace") if path.is_file() else ""
    if "feature_repo.contract" in text or "from feature_repo" in text:
        raise AdvpriorError(
            "STO023",
            "the feature repository was made by an earlier version",
            where=str(path),
            actual="it imports feature_repo.contract",
            expected="advprior.store.contract, where those names are now",
            fix=f"advprior init {Path(repo).parent}   (edited definitions are kept: change that import by hand)",
        )


def offline_kind(config: dict[str, Any]) -> str:
    """Name of the offline store; Feast's own default where none is named.

    >>> offline_kind({"offline_store": {"type": "spark"}}), offline_kind({"offline_store": "duckdb"}), offline_kind({})
    ('spark', 'duckdb', 'file')
    """
    store = config.get("offline_store", "file")
    return str(store.get("type", "file") if isinstance(store, dict) else store)


def check_spark(config: dict[str, Any], where: Path) -> None:
    """Refuse what Feast's Spark store would only fail on later, or not at all.

    Feast writes times into its SQL as text in UTC, and Spark reads them in the session's zone: with any other zone
    a materialization is off by hours, without a word.

    Raises
    ------
    AdvpriorError
        ``STO020`` without pyspark or Java, ``STO021`` when the session's time zone is not said to be UTC.
    """
    store = config.get("offline_store")
    conf = store.get("spark_conf") if isinstance(store, dict) else None
    zone = conf.get(TIME_ZONE) if isinstance(conf, dict) else None
    if zone != "UTC":
        raise AdvpriorError(
            "STO021",
            "Spark's session must be in UTC, or times in joins shift",
            where=f"{where}, spark_conf",
            actual=f"{TIME_ZONE}: {zone}" if zone else f"no {TIME_ZONE}",
            expected=f"{TIME_ZONE}: UTC",
            fix=f"add it under offline_store: spark_conf: in {where}",
        )
    absent = missing_for_spark()
    if absent:
        raise AdvpriorError(
            "STO020",
            "the offline store is Spark, which is not installed",
            where=str(where),
            actual=f"no {absent}",
            expected="pyspark and a Java runtime",
            fix=INSTALL_SPARK,
        )


def missing_for_spark() -> str:
    """What Spark lacks here: pyspark, Java, both or nothing (empty)."""
    home = os.environ.get("JAVA_HOME")
    java = (Path(home) / "bin" / "java").is_file() if home else shutil.which("java") is not None
    pyspark = importlib.util.find_spec("pyspark") is not None
    return " and ".join([*([] if pyspark else ["pyspark"]), *([] if java else ["Java"])])
