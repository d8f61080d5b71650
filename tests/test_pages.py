"""Pages: text stays text, one style sheet for all, nothing from elsewhere, the whole of the templates in use."""

import re
from pathlib import Path

import jinja2
import pytest
from PIL import Image

import ace
from ace.evaluation.gallery import Case, write_gallery
from ace.pages import image_url, render

TEMPLATES = Path(ace.__file__).parent / "templates"
HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def test_what_is_put_into_a_page_is_shown_as_text(tmp_path):
    picture = Image.new("RGB", (8, 8), "red")
    write_gallery(tmp_path / "g.html", HOSTILE, [(HOSTILE, [Case(((HOSTILE, picture),), HOSTILE, HOSTILE)])], [HOSTILE])
    page = (tmp_path / "g.html").read_text()
    assert "<script" not in page and "49" not in page.split("base64,")[0]
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;{{ 7 * 7 }}") == 8


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATES.glob("*.html")))
def test_a_template_takes_the_shared_style_and_loads_nothing_from_elsewhere(template):
    text = (TEMPLATES / f"{template}.html").read_text()
    if template not in ("page", "parts"):
        assert text.startswith('{% extends "page.html" %}')
    assert (
        "http" not in text
        and "<link" not in text
        and "src=" not in text.replace('src="{{', "").replace('src="/picture/{{', "")
    )
    assert "<style" not in text or template == "page"
    assert "|safe" not in text or template == "funnel"


@pytest.mark.parametrize("room", ["data", "evaluation", "training"])
def test_no_page_of_these_rooms_is_written_by_hand(room):
    for file in (TEMPLATES.parent / room).rglob("*.py"):
        assert not re.search(
            r"<!doctype|<style>[^,]*\\{|<html|<div", file.read_text(encoding="utf-8"), re.IGNORECASE
        ), file


def test_a_value_that_a_template_lacks_is_an_error_and_not_a_gap():
    with pytest.raises(jinja2.UndefinedError):
        render("gallery", title="x")


def test_an_image_goes_into_a_page_no_larger_than_it_is_shown():
    assert len(image_url(Image.new("RGB", (512, 512)), 64)) < len(image_url(Image.effect_noise((512, 512), 90)))
    assert image_url(Image.new("RGBA", (4, 4)), kind="WEBP").startswith("data:image/webp;base64,")
