"""The engine: pieces of work, each with a checkpoint, run by Daft here or on a Ray cluster.

A stage is a list of jobs. A job is a pure function of its payload and leaves one Parquet file, its part, whole or not
at all: a job with a part is done. Who runs a job, how many run at once and how often the run was killed change nothing
in the parts, and later stages read the parts in the order of the jobs, so the result is the same anywhere. On a
cluster the work folder must be one that all its machines see.

Not here: what the jobs do (`run.py`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ace.data.shards import SCHEMA
from ace.errors import AceError, ConfigError, MissingDependencyError, OutputError
from ace.extras import install_command
from ace.files import write_atomically

PART_SCHEMA = pa.schema(
    [
        ("what", pa.string()),
        ("task", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("facts", pa.string()),
        ("blob", pa.binary()),
        ("sample", pa.struct(list(SCHEMA))),
    ]
)

_ONE_AT_A_TIME = threading.Lock()

OnProgress = Callable[[int, int], None]  # (jobs done, jobs in all)
Told = Callable[[str], OnProgress | None]  # whom a stage tells, by its name

_GROUP = 4096  # rows of a part that are written and read together
_PATIENCE_S = 600  # a busy machine of a cluster takes minutes to import what a worker needs; Daft waits for two
_HEAVY = 64  # a row with pictures counts for so many


@dataclass(frozen=True)
class Record:
    """One outcome of a job: something kept, or something rejected with its reason.

    what: the thing it is about. reason: "" = kept. facts: what the next stage needs, JSON. sample: a row of shards."""

    what: str
    task: str = ""
    reason: str = ""
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    blob: bytes | None = None
    sample: dict[str, Any] | None = None


@dataclass(frozen=True)
class DataJob:
    """A piece of work. name: of its part, unique in the stage; payload: JSON, all that decides the outcome."""

    name: str
    payload: dict[str, Any]


Work = Callable[[DataJob], Iterable[Record]]


@dataclass(frozen=True)
class Where:
    """Where jobs run; never what comes out.

    workers: jobs at once, each in a process of its own if there are several. ray: address of a Ray cluster ("local"
    starts one here), "" = this process. gpus: GPUs that each worker gets (a cluster places it accordingly)."""

    workers: int = 1
    ray: str = ""
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.gpus < 0:
            raise ConfigError(f"{self.workers} workers with {self.gpus} GPUs each: use at least one worker")


@dataclass(frozen=True)
class StageReport:
    """What a stage did: things in, kept, rejected by reason, and the working seconds of all its jobs together."""

    stage: str
    entered: int
    kept: int
    rejected: dict[str, int]
    seconds: float

    @property
    def per_second(self) -> float:
        """Things per second of work."""
        return self.entered / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Part:
    """The file that a job left."""

    file: Path

    def records(self, samples: bool = True) -> Iterator[Record]:
        """Its records in order, without their blobs; samples=False leaves the samples on disk as well."""
        names = [name for name in PART_SCHEMA.names if name != "blob" and (samples or name != "sample")]
        with pq.ParquetFile(self.file) as table:
            for batch in table.iter_batches(_GROUP // _HEAVY if samples else _GROUP, columns=names):
                for row in batch.to_pylist():
                    yield Record(**{**row, "facts": json.loads(row["facts"])})

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Some columns whole, as they lie there (`facts` is JSON)."""
        with pq.ParquetFile(self.file) as table:
            return table.read(columns=list(names)).to_pydict()

    @property
    def count(self) -> int:
        """How many records it has."""
        return pq.read_metadata(self.file).num_rows

    @property
    def seconds(self) -> float:
        """How long its job worked."""
        return float((pq.read_metadata(self.file).metadata or {}).get(b"seconds", b"0"))


def run_stage(
    stage: str, jobs: Sequence[DataJob], work: Work, folder: Path, where: Where, on_progress: OnProgress | None = None
) -> list[Part]:
    """Do the jobs of a stage that have no part yet; returns all parts, in the order of the jobs.

    Raises OutputError, after everything else is done, if parts could not be written (a full disk): run again then."""
    place = folder / stage
    place.mkdir(parents=True, exist_ok=True)
    for stale in place.glob(".*.part"):
        stale.unlink(missing_ok=True)
    parts = [Part(place / f"{job.name}.parquet") for job in jobs]
    pending = [job for job, part in zip(jobs, parts, strict=True) if not part.file.exists()]
    done, failed = len(jobs) - len(pending), []
    if on_progress:
        on_progress(done, len(jobs))
    for said in _in_daft(pending, work, place, where) if pending else ():
        if said:
            failed.append(said)
        done += 1
        if on_progress:
            on_progress(done, len(jobs))
    if failed:
        raise OutputError(
            f"{len(failed)} of {len(jobs)} pieces of work of stage {stage!r} could not be written ({failed[0]}): "
            "free space and run the same command again; what is done is kept"
        )
    return parts


def report_stage(stage: str, parts: Sequence[Part]) -> StageReport:
    """Counts and seconds of a stage, from its parts."""
    entered, seconds, rejected = 0, 0.0, Counter[str]()
    for part in parts:
        reasons = part.columns("reason")["reason"]
        entered += len(reasons)
        rejected.update(reason for reason in reasons if reason)
        seconds += part.seconds
    return StageReport(stage, entered, entered - rejected.total(), dict(sorted(rejected.items())), seconds)


def do_job(job: DataJob, work: Work, place: Path) -> str:
    """Do one job and leave its part; returns why it could not be written, "" if it was.

    This is the whole of what the engine runs, here or elsewhere."""
    with _ONE_AT_A_TIME:  # extractors are not made for several threads
        part = _as_part(work(job))
    try:
        write_atomically(place / f"{job.name}.parquet", part)
    except OutputError as error:
        return str(error)
    return ""


def _as_part(records: Iterable[Record]) -> bytes:
    """The bytes of a part; records are taken, and forgotten, group by group."""
    start = time.perf_counter()
    buffer = BytesIO()
    words: Any = {"what": "zstd", "facts": "zstd"}  # the rest is mostly PNG; by column, which its type does not say
    with pq.ParquetWriter(buffer, PART_SCHEMA, compression=words, use_dictionary=False) as out:
        for group in _grouped(records):
            out.write_table(pa.Table.from_pylist(group, schema=PART_SCHEMA))
        out.add_key_value_metadata({"seconds": f"{time.perf_counter() - start}"})
    return buffer.getvalue()


def _grouped(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    """Records as rows, so many together as memory likes."""
    rows: list[dict[str, Any]] = []
    weight = 0
    for record in records:
        rows.append({**vars(record), "facts": json.dumps(record.facts)})
        weight += _HEAVY if record.sample is not None else 1
        if weight >= _GROUP:
            yield rows
            rows, weight = [], 0
    if rows:
        yield rows


def _in_daft(jobs: Sequence[DataJob], work: Work, place: Path, where: Where) -> Iterator[str]:
    """Run jobs as one Daft plan; yields what `do_job` says, in any order."""
    daft = _daft(where)
    workers = min(where.workers, len(jobs))

    alone = workers == 1 and not where.ray  # then in this process, which has everything loaded already

    @daft.cls(max_concurrency=None if alone else workers, gpus=where.gpus, use_process=False if alone else None)
    class Worker:
        """One of the workers; models that a job loads stay loaded for the next."""

        @daft.method(return_dtype=daft.DataType.string())
        def do(self, name: str, payload: str) -> str:
            return do_job(DataJob(name, json.loads(payload)), work, place)

    plan = daft.from_pydict({"name": [j.name for j in jobs], "payload": [json.dumps(j.payload) for j in jobs]})
    if where.ray:
        plan = plan.into_partitions(min(len(jobs), 4 * workers))
    else:
        plan = plan.into_batches(1)
    plan = plan.select(Worker().do(daft.col("name"), daft.col("payload")).alias("said"))
    try:
        for row in plan.iter_rows(results_buffer_size=workers):
            yield row["said"]
    except daft.exceptions.DaftCoreException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, AceError) else AceError(f"the engine stopped: {error}") from None


def _daft(where: Where) -> Any:
    """The library, quiet, silent to the outside, and set to where the jobs run."""
    os.environ |= {"DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "true", "DAFT_PROGRESS_BAR": "0"}
    try:
        import daft
        import daft.exceptions
    except ModuleNotFoundError:
        raise MissingDependencyError(f"the data engine needs daft: {install_command('data')}") from None
    if where.ray:
        _join(where)
        daft.set_runner_ray(noop_if_initialized=True)
        daft.set_execution_config(actor_udf_ready_timeout=_PATIENCE_S)
    elif daft.get_or_infer_runner_type() != "native":
        raise ConfigError(
            "Daft is set to run on Ray in this process: name the cluster with --ray, or unset DAFT_RUNNER"
        )
    return daft


def _join(where: Where) -> None:
    """Connect this process to the Ray cluster, once. Raises ConfigError if none answers."""
    # Ray starts workers at niceness 15: beside other work they would hardly get to import what they need
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise MissingDependencyError("running on a Ray cluster needs ray: pip install ray") from None
    if ray.is_initialized():
        return
    place = {"num_cpus": where.workers, "include_dashboard": False} if where.ray == "local" else {"address": where.ray}
    try:
        _knock(where.ray)
        ray.init(**place, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError) as error:  # a lost connection is an OSError
        raise ConfigError(f"no Ray cluster answers at {where.ray} ({error}): check --ray") from None


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port; Ray itself would try for minutes."""
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if found:
        socket.create_connection((host, int(port)), timeout=10).close()
