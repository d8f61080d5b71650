"""The server reads what people send as every other door does, over real HTTP."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ace.errors import MissingDependencyError
from tests.input_cases import FILES, SELECTED, SIZE, masks, plain_mask, scene, write_mpo, write_turned
from tests.server.running import running

PNG = "image/png"


@pytest.fixture(scope="module")
def server():
    with running() as listening:
        yield listening


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def edit(server, image: bytes, mask: bytes | None = None, **fields: str) -> dict:
    files = {"image": ("photo.bin", image, "application/octet-stream")}
    if mask is not None:
        files["mask"] = ("mask.png", mask, PNG)
    with server.client() as http:
        reply = http.post("/v1/images/edits", data={"prompt": "add a hat", "steps": "1", **fields}, files=files)
    return reply.json()


def picture(reply: dict) -> np.ndarray:
    data = base64.b64decode(reply["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", masks())
def test_every_way_of_writing_a_mask_selects_the_same(kind, server):
    reply = edit(server, png(scene()), png(masks()[kind]))
    assert f"mask.png selects {100 * SELECTED:.1f} % of the picture" in " ".join(reply["data"][0]["ace"]["notes"])
    outside = np.asarray(plain_mask()) == 0
    np.testing.assert_array_equal(picture(reply)[outside], np.asarray(scene())[outside])


def test_what_can_be_read_two_ways_is_read_as_openais_api_does_and_said(server):
    half = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, SIZE[0], SIZE[1] // 2))
    reply = edit(server, png(scene()), png(half))
    assert "a transparent hole: the hole changes" in " ".join(reply["data"][0]["ace"]["notes"])
    kept = np.asarray(half.getchannel("A")) > 0
    np.testing.assert_array_equal(picture(reply)[kept], np.asarray(scene())[kept])


def test_a_turned_photo_takes_its_upright_mask_and_refuses_the_stored_one(server, tmp_path):
    photo, upright, stored = (path.read_bytes() for path in write_turned(tmp_path))
    assert picture(edit(server, photo, upright)).shape[:2] == SIZE
    assert "lies on its side" in edit(server, photo, stored)["error"]["message"]


def test_phones_and_every_listed_format_are_read(server, tmp_path):
    whole = [write_mpo(tmp_path / "phone.jpg").read_bytes(), (FILES / "a.avif").read_bytes()]
    for file_format in ("GIF", "BMP", "TIFF", "PPM", "WEBP"):
        stream = io.BytesIO()
        scene().save(stream, file_format)
        whole.append(stream.getvalue())
    for data in whole:
        assert "data" in edit(server, data)


def test_of_an_animation_the_first_frame_is_taken_and_it_is_said(server):
    stream = io.BytesIO()
    scene().save(stream, "GIF", save_all=True, append_images=[Image.new("RGB", SIZE)])
    reply = edit(server, stream.getvalue())
    assert "first frame" in " ".join(reply["data"][0]["ace"]["notes"])


def test_heic_is_read_or_refused_by_its_name(server, monkeypatch):
    pytest.importorskip("pi_heif")
    assert "data" in edit(server, (FILES / "iphone.heic").read_bytes())

    def without_the_extra(*_: object) -> None:
        raise MissingDependencyError("iphone.heic is HEIC, which needs a decoder: save it as JPEG")

    monkeypatch.setattr("ace.server.images.open_files", without_the_extra)
    assert "is HEIC" in edit(server, (FILES / "iphone.heic").read_bytes())["error"]["message"]


def test_a_phones_24_megapixels_are_taken(server):
    stream = io.BytesIO()
    Image.new("RGB", (6048, 4032), (90, 160, 220)).save(stream, "JPEG")
    assert "data" in edit(server, stream.getvalue())


# What comes out


def test_an_edit_has_the_pictures_size_and_says_what_it_kept(server):
    photo = scene((480, 360))
    own = edit(server, png(photo), change_mask="true")["data"][0]["ace"]
    assert own["size"] == "480x360"
    assert own["changes"]["kept"] + own["changes"]["recoloured"] + own["changes"]["redrawn"] == pytest.approx(
        1, abs=1e-4
    )
    changed = np.asarray(Image.open(io.BytesIO(base64.b64decode(own["change_mask"]))))
    assert changed.shape == (360, 480)
    assert (changed == 0).mean() == pytest.approx(own["changes"]["kept"], abs=1e-4)
    model = edit(server, png(photo), detail="model")["data"][0]["ace"]
    assert model["changes"] is None
    assert f"made at {model['size']}; your picture is 480x360" in model["notes"]
    assert edit(server, png(photo), size="64x48")["data"][0]["ace"]["size"] == "64x48"


def test_an_option_that_means_nothing_here_is_refused(server):
    for fields in ({"feather": "4"}, {"focus": "0.1"}, {"mask_means": "white"}):
        assert "edits with a mask" in edit(server, png(scene()), **fields)["error"]["message"]
    for fields in ({"detail": "model"}, {"change_mask": "true"}):
        assert "whole image" in edit(server, png(scene()), png(plain_mask()), **fields)["error"]["message"]
    assert "focus" in edit(server, png(scene()), png(plain_mask()), focus="often")["error"]["message"]


def test_a_mask_means_what_the_request_says(server):
    reply = edit(server, png(scene()), png(plain_mask()), mask_means="black")
    assert f"selects {100 * (1 - SELECTED):.1f} %" in " ".join(reply["data"][0]["ace"]["notes"])


def test_a_small_mask_is_worked_on_close_up(server):
    photo, dot = scene((480, 360)), Image.new("L", (480, 360))
    dot.paste(255, (300, 100, 330, 120))
    reply = edit(server, png(photo), png(dot))
    assert "worked on the part" in " ".join(reply["data"][0]["ace"]["notes"])
    outside = np.asarray(dot) == 0
    np.testing.assert_array_equal(picture(reply)[outside], np.asarray(photo)[outside])
    assert "worked on" not in " ".join(edit(server, png(photo), png(dot), focus="off")["data"][0]["ace"]["notes"])
