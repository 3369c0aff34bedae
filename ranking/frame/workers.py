"""Who works on the blocks of a log, or the parts of a frame: this process, or the workers of Feast's Spark session."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from advprior.store.offline import STORE_FILE
from advprior.store.progress import Progress, tracked

#: Tasks of each core between two lines of progress: a wave waits for its slowest.
_WAVE = 4


def run_here(function: Callable[[Any, int], None], shared: Any, numbers: Sequence[int]) -> None:
    """``function(shared, number)`` of each number, one after the other."""
    for number in tracked(numbers, _named(function), "block of users"):
        function(shared, number)


def spark_runner(repo: Path) -> Callable[[Callable[[Any, int], None], Any, Sequence[int]], None]:
    """As `run_here`, on the workers of the session that ``feature_store.yaml`` describes, which starts now."""
    context = spark_context(_store_of(repo))

    def run(function: Callable[[Any, int], None], shared: Any, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        wave = _WAVE * context.defaultParallelism
        with Progress(len(numbers), _named(function), "block of users") as progress:
            for start in range(0, len(numbers), wave):
                for _ in on_workers(context, function, shared, numbers[start : start + wave]):
                    progress.update()

    return run


def _named(function: Callable[[Any, int], None]) -> str:
    """A pass over the blocks, as progress calls it."""
    return f"features, {function.__name__}"


def spark_context(store: Any) -> Any:
    """Spark's context of the session that Feast joins with.

    Parameters
    ----------
    store : feast.infra.offline_stores.contrib.spark_offline_store.spark.SparkOfflineStoreConfig

    Raises
    ------
    AdvpriorError
        ``STO024`` where it does not start.
    """
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
        get_spark_session_or_start_new_with_repoconfig,
    )

    try:
        context = get_spark_session_or_start_new_with_repoconfig(store).sparkContext
    except Exception as error:  # Java's own, Py4J's and pyspark's share no base but this
        raise AdvpriorError(
            "STO024",
            "Spark's session does not start",
            where=f"{STORE_FILE}, spark_conf",
            actual=_line_of(error),
            expected="a master that answers, and Java 17 or later",
            fix="correct spark.master there, or start the cluster",
        ) from error
    if context.master.startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable  # Spark would take whatever `python3` is on the path
    return context


def on_workers(context: Any, function: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    """``function(shared, task)`` of each task on Spark's workers; what it gives, in order.

    Raises
    ------
    AdvpriorError
        The first that a worker raised; ``STO024`` for whatever else ends the job.
    """
    sent = context.broadcast(pickle.dumps((function, shared)))
    answers = context.parallelize(tasks, len(tasks)).map(lambda task: _answer(sent.value, task))
    try:
        for packed in _collected(context, answers):
            error, answer = pickle.loads(packed)
            if error is not None:
                raise error
            yield answer
    finally:
        sent.destroy()


def _collected(context: Any, answers: Any) -> list[bytes]:
    try:
        return list(answers.collect())
    except Exception as error:  # Java's own, Py4J's and pyspark's share no base but this
        raise AdvpriorError(
            "STO024",
            "a job failed on Spark",
            where=str(context.master),
            actual=_line_of(error),
            expected="workers with this version of advprior that see the same folders",
            fix="see the workers' logs, then run the same command again",
        ) from error


def _line_of(error: Exception) -> str:
    """The last line of Java's message that names an error."""
    lines = [line.strip(" \t:") for line in str(error).splitlines() if "Error" in line or "Exception" in line]
    return (lines or [type(error).__name__])[-1][:300]


def _answer(packed: bytes, task: Any) -> bytes:
    """On a worker: what a task gives, or the coded error that it ended with."""
    function, shared = pickle.loads(packed)
    try:
        return pickle.dumps((None, function(shared, task)))
    except AdvpriorError as error:
        return pickle.dumps((error, None))


def _store_of(repo: Path) -> Any:
    from feast.repo_config import load_repo_config

    return load_repo_config(repo, repo / STORE_FILE).offline_store
