"""Lists are cut at line feeds only, in whatever encoding and with whatever separators their paths have."""

import json
from pathlib import Path

import pytest

from ace.errors import DataError
from ace.evaluation.lines import append_lines, read_lines
from ace.lists import local_path, numbered_lines, read_objects, read_table

FIELDS = ("image", "mask", "text")
ODD = "a\u2028b\u0085c\x0bd\x0ce\x1cf"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_may_hold_every_other_line_break(end, encoding, tmp_path):
    path = tmp_path / "list.jsonl"
    rows = [{"text": ODD}, {"text": "second"}]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode(encoding))
    assert list(read_objects(path)) == [(1, rows[0]), (2, rows[1])]


def test_measured_rows_with_such_captions_are_read_back(tmp_path):
    append_lines(tmp_path / "rows.jsonl", [{"text": ODD}, {"text": ODD}])
    assert read_lines(tmp_path / "rows.jsonl") == [{"text": ODD}] * 2


def test_a_header_says_the_order_and_is_no_row(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("Text#;#image#;#MASK\nblue#;#a.png#;#\n")
    assert list(read_table(path, FIELDS, "#;#")) == [(2, {"text": "blue", "image": "a.png", "mask": ""})]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('a#;#b#;#"in #;# it"', "in #;# it"),
        ('a#;#b#;#"say ""hi"""', 'say "hi"'),
        ('"a"#;# "b" #;#plain', "plain"),
        ('a#;#b#;#write "cat"', 'write "cat"'),
        ('a#;#b#;#"cat" on a mat', '"cat" on a mat'),
    ],
)
def test_quotes_keep_the_delimiter_and_are_text_elsewhere(line, text, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(line)
    (row,) = [row for _, row in read_table(path, FIELDS, "#;#")]
    assert row == {"image": "a", "mask": "b", "text": text}


def test_paths_of_every_system_are_the_same_path():
    assert local_path("img\\deep\\a.png") == local_path("img/deep/a.png") == Path("img/deep/a.png")


def test_what_is_no_list_is_named_with_its_line(tmp_path):
    path = tmp_path / "list.jsonl"
    for content in (b'{"a": 1}\n\n[1]\n', b'{"a": 1}\n\nx\n', b'{"a": 1}\n\n' + b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"list\.jsonl line 3 is not a JSON object"):
            list(read_objects(path))
    path.write_bytes(b"\xff\x00\xfa")
    with pytest.raises(DataError, match="not UTF-8"):
        numbered_lines(path)
    with pytest.raises(DataError, match=r"gone\.csv cannot be read"):
        numbered_lines(tmp_path / "gone.csv")
    path.write_text("a#;#b")
    with pytest.raises(DataError, match="line 1 has 2 fields"):
        list(read_table(path, FIELDS, "#;#"))
