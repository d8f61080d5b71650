"""Shards give back what went in, to the pixel and to the object; other tools read them; damage is named."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.sample import TASKS, EditSample
from ace.data.shards import read_manifest, read_shards, to_row, write_shards
from ace.data.world import World
from ace.errors import ConfigError, DataError, InputError


@pytest.fixture(scope="module")
def samples():
    world = World(32)
    return [world.sample(seed, task) for seed, task in enumerate(TASKS) if task in world.tasks]


def pixels(image):
    return None if image is None else (image.mode, image.size, image.tobytes())


def everything(sample):
    """All that a sample says, comparable; pictures as pixels, identity as the position of first use."""
    request = sample.request
    units = [turn.unit for turn in request.history] + [request.current]
    pictures = [image for unit in units for image in unit.images] + [turn.answer for turn in request.history]
    first = [next(i for i, other in enumerate(pictures) if other is image) for image in pictures]
    return (
        sample.task,
        sample.provenance,
        [(unit.instruction, [*map(pixels, unit.images)], [*map(pixels, unit.masks)]) for unit in units],
        [pixels(turn.answer) for turn in request.history],
        first,
        request.max_history,
        request.target_index,
        pixels(sample.target),
        [(pixels(f.image), pixels(f.mask), f.instruction, f.round) for f in request.frames()],
    )


def test_every_task_comes_back_to_the_pixel(samples, tmp_path):
    write_shards(samples, tmp_path / "set", rows_per_shard=7)
    back = read_shards(tmp_path / "set", verify=True)
    assert len(back) == len(samples)
    assert [everything(sample) for sample in back] == [everything(sample) for sample in samples]


def test_a_sample_by_index_is_the_one_in_order(samples, tmp_path):
    write_shards(samples, tmp_path / "set", rows_per_shard=5)
    back = read_shards(tmp_path / "set")
    for index in (len(samples) - 1, 0, 13, -2):
        assert everything(back[index]) == everything(samples[index])
    assert [sample.task for sample in back[3:9:2]] == [sample.task for sample in samples[3:9:2]]
    with pytest.raises(IndexError):
        back[len(samples)]


def test_an_opened_set_goes_to_another_process(samples, tmp_path):
    write_shards(samples[:3], tmp_path / "set")
    back = read_shards(tmp_path / "set")
    assert everything(back[1]) == everything(pickle.loads(pickle.dumps(back))[1])


def test_a_conversation_keeps_its_shared_pictures_one(tmp_path):
    first, second, answer, mask = (Image.fromarray(np.full((8, 12, 3), value, np.uint8)) for value in (10, 20, 30, 255))
    unit = ConditionUnit("mix {image1} with {image}", (second, first), (None, mask.convert("L")))
    request = LongContextConditionUnit(
        ConditionUnit("now redder", (answer,)), (Turn(unit, answer),), max_history=3, target_index=1
    )
    sample = EditSample(request, second, "multi_turn/chain", {"seed": 3, "score": 0.5, "who": "测试"})
    assert len(to_row(sample)["images"]) == 3
    write_shards([sample], tmp_path / "set")
    back = read_shards(tmp_path / "set")[0]
    assert everything(back) == everything(sample)
    assert back.request.current.images[0] is back.request.history[0].answer


def test_hugging_face_datasets_reads_pictures_as_pictures(samples, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_shards(samples, tmp_path / "set", rows_per_shard=20)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "set" / "*.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert loaded.features["target"] == datasets.Image()
    assert loaded.features["images"] == datasets.List(datasets.Image())
    assert loaded["instruction"][:] == [sample.request.current.instruction for sample in samples]
    for row, sample in zip(loaded, samples, strict=True):
        assert pixels(row["target"]) == pixels(sample.target)
        images = sample.request.current.images
        assert [pixels(i) for i in row["images"][: len(images)]] == [pixels(i) for i in images]


def test_the_same_samples_give_the_same_manifest(samples, tmp_path):
    write_shards(samples, tmp_path / "one")
    write_shards(iter(samples), tmp_path / "two")
    text = (tmp_path / "one" / "manifest.json").read_text()
    assert text == (tmp_path / "two" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["count"] == len(samples)


def test_an_identity_names_pictures_and_words_and_not_where_they_come_from(samples):
    sample = samples[5]
    moved = EditSample(sample.request, sample.target, sample.task, {"source": "elsewhere"})
    other = EditSample(sample.request, samples[6].target, sample.task, sample.provenance)
    assert to_row(moved)["id"] == to_row(sample)["id"] != to_row(other)["id"]


def test_with_a_quality_pictures_shrink_and_masks_stay_exact(samples, tmp_path):
    with_masks = [sample for sample in samples if any(sample.request.current.masks)]
    write_shards(with_masks, tmp_path / "set", quality=50)
    for back, sample in zip(read_shards(tmp_path / "set"), with_masks, strict=True):
        assert [*map(pixels, back.request.current.masks)] == [*map(pixels, sample.request.current.masks)]
        assert pixels(back.target) != pixels(sample.target)
        assert back.target.size == sample.target.size


def test_damage_is_named(samples, tmp_path):
    write_shards(samples[:4], tmp_path / "set", rows_per_shard=2)
    file = tmp_path / "set" / "shard-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(DataError, match=r"shard-00001\.parquet is not what"):
        read_shards(tmp_path / "set", verify=True)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"shard-00001\.parquet cannot be read"):
        read_shards(tmp_path / "set")
    file.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.parquet"):
        read_shards(tmp_path / "set")
    with pytest.raises(DataError, match="no finished data set"):
        read_manifest(tmp_path)


def test_a_finished_set_is_not_written_over(samples, tmp_path):
    write_shards(samples[:1], tmp_path / "set")
    with pytest.raises(InputError, match="finished data set"):
        write_shards(samples[:2], tmp_path / "set")
    with pytest.raises(ConfigError, match="rows_per_shard"):
        write_shards(samples[:2], tmp_path / "other", rows_per_shard=0)


def test_what_a_stopped_writer_left_behind_is_replaced(samples, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "shard-00007.parquet").write_bytes(b"half")
    (folder / ".shard-00000.parquet.0a.part").write_bytes(b"half")
    write_shards(samples[:2], folder)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "shard-00000.parquet"]


def test_an_empty_set_can_be_written_and_read(tmp_path):
    assert write_shards([], tmp_path / "set").count == 0
    assert len(read_shards(tmp_path / "set")) == 0
