"""Emu Edit's set in the hub's columns: answers by idx, scores against the input, equal captions counted."""

import datasets
import pytest
from PIL import ImageChops

from ace.errors import ConfigError, DataError
from ace.evaluation.editing import Scorers, evaluate_emu_edit
from ace.evaluation.systems import Contestant

from .random_encoders import picture, random_clip, random_dino


def write_set(folder, numbers=(3, 1, 2)):
    rows = [
        {
            "instruction": f"make it {n}",
            "image": picture(n),
            "task": "style" if n == 3 else "add",
            "split": "test",
            "idx": n,
            "hash": "x",
            "input_caption": "a cat",
            "output_caption": "a cat" if n == 1 else "a red cat",
        }
        for n in numbers
    ]
    kinds = {name: datasets.Value("string") for name in rows[0]}
    features = datasets.Features({**kinds, "image": datasets.Image(), "idx": datasets.Value("int64")})
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / "test.parquet"))
    return str(folder)


def invert(units, seeds):
    return [ImageChops.invert(unit.current.images[0]) for unit in units]


def test_answers_are_scored_against_the_input_beside_the_papers_rows(tmp_path):
    scorers = Scorers(random_clip(), random_dino(), ("random",))
    main, tasks = evaluate_emu_edit(
        write_set(tmp_path / "hub"), "test", Contestant("inverter", invert, {}), tmp_path / "run", scorers, quiet=True
    )
    assert sorted(path.name for path in (tmp_path / "run/answers").iterdir()) == ["1.png", "2.png", "3.png"]
    own, copy = main.rows[:2]
    assert own.count == 3 and own.values[2].mean > 0.1
    assert copy.values[2].mean == 0 and copy.values[3].mean == pytest.approx(1)  # the input beside itself
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "furthest from the input" in page and page.count(">input<img") == page.count(">answer<img") == 3
    assert any("1 rows have two equal captions" in note for note in main.notes)
    assert [row.name for row in tasks.rows] == ["add", "style"] and [row.count for row in tasks.rows] == [2, 1]
    assert {row.name: row.values for row in main.rows}["ACE"] == (0.0855, 0.2746, 0.0761, 0.8952, 0.8620)


def test_an_id_that_occurs_twice_is_named(tmp_path):
    with pytest.raises(DataError, match="1 ids occur twice, such as 2"):
        evaluate_emu_edit(
            write_set(tmp_path / "hub", (1, 2, 2)),
            "test",
            Contestant("x", invert, {}),
            tmp_path / "run",
            Scorers(None, None),
            quiet=True,
        )


def test_pictures_of_another_size_and_damaged_ones_are_counted_and_named(tmp_path):
    results = tmp_path / "finished"
    results.mkdir()
    picture(1, (32, 32)).save(results / "1.png")
    picture(2).save(results / "2.png")
    (results / "3.png").write_bytes(b"no picture")
    hub, mine = write_set(tmp_path / "hub"), Contestant("mine", None, {})
    none = Scorers(None, None)
    main, _ = evaluate_emu_edit(hub, "test", mine, tmp_path / "run", none, results=results, quiet=True)
    assert main.rows[0].count == 2
    assert "RESIZED for the pixel errors: 1 pictures of another size, such as 1." in main.notes
    assert "PARTIAL: 1 pictures are missing or damaged, such as 3." in main.notes


def test_a_folder_never_mixes_two_sets(tmp_path):
    def run(hub):
        evaluate_emu_edit(hub, "test", Contestant("x", invert, {}), tmp_path / "run", Scorers(None, None), quiet=True)

    run(write_set(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="another data"):
        run(write_set(tmp_path / "other", (3,)))
