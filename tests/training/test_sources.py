"""Sources: every layout gives the samples that are in it, and a mixture draws each once before any twice."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.sample import EditSample
from ace.data.shards import write_shards
from ace.errors import ConfigError, DataError
from ace.inference.inputs import Geometry
from ace.training.batches import Samples
from ace.training.config import DataSource, TrainingStage
from ace.training.sources import Mixture, open_records
from ace.training.stream import Skipped

STAGE = TrainingStage("only", lr=1.0, steps=1)
GEOMETRY = Geometry(budget=4, cell_px=8, latent_px=8, enlarge=True, mask_by_area=True)


def picture(folder: Path, name: str, colour: str, size: tuple[int, int] = (16, 12)) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return name


def png(colour: str, size: tuple[int, int] = (16, 12)) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def colour_of(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))  # type: ignore[return-value]


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_the_list_of_ace_plus_has_six_fields_and_empty_ones_are_absent(tmp_path: Path):
    for name, colour in (("e.png", "red"), ("t.png", "blue"), ("r.png", "lime")):
        picture(tmp_path, name, colour)
    Image.new("L", (16, 12), 90).save(tmp_path / "m.png")
    rows = (
        "e.png#;#m.png#;##;#t.png#;#make it blue#;#local_editing",
        "#;##;#r.png#;#t.png#;#her, in blue#;#portrait",
        "#;##;##;#t.png#;#blue#;#subject",
    )
    (tmp_path / "list.csv").write_text("\n".join(rows))
    records = open_records(DataSource("a", "csv", str(tmp_path / "list.csv")), 64, STAGE)
    edit, reference, text = (records[n] for n in range(3))
    assert len(records) == 3
    assert [colour_of(i) for i in edit.request.current.images] == [RED]
    assert edit.request.current.masks[0].getpixel((0, 0)) == 90, "masks keep their grey"
    assert edit.task == "repainting/text_guided_inpainting"
    assert (reference.provenance["has_edit"], reference.task) == (0, "reference_generation/face_reference")
    assert [colour_of(i) for i in reference.request.current.images] == [LIME]
    assert text.task == "text_guided_generation/text_to_image"
    assert all(colour_of(sample.target) == BLUE for sample in (edit, reference, text))
    (tmp_path / "list.csv").write_text(rows[0] + "\na.png#;#b.png")
    with pytest.raises(DataError, match="line 2 has 2 fields"):
        open_records(DataSource("a", "csv", str(tmp_path / "list.csv")), 64, STAGE)


def test_a_folder_with_a_list_may_hold_whole_conversations(tmp_path: Path):
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "lime")):
        picture(tmp_path, name, colour)
    row = {
        "instruction": "now lime",
        "target": "c.png",
        "task": "multi_turn/chain",
        "history": [{"instruction": "make it blue", "images": ["a.png"], "answer": "b.png"}],
    }
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    sample = open_records(DataSource("a", "jsonl", str(tmp_path)), 64, STAGE)[0]
    assert [colour_of(frame.image) for frame in sample.request.frames()] == [RED, BLUE]
    assert (sample.task, colour_of(sample.target)) == ("multi_turn/chain", LIME)
    (tmp_path / "list.jsonl").write_text('{"instruction": "x"}')
    with pytest.raises(DataError, match="line 1 has no target"):
        open_records(DataSource("a", "jsonl", str(tmp_path)), 64, STAGE)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"instruction": None}, "line 2: instruction is None: use text"),
        ({"instruction": "x", "images": "a.png"}, "line 2: images is 'a.png': use a list"),
        ({"instruction": "x", "images": ["a.png", 3]}, "line 2: images.2 is 3: use text"),
        ({"instruction": "x", "history": [{"instruction": "y"}]}, "line 2: history.1.answer is missing"),
        ({"instruction": "x", "task": ["style"]}, "line 2: task is ['style']: use text"),
        ({"instruction": "\x1b[31m", "images": ["\x00.png"]}, "is damaged"),
        ({"instruction": "x", "task": "cooking/soup"}, "cooking"),
    ],
)
def test_a_damaged_row_is_left_out_by_name_and_stops_nothing(tmp_path: Path, row: dict, says: str):
    picture(tmp_path, "a.png", "red")
    whole = {"instruction": "make it red", "target": "a.png"}
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, (whole, {"target": "a.png", **row}, whole))))
    source = DataSource("mine", "jsonl", str(tmp_path))
    records = open_records(source, 64, STAGE)
    found = [Samples(Mixture((source,), (records,), STAGE, 0), GEOMETRY, 0.0)[number] for number in range(3)]
    (skipped,) = (item for item in found if isinstance(item, Skipped))
    assert says in skipped.reason
    assert skipped.name.startswith("mine ")


def test_the_rounds_of_one_magicbrush_picture_are_one_conversation(tmp_path: Path):
    erased = Image.new("RGB", (16, 12), "red")
    erased.paste("white", (4, 4, 8, 8))
    buffer = io.BytesIO()
    erased.save(buffer, "PNG")
    rows = [
        {"img_id": "1", "turn_index": 1, "source_img": png("red"), "instruction": "one", "target_img": png("blue")},
        {"img_id": "1", "turn_index": 2, "source_img": png("blue"), "instruction": "two", "target_img": png("lime")},
        {"img_id": "2", "turn_index": 1, "source_img": png("lime"), "instruction": "three", "target_img": png("red")},
    ]
    masks = [{"bytes": buffer.getvalue(), "path": None}, png("blue"), png("lime")]
    save_parquet(tmp_path / "train.parquet", [{**row, "mask_img": mask} for row, mask in zip(rows, masks, strict=True)])
    records = open_records(DataSource("a", "magicbrush", str(tmp_path)), 64, STAGE)
    first, second, third = (records[n] for n in range(3))
    mask = np.asarray(first.request.current.masks[0])
    assert mask[4:8, 4:8].all() and mask.sum() == 16 * 255
    assert [turn.unit.instruction for turn in second.request.history] == ["one"]
    assert [colour_of(frame.image) for frame in second.request.frames()] == [RED, BLUE]
    assert second.request.current.masks == (None,)
    assert not third.request.history
    with pytest.raises(DataError, match="no column 'input_image'"):
        open_records(DataSource("a", "instructpix2pix", str(tmp_path)), 64, STAGE)


def test_the_layout_of_instruct_pix2pix(tmp_path: Path):
    rows = [{"input_image": png("red"), "edit_prompt": "make it blue", "edited_image": png("blue")}]
    save_parquet(tmp_path / "train.parquet", rows)
    sample = open_records(DataSource("a", "instructpix2pix", str(tmp_path)), 64, STAGE)[0]
    assert sample.request.current.instruction == "make it blue"
    assert (colour_of(sample.request.current.images[0]), colour_of(sample.target)) == (RED, BLUE)


def save_parquet(path: Path, rows: list[dict]) -> None:
    kinds = {
        k: {"_type": "Image"} if isinstance(v, dict) else {"dtype": "string", "_type": "Value"}
        for k, v in rows[0].items()
    }
    kinds |= {k: {"dtype": "int64", "_type": "Value"} for k, v in rows[0].items() if isinstance(v, int)}
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})}), path)


def test_a_workflow_is_its_inputs_outputs_and_a_phrase(tmp_path: Path):
    picture(tmp_path, "inputs/one.png", "red")
    picture(tmp_path, "inputs/two/a.png", "red")
    picture(tmp_path, "inputs/two/b.png", "lime")
    for name in ("one", "two", "three"):
        picture(tmp_path, f"outputs/{name}.png", "blue")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "three.txt").write_text("a house\n")
    records = open_records(DataSource("a", "workflow", str(tmp_path), trigger="as in my tool"), 64, STAGE)
    samples = {len(s.request.current.images): s for s in (records[n] for n in range(3))}
    assert [samples[n].request.current.instruction for n in range(3)] == [
        "as in my tool a house",
        *["as in my tool"] * 2,
    ]
    assert [colour_of(i) for i in samples[2].request.current.images] == [RED, LIME]
    picture(tmp_path, "inputs/four.png", "red")
    with pytest.raises(DataError, match=r"four in inputs/ has no picture of that name"):
        open_records(DataSource("a", "workflow", str(tmp_path), trigger="x"), 64, STAGE)


def shards(folder: Path, tasks: list[str]) -> DataSource:
    samples = [
        EditSample(
            LongContextConditionUnit(ConditionUnit(f"sample {n}", (Image.new("RGB", (8, 8), (n % 256, 0, 0)),))),
            Image.new("RGB", (8, 8), (n % 256, 0, 0)),
            task,
        )
        for n, task in enumerate(tasks)
    ]
    write_shards(samples, folder, rows_per_shard=70)
    return DataSource(folder.name, "shards", str(folder))


ADD, DEPTH = "element_editing/object_add", "low_level_analysis/depth"


def test_every_sample_of_shards_is_drawn_once_a_round_and_rounds_differ(tmp_path: Path):
    source = shards(tmp_path / "mine", [ADD] * 300)
    mixture = Mixture((source,), (open_records(source, 64, STAGE),), STAGE, 0)
    rounds = [[mixture[turn * 300 + n][1].request.current.instruction for n in range(300)] for turn in range(2)]
    assert all(sorted(drawn) == sorted(f"sample {n}" for n in range(300)) for drawn in rounds)
    assert rounds[0] != rounds[1]
    places = [int(text.split()[1]) for text in rounds[0]]
    assert np.corrcoef(places, range(300))[0, 1] < 0.9 and np.abs(np.diff(places)).mean() > 30, "neighbours are apart"


def test_a_mixture_keeps_to_its_weights_and_every_source_to_its_own_round(tmp_path: Path):
    sources = tuple(shards(tmp_path / name, [ADD] * count) for name, count in (("small", 40), ("large", 200)))
    sources = (
        DataSource("small", "shards", sources[0].path, weight=1.0),
        DataSource("large", "shards", sources[1].path, weight=3.0),
    )
    mixture = Mixture(sources, [open_records(s, 64, STAGE) for s in sources], STAGE, 0)
    names = [mixture.name(n) for n in range(4096)]
    count = Counter(name.split()[0] for name in names)
    assert count["small"] == 1024 and count["large"] == 3072
    small = [name for name in names if name.startswith("small")]
    assert all(len(set(small[i : i + 40])) == 40 for i in range(0, 1000, 40))
    again = Mixture(sources, [open_records(s, 64, STAGE) for s in sources], STAGE, 0)
    assert names == [again.name(n) for n in range(4096)]


def test_a_stage_draws_tasks_by_its_weights_from_any_source(tmp_path: Path):
    source = shards(tmp_path / "mine", [ADD] * 90 + [DEPTH] * 10)
    stage = TrainingStage("only", lr=1.0, steps=1, tasks={"element_editing": 1.0, DEPTH: 1.0})
    mixture = Mixture((source,), (open_records(source, 64, stage),), stage, 0)
    assert Counter(mixture[n][1].task for n in range(1024)) == {ADD: 512, DEPTH: 512}
    wrong = TrainingStage("only", lr=1.0, steps=1, tasks={"repainting": 1.0})
    with pytest.raises(ConfigError, match="no samples of its tasks"):
        Mixture((source,), (open_records(source, 64, wrong),), wrong, 0)


def test_the_world_draws_families_too():
    stage = TrainingStage("only", lr=1.0, steps=1, tasks={"layer_editing": 1.0})
    mixture = Mixture((DataSource("w", "world"),), (open_records(DataSource("w", "world"), 32, stage),), stage, 0)
    assert {mixture[n][1].task.split("/")[0] for n in range(6)} == {"layer_editing"}
