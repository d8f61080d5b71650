"""Lines that are there are read, through the real reader; wrong and turned ones are scored as defined."""

import json

import pytest
from PIL import Image, ImageDraw, ImageFont

from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import DataError
from ace.evaluation.benchmarks.text_rendering import make_table, read_text_lines, score_lines
from ace.extract.text import TextReader


@pytest.fixture
def listed(tmp_path):
    font = ImageFont.truetype(SHIPPED_PACK / "fonts" / "sans.ttf", 40)
    sheet = Image.new("RGB", (400, 300), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((20, 20), "Harbour", fill="navy", font=font)
    pen.text((20, 120), "Sunday", fill="black", font=font)
    turned = Image.new("RGB", (200, 60), "white")
    ImageDraw.Draw(turned).text((10, 5), "Coffee", fill="black", font=font)
    sheet.paste(turned.rotate(-90, expand=True), (320, 40))
    sheet.save(tmp_path / "sheet.png")
    boxes = [("Harbour", (10, 10, 200, 75)), ("Monday", (10, 110, 200, 175)), ("Coffee", (320, 40, 380, 240))]
    lines = [
        {"text": text, "corners": [[left, top], [right, top], [right, bottom], [left, bottom]]}
        for text, (left, top, right, bottom) in boxes
    ]
    (tmp_path / "lines.jsonl").write_text(json.dumps({"id": "1", "image": "sheet.png", "lines": lines}) + "\n")
    return tmp_path / "lines.jsonl"


def test_right_lines_are_read_and_wrong_ones_score_by_their_letters(listed):
    scores = score_lines(read_text_lines(listed)[0], TextReader())
    assert scores["1:0"] == ("Harbour", pytest.approx(1), 1)
    assert scores["1:1"][0] == "Sunday" and scores["1:1"][2] == 0
    assert scores["1:1"][1] == pytest.approx(1 - 2 / 6, abs=1e-4)
    row = make_table("mine", scores).rows[0]
    assert row.count == 3 and row.values[1].mean <= 2 / 3


def test_pictures_elsewhere_are_refused(listed):
    row = json.loads(listed.read_text())
    listed.write_text(json.dumps(row | {"image": "../sheet.png"}))
    with pytest.raises(DataError, match="not a file below"):
        read_text_lines(listed)


def test_missing_and_damaged_pictures_are_counted_and_twice_the_same_id_is_refused(listed):
    row = json.loads(listed.read_text())
    (listed.parent / "damaged.png").write_bytes(b"no picture")
    others = [row | {"id": "2", "image": "gone.png"}, row | {"id": "3", "image": "damaged.png"}]
    listed.write_text("".join(json.dumps(line) + "\n" for line in (row, *others)))
    lines, missing = read_text_lines(listed)
    assert len(lines) == 3 and missing == ["2", "3"]
    table = make_table("mine", {line.id: ("x", 0.0, 0.0) for line in lines}, missing)
    assert "PARTIAL: 2 pictures are missing, such as 2, 3." in table.notes
    listed.write_text("".join(json.dumps(line) + "\n" for line in (row, row)))
    with pytest.raises(DataError, match="twice, such as 1"):
        read_text_lines(listed)
