"""MagicBrush in its published layout: what is asked in each setting, how answers are named, what is scored."""

import json

import datasets
import pytest
from PIL import ImageChops

from ace import load_tiny
from ace.conditions.images import open_image
from ace.errors import ConfigError, DataError
from ace.evaluation.benchmarks.magicbrush import SETTINGS, read_sessions, unpack_hub_set
from ace.evaluation.editing import Scorers, evaluate_magicbrush
from ace.evaluation.systems import Contestant, our_contestant

from .random_encoders import picture, random_clip, random_dino, write_magicbrush

SCORERS = Scorers(None, None)


def inverting(asked: list):
    """A system that inverts the current picture and keeps what it was asked."""

    def edit(units, seeds):
        asked.extend(units)
        return [ImageChops.invert(unit.current.images[0]) for unit in units]

    return edit


@pytest.fixture
def data(tmp_path):
    return write_magicbrush(tmp_path / "dev")


def test_each_setting_gives_the_model_what_the_protocol_says(data, tmp_path):
    asked: list = []
    evaluate_magicbrush(data, Contestant("inverter", inverting(asked), {}), tmp_path / "run", SCORERS, quiet=True)
    answers = tmp_path / "run" / "answers"
    assert sorted(path.name for path in answers.glob("101/*.png")) == [
        "101_1.png",
        "101_inde_2.png",
        "101_inde_3.png",
        "101_iter_2.png",
        "101_iter_3.png",
    ]
    given = picture(101 + 1)  # the true answer of turn 1
    assert open_image(answers / "101/101_inde_2.png").image.tobytes() == ImageChops.invert(given).tobytes()
    twice = open_image(answers / "101/101_iter_2.png").image  # turned over twice: the first picture again
    assert twice.tobytes() == picture(101).tobytes()
    histories = {len(unit.history) for unit in asked}
    assert histories == {0, 1, 2}
    last = next(unit for unit in asked if len(unit.history) == 2)
    assert [turn.unit.instruction for turn in last.history] == ["make it red", "make it blue"]
    assert last.frames()[0].image.tobytes() == picture(101).tobytes()


def test_tables_hold_all_turns_or_the_last_one_beside_the_published_rows(data, tmp_path):
    scorers = Scorers(random_clip(), random_dino(), ("random",))
    tables = evaluate_magicbrush(data, Contestant("inverter", inverting([]), {}), tmp_path / "run", scorers, quiet=True)
    assert [table.rows[0].count for table in tables] == [4, 2, 2]
    for table in tables:
        names = [row.name for row in table.rows]
        assert names[:2] == ["inverter", "copy of the input"] and any(n.startswith("ACE") for n in names[2:])
    written = json.loads((tmp_path / "run" / "table.json").read_bytes())
    assert written[0]["rows"][0]["values"][0]["mean"] == pytest.approx(tables[0].rows[0].values[0].mean)
    assert "0.0507" in (tmp_path / "run" / "table.md").read_text()
    assert (tmp_path / "run" / "table.tex").read_text().count("toprule") == 3
    rows = datasets.Dataset.from_parquet(str(tmp_path / "run" / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 8 and 0 < rows[0]["l1"] < 1
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "1. make it red; 2. make it blue; 3. make it green" in page  # all that the last answer was asked for
    assert page.count(">input<img") == page.count(">true answer<img") == 8
    assert "<details>" in page  # nothing is missing: folded up


def test_missing_pictures_are_counted_and_the_score_says_that_it_is_partial(data, tmp_path):
    results = tmp_path / "finished"
    (results / "101").mkdir(parents=True)
    picture(5).save(results / "101" / "101_1.png")
    single, *_ = evaluate_magicbrush(
        data,
        Contestant("mine", None, {}),
        tmp_path / "run",
        SCORERS,
        results=results,
        settings=SETTINGS[:1],
        quiet=True,
    )
    assert single.rows[0].count == 1 and single.rows[1].count == 1
    assert any(note.startswith("PARTIAL: 3 pictures are missing") for note in single.notes)
    with pytest.raises(DataError, match="multi-turn"):
        evaluate_magicbrush(
            data,
            Contestant("mine", None, {}),
            tmp_path / "run",
            SCORERS,
            results=results,
            settings=SETTINGS[1:],
            quiet=True,
        )


def test_pictures_of_another_size_and_damaged_ones_are_counted_and_named(data, tmp_path):
    results = tmp_path / "finished"
    (results / "101").mkdir(parents=True)
    picture(102).save(results / "101" / "101_1.png")  # right in every pixel
    picture(5, (32, 24)).save(results / "101" / "101_inde_2.png")
    (results / "101" / "101_inde_3.png").write_bytes(b"no picture")
    given = {"results": results, "settings": SETTINGS[:1], "quiet": True}
    for _ in range(2):  # counted again when nothing is scored again
        (single,) = evaluate_magicbrush(data, Contestant("mine", None, {}), tmp_path / "run", SCORERS, **given)
        assert single.rows[0].count == 2
        assert "RESIZED for the pixel errors: 1 pictures of another size, such as 101_2." in single.notes
        assert "PARTIAL: 2 pictures are missing or damaged, such as 101_3, 202_1." in single.notes
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "<details open>" in page and "single-turn: PARTIAL: 2 pictures are missing" in page
    rows = datasets.Dataset.from_parquet(str(tmp_path / "run" / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows["resized"][:] == [False, True]


def test_sessions_and_turns_that_occur_twice_are_counted_and_named(data):
    file = data / "edit_sessions.json"
    whole = file.read_text()
    table = json.loads(whole)
    file.write_text(f'{whole[:-1]}, "202": {json.dumps(table["202"])}}}')
    with pytest.raises(DataError, match=r"edit_sessions\.json: 1 ids occur twice, such as 202"):
        read_sessions(data)
    file.write_text(json.dumps({**table, "101": table["101"] + table["101"][1:]}))
    with pytest.raises(DataError, match=r"2 ids occur twice, such as 101 101-output2.png, 101 101-output3.png"):
        read_sessions(data)


def test_a_folder_never_mixes_two_systems(data, tmp_path):
    evaluate_magicbrush(data, Contestant("one", inverting([]), {}), tmp_path / "run", SCORERS, quiet=True)
    with pytest.raises(ConfigError, match="name"):
        evaluate_magicbrush(data, Contestant("two", inverting([]), {}), tmp_path / "run", SCORERS, quiet=True)


def test_the_small_model_answers_a_conversation_with_long_context(data, tmp_path):
    tables = evaluate_magicbrush(
        data,
        Contestant("ace-tiny", our_contestant(load_tiny(), num_inference_steps=1).edit, {}),
        tmp_path / "run",
        SCORERS,
        settings=SETTINGS[2:],
        quiet=True,
    )
    assert tables[0].rows[0].count == 2
    width, height = open_image(tmp_path / "run/answers/long_context/101/101_iter_3.png").image.size
    assert width / height == pytest.approx(4 / 3, abs=0.05)  # as its input


def test_the_hub_layout_becomes_the_archives(data, tmp_path):
    rows: list[dict] = []
    for session in read_sessions(data):
        for turn in session.turns:
            pictures = {
                "source_img": open_image(turn.source).image,
                "mask_img": picture(0),
                "target_img": open_image(turn.target).image,
            }
            rows.append({"img_id": session.id, "turn_index": turn.number, **pictures, "instruction": turn.instruction})
    kinds = {name: datasets.Image() for name in ("source_img", "mask_img", "target_img")}
    features = datasets.Features(
        {
            "img_id": datasets.Value("string"),
            "turn_index": datasets.Value("int32"),
            **kinds,
            "instruction": datasets.Value("string"),
        }
    )
    hub = tmp_path / "hub"
    hub.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(hub / "train-00000.parquet"))
    folder = unpack_hub_set(str(hub), "train", tmp_path / "unpacked")
    (one, two) = read_sessions(folder)
    assert [turn.instruction for turn in one.turns] == ["make it red", "make it blue", "make it green"]
    assert open_image(one.turns[2].source).image.tobytes() == picture(103).tobytes()
    assert two.turns[0].caption == ""
    datasets.Dataset.from_list([*rows, rows[1]], features=features).to_parquet(str(hub / "train-00000.parquet"))
    with pytest.raises(DataError, match="1 ids occur twice, such as 101 turn 2"):
        unpack_hub_set(str(hub), "train", tmp_path / "again")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.png", ""])
def test_a_set_that_names_files_elsewhere_is_refused(data, name):
    table = json.loads((data / "edit_sessions.json").read_text())
    table["202"][0]["input"] = name
    (data / "edit_sessions.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="plain file name"):
        read_sessions(data)
