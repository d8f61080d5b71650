"""The HTTP interface, proved with OpenAI's own client against a real server."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import openai
import pytest

from ace.conversation import recipe as recipes
from tests.server.running import SIDE, Running, opened, picture, png, running, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Running:
    with running(data_folder=tmp_path_factory.mktemp("data"), aliases=("gpt-image-1",)) as server:
        yield server


@pytest.fixture
def client(server) -> openai.OpenAI:
    with server.openai() as client:
        yield client


def image_of(reply, number: int = 0):
    return opened(base64.b64decode(reply.data[number].b64_json))


def test_openais_client_generates_pictures_with_consecutive_seeds(client, tmp_path):
    reply = client.images.generate(prompt="a red apple", n=2, size=f"{SIDE}x{SIDE}", extra_body={"seed": 7})
    first, second = image_of(reply), image_of(reply, 1)
    assert first.size == second.size == (SIDE, SIDE) and first.format == "PNG"
    assert first.tobytes() != second.tobytes()
    assert [data.ace["seed"] for data in reply.data] == [7, 8]
    assert reply.usage.output_tokens == 2 * 16
    (again,) = client.images.generate(prompt="a red apple", extra_body={"seed": 8}).data
    assert opened(base64.b64decode(again.b64_json)).tobytes() == second.tobytes()
    path = tmp_path / "made.png"
    path.write_bytes(base64.b64decode(reply.data[0].b64_json))
    assert recipes.read(path).instruction == "a red apple" and recipes.read(path).seed == 7


def test_quality_sets_the_steps_and_our_own_fields_go_beside(client):
    def steps(**fields):
        return client.images.generate(prompt="a", **fields).data[0].ace["steps"]

    assert (steps(), steps(quality="low"), steps(quality="high")) == (4, 2, 8)
    assert steps(extra_body={"steps": 3}) == 3
    with pytest.raises(openai.BadRequestError, match="both steps and quality"):
        steps(quality="low", extra_body={"steps": 3})


def test_a_transparent_mask_pixel_means_change_and_all_else_stays(client):
    photo = picture(70, 50)
    mask = picture(70, 50).convert("RGBA")
    mask.paste((0, 0, 0, 0), (20, 10, 40, 30))
    reply = client.images.edit(image=("p.png", png(photo)), mask=("m.png", png(mask)), prompt="add a hat")
    before, after = np.asarray(photo).astype(int), np.asarray(image_of(reply).convert("RGB")).astype(int)
    changed = np.abs(before - after).max(axis=2) > 0
    assert changed[14:26, 24:36].any()
    changed[10:30, 20:40] = False
    assert not changed.any()
    assert reply.data[0].ace["drift"]["max_difference"] == 0


def test_a_mask_without_transparency_is_white_where_it_changes(client):
    photo, mask = picture(), picture().convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 30, 30))
    reply = client.images.edit(image=("p.png", png(photo)), mask=("m.png", png(mask)), prompt="add a hat")
    assert np.array_equal(np.asarray(image_of(reply))[31:], np.asarray(photo)[31:])


def test_several_images_and_other_formats_are_taken(client):
    files = [
        ("a.png", png(picture(seed=1))),
        ("b.jpg", png(picture(48, 48, seed=2), "JPEG")),
        ("c.webp", png(picture(seed=3), "WEBP")),
    ]
    one = client.images.edit(
        image=files, prompt="put {image1} into {image}", output_format="webp", extra_body={"seed": 1}
    )
    other = client.images.edit(image=files[:2], prompt="put {image1} into {image}", extra_body={"seed": 1})
    assert image_of(one).format == "WEBP"
    assert image_of(one).tobytes() != image_of(other).tobytes()


def test_images_may_come_as_data_addresses_in_json(server, client):
    address = "data:image/png;base64," + base64.b64encode(png(picture())).decode()
    body = {"prompt": "make it blue", "seed": 3, "images": [{"image_url": address}]}
    with server.client() as http:
        reply = http.post("/v1/images/edits", json=body)
    assert reply.status_code == 200, reply.text
    same = client.images.edit(image=("p.png", png(picture())), prompt="make it blue", extra_body={"seed": 3})
    assert opened(base64.b64decode(reply.json()["data"][0]["b64_json"])).tobytes() == image_of(same).tobytes()


def test_a_stream_shows_previews_and_then_the_same_picture(client):
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 5}))
    assert [event.type.split(".")[1] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    plain = client.images.generate(prompt="a cat", extra_body={"seed": 5})
    assert opened(base64.b64decode(events[-1].b64_json)).tobytes() == image_of(plain).tobytes()
    edited = list(client.images.edit(image=("p.png", png(picture())), prompt="a hat", stream=True))
    assert [event.type for event in edited] == ["image_edit.completed"]


def test_a_result_can_be_fetched_by_its_address(client):
    reply = client.images.generate(prompt="a cat", response_format="url", extra_body={"seed": 5})
    fetched = httpx2.get(reply.data[0].url, timeout=120, trust_env=False)
    assert fetched.headers["content-type"] == "image/png"
    assert (
        opened(fetched.content).tobytes()
        == image_of(client.images.generate(prompt="a cat", extra_body={"seed": 5})).tobytes()
    )
    assert httpx2.get(reply.data[0].url + "x", timeout=120, trust_env=False).status_code == 404


def test_models_are_listed_and_an_unknown_one_is_refused(client):
    (model,) = client.models.list().data
    assert model.id == "random" and client.models.retrieve("gpt-image-1").id == "random"
    client.images.generate(prompt="a cat", model="gpt-image-1")
    with pytest.raises(openai.NotFoundError, match="does not exist here: use random"):
        client.images.generate(prompt="a cat", model="another")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, "the instruction is empty"),
        ({"prompt": "a", "size": "100x100"}, "use 96x96"),
        ({"prompt": "a", "size": "big"}, "WIDTHxHEIGHT"),
        ({"prompt": "a", "n": 11}, "at most 10"),
        ({"prompt": "a", "n": 0}, "n:"),
        ({"prompt": "a", "steps": 0}, "steps"),
        ({"prompt": "a", "stepz": 3}, "stepz"),
        ({"prompt": "a", "background": "transparent"}, "background"),
        ({"prompt": "a", "guidance_scale": "nan"}, "guidance_scale"),
        ({"prompt": "put {image} away"}, "image"),
        ({"prompt": "a" * 4001}, "prompt"),
        ({"prompt": "a", "partial_images": 2}, "stream"),
    ],
)
def test_a_wrong_request_is_refused_with_one_line_that_helps(server, fields, message):
    with server.client() as http:
        reply = http.post("/v1/images/generations", json=fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert message in error["message"] and "\n" not in error["message"]


def test_health_is_not_readiness_and_metrics_count(server, client):
    client.images.generate(prompt="a cat")
    with server.client() as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").json() == {"ready": True}
        text = http.get("/metrics").text
        assert 'ace_requests_total{route="/v1/images/generations",status="200"}' in text
        assert "ace_pictures_waiting 0.0" in text and 'ace_pictures_total{outcome="done"}' in text
        assert http.get("/openapi.json").json()["paths"]["/v1/images/edits"]


def test_a_request_has_an_id_under_which_it_can_be_asked_about(server):
    with server.client() as http:
        made = http.post("/v1/images/generations", json={"prompt": "a"}, headers={"x-client-request-id": "mine-1"})
        assert made.headers["x-request-id"] == made.json()["id"] == "mine-1"
        assert http.get("/v1/requests/mine-1").json()["status"] == "done"
        assert http.get("/v1/requests/other").status_code == 404
    with server.client(key="somebody else") as other:
        assert other.get("/v1/requests/mine-1").status_code == 404


def test_a_running_request_tells_its_steps_and_the_time_left(server):
    with server.client() as http, ThreadPoolExecutor() as threads:
        headers = {"x-client-request-id": "long"}
        asked = threads.submit(
            http.post, "/v1/images/generations", json={"prompt": "a", "steps": 1000}, headers=headers
        )
        wait_until(lambda: http.get("/v1/requests/long").json().get("status") == "running")
        told = http.get("/v1/requests/long").json()
        assert (told["status"], told["steps"]) == ("running", 1000) and told["eta_s"] > 0
        assert http.delete("/v1/requests/long").json()["status"] == "cancelled"
        assert asked.result().status_code == 410
        assert http.get("/v1/requests/long").json()["status"] == "cancelled"


def test_a_size_is_the_pictures_and_the_edited_ones_otherwise(client):
    assert image_of(client.images.generate(prompt="a cat", size="96x48")).size == (96, 48)
    edit = {"image": ("p.png", png(picture(96, 48))), "prompt": "make it blue"}
    width, height = image_of(client.images.edit(**edit, size="auto")).size
    assert width == 2 * height


def test_a_session_is_a_conversation_with_branches(server):
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        turns = f"/v1/sessions/{session}/turns"
        first = http.post(
            turns, files={"image": ("p.png", png(picture()))}, data={"prompt": "make it blue", "seed": "1"}
        )
        assert first.status_code == 200, first.text
        second = http.post(turns, json={"prompt": "add a hat", "seed": 2}).json()
        branch = http.post(turns, json={"prompt": "add a scarf", "seed": 2, "parent": "0001", "n": 2}).json()
        fresh = http.post(turns, json={"prompt": "a dog", "parent": "none"}).json()
        assert [node["id"] for node in branch["nodes"]] == ["0003", "0004"]
        tree = http.get(f"/v1/sessions/{session}").json()["nodes"]
        assert [(node["id"], node["parents"]) for node in tree] == [
            ("0001", []),
            ("0002", ["0001"]),
            ("0003", ["0001"]),
            ("0004", ["0001"]),
            ("0005", []),
        ]
        stored = opened(http.get(second["nodes"][0]["image"]).content)
        assert stored.tobytes() == opened(base64.b64decode(second["nodes"][0]["b64_json"])).tobytes()
        assert fresh["nodes"][0]["instruction"] == "a dog"
        assert session in [entry["id"] for entry in http.get("/v1/sessions").json()["data"]]
        archive = http.get(f"/v1/sessions/{session}/archive").content
        other = http.post("/v1/sessions").json()["id"]
        http.post(f"/v1/sessions/{other}/turns", json={"prompt": "a star"})
        added = http.post(f"/v1/sessions/{other}/archive", content=archive)
        assert added.status_code == 201, added.text
        assert added.json()["nodes"] == {f"{n:04d}": f"{n + 1:04d}" for n in range(1, 6)}
        copied = http.get(f"/v1/sessions/{other}").json()["nodes"]
        assert [node["parents"] for node in copied] == [[], [], ["0002"], ["0002"], ["0002"], []]
        assert opened(http.get(copied[2]["image"]).content).tobytes() == stored.tobytes()
        assert http.post(turns, json={"prompt": "a", "parent": "0099"}).status_code == 400
        assert http.delete(f"/v1/sessions/{session}").status_code == 204
        assert http.get(f"/v1/sessions/{session}").status_code == 404
