"""`/v1/videos`: create, poll, fetch, delete; and clips in sessions."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest

from ace.conversation import Loading
from ace.conversation.media import read_recipe
from ace.families import find_family
from ace.video.clips import encode_clip, open_clip, read_clip
from tests.random_video import save_vace
from tests.server.running import running
from tests.video.clips import ramp_clip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    family = find_family(str(save_vace(tmp_path_factory.mktemp("vace") / "model")))
    family.load(Loading(device="cpu"))
    with running(family=family, data_folder=tmp_path_factory.mktemp("data")) as found:
        yield found


CLIP = encode_clip(ramp_clip(9, 64, 64), Fraction(16), "MKV")


def finished(http, video_id: str) -> dict:
    for _ in range(600):
        reply = http.get(f"/v1/videos/{video_id}").json()
        if reply["status"] in ("done", "failed", "cancelled"):
            return reply
        time.sleep(0.1)
    raise AssertionError(reply)


def test_a_clip_is_created_polled_fetched_and_deleted(server, tmp_path):
    with server.client() as http:
        fields = {"prompt": "a dog", "steps": "1", "seed": "5", "mask": "box:10,12,40,50"}
        created = http.post("/v1/videos", data=fields, files={"video": ("my clip.mkv", CLIP)})
        assert created.status_code == 202, created.text
        video_id = created.json()["id"]
        reply = finished(http, video_id)
        assert (reply["status"], reply["frames"], reply["size"], reply["seed"]) == ("done", 9, "64x64", "5")
        assert [one["id"] for one in http.get("/v1/videos").json()["data"]] == [video_id]
        path = tmp_path / "out.mkv"
        path.write_bytes(http.get(f"/v1/videos/{video_id}/content?format=mkv").content)
        made = read_clip(path).frames
        outside = np.ones((64, 64), bool)
        outside[12:50, 10:40] = False
        assert np.array_equal(made[:, outside], ramp_clip(9, 64, 64)[:, outside])
        recipe = read_recipe(path)
        assert recipe.images[0].name == "my clip.mkv" and "upload" not in recipe.to_json()
        answer = http.get(f"/v1/videos/{video_id}/content")
        assert answer.headers["content-type"] == "video/mp4" and answer.content[4:8] == b"ftyp"
        assert http.delete(f"/v1/videos/{video_id}").json()["status"] == "deleted"
        assert http.get(f"/v1/videos/{video_id}").status_code == 404


@pytest.mark.parametrize(
    ("fields", "files", "words"),
    [
        ({"frames": "12"}, {}, "4n+1"),
        ({"mask": "/etc/passwd"}, {"video": CLIP}, "mask"),
        ({"control": "depth"}, {}, "needs a clip"),
        ({}, {"video": b"#EXTM3U"}, "no video"),
        ({"sparkle": "1"}, {}, "sparkle"),
        ({}, {"payload": b"x"}, "unknown file"),
        ({"model": "other"}, {}, "does not exist"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(server, fields, files, words):
    with server.client() as http:
        sent = {name: (name, data) for name, data in files.items()} or None
        reply = http.post("/v1/videos", data={"prompt": "a cat", **fields}, files=sent)
        assert reply.status_code in (400, 404, 415, 422), reply.text
        assert words in reply.text
        assert http.get("/v1/videos").json()["data"] == []


def test_images_are_refused_by_a_model_for_clips_and_clips_by_one_for_images(server):
    with server.client() as http:
        reply = http.post("/v1/images/generations", json={"prompt": "a cat"})
        assert reply.status_code == 400 and "makes clips" in reply.text
    with running() as images, images.client() as http:
        reply = http.post("/v1/videos", data={"prompt": "a cat"})
        assert reply.status_code == 400 and "makes images" in reply.text


def test_a_node_of_a_session_is_a_clip_with_a_player_and_a_still(server, tmp_path):
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        turn = http.post(f"/v1/sessions/{session}/turns", json={"prompt": "a cat", "steps": 1}).json()
        node = http.get(f"/v1/sessions/{session}").json()["nodes"][0]
        assert node["medium"] == "clip", turn
        played = http.get(f"{node['image']}?format=mp4")
        (tmp_path / "a.mp4").write_bytes(played.content)
        assert open_clip(tmp_path / "a.mp4").num_frames == 9
        assert http.get(f"{node['image']}?format=png").headers["content-type"] == "image/png"
        assert http.get(f"{node['image']}?format=thumbnail").headers["content-type"] == "image/webp"


def test_the_description_of_the_api_names_the_routes(server):
    with server.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/videos"]) == {"get", "post"}
    assert set(paths["/v1/videos/{video_id}"]) == {"get", "delete"}
