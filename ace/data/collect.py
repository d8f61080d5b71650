"""Pictures of a collection, wherever they lie: a folder, Parquet, WebDataset tar files, a Hugging Face data set.

`list_pictures` names them in a fixed order without opening them; `PictureReader` fetches one; `open_picture` decodes it
or says why it cannot be used. A picture that cannot be used is never an error, it is a reason; so is a damaged table,
archive or line of captions, which is listed as if it were one picture and cannot be fetched.

Captions: a `.txt` beside the picture, `metadata.jsonl` or `captions.jsonl` with `file_name` and `text` (and, if known,
`set`, `relation`, `style`), or the caption column of a table.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ace.conditions.images import SUFFIXES, normalise_image, open_header
from ace.data.recipe import Collection
from ace.data.tasks.source import Rejected
from ace.errors import DataError, ImageError, MissingDependencyError
from ace.extras import install_command
from ace.lists import local_path, numbered_lines

CAPTION_FILES = ("metadata.jsonl", "captions.jsonl")
CAPTION_COLUMNS = ("text", "caption", "prompt", "txt")
_BESIDE = {".txt", ".json", ".jsonl", ".csv", ".md", ".toml"}
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}


@dataclass(frozen=True)
class Pointer:
    """Where one picture is: a file of the collection and, in a table or archive, its row or member."""

    file: str
    part: str = ""
    caption: str = ""
    set: str = ""
    relation: str = ""
    style: str = ""

    @property
    def name(self) -> str:
        """For people and reports."""
        return f"{self.file}#{self.part}" if self.part else self.file

    def to_json(self) -> dict[str, str]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value}


def list_pictures(collection: Collection) -> list[Pointer]:
    """All pictures of a collection, in an order that depends on names alone. Raises DataError if there are none."""
    kind = kind_of(collection)
    root = Path(collection.path)
    if kind == "huggingface":
        found = _list_data_set(collection)
    elif kind == "parquet":
        found = [p for file in _files(root, {".parquet"}) for p in _list_parquet(root, file)]
    elif kind == "webdataset":
        found = [p for file in _files(root, {".tar"}) for p in _list_tar(root, file)]
    else:
        found = list(_list_folder(root, collection.relation))
    if not found:
        raise DataError(f"there are no pictures in {collection.path}: check the path")
    return found[: collection.limit or None]


def kind_of(collection: Collection) -> str:
    """The kind of a collection, looked up where it is "auto". Raises DataError if there is nothing at its path."""
    if collection.kind == "huggingface":
        return collection.kind
    root = Path(collection.path)
    if not root.exists():
        raise DataError(f"{collection.path} does not exist: check the path of the pictures")
    if collection.kind != "auto":
        return collection.kind
    if _is_saved_set(root):
        return "huggingface"
    if root.is_dir() and any(file.suffix.lower() in SUFFIXES for file in root.rglob("*")):
        return "folder"
    for suffix, kind in ((".parquet", "parquet"), (".tar", "webdataset")):
        if _files(root, {suffix}):
            return kind
    if root.is_file():
        raise DataError(f"{collection.path} is no folder, Parquet or tar file: point at the folder of the pictures")
    return "folder"


class PictureReader:
    """Fetches the bytes of pictures; keeps the last table or archive open. One per process."""

    def __init__(self, collection: Collection):
        self.collection = collection
        self.kind = kind_of(collection)
        self._open: tuple[str, Any] = ("", None)
        self._close: Callable[[], object] = lambda: None  # the archive that is open

    def read(self, pointer: Pointer) -> bytes:
        """The encoded picture. Raises OSError, KeyError or ValueError if it is gone."""
        root = Path(self.collection.path)
        if self.kind == "folder":
            if pointer.part:
                raise ValueError("write a JSON object with file_name and text")
            return (root / pointer.file).read_bytes()
        if not pointer.part:
            raise ValueError("the file is damaged from here on: copy it again")
        if self.kind == "huggingface":
            if self._open[0] != "data set":
                self._open = ("data set", _open_data_set(self.collection))
            data, column = self._open[1]
            return _bytes_of(data[int(pointer.part)][column])
        file = root if root.is_file() else root / pointer.file
        if self.kind == "webdataset":
            if self._open[0] != pointer.file:
                archive = tarfile.open(file)  # noqa: SIM115 (kept open for the next picture)
                self._close()
                self._close = weakref.finalize(self, archive.close)
                self._open = (pointer.file, (archive, _members(archive)))
            archive, members = self._open[1]
            try:
                return archive.extractfile(members[pointer.part]).read()
            except tarfile.TarError as error:
                raise ValueError(str(error)) from None
        group, row = (int(number) for number in pointer.part.split("."))
        if self._open[0] != f"{pointer.file}#{group}":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as table:
                column = _picture_column(table.schema_arrow)
                self._open = (f"{pointer.file}#{group}", table.read_row_group(group, columns=[column]).column(0))
        return _bytes_of(self._open[1][row].as_py())


def open_picture(data: bytes, name: str, collection: Collection) -> Image.Image | Rejected:
    """A picture decoded as everywhere (`conditions/images.py`): upright, sRGB, transparency over white; and at most
    max_side_px; of an animation the first frame. What it is, its content says. Or why it is not used.

    Rejected: not a picture, broken, of other colours than grey and RGB, too small, too large."""
    try:
        with open_header(BytesIO(data), name) as image:
            if image.mode not in _MODES:
                return Rejected("colours that are not RGB", image.mode)
            if image.width * image.height > collection.max_pixels:
                return Rejected("too large", f"{image.width}x{image.height} px")
            if min(image.size) < collection.min_side_px:
                return Rejected("too small", f"{image.width}x{image.height} px")
            picture = normalise_image(image, max_pixels=collection.max_pixels, name=name).image
    except Image.DecompressionBombError:
        return Rejected("too large")
    except MissingDependencyError as error:
        return Rejected("no decoder here", str(error))
    except UnidentifiedImageError:
        return Rejected("not a picture")
    except (ImageError, OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError) as error:
        return Rejected("broken picture", str(error)[:200])
    picture = picture.copy()
    picture.info.clear()
    if max(picture.size) > collection.max_side_px:
        picture.thumbnail((collection.max_side_px, collection.max_side_px), Image.Resampling.LANCZOS)
        if min(picture.size) < min(collection.min_side_px, 8):
            return Rejected("too narrow", f"{picture.width}x{picture.height} px")
    return picture


def picture_id(image: Image.Image) -> str:
    """A name decided by the pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:20]


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: which of 8x8 neighbouring places grow brighter to the right. Near pictures differ in few bits."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture on the 0 to 255 scale; low means blurred or empty."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]  # (H-2, W-2)
    return float(laplacian.var())


def _files(root: Path, suffixes: set[str]) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in suffixes else []
    return sorted((f for f in root.rglob("*") if f.suffix.lower() in suffixes), key=lambda f: f.as_posix())


def _list_folder(root: Path, relation: str) -> Iterator[Pointer]:
    known, damaged = _captions(root)
    yield from damaged
    for file in sorted(root.rglob("*"), key=lambda found: found.as_posix()):
        inside = file.relative_to(root)
        if any(part.startswith(".") for part in inside.parts) or not file.is_file():
            continue
        if file.suffix.lower() in _BESIDE:
            continue
        facts = known.get(inside.as_posix(), {})
        beside = file.with_suffix(".txt")
        caption = facts.get("text") or facts.get("caption") or ""
        if not caption and beside.is_file():
            caption = beside.read_text(encoding="utf-8", errors="replace").strip()
        group = str(facts.get("set", "")) or (inside.parent.as_posix() if relation and inside.parent.name else "")
        yield Pointer(
            inside.as_posix(),
            caption=str(caption),
            set=group,
            relation=str(facts.get("relation", "")) or (relation if group else ""),
            style=str(facts.get("style", "")),
        )


def _captions(root: Path) -> tuple[dict[str, dict[str, Any]], list[Pointer]]:
    """What the caption files of a folder say, by file name; and the lines that say nothing."""
    known: dict[str, dict[str, Any]] = {}
    damaged = []
    for file in sorted(file for name in CAPTION_FILES for file in root.rglob(name)):
        for number, line in numbered_lines(file, errors="replace"):
            try:
                row = json.loads(line)
                known[(file.parent / local_path(row["file_name"])).relative_to(root).as_posix()] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged.append(Pointer(file.relative_to(root).as_posix(), f"line {number}"))
    return known, damaged


def _list_parquet(root: Path, file: Path) -> Iterator[Pointer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = file.name if root.is_file() else file.relative_to(root).as_posix()
    try:
        with pq.ParquetFile(file) as table:
            _picture_column(table.schema_arrow)
            names = table.schema_arrow.names
            column = next((c for c in CAPTION_COLUMNS if c in names), None)
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                captions = (
                    table.read_row_group(group, columns=[column]).column(0).to_pylist() if column else [""] * count
                )
                for row in range(count):
                    yield Pointer(name, f"{group}.{row}", caption=str(captions[row] or ""))
    except (OSError, pa.ArrowInvalid):
        yield Pointer(name)


def _picture_column(schema: Any) -> str:
    import pyarrow as pa

    for field in schema:
        if field.name in ("image", "jpg", "png", "img") or (
            pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        ):
            return field.name
    raise DataError(f"no column of pictures among {', '.join(schema.names)}: name one 'image'")


def _bytes_of(value: Any) -> bytes:
    data = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError("the table holds no picture here")
    return data


def _list_tar(root: Path, file: Path) -> Iterator[Pointer]:
    name = file.name if root.is_file() else file.relative_to(root).as_posix()
    members: dict[str, str] = {}
    captions: dict[str, str] = {}
    whole = False
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}"
                if extension.lower() in ("txt", "json"):
                    opened = archive.extractfile(member)
                    captions[key] = _caption_in(opened.read() if opened else b"", extension) or captions.get(key, "")
                elif f".{extension.lower()}" in SUFFIXES:
                    members[key] = member.name
            whole = _ends_as_it_should(archive)
    except (tarfile.TarError, OSError, EOFError):
        pass  # what came before the damage is used
    for key in sorted(members):
        yield Pointer(name, members[key], caption=captions.get(key, ""))
    if not whole:
        yield Pointer(name)


def _ends_as_it_should(archive: tarfile.TarFile) -> bool:
    """Whether an archive that was read through ends in a block of zeros; in front of a damaged or missing header
    `tarfile` stops as if that were the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)  # type: ignore[attr-defined]
    return archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The files of an archive by name; of one that is cut short, those before the cut."""
    found = {}
    try:
        for member in archive:
            if member.isfile():
                found[member.name] = member
    except tarfile.TarError:
        pass
    return found


def _caption_in(data: bytes, extension: str) -> str:
    text = data.decode("utf-8", errors="replace").strip()
    if extension.lower() == "txt":
        return text
    try:
        facts = json.loads(text)
    except ValueError:
        return ""
    return next((str(facts[c]) for c in CAPTION_COLUMNS if c in facts), "") if isinstance(facts, dict) else ""


def _is_saved_set(folder: Path) -> bool:
    """Whether `datasets` saved a data set, or one of several splits, in a folder."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open_data_set(collection: Collection) -> tuple[Any, str]:
    """A Hugging Face data set, its pictures undecoded, and the name of their column."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingDependencyError(f"Hugging Face data sets need {install_command('data')}") from None
    try:
        if _is_saved_set(Path(collection.path)):
            data = datasets.load_from_disk(collection.path)
            data = data[collection.split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(collection.path, split=collection.split)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the data set {collection.path} cannot be opened ({error}): check its name") from None
    column = next((name for name, kind in data.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise DataError(f"the data set {collection.path} has no column of pictures")
    return data.cast_column(column, datasets.Image(decode=False)), column


def _list_data_set(collection: Collection) -> list[Pointer]:
    data, _ = _open_data_set(collection)
    column = next((name for name in CAPTION_COLUMNS if name in data.features), None)
    captions = data[column][:] if column else [""] * len(data)
    return [Pointer("data set", str(row), caption=str(caption or "")) for row, caption in enumerate(captions)]
