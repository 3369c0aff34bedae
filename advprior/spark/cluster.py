"""A Spark session to score on: opened by configuration, the model sent to its workers, jobs in waves.

Histories lie in blocks on the disk of ``--out``, which all machines share: the workers build them, and read there what
a job needs. The driver holds who the users are, and of events those that it works on.

Shards are those of one machine, and results come back to the driver, which writes them as it would its own: same
files, same journal, so that either may go on where the other was stopped. A wave holds as many jobs as take some
seconds, two waves are under way at a time, and the driver holds no more than those.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import advprior
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories
from advprior.history.read import load_people
from advprior.history.stored import BlockWork, StoredHistories, finish_blocks, is_finished, sort_events
from advprior.history.subset import Crowd, part_of
from advprior.predictors.forwarding import Forwarded, Forwarder, Job
from advprior.spark.executor import IN_COLUMNS, OUT_SCHEMA, Setup, assembled, built, compute, packed
from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError
from advprior.store.offline import INSTALL_SPARK, missing_for_spark

WAVE_SECONDS = 10.0  # aimed at: a wave costs some tenths of its own, and an interrupt may cost two
WAVE_TASKS = 2  # for every core
WAVE_BYTES = 256 << 20  # of results
WAVES = 2  # under way at a time
DEFAULTS = {
    "spark.app.name": "advprior score",
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    # Java only hands bytes on here: compiling it further costs more than it saves
    "spark.sql.codegen.wholeStage": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}
_NOT_SENT = {".safetensors", ".pt", ".bin", ".svg"}  # weights to train on and pictures: nothing that scores reads them


def read_conf(spark: str) -> dict[str, str]:
    """Spark's settings: a master by name, or a YAML file with a ``spark_conf`` block, as feature_store.yaml has one.

    Raises
    ------
    AdvpriorError
        ``PRI071`` for a file without such a block.

    Examples
    --------
    >>> read_conf("local[2]")
    {'spark.master': 'local[2]'}
    """
    path = Path(spark)
    if path.suffix not in (".yaml", ".yml"):
        return {"spark.master": spark}
    import yaml

    try:
        config: Any = yaml.safe_load(os.path.expandvars(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        config = error
    holder = config.get("offline_store", config) if isinstance(config, dict) else None
    conf = holder.get("spark_conf") if isinstance(holder, dict) else None
    if not isinstance(conf, dict) or "spark.master" not in conf:
        first_line = str(config).splitlines()[0][:100] if config else "nothing"
        raise AdvpriorError(
            "PRI071",
            "no Spark settings",
            where=spark,
            actual=first_line,
            expected="spark_conf: with spark.master, at the top or under offline_store",
            fix="name a master instead: advprior score … --spark 'local[2]'",
        )
    return {str(name): str(value) for name, value in conf.items()}


class Cluster:
    """An open session that holds a model.

    Parameters
    ----------
    session : pyspark.sql.SparkSession
    archive : str
        Folder of the model among Spark's files.
    device, threads
        Of the session in each worker process.
    """

    def __init__(self, session: Any, archive: str, device: str, threads: int) -> None:
        self._session, self._archive = session, archive
        self._device, self._threads = device, threads
        self.providers: set[str] = set()

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        context = self._session.sparkContext
        return {
            "master": context.master,
            "cores": context.defaultParallelism,
            "version": context.version,
            "threads": self._threads,
            "providers": sorted(self.providers),
        }

    def histories(self, tables: Path, catalog: Catalog, folder: Path) -> StoredHistories:
        """Everyone's histories, built by the workers; what a run that was stopped has left is taken as it is.

        Parameters
        ----------
        catalog : Catalog
            Whose events count.
        folder : Path
            Seen by all workers at the same path; whoever scored removes it.

        Raises
        ------
        AdvpriorError
            ``PRI072`` when the job fails, ``PRI074`` when a worker does not see the folder.
        """
        people = load_people(tables, catalog)
        folder = folder.resolve()
        if not is_finished(folder, len(people)):
            sort_events(tables, people.users, folder)
            work = BlockWork(folder, len(people), tuple(catalog.ids))
            context = self._session.sparkContext
            with self._failures():
                shared = context.broadcast(work)
                numbers = context.parallelize(range(len(work)), max(len(work), 1))
                blocks = numbers.map(lambda number: built(shared.value, number)).collect()
                shared.unpersist()
            for block in blocks:
                if isinstance(block, AdvpriorError):
                    raise block
            finish_blocks(work, blocks)
        return StoredHistories.open(people, folder, len(catalog))

    def forwarder(self, everyone: StoredHistories, cutoffs: Int, crowd: Crowd, size: int) -> Forwarder:
        """Runs jobs on the workers; results in order of the jobs.

        Parameters
        ----------
        everyone : StoredHistories
            As `histories` gives them.
        crowd : Crowd
            What the scorer asks of everyone.
        size : int
            N and C: log-probs a row of the result.
        """
        setup = Setup(self._archive, everyone.stored, cutoffs, crowd, self._device, self._threads)
        bytes_a_user = 4 * len(cutoffs) * size
        tasks = WAVE_TASKS * int(self._session.sparkContext.defaultParallelism)

        def run(jobs: Iterable[Job]) -> Iterator[tuple[Job, Forwarded | None]]:
            shared = self._session.sparkContext.broadcast(setup)
            tag = f"advprior-{id(shared)}"
            pool = ThreadPoolExecutor(WAVES)
            under_way: deque[tuple[list[Job], Future[tuple[dict[int, Forwarded], float]]]] = deque()
            done, pace = False, Pace(tasks)

            def oldest() -> Iterator[tuple[Job, Forwarded | None]]:
                wave, future = under_way.popleft()
                results, seconds = future.result()
                pace.note(len(wave), seconds)
                for place, job in enumerate(wave):
                    yield job, results.pop(place) if len(job.fresh) else None

            try:
                for wave in waves(jobs, pace, bytes_a_user):
                    under_way.append((wave, pool.submit(self._wave, tag, shared, everyone.people, wave, tasks)))
                    if len(under_way) == WAVES:
                        yield from oldest()
                while under_way:
                    yield from oldest()
                done = True
            finally:
                with suppress(Exception):  # Java itself may be what is gone
                    if not done:  # stopped half-way: nobody waits for the rest
                        self._session.interruptTag(tag)
                    shared.unpersist()
                pool.shutdown(wait=True, cancel_futures=True)

        return run

    def _wave(
        self, tag: str, shared: Any, people: Histories, jobs: list[Job], tasks: int
    ) -> tuple[dict[int, Forwarded], float]:
        """Results of a wave by place in it, and the seconds that it took."""
        started = time.monotonic()
        places = [place for place, job in enumerate(jobs) if len(job.fresh)]
        if not places:
            return {}, 0.0
        with self._failures():
            self._session.addTag(tag)
            sent = self._session.createDataFrame(_packed_jobs(people, jobs, places, tasks))
            answer = sent.mapInArrow(partial(compute, shared), OUT_SCHEMA).toArrow()
        return self._results(answer), time.monotonic() - started

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """``PRI072`` for what Spark itself raises."""
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        try:
            yield
        except (PySparkException, Py4JError, OSError) as error:
            raise AdvpriorError(
                "PRI072",
                "scoring failed on Spark",
                where=str(self._session.sparkContext.master),
                actual=_last(error),
                expected=f"advprior {advprior.__version__} and onnxruntime on every worker",
                fix="see the workers' logs; the same command goes on where it stopped, with or without --spark",
            ) from error

    def _results(self, answer: Any) -> dict[int, Forwarded]:
        """Results by place in the wave from the pieces that the workers sent.

        Raises
        ------
        AdvpriorError
            ``PRI073`` when a worker runs another advprior; whatever a worker raised.
        """
        pieces: dict[int, dict[int, bytes]] = {}
        for batch in answer.to_batches():
            columns = (batch[name].to_pylist() for name in ("job", "piece", "payload"))
            for job, number, payload in zip(*columns, strict=True):
                pieces.setdefault(job, {})[number] = payload
        results = {}
        for place, pieces_of_job in pieces.items():
            head, results[place] = assembled(pieces_of_job)
            self.providers |= {head["provider"]} - {""}
            if head["version"] != advprior.__version__:
                raise AdvpriorError(
                    "PRI073",
                    "the workers run another version of advprior",
                    where=str(self._session.sparkContext.master),
                    actual=head["version"],
                    expected=advprior.__version__,
                    fix="install the same version on every worker (or ship the environment: spark.archives)",
                )
        return results


def _packed_jobs(people: Histories, jobs: list[Job], places: list[int], tasks: int) -> Any:
    """Jobs with their users as an Arrow table in at most ``tasks`` chunks: Spark makes a task of each."""
    import pyarrow as pa

    step = -(-len(places) // tasks)
    chunks = []
    for start in range(0, len(places), step):
        chunk = places[start : start + step]
        users = [jobs[place].fresh.astype(np.int64).tobytes() for place in chunk]
        who = [packed(part_of(people, jobs[place].fresh)) for place in chunk]
        columns = (pa.array(chunk, pa.int64()), pa.array(users, pa.binary()), pa.array(who, pa.binary()))
        chunks.append(pa.table(dict(zip(IN_COLUMNS, columns, strict=True))))
    return pa.concat_tables(chunks)


class Pace:
    """How many jobs make a wave: from one a task on, what takes `WAVE_SECONDS`; it at most quadruples at a time.

    >>> pace = Pace(4)
    >>> pace.note(4, 1.0)
    >>> pace.jobs
    16
    >>> pace.note(16, 20.0)
    >>> pace.jobs
    8
    """

    def __init__(self, tasks: int) -> None:
        self.jobs = self._least = tasks

    def note(self, jobs: int, seconds: float) -> None:
        """A wave of so many jobs took so long."""
        fits = int(jobs * WAVE_SECONDS / seconds) if seconds > 0 else 4 * self.jobs
        self.jobs = max(self._least, min(fits, 4 * self.jobs))


def waves(jobs: Iterable[Job], pace: Pace, bytes_a_user: int) -> Iterator[list[Job]]:
    """Jobs in groups as large as the pace says by then, whose results take at most `WAVE_BYTES`; one job at least.

    >>> import numpy as np
    >>> jobs = [Job(i, np.arange(3), np.arange(3)) for i in range(5)]
    >>> [len(wave) for wave in waves(jobs, Pace(2), 8)], [len(wave) for wave in waves(jobs, Pace(9), WAVE_BYTES // 6)]
    ([2, 2, 1], [2, 2, 1])
    """
    wave: list[Job] = []
    held = 0
    for job in jobs:
        cost = len(job.fresh) * bytes_a_user
        if wave and (len(wave) >= pace.jobs or held + cost > WAVE_BYTES):
            yield wave
            wave, held = [], 0
        wave.append(job)
        held += cost
    if wave:
        yield wave


def _last(error: BaseException) -> str:
    """The line of a failure that names it; Java's stack stands after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("at ", "..."))]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    return (named or lines or [type(error).__name__])[-1][:300]


def pack(run: Path, archive: Path) -> None:
    """What scoring reads of a run folder, as an archive that Spark unpacks on every worker."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.suffix not in _NOT_SENT:
                out.write(path, path.relative_to(run))


@contextmanager
def open_cluster(spark: str, run: Path, device: str, threads: int | None) -> Iterator[Cluster]:
    """A session as ``spark`` asks for, with the exported model in ``run`` on every worker.

    A session that is open already is used as it is, and left open.

    Parameters
    ----------
    spark : str
        See `read_conf`.
    run : Path
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Of ONNX Runtime in each worker process; one by default, as Spark runs a process for every core.

    Raises
    ------
    AdvpriorError
        ``PRI070`` without pyspark or Java, ``PRI071`` without settings, ``PRI072`` when no session can be had.
    """
    conf = DEFAULTS | read_conf(spark)
    absent = missing_for_spark()
    if absent:
        raise AdvpriorError(
            "PRI070",
            "Spark is not installed",
            where=f"--spark {spark}",
            actual=f"no {absent}",
            expected="pyspark and a Java runtime",
            fix=INSTALL_SPARK,
        )
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    users_session = SparkSession.getActiveSession()
    try:
        session = users_session or SparkSession.builder.config(map=conf).getOrCreate()
    except Exception as error:  # Java's own, Py4J's and pyspark's share no base but Exception
        kind = "PySparkException" if isinstance(error, PySparkException) else type(error).__name__
        raise AdvpriorError(
            "PRI072",
            "the Spark session did not start",
            where=f"--spark {spark}",
            actual=f"{kind}: {_last(error)}",
            expected="a master that answers, and Java 17 or later",
            fix="check it with: spark-submit --version",
        ) from error
    context = session.sparkContext
    if context.master.startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable  # Spark would take whatever `python3` is on the path
    folder = Path(tempfile.mkdtemp(prefix="advprior-"))
    # a session cannot forget an archive: a worker of it that starts later asks for this one, too
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        archive = folder / f"{folder.name}.zip"
        pack(run, archive)
        context.addArchive(f"{archive}#{archive.stem}")
        yield Cluster(session, archive.stem, device, threads or 1)
    finally:
        if users_session is None:
            session.stop()
            shutil.rmtree(folder, ignore_errors=True)
