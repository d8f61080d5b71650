"""The same photographs make the same data set wherever they lie; a damaged container costs what is damaged in it."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from ace.data.collect import list_pictures, open_picture
from ace.data.recipe import Collection, DataRecipe, Synthesis
from ace.data.run import build
from ace.data.shards import read_shards
from ace.errors import DataError

TASKS = ("text_guided_generation/text_to_image", "low_level_analysis/edge")
CAPTIONS = {"cat": "a tabby cat", "coffee": "a cup of coffee on a table", "astronaut": "an astronaut before a flag"}


def photographs() -> dict[str, bytes]:
    """PNG bytes by name, 160 px wide."""
    made = {}
    for name in CAPTIONS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        buffer = BytesIO()
        image.resize((160, 160 * image.height // image.width)).save(buffer, "PNG")
        made[name] = buffer.getvalue()
    return made


def a_folder(place: Path) -> Collection:
    for name, data in photographs().items():
        (place / f"{name}.png").write_bytes(data)
        (place / f"{name}.txt").write_text(CAPTIONS[name])
    return Collection(str(place))


def a_folder_with_metadata(place: Path) -> Collection:
    (place / "deep").mkdir()
    lines = []
    for name, data in photographs().items():
        (place / "deep" / f"{name}.png").write_bytes(data)
        lines.append(json.dumps({"file_name": f"deep/{name}.png", "text": CAPTIONS[name]}))
    (place / "metadata.jsonl").write_text("\n".join(lines))
    return Collection(str(place))


def rows() -> list[dict]:
    return [{"image": {"bytes": data, "path": None}, "caption": CAPTIONS[n]} for n, data in photographs().items()]


def parquet(place: Path) -> Collection:
    pq.write_table(pa.Table.from_pylist(rows()[:2]), place / "a.parquet", row_group_size=1)
    pq.write_table(pa.Table.from_pylist(rows()[2:]), place / "b.parquet")
    return Collection(str(place))


def one_parquet_file(place: Path) -> Collection:
    pq.write_table(pa.Table.from_pylist(rows()), place / "all.parquet")
    return Collection(str(place / "all.parquet"))


def web_dataset(place: Path) -> Collection:
    for shard, names in (("0.tar", ["cat", "coffee"]), ("1.tar", ["astronaut"])):
        with tarfile.open(place / shard, "w") as archive:
            for name in names:
                about = json.dumps({"caption": CAPTIONS[name]}).encode()
                for extension, data in (("png", photographs()[name]), ("json", about)):
                    member = tarfile.TarInfo(f"{name}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, BytesIO(data))
    return Collection(str(place))


def hugging_face_set() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_list(rows(), features=features)


def saved_by_datasets(place: Path) -> Collection:
    hugging_face_set().save_to_disk(place / "saved")
    return Collection(str(place / "saved"))


def saved_in_splits(place: Path) -> Collection:
    other = hugging_face_set().select([0])
    datasets.DatasetDict({"test": other, "validation": hugging_face_set()}).save_to_disk(place / "saved")
    return Collection(str(place / "saved"), split="validation")


def loaded_by_name(place: Path) -> Collection:
    """A repository as on the hub, by the path of its clone."""
    (place / "data").mkdir()
    hugging_face_set().to_parquet(place / "data" / "train-00000-of-00001.parquet")
    return Collection(str(place), kind="huggingface")


READERS = (
    a_folder,
    a_folder_with_metadata,
    parquet,
    one_parquet_file,
    web_dataset,
    saved_by_datasets,
    saved_in_splits,
    loaded_by_name,
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    place = tmp_path_factory.mktemp("expected")
    (place / "pictures").mkdir()
    built = build(DataRecipe(a_folder(place / "pictures"), synthesize=Synthesis(TASKS)), place / "set")
    assert built.manifest.tasks == {TASKS[0]: 3, TASKS[1]: 3}
    return built.manifest


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_photographs_make_the_same_data_set_wherever_they_lie(reader, expected, cache, tmp_path):
    (tmp_path / "pictures").mkdir()
    source = reader(tmp_path / "pictures")
    assert build(DataRecipe(source, synthesize=Synthesis(TASKS)), tmp_path / "set").manifest == expected
    words = " ".join(read_shards(tmp_path / "set").column("instruction"))
    assert all(caption in words for caption in CAPTIONS.values())


def outcome(source: Collection, folder: Path) -> tuple[int, list[tuple[str, str]]]:
    """How many sources were used, and what was rejected, with its reason."""
    built = build(DataRecipe(source, synthesize=Synthesis(TASKS[1:])), folder)
    dropped = list(read_shards(folder / "rejected").rows())
    return built.manifest.count, [(row["what"], row["reason"]) for row in dropped]


def test_an_archive_cut_short_gives_what_is_whole(tmp_path):
    source = web_dataset(tmp_path)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(photographs()["cat"]) + 4000])  # ends inside the next picture
    count, dropped = outcome(source, tmp_path.parent / f"{tmp_path.name}-set")
    assert count == 2
    assert ("0.tar", "cannot be read") in dropped


@pytest.mark.parametrize("place", ["inside", "in front of"])
def test_an_archive_cut_in_a_header_is_counted_too(place, tmp_path):
    source = web_dataset(tmp_path)
    with tarfile.open(tmp_path / "0.tar") as archive:
        (second,) = (member for member in archive if member.name == "coffee.png")
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: second.offset + (200 if place == "inside" else 0)])
    count, dropped = outcome(source, tmp_path.parent / f"{tmp_path.name}-set")
    assert (count, dropped) == (2, [("0.tar", "cannot be read")])


def test_a_damaged_table_is_rejected_and_the_others_are_used(tmp_path):
    source = parquet(tmp_path)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-40])
    count, dropped = outcome(source, tmp_path.parent / f"{tmp_path.name}-set")
    assert (count, dropped) == (1, [("a.parquet", "cannot be read")])


def test_a_line_of_captions_that_says_nothing_is_rejected(tmp_path):
    source = a_folder_with_metadata(tmp_path)
    with (tmp_path / "metadata.jsonl").open("ab") as file:
        file.write(b'\nnot json\n{"text": "whose?"}\n{"file_name": "deep/cat.png", "text": "r\xe9sum\xe9"}')
    pointers = list_pictures(source)
    assert [p.name for p in pointers if p.part] == ["metadata.jsonl#line 4", "metadata.jsonl#line 5"]
    count, dropped = outcome(source, tmp_path.parent / f"{tmp_path.name}-set")
    assert (count, {reason for _, reason in dropped}) == (3, {"cannot be read"})


@pytest.mark.parametrize("columns", [{"caption": ["a cat"]}, {"size": [3]}])
def test_a_table_without_pictures_stops_before_work_starts(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "words.parquet")
    with pytest.raises(DataError, match="no column of pictures"):
        build(DataRecipe(Collection(str(tmp_path))), tmp_path.parent / f"{tmp_path.name}-set")


def test_a_format_that_runs_programs_is_no_picture():
    """Pillow hands PostScript to Ghostscript; nothing of a collection is run."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    found = open_picture(script, "drawing.eps", Collection("."))
    assert not isinstance(found, Image.Image) and found.reason == "not a picture"
