"""Shards: `EditSample` records in Parquet, in the layout that Hugging Face `datasets` and its viewer read.

One row is one sample. `images` and `masks` hold every distinct picture of the request once, the current unit's first;
`units` is the chain of condition units, oldest first, which names them by index, so that an answer that is the next
round's input as well is one picture again when read. Pictures are PNG, without loss, unless a quality is given.

`manifest.json` beside the shards counts and hashes them and says nothing of time, host or place: the same samples give
the same manifest. Not here: which samples go in (`run.py`), shuffling and batches (the training room).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.sample import EditSample
from ace.errors import ConfigError, DataError, MissingDependencyError
from ace.extras import install_command
from ace.files import write_atomically

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    raise MissingDependencyError(f"shards are Parquet and need pyarrow: {install_command('data')}") from None

MANIFEST = "manifest.json"
FORMAT = 1
ROWS_PER_SHARD = 1000
BYTES_PER_SHARD = 256 * 2**20
_ROWS_PER_GROUP = 32  # what one random access reads
_TARGET = -1  # as the answer of the current unit: the row's own target
_NONE = -1  # as a mask: all of the picture

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_UNIT = pa.struct(
    [
        ("instruction", pa.string()),
        ("images", pa.list_(pa.int32())),
        ("masks", pa.list_(pa.int32())),
        ("answer", pa.int32()),
    ]
)
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("id", pa.string()),
    ("task", pa.string()),
    ("instruction", pa.string()),
    ("images", pa.list_(_PICTURE)),
    ("target", _PICTURE),
    ("masks", pa.list_(_PICTURE)),
    ("units", pa.list_(_UNIT)),
    ("max_history", pa.int32()),
    ("target_index", pa.int32()),
    ("provenance", pa.string()),
]


def _feature(kind: pa.DataType) -> Any:
    """How `datasets` writes the type of a column."""
    if kind == _PICTURE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind.fields}
    return {"dtype": str(kind), "_type": "Value"}


SCHEMA = pa.schema(
    _COLUMNS,
    metadata={"huggingface": json.dumps({"info": {"features": {name: _feature(kind) for name, kind in _COLUMNS}}})},
)


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file: its name, its number of samples and the SHA-256 of its bytes."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: samples in all and by task, and its files in order."""

    count: int
    tasks: dict[str, int]
    shards: tuple[ShardFile, ...]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        files = [vars(shard) for shard in self.shards]
        return (
            json.dumps({"format": FORMAT, "count": self.count, "tasks": self.tasks, "shards": files}, indent=1) + "\n"
        )


def encode_picture(image: Image.Image, quality: int | None = None) -> bytes:
    """A picture as PNG, or as WebP of a quality from 1 to 100, which loses detail."""
    buffer = BytesIO()
    if quality is None:
        image.save(buffer, "PNG", compress_level=4)
    else:
        image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def decode_picture(data: bytes, mode: str) -> Image.Image:
    """The picture in `data` (PNG, WebP, JPEG) in a mode, "RGB" or "L". Raises DataError."""
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return image if image.mode == mode else image.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"a picture in the shard cannot be decoded ({error}): write the shards again") from None


def to_row(sample: EditSample, quality: int | None = None) -> dict[str, Any]:
    """The row of a sample, as `SCHEMA` describes it.

    quality: None = lossless; 1 to 100 = WebP for the request's images and the target (masks stay exact)."""
    request = sample.request
    units = [*((turn.unit, turn.answer) for turn in request.history), (request.current, None)]
    images: dict[int, tuple[int, Image.Image]] = {}
    masks: dict[int, tuple[int, Image.Image]] = {}

    def place(pool: dict[int, tuple[int, Image.Image]], picture: Image.Image) -> int:
        return pool.setdefault(id(picture), (len(pool), picture))[0]

    for image in request.current.images:
        place(images, image)
    chain = [
        {
            "instruction": unit.instruction,
            "images": [place(images, image) for image in unit.images],
            "masks": [_NONE if mask is None else place(masks, mask) for mask in unit.masks],
            "answer": _TARGET if answer is None else place(images, answer),
        }
        for unit, answer in units
    ]
    row: dict[str, Any] = {
        "task": sample.task,
        "instruction": request.current.instruction,
        "images": [_picture(image, "RGB", quality) for _, image in images.values()],
        "target": _picture(sample.target, "RGB", quality),
        "masks": [_picture(mask, "L", None) for _, mask in masks.values()],
        "units": chain,
        "max_history": request.max_history,
        "target_index": request.target_index,
        "provenance": json.dumps(sample.provenance, sort_keys=True, ensure_ascii=False),
    }
    return {"id": row_id(row), **row}


def from_row(row: dict[str, Any]) -> EditSample:
    """The sample of a row, with its own pictures as they went in. Raises DataError for a row that is not one."""
    try:
        images = [decode_picture(picture["bytes"], "RGB") for picture in row["images"]]
        masks = [decode_picture(picture["bytes"], "L") for picture in row["masks"]]
        units = [
            ConditionUnit(
                unit["instruction"],
                tuple(images[index] for index in unit["images"]),
                tuple(None if index == _NONE else masks[index] for index in unit["masks"]),
            )
            for unit in row["units"]
        ]
        earlier = zip(units[:-1], row["units"][:-1], strict=True)
        turns = [Turn(unit, images[stored["answer"]]) for unit, stored in earlier]
        request = LongContextConditionUnit(units[-1], tuple(turns), row["max_history"], row["target_index"])
        target = decode_picture(row["target"]["bytes"], "RGB")
        return EditSample(request, target, row["task"], json.loads(row["provenance"]))
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"a row is not an edit sample ({error!r}): write the shards again") from None


def write_shards(
    samples: Iterable[EditSample],
    folder: Path | str,
    rows_per_shard: int = ROWS_PER_SHARD,
    quality: int | None = None,
) -> Manifest:
    """Write samples, in order, as numbered shards with a manifest; a folder that holds a manifest is not touched.

    A shard closes at `rows_per_shard` samples or 256 MiB. quality: see `to_row`. The manifest comes last, so a folder
    with one is complete. Raises DataError if it is there already, ConfigError for an impossible size or quality."""
    return write_rows((to_row(sample, quality) for sample in samples), folder, rows_per_shard)


def write_rows(
    rows: Iterable[dict[str, Any]],
    folder: Path | str,
    rows_per_shard: int = ROWS_PER_SHARD,
    schema: pa.Schema = SCHEMA,
) -> Manifest:
    """`write_shards` for rows that are made already; a schema with further columns keeps them."""
    folder = Path(folder)
    if rows_per_shard < 1:
        raise ConfigError(f"rows_per_shard is {rows_per_shard}: use 1 or more")
    if (folder / MANIFEST).exists():
        raise DataError(f"{folder} holds a finished data set: choose another folder, or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("shard-*.parquet"), *folder.glob(".*.partial")]:
        stale.unlink()
    files: list[ShardFile] = []
    tasks: Counter[str] = Counter()
    waiting: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        tasks[row["task"]] += 1
        waiting.append(row)
        size += _size(row)
        if len(waiting) == rows_per_shard or size >= BYTES_PER_SHARD:
            files.append(write_shard(waiting, folder / f"shard-{len(files):05d}.parquet", schema))
            waiting, size = [], 0
    if waiting or not files:
        files.append(write_shard(waiting, folder / f"shard-{len(files):05d}.parquet", schema))
    manifest = Manifest(sum(tasks.values()), dict(sorted(tasks.items())), tuple(files))
    write_atomically(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def write_shard(rows: Sequence[dict[str, Any]], file: Path, schema: pa.Schema = SCHEMA) -> ShardFile:
    """One Parquet file, whole or not at all."""
    buffer = BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, compression="zstd", use_dictionary=False)
    write_atomically(file, buffer.getvalue())
    return ShardFile(file.name, len(rows), hashlib.sha256(buffer.getbuffer()).hexdigest())


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a folder of shards. Raises DataError if there is none or it is not ours."""
    file = Path(folder) / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise DataError(f"{file} has format {found['format']}, this version reads {FORMAT}: update ace")
        return Manifest(found["count"], found["tasks"], tuple(ShardFile(**shard) for shard in found["shards"]))
    except FileNotFoundError:
        raise DataError(f"{folder} is no finished data set: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}): write the data set again") from None


@dataclass(frozen=True)
class Reject:
    """Something that a build left out: at which stage, what (a picture's or a sample's name), for which task and why.

    sample: as it was made, None if none was."""

    stage: str
    what: str
    task: str
    reason: str
    detail: str
    sample: EditSample | None


class Shards(Sequence[EditSample]):
    """The samples of a data set, by index or in order; a picture is decoded when its sample is asked for.

    source: a folder with a manifest, or one Parquet file. verify: check the files' hashes first, which reads them all.
    Safe to hand to worker processes. Raises DataError for a missing, changed or foreign file."""

    def __init__(self, source: Path | str, verify: bool = False):
        source = Path(source)
        if source.is_dir():
            self.manifest: Manifest | None = read_manifest(source)
            self.files = [source / shard.file for shard in self.manifest.shards]
        else:
            self.manifest, self.files = None, [source]
        if verify and self.manifest is not None:
            check_hashes(source, self.manifest)
        counts = []
        for file in self.files:
            with _opened(file) as parquet:
                missing = [name for name in SCHEMA.names if name not in parquet.schema_arrow.names]
                if missing:
                    raise DataError(f"{file} is not a shard of edit samples: it has no column {missing[0]!r}")
                counts += [
                    (file, group, parquet.metadata.row_group(group).num_rows) for group in range(parquet.num_row_groups)
                ]
        self._groups = [(file, group) for file, group, _ in counts]
        self._ends = list(accumulate(count for _, _, count in counts))
        self._kept: tuple[int, list[dict[str, Any]]] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index):
        """The sample at an index (negative from the end), or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = self.row(index)
        if row["target"] is None and row.get("reason"):
            what = f"{row['what']} made no sample ({row['reason']})"
            raise DataError(f"row {index} of the rejected is a picture, {what}: read these rows with `rejects`")
        return from_row(row)

    def rejects(self) -> Iterator[Reject]:
        """What a build left out, each with its reason, in order; for the folder `rejected` of a data set."""
        for row in self.rows():
            if "reason" not in row:
                raise DataError("these are samples that were kept: rejects are in the data set's folder `rejected`")
            sample = None if row["target"] is None else from_row(row)
            yield Reject(row["stage"], row["what"], row["task"] or "", row["reason"], row["detail"] or "", sample)

    def row(self, index: int) -> dict[str, Any]:
        """The row at an index, undecoded; neighbours are kept in memory, so reading in order reads once."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        group = bisect_right(self._ends, index)
        kept = self._kept
        if kept is None or kept[0] != group:
            file, number = self._groups[group]
            with _opened(file) as parquet:
                self._kept = kept = group, parquet.read_row_group(number).to_pylist()
        return kept[1][index - (self._ends[group - 1] if group else 0)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row in order, undecoded."""
        for index in range(len(self)):
            yield self.row(index)

    def column(self, name: str) -> list[Any]:
        """One column of all samples, without reading the rest: "id", "task", "instruction" or "provenance"."""
        values: list[Any] = []
        for file in self.files:
            with _opened(file) as parquet:
                values += parquet.read(columns=[name]).column(name).to_pylist()
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}


def read_shards(source: Path | str, verify: bool = False) -> Shards:
    """Open a data set for reading; see `Shards`."""
    return Shards(source, verify)


def check_hashes(folder: Path | str, manifest: Manifest) -> None:
    """Raise DataError, naming the file, if a shard is missing or is not what the manifest says."""
    for shard in manifest.shards:
        file = Path(folder) / shard.file
        if not file.is_file():
            raise DataError(f"{file} is missing: copy the data set again")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != shard.sha256:
                raise DataError(f"{file} is not what {MANIFEST} says: copy the data set again")


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except FileNotFoundError:
        raise DataError(f"there is no {file}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}): copy it again") from None


def _picture(image: Image.Image, mode: str, quality: int | None) -> dict[str, Any]:
    image = image if image.mode == mode else image.convert(mode)
    return {"bytes": encode_picture(image, quality), "path": None}


def _size(row: dict[str, Any]) -> int:
    pictures = [row["target"], *(row["images"] or ()), *(row["masks"] or ())]
    return sum(len(picture["bytes"]) for picture in pictures if picture)


def row_id(row: dict[str, Any]) -> str:
    """A name for what a sample asks and answers: the same for the same pictures and words, whatever its provenance."""
    digest = hashlib.sha256()
    for part in (row["task"], json.dumps(row["units"]), str(row["max_history"]), str(row["target_index"])):
        digest.update(part.encode() + b"\0")
    for picture in [row["target"], *row["images"], *row["masks"]]:
        digest.update(hashlib.sha256(picture["bytes"]).digest())
    return digest.hexdigest()[:32]
