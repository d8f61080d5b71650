"""Where samples come from: the procedural world, shards, and the layouts that people have, each as numbered
`EditSample`s; and how several are mixed.

A source is read by number, so that any order can be asked for. `Mixture` turns the run's running number into a source
and one of its samples: by weight, every source shuffled anew each time it has been through, nothing twice before all
once. It is arithmetic on the number alone: workers, processes and restarts change nothing.

Not here: pictures to tensors (`batches.py`), making data sets (the data room).
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from ace.conditions import ConditionUnit, LongContextConditionUnit, Turn
from ace.conditions.images import SUFFIXES, OpenedImage, normalise_image, open_bytes, open_header, open_image
from ace.conditions.masks import read_mask
from ace.data.sample import FAMILIES, EditSample
from ace.data.world import World
from ace.data.world.sprites import SpriteLibrary
from ace.errors import ConfigError, DataError
from ace.lists import local_path, numbered_lines, read_table
from ace.settings import explain
from ace.training.config import DataSource, TrainingStage

CSV_FIELDS = ("edit_image", "edit_mask", "ref_image", "target_image", "prompt", "data_type")
CSV_DELIMITER = "#;#"
CSV_TASKS = {"portrait": "reference_generation/face_reference", "local": "repainting/text_guided_inpainting"}
BLOCK = 32  # neighbours in a file, which are read together
WINDOW_BLOCKS = 8  # as many blocks are shuffled among each other
SLOTS = 1024  # of one round of a mixture: weights count to a thousandth


class Records(Protocol):
    """Numbered samples.

    tasks: of every sample, or None if they are only known when it is made. block: neighbours worth reading together."""

    @property
    def tasks(self) -> Sequence[str] | None: ...

    @property
    def block(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> EditSample: ...


class WorldRecords:
    """The procedural world, without end: sample n is decided by n.

    tasks: weights by task or family, empty = the level's own. pack: see `SpriteLibrary`. level: see `World`."""

    block = 1
    tasks = None

    def __init__(self, size_px: int, tasks: dict[str, float] | None = None, pack: str = "", level: str = "all") -> None:
        self.world = World(size_px, "train", SpriteLibrary(Path(pack)) if pack else None, level)
        self.mixture = tasks or {}

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: int) -> EditSample:
        task = None
        if self.mixture:
            rng = random.Random(f"{number}:task")
            task = rng.choices(list(self.mixture), list(self.mixture.values()))[0]
            if task in FAMILIES:
                task = rng.choice([name for name in self.world.tasks if name.startswith(f"{task}/")])
        return self.world.sample(number, task)


class ShardRecords:
    """Parquet shards of the data engine (`ace.data.shards`): a folder with a manifest, or one file."""

    block = BLOCK

    def __init__(self, path: Path) -> None:
        from ace.data.shards import read_shards

        self.shards = read_shards(path)
        self.tasks: Sequence[str] | None = self.shards.column("task")
        self._kept: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> EditSample:
        from ace.data.shards import from_row

        block = number // BLOCK
        if block not in self._kept:
            last = min(len(self), (block + 1) * BLOCK)
            self._kept[block] = [self.shards.row(n) for n in range(block * BLOCK, last)]
            while len(self._kept) > WINDOW_BLOCKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(block)
        return from_row(self._kept[block][number % BLOCK])


class CsvRecords:
    """The list of ACE++: six fields between `#;#`, paths relative to the file.

    edit_image, edit_mask, ref_image, target_image, prompt, data_type; empty = not there. A first row of these names is
    a header. Raises DataError naming the first line that has other fields."""

    block = 1

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.rows = [row for _, row in read_table(path, CSV_FIELDS, CSV_DELIMITER)]
        self.tasks = [_csv_task(row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> EditSample:
        row = self.rows[number]
        images, masks = [], []
        if row["edit_image"]:
            edited = _open(self.folder, row["edit_image"])
            images.append(edited.image)
            masks.append(_mask(self.folder, row["edit_mask"], edited))
        if row["ref_image"]:
            images.append(_picture(self.folder, row["ref_image"]))
            masks.append(None)
        unit = ConditionUnit(row["prompt"], tuple(images), tuple(masks))
        provenance: dict[str, str | int | float] = {
            "data_type": row["data_type"],
            "has_edit": int(bool(row["edit_image"])),
            "has_reference": int(bool(row["ref_image"])),
        }
        target = _picture(self.folder, row["target_image"])
        return EditSample(LongContextConditionUnit(unit), target, self.tasks[number], provenance)


class _Round(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    instruction: str
    images: tuple[str, ...] = ()
    masks: tuple[str | None, ...] | None = None


class _EarlierRound(_Round):
    answer: str


class _Row(_Round):
    target: str
    task: str | None = None
    history: tuple[_EarlierRound, ...] = ()


class JsonlRecords:
    """A folder with a list, one JSON object per line (the file itself, or the folder's only `*.jsonl`).

    instruction, target; images, masks (null = all of it); history: earlier rounds, each with instruction, images, masks
    and answer; task, else `task`. Paths are relative to the file. Raises DataError for a list in another format; a row
    with a wrong value in it raises DataError only when its sample is asked for, so that it alone is left out."""

    block = 1

    def __init__(self, path: Path, task: str) -> None:
        if path.is_dir():
            lists = sorted(path.glob("*.jsonl"))
            if len(lists) != 1:
                raise DataError(f"{path.name} holds {len(lists)} lists (*.jsonl): name the one to read")
            path = lists[0]
        self.folder = path.parent
        self.rows: list[_Row | str] = []  # or what is wrong with it
        for number, line in numbered_lines(path):
            where = f"{path.name} line {number}"
            try:
                self.rows.append(_Row.model_validate_json(line))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                if first["type"] in ("json_invalid", "model_type"):
                    raise DataError(f"{where} is not a JSON object") from None
                if first["type"] == "missing" and len(first["loc"]) == 1:
                    raise DataError(f"{where} has no {first['loc'][0]}") from None
                self.rows.append(explain(error, _Row, where))
        self.tasks = [task if isinstance(row, str) else row.task or task for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> EditSample:
        row = self.rows[number]
        if isinstance(row, str):
            raise DataError(row)
        turns, answer = [], None
        for earlier in row.history:
            unit = self._unit(earlier)
            answer = _picture(self.folder, earlier.answer)
            turns.append(Turn(unit, answer))
        request = LongContextConditionUnit(self._unit(row), tuple(turns))
        return EditSample(request, _picture(self.folder, row.target), self.tasks[number], {"row": number})

    def _unit(self, row: _Round) -> ConditionUnit:
        opened = [_open(self.folder, name) for name in row.images]
        masks = row.masks or (None,) * len(opened)
        loaded = tuple(_mask(self.folder, m, i) for m, i in zip(masks, opened, strict=True))
        return ConditionUnit(row.instruction, tuple(one.image for one in opened), loaded)


class HuggingFaceRecords:
    """Edit sets in the layouts of MagicBrush and InstructPix2Pix, through `datasets`.

    path: a folder of Parquet files, one such file, or the name of a data set. Rows of one MagicBrush picture are the
    rounds of one conversation: the earlier ones become the history."""

    block = BLOCK
    LAYOUTS = {
        "magicbrush": {"source": ("source_img",), "target": ("target_img",), "text": ("instruction",)},
        "instructpix2pix": {
            "source": ("input_image", "original_image"),
            "target": ("edited_image",),
            "text": ("edit_prompt", "edit_instruction"),
        },
    }

    def __init__(self, path: str, layout: str, task: str) -> None:
        import datasets

        files = sorted(map(str, Path(path).rglob("*.parquet"))) if Path(path).is_dir() else [path]
        try:
            if files and files[0].endswith(".parquet"):
                self.rows = datasets.load_dataset("parquet", data_files=files, split="train")
            else:
                self.rows = datasets.load_dataset(path, split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"no data set at {path!r}: {' '.join(str(error).split())[:200]}") from None
        self.columns = {}
        for key, names in self.LAYOUTS[layout].items():
            name = next((name for name in names if name in self.rows.column_names), None)
            if name is None:
                raise DataError(f"{path!r} is not in the layout of {layout}: it has no column {names[0]!r}")
            self.columns[key] = name
        self.task = task
        self.tasks = [task] * len(self.rows)
        self.ids = self.rows["img_id"] if "img_id" in self.rows.column_names else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> EditSample:
        first = number
        while self.ids is not None and first and self.ids[first - 1] == self.ids[number]:
            first -= 1
        turns: list[Turn] = []
        unit, answer = None, None
        for n in range(first, number + 1):
            row = self.rows[n]
            image = answer if answer is not None else _in_memory(row[self.columns["source"]])
            mask = None if row.get("mask_img") is None else _erased(_with_alpha(row["mask_img"]), image)
            text = row[self.columns["text"]]
            if not isinstance(text, str):
                raise DataError(f"row {n} has no instruction")
            unit = ConditionUnit(text, (image,), (mask,))
            answer = _in_memory(row[self.columns["target"]])
            if n < number:
                turns.append(Turn(unit, answer))
        assert unit is not None and answer is not None
        request = LongContextConditionUnit(unit, tuple(turns))
        return EditSample(request, answer, self.task, {"row": number})


class WorkflowRecords:
    """The inputs and outputs of any external workflow (ACE, F.1): folders `inputs` and `outputs` with the same names.

    An input is a picture, or a folder of pictures for workflows that take several; none at all = text only. The
    instruction is the trigger, with the words of `prompts/<name>.txt` after it where there are any."""

    block = 1

    def __init__(self, path: Path, task: str, trigger: str) -> None:
        self.folder, self.trigger = path, trigger.strip()
        outputs = _pictures_in(path / "outputs")
        if not outputs:
            raise DataError(f"{path.name} has no pictures in outputs/: put a workflow's results there")
        inputs = {p.stem if p.is_file() else p.name: p for p in sorted((path / "inputs").glob("*"))}
        unknown = sorted(inputs.keys() - {output.stem for output in outputs})
        if unknown:
            raise DataError(f"{path.name}: {unknown[0]} in inputs/ has no picture of that name in outputs/")
        self.rows = [(output, inputs.get(output.stem)) for output in outputs]
        self.tasks = [task] * len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> EditSample:
        output, given = self.rows[number]
        paths = [] if given is None else _pictures_in(given) if given.is_dir() else [given]
        words = self.folder / "prompts" / f"{output.stem}.txt"
        text = f"{self.trigger} {words.read_text(encoding='utf-8').strip()}" if words.is_file() else self.trigger
        unit = ConditionUnit(text, tuple(open_image(path).image for path in paths))
        target = open_image(output).image
        return EditSample(LongContextConditionUnit(unit), target, self.tasks[number], {"row": number})


def open_records(source: DataSource, size_px: int, stage: TrainingStage) -> Records:
    """The samples of one `[[data]]` for a stage. Raises DataError if they are not there or not in that layout."""
    path = Path(source.path).expanduser()
    if source.kind == "world":
        return WorldRecords(size_px, stage.tasks, stage.pack, stage.level)
    if source.kind in ("magicbrush", "instructpix2pix"):
        return HuggingFaceRecords(source.path, source.kind, source.task)
    if not path.exists():
        raise DataError(f"data {source.name!r}: there is no {source.path}")
    if source.kind == "shards":
        return ShardRecords(path)
    if source.kind == "csv":
        return CsvRecords(path)
    if source.kind == "jsonl":
        return JsonlRecords(path, source.task)
    return WorkflowRecords(path, source.task, source.trigger)


class Mixture:
    """Sample numbers of a run → samples of its sources.

    Raises ConfigError if nothing is left to draw from."""

    def __init__(
        self, sources: Sequence[DataSource], records: Sequence[Records], stage: TrainingStage, seed: int
    ) -> None:
        self.seed = seed
        self.pools: list[_Pool] = []
        weights: list[float] = []
        for source, own in zip(sources, records, strict=True):
            weight = stage.data.get(source.name, 0.0) if stage.data else source.weight
            for share, numbers in _by_task(own, stage.tasks):
                if weight * share > 0 and (numbers is None or len(numbers)):
                    self.pools.append(_Pool(source.name, own, numbers))
                    weights.append(weight * share)
        if not self.pools:
            raise ConfigError(f"stage {stage.name!r}: its data has no samples of its tasks")
        counts = _apportion(weights, SLOTS)
        self.slots = [pool for pool, count in enumerate(counts) for _ in range(count)]
        random.Random(f"{seed}:{stage.name}:slots").shuffle(self.slots)
        self.counts = counts
        seen = [0] * len(counts)
        self.ranks = []
        for pool in self.slots:
            self.ranks.append(seen[pool])
            seen[pool] += 1

    def __getitem__(self, number: int) -> tuple[str, EditSample]:
        """Name ("source 17") and sample of a number."""
        pool, own = self._place(number)
        return f"{pool.name} {own}", pool.records[own]

    def name(self, number: int) -> str:
        """The name alone, without making the sample."""
        pool, own = self._place(number)
        return f"{pool.name} {own}"

    def _place(self, number: int) -> tuple[_Pool, int]:
        if len(self.pools) == 1:
            return self.pools[0], self.pools[0].shuffled(number, self.seed)
        turn, slot = divmod(number, SLOTS)
        pool = self.slots[slot]
        return self.pools[pool], self.pools[pool].shuffled(turn * self.counts[pool] + self.ranks[slot], self.seed)


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Samples that are drawn alike: all of a source, or those of one task or family."""

    name: str
    records: Records
    numbers: np.ndarray | None

    def shuffled(self, index: int, seed: int) -> int:
        """The number within the source of the pool's index-th draw."""
        if isinstance(self.records, WorldRecords):
            return index  # drawn at random already
        count = len(self.records) if self.numbers is None else len(self.numbers)
        turn, index = divmod(index, count)
        block = self.records.block
        whole = count // block  # what is left over after the whole blocks comes last
        window = min(index // (block * WINDOW_BLOCKS), max(whole - 1, 0) // WINDOW_BLOCKS)
        if index < whole * block:
            order = _permutation(whole, f"{seed}:{self.name}:{count}:{turn}")
            blocks = order[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]
            offset = index - window * WINDOW_BLOCKS * block
            if block > 1:
                offset = int(_permutation(len(blocks) * block, f"{seed}:{self.name}:{turn}:{window}")[offset])
            place = int(blocks[offset // block]) * block + offset % block
        else:
            rest = _permutation(count - whole * block, f"{seed}:{self.name}:{turn}:rest")
            place = whole * block + int(rest[index - whole * block])
        return place if self.numbers is None else int(self.numbers[place])


@lru_cache(maxsize=64)
def _permutation(count: int, key: str) -> np.ndarray:
    return np.random.default_rng(list(key.encode())).permutation(count)


def _by_task(records: Records, weights: dict[str, float]) -> list[tuple[float, np.ndarray | None]]:
    """(share, numbers) of what is drawn alike: all of it, or the samples of every wanted task or family."""
    if not weights or records.tasks is None:
        return [(1.0, None)]
    names = np.array(records.tasks)
    families = np.array([name.split("/")[0] for name in records.tasks])
    total = sum(weights.values())
    return [
        (weight / total, np.flatnonzero((names == wanted) | (families == wanted))) for wanted, weight in weights.items()
    ]


def _apportion(weights: Sequence[float], seats: int) -> list[int]:
    """Whole numbers in the ratio of the weights that add up to `seats`; none is 0 (largest remainders)."""
    exact = [weight / sum(weights) * seats for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda n: exact[n] - counts[n], reverse=True)
    for n in range(seats - sum(counts)):
        counts[by_rest[n % len(by_rest)]] += 1
    return counts


def _csv_task(row: dict[str, str]) -> str:
    kind = row["data_type"].split("_")[0]
    if not row["edit_image"] and not row["ref_image"]:
        return "text_guided_generation/text_to_image"
    return CSV_TASKS.get(kind, "reference_generation/multi_condition" if row["ref_image"] else CSV_TASKS["local"])


def _pictures_in(folder: Path) -> list[Path]:
    found = folder.glob("*") if folder.is_dir() else ()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _open(folder: Path, name: str) -> OpenedImage:
    return open_image(folder / local_path(name))


def _picture(folder: Path, name: str) -> Image.Image:
    return _open(folder, name).image


def _mask(folder: Path, name: str | None, photo: OpenedImage) -> Image.Image | None:
    """A mask's weights, read as everywhere; a mask of nothing or of everything is a sample too. ACE++ trains on soft
    ones. Raises MaskError for another size, which leaves the sample out by name."""
    return read_mask(folder / local_path(name), photo, whole=True).image if name else None


def _in_memory(value: Image.Image | dict[str, Any]) -> Image.Image:
    """A cell of a picture column: decoded by `datasets`, or its bytes where the files do not say that they are one."""
    if isinstance(value, dict):
        return open_bytes(value["bytes"]).image
    return normalise_image(value).image


def _with_alpha(value: Image.Image | dict[str, Any]) -> Image.Image:
    """The same with its transparency."""
    return open_header(io.BytesIO(value["bytes"])) if isinstance(value, dict) else value


def _erased(mask: Image.Image, source: Image.Image) -> Image.Image | None:
    """MagicBrush marks what changes by erasing it from a copy of the picture: transparent, or painted white."""
    if "A" in mask.getbands():
        changed = np.asarray(mask.getchannel("A")) < 128
    else:
        same_size = mask.convert("RGB").resize(source.size, Image.Resampling.NEAREST)
        white = np.asarray(same_size).min(axis=2) >= 250
        changed = white & (np.abs(np.asarray(same_size, dtype=int) - np.asarray(source)).max(axis=2) > 16)
    if not changed.any():
        return None
    found = Image.fromarray((changed * 255).astype(np.uint8))
    return found if found.size == source.size else found.resize(source.size, Image.Resampling.NEAREST)
