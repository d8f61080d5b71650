"""Session routes: what a turn means, what is drawn on its image, following, replaying, and what stays of a failure."""

from __future__ import annotations

import base64
import json
import socket

import numpy as np
import pytest
from PIL import Image

from ace.conversation.family import Family, Loading
from ace.conversation.job import Settings
from ace.conversation.message import Message, Picture, open_message
from ace.conversation.session import Session
from ace.data.sample import TASKS
from ace.families import find_family
from ace.server.run import listen
from ace.server.settings import Limits
from ace.web.app import PAGE
from tests.random_flux import random_plus
from tests.server.running import SIDE, Running, opened, picture, png, random_family, running, wait_until

SETTINGS = Settings(seed=5, num_inference_steps=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Running:
    with running(data_folder=tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def http(server):
    with server.client() as http:
        yield http


@pytest.fixture
def talk(http) -> str:
    """The address of a session with one answer, 0001."""
    talk = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
    turn(http, talk, prompt="a red apple")
    return talk


def turn(http, talk: str, files: dict | None = None, **fields: str) -> dict:
    """A turn of one step; its first node."""
    reply = http.post(f"{talk}/turns", files=form(files or {}, {"steps": "1", "seed": "5", **fields}))
    assert reply.status_code == 200, reply.text
    return reply.json()["nodes"][0]


def form(files: dict, fields: dict) -> list:
    """A form with files and fields; without any file it is a form all the same."""
    return [*files.items(), *((name, (None, value)) for name, value in fields.items())]


def session_of(server: Running, talk: str) -> Session:
    (folder,) = server.data_folder.glob(f"sessions/*/{talk.rsplit('/', 1)[1]}")
    return Session.open(folder)


def half(colour: tuple[int, ...] = (255, 255, 255), size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Strokes on a transparent ground: the left half."""
    strokes = Image.new("RGBA", size, (0, 0, 0, 0))
    strokes.paste((*colour, 255), (0, 0, size[0] // 2, size[1]))
    return strokes


def white_half() -> bytes:
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return png(mask)


# What is edited


def test_an_image_that_follows_an_answer_is_a_reference_and_a_photo_is_edited_instead(server, http, talk):
    sent = {"image": ("p.png", png(picture(48, 64)))}
    turn(http, talk, sent, prompt="put {image1} into {image}")
    turn(http, talk, {"photo": ("p.png", png(picture(48, 64)))}, prompt="make it blue")
    turn(http, talk, sent, prompt="make {image} blue", parent="none")
    inputs = [[one["node"] for one in node["inputs"]] for node in http.get(talk).json()["nodes"]]
    assert inputs == [[], ["0001", None], [None], [None]]
    session = session_of(server, talk)
    assert session.answer("0002").size == (SIDE, SIDE)  # the answer was edited
    assert session.answer("0003").size == session.answer("0004").size == (48, 64)


def test_every_door_opens_the_same_message(server, http, talk):
    """The server's turn and Python's `open_message` make one request of one message."""
    photo = png(picture(48, 64))
    node = turn(http, talk, {"image": ("p.png", photo)}, prompt="put @a into @1")
    session = session_of(server, talk)
    (path,) = [one.path for one in session.node("0002").inputs if one.node is None]
    message = Message("put @a into @1", SETTINGS, references=(Picture.of_file(path),))
    job = open_message(server.engine.family, message, session, "0001")
    assert node["instruction"] == job.instruction == "put {image1} into {image}"
    assert job.images[0].sha256 == session.node("0002").recipe.images[0].sha256


def test_every_task_of_the_paper_has_an_example_that_can_be_asked():
    listed = json.loads((PAGE / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert {one["task"] for one in listed} == set(TASKS)
    family = random_family()
    for one in listed:
        pictures = [Picture.of_file(PAGE / "examples" / name) for name in one["pictures"]]
        message = Message(one["texts"][0], SETTINGS, references=tuple(pictures))
        assert open_message(family, message).instruction


# On the canvas


def test_a_mask_keeps_the_rest_and_hiding_hides_what_was_there(server, http, talk):
    turn(http, talk, {"mask": ("m.png", white_half())}, prompt="make it snow")
    turn(http, talk, {"mask": ("m.png", white_half())}, prompt="make it snow", parent="0001", hide="true")
    session = session_of(server, talk)
    before, after, hidden = (np.asarray(session.answer(node).image) for node in ("0001", "0002", "0003"))
    np.testing.assert_array_equal(after[:, SIDE // 2 :], before[:, SIDE // 2 :])
    np.testing.assert_array_equal(hidden[:, SIDE // 2 :], before[:, SIDE // 2 :])
    assert session.source("0003").image.getpixel((3, 3)) == (127, 127, 127)
    drift = http.get(f"{talk}/nodes/0002/drift").json()
    assert drift["text"] == "drift outside the mask: none, every pixel is the same"
    assert http.get(f"{talk}/nodes/0001/drift").json()["drift"] is None


def test_a_drawing_is_seen_by_the_model_and_is_the_mask(server, http, talk):
    turn(http, talk, {"drawing": ("d.png", png(half((255, 0, 0))))}, prompt="a ball")
    session = session_of(server, talk)
    assert session.source("0002").image.getpixel((3, 3)) == (255, 0, 0)
    assert session.history("0002")[1].unit.masks[0].getbbox() == (0, 0, SIDE // 2, SIDE)


def test_an_answer_is_extended_by_its_own_sides_and_references_keep_their_letters(server, http, talk):
    sides = json.dumps({"left": 0.5, "bottom": 0.25})
    sent = {"image": ("p.png", png(picture(seed=3)))}
    node = turn(http, talk, sent, prompt="fill it in like @a", extend=sides)
    assert (
        node["image_size"] == f"{SIDE * 3 // 2}x{SIDE * 5 // 4}" and node["instruction"] == "fill it in like {image1}"
    )
    session = session_of(server, talk)
    old, new = (np.asarray(session.answer(node_id).image) for node_id in ("0001", "0002"))
    np.testing.assert_array_equal(new[:SIDE, SIDE // 2 :], old)


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ({"parent": "none"}, {"drawing": png(half())}, "no image to paint on"),
        ({"parent": "none"}, {"mask": white_half()}, "needs the image that it belongs to"),
        ({"hide": "true"}, {}, "hide needs a mask"),
        ({"extend": "{}"}, {}, "no side grows"),
        ({"extend": '{"left": 9}'}, {}, "extend.left"),
        ({"extend": "left"}, {}, "write it as JSON"),
        ({"extend": '{"left": 1}'}, {"mask": white_half()}, "send one of them"),
        ({}, {"drawing": png(half(size=(32, 32)))}, "draw them on the picture"),
        ({}, {"drawing": white_half()}, "transparent ground"),
        ({}, {"drawings": white_half()}, "unknown file"),
        ({"parent": "../0001"}, {}, "parent"),
        ({"seed": "18446744073709551616"}, {}, "0 to 18446744073709551615"),
        ({"seed": "1.5"}, {}, "0 to 18446744073709551615"),
        ({"stream": "true", "detached": "true"}, {}, "give one of them"),
        ({"partial_images": "3"}, {}, "needs stream"),
        ({"control": "depth"}, {}, "does not take a control"),
        ({"n": "11"}, {}, "at most 10"),
    ],
)
def test_a_turn_that_cannot_be_is_refused_in_words(http, talk, fields, files, message):
    sent = {name: (f"{name}.png", data) for name, data in files.items()}
    reply = http.post(f"{talk}/turns", files=form(sent, {"prompt": "a", **fields}))
    assert reply.status_code == 400, reply.text
    assert message in reply.json()["error"]["message"]


# The tree


def test_seeds_go_to_the_largest_wrap_and_are_strings_in_a_session(http, talk):
    reply = http.post(f"{talk}/turns", json={"prompt": "a", "steps": 1, "seed": str(2**64 - 1), "n": 2}).json()
    assert [node["seed"] for node in reply["nodes"]] == [str(2**64 - 1), "0"]
    body = {"prompt": "a", "steps": 1, "seed": 2**64 - 1}
    assert http.post("/v1/images/generations", json=body).json()["data"][0]["ace"]["seed"] == 2**64 - 1
    assert http.post("/v1/images/generations", json={**body, "seed": -1}).status_code == 200
    assert http.post("/v1/images/generations", json={**body, "seed": 2**64}).status_code == 400
    assert http.post("/v1/images/generations", json={**body, "seed": True}).status_code == 400


def test_trying_again_gives_siblings_and_a_replay_says_that_nothing_differs(http, talk):
    turn(http, talk, prompt="make it night")
    again = http.post(f"{talk}/nodes/0002/again", json={"n": 2}).json()["nodes"]
    assert [node["parents"] for node in again] == [["0001"], ["0001"]]
    assert len({node["seed"] for node in again} | {"5"}) == 3
    replay = http.post(f"{talk}/nodes/0002/replay", json={}).json()
    assert replay == {"node": "0002", "same_pixels": True, "largest_difference": 0, "differences": []}
    assert len(http.get(talk).json()["nodes"]) == 4


def test_the_head_follows_the_answers_unless_somebody_went_elsewhere(server, http, talk):
    assert http.get(talk).json()["head"] == "0001"
    turn(http, talk, prompt="make it night")
    assert http.get(talk).json()["head"] == "0002"
    assert http.put(f"{talk}/head", json={"node": "0001"}).json() == {"node": "0001"}
    long = {"prompt": "slowly", "parent": "head", "steps": 30, "detached": True}
    request = http.post(f"{talk}/turns", json=long)
    assert request.status_code == 202
    http.put(f"{talk}/head", json={"node": None})
    wait_until(lambda: http.get(f"/v1/requests/{request.json()['id']}").json()["status"] == "done")
    told = http.get(talk).json()
    assert told["head"] is None and told["nodes"][-1]["parents"] == ["0001"]
    assert http.put(f"{talk}/head", json={"node": "0099"}).status_code == 400


def test_a_damaged_node_is_named_and_the_rest_is_shown(server, http, talk):
    turn(http, talk, prompt="a blue star", parent="none")
    (session_of(server, talk).folder / "nodes" / "0001" / "node.json").write_text("{}")
    told = http.get(talk).json()
    assert told["damaged"] == ["0001"]
    assert [node["id"] for node in told["nodes"]] == ["0002"]


def test_images_of_a_node_come_as_kept_small_or_in_a_format_and_inputs_by_number(http, talk):
    turn(
        http,
        talk,
        {"photo": ("p.png", png(picture(96, 48))), "mask": ("m.png", png(half(size=(96, 48)).getchannel("A")))},
        prompt="a hat",
    )
    node = http.get(f"{talk}/nodes/0002").json()
    kept = http.get(node["image"])
    assert kept.headers["content-type"] == "image/png"
    assert http.get(node["image"], headers={"if-none-match": kept.headers["etag"]}).status_code == 304
    small = opened(http.get(node["image"], params={"format": "thumbnail"}).content)
    assert small.format == "WEBP" and max(small.size) <= 160
    for name in ("png", "jpeg", "webp"):
        saved = http.get(node["image"], params={"format": name})
        assert (
            opened(saved.content).format == name.upper() and f"ace-0002.{name}" in saved.headers["content-disposition"]
        )
    (one,) = node["inputs"]
    assert opened(http.get(one["image"]).content).size == (96, 48)
    assert opened(http.get(one["mask"]).content).getbbox() == (0, 0, 48, 48)
    assert http.get(f"{talk}/nodes/0002/inputs/1").status_code == 404
    assert http.get(node["image"], params={"format": "exe"}).status_code == 400


# Following


def events_of(lines):
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_turn_can_be_streamed_with_previews(http, talk):
    body = {"prompt": "make it night", "steps": 4, "seed": 9, "stream": True, "partial_images": 2, "n": 2}
    with http.stream("POST", f"{talk}/turns", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        told = list(events_of(reply.iter_lines()))
    previews = [one for one in told if one.get("type") == "turn.partial_image"]
    assert sorted((one["image_index"], one["partial_image_index"]) for one in previews) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    nodes = told[len(previews) :]
    assert [node["id"] for node in nodes] == ["0002", "0003"]
    stored = opened(http.get(nodes[1]["image"]).content)
    assert stored.tobytes() == opened(base64.b64decode(nodes[1]["b64_json"])).tobytes()


def test_everybody_follows_a_detached_turn_from_its_first_step_to_its_end(server, http, talk):
    body = {"prompt": "make it night", "steps": 200, "detached": True, "partial_images": 32}
    with http.stream("GET", f"{talk}/events") as reply:
        told = events_of(reply.iter_lines())
        assert next(told) == {"head": "0001", "num_nodes": 1, "labels": "", "requests": next_requests(http, talk)}
        with server.client() as other:
            request = other.post(f"{talk}/turns", json=body).json()["id"]
        statuses, previews = [], 0
        for event in told:
            (one,) = [one for one in event["requests"] if one["id"] == request]
            statuses.append(one["status"])
            previews = max(previews, len(one["previews"]))
            if one["status"] == "done":
                break
    assert "running" in statuses and previews == 1
    assert (event["head"], event["num_nodes"], one["nodes"], one["steps_done"]) == ("0002", 2, ["0002"], 200)


def next_requests(http, talk: str) -> list:
    """What a session says of its first turn, which has ended."""
    with http.stream("GET", f"{talk}/events") as reply:
        return next(events_of(reply.iter_lines()))["requests"]


def test_failed_and_cancelled_requests_leave_a_record_without_a_trace_in_the_session(http, talk):
    long = {"prompt": "a secret wish", "steps": 1000, "seed": 3, "detached": True}
    http.post(f"{talk}/turns", json=long, headers={"x-client-request-id": "mine"})
    wait_until(lambda: (http.get("/v1/requests/mine").json()["steps_done"] or 0) > 1)
    http.delete("/v1/requests/mine")
    wait_until(lambda: http.get("/v1/requests/mine").json()["status"] == "cancelled")
    record = http.get("/v1/requests/mine").json()
    assert (record["kind"], record["seed"], record["session"]) == ("turn", "3", talk.rsplit("/", 1)[1])
    assert 1 < record["steps_done"] < 1000 and "cancelled after" in record["message"]
    assert "secret" not in json.dumps(http.get("/v1/requests").json())
    assert [node["id"] for node in http.get(talk).json()["nodes"]] == ["0001"]
    too_much = {"prompt": "a", "steps": 1000, "n": 10, "size": "128x128"}
    headers = {"x-client-request-id": "much"}
    http.post("/v1/images/generations", json={**too_much, "steps": 1}, headers=headers)
    listed = {one["id"]: one["status"] for one in http.get("/v1/requests").json()["data"]}
    assert listed["mine"] == "cancelled" and listed["much"] == "done"


def test_a_refused_request_leaves_a_record():
    with running(Limits(max_operations=5e9)) as server, server.client() as http:
        headers = {"x-client-request-id": "dear"}
        body = {"prompt": "a", "steps": 1000, "size": "128x128"}
        assert http.post("/v1/images/generations", json=body, headers=headers).status_code == 400
        record = http.get("/v1/requests/dear").json()
        assert record["status"] == "failed" and "fewer steps" in record["message"]


# Other models


@pytest.fixture(scope="module")
def plus(tmp_path_factory) -> Family:
    folder = tmp_path_factory.mktemp("plus") / "fill"
    random_plus(num_inference_steps=2).save_pretrained(folder)
    family = find_family(str(folder))
    family.load(Loading(device="cpu"))
    return family


def test_a_model_that_sees_one_canvas_serves_edits_sessions_and_replays(plus, tmp_path):
    with running(family=plus, data_folder=tmp_path) as server, server.client() as http:
        entry = http.get("/v1/models").json()["data"][0]["ace"]
        assert entry["family"] == "ace-plus" and entry["references_apart"] and entry["max_history"] == 0
        refused = http.post("/v1/images/generations", json={"prompt": "a cat"})
        assert refused.status_code == 400 and "nothing from words alone" in refused.json()["error"]["message"]
        photo = png(picture(64, 48))
        edited = http.post(
            "/v1/images/edits", files={"image": ("p.png", photo)}, data={"prompt": "a hat", "steps": "1", "seed": "1"}
        )
        assert opened(base64.b64decode(edited.json()["data"][0]["b64_json"])).size == (64, 48)
        talk = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
        turn(http, talk, {"photo": ("p.png", photo)}, prompt="a hat")
        turn(http, talk, prompt="a larger hat")
        assert [one["node"] for one in http.get(f"{talk}/nodes/0002").json()["inputs"]] == ["0001"]
        assert http.post(f"{talk}/nodes/0002/replay", json={}).json()["same_pixels"]
        assert http.post(f"{talk}/turns", json={"prompt": "a", "repainting_scale": 0.5, "steps": 1}).status_code == 200


# The wire


def test_small_answers_are_sent_at_once():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_every_route_is_described(http):
    paths = http.get("/openapi.json").json()["paths"]
    session = {path.removeprefix("/v1/sessions/{session_id}") for path in paths if path.startswith("/v1/sessions/{")}
    node = "/nodes/{node_id}"
    assert session >= {"", "/turns", "/events", "/head", node, f"{node}/again", f"{node}/replay", f"{node}/drift"}
    assert all(method.get("description") for path in paths.values() for method in path.values())
    body = paths["/v1/sessions/{session_id}/turns"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"extend", "hide", "drawing", "photo", "stream", "detached"} <= body["properties"].keys()
