"""ICE-Bench: the published rules by hand-computed numbers, its files, and a judge over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Dinov2Config, Dinov2Model

from ace.errors import DataError
from ace.evaluation.benchmarks.ice_bench import (
    TASKS,
    IceItem,
    colorfulness,
    make_table,
    pixel_metrics,
    raw_metrics,
    read_items,
    read_raw,
    score_items,
    task_score,
    write_raw,
)
from ace.evaluation.encoders import DINO_FRAMING, DinoEncoder, frame
from ace.evaluation.judge import Judge, question

from .random_encoders import picture, random_clip, random_dino

MEANS = {
    "aes_v2.5": 5.0,
    "musiq_koniq": 60.0,
    "clip_cap": 0.25,
    "clip_src": 0.9,
    "l1_raw": 0.1,
    "vllmqa": 0.8,
    "dino_ref": 0.7,
    "face_ref": 0.6,
    "style_ref": 0.5,
    "l1_pose": 0.95,
    "l1_depth": 0.9,
    "l1_canny": 0.85,
    "l1_colorize": 0.97,
    "colorfulness": 0.3,
    "ssim": 0.75,
}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Text2Image", (0.5 + 0.6 + 0.5) / 3),
        ("Face Reference Generation", (0.5 + 0.6 + 0.5 + 0.6) / 4),
        ("Color Editing", 0.15 + 0.18 + 0.3 * (0.5 + 0.8) / 2 + 0.1 * (0.9 + 0.9) / 2),
        ("Virtual Try On", 0.125 + 0.15 + 0.2 * 0.65 + 0.2 * 0.7 + 0.1 * 0.9),
        ("Style Reference Editing", 0.125 + 0.15 + 0.2 * 0.65 + 0.2 * 0.5 + 0.1 * 0.9),
        ("Edge-guided Generation", 0.15 + 0.18 + 0.2 * 0.5 + 0.2 * 0.85),
        ("Image Deblur", 0.15 + 0.18 + 0.2 * 0.6 + 0.2 * 0.75),
        ("Image Colorize", 0.15 + 0.18 + 0.2 * (0.375 + 0.075) + 0.2 * 0.97),
    ],
)
def test_task_scores_follow_the_published_weights(task, expected):
    assert task_score(task, MEANS) == pytest.approx(expected)
    assert task_score(task, {k: v for k, v in MEANS.items() if k != "musiq_koniq"}) is None


def test_there_are_31_tasks_and_each_knows_its_metrics():
    assert len(set(TASKS)) == 31
    assert all(task_score(task, MEANS) is not None for task in TASKS)
    with pytest.raises(DataError, match="not a task"):
        raw_metrics("Text to Image")


@pytest.fixture
def bench(tmp_path):
    picture(1, (64, 64)).save(tmp_path / "source.png")
    picture(2, (64, 64)).save(tmp_path / "reference.png")
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
    mask.save(tmp_path / "mask.png")
    rows = [
        ("1", "Color Editing", "source.png", "", []),
        ("2", "Local Subject Addition", "source.png", "mask.png", []),
        ("3", "Subject-guided Inpainting", "source.png", "mask.png", ["reference.png"]),
        ("4", "Text2Image", "", "", []),
    ]
    lines = [
        {
            "ItemID": key,
            "Task": task,
            "SourceImage": source,
            "SourceMask": mask_name,
            "ReferenceImages": references,
            "Instruction": f"make {key}",
            "TargetCaption": "a red cat",
        }
        for key, task, source, mask_name, references in rows
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = picture(1, (64, 64))
    ImageDraw.Draw(made).rectangle((0, 0, 31, 63), fill="white")  # changes the left half only
    made.save(tmp_path / "made.png")
    return tmp_path


def test_raw_metrics_are_those_of_the_protocol(bench):
    items = read_items(bench / "data.jsonl")
    made = {item.id: bench / "made.png" for item in items}
    scores = score_items(items, made, random_clip(), random_dino())
    assert scores["2"]["l1_raw"] == 0  # outside the mask nothing changed
    left = np.asarray(picture(1, (64, 64)), dtype=float)[:, :32] / 255
    assert scores["1"]["l1_raw"] == pytest.approx((1 - left).sum() / (64 * 64 * 3), abs=1e-6)
    assert -1 <= scores["3"]["dino_ref"] <= 1 and "dino_ref" not in scores["1"]
    assert set(scores["4"]) == {"clip_cap"}
    write_raw(bench / "eval_result.txt", items, scores)
    assert read_raw(bench / "eval_result.txt") == scores


def test_an_overall_score_says_of_how_many_tasks_it_is(bench):
    items = read_items(bench / "data.jsonl")
    more = {item.id: {"aes_v2.5": 5.0, "musiq_koniq": 60.0} for item in items}
    scores = score_items(items, {i.id: bench / "made.png" for i in items if i.id != "1"}, random_clip(), more=more)
    table = make_table("mine", items, scores)
    by_name = {row.name: row for row in table.rows}
    assert by_name["Text2Image"].values[0] is not None and by_name["Local Subject Addition"].values[0] is None
    assert by_name["overall"].source == "mean of 1 of 31 tasks"
    notes = " ".join(table.notes)
    assert "3 of 4 items scored" in notes and "1 items have no picture" in notes and "lacks vllmqa" in notes


def test_colourfulness_is_none_for_gray_and_more_for_stronger_colours():
    assert colorfulness(Image.new("RGB", (8, 8), (90, 90, 90))) == 0
    half = Image.new("RGB", (8, 8), (128, 0, 0))
    whole = Image.new("RGB", (8, 8), (255, 0, 0))
    assert 0 < colorfulness(half) < colorfulness(whole) == pytest.approx(0.3 * np.hypot(1, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Task": "Cooking"}, "not a task"),
        ({"SourceImage": "../../etc/passwd"}, "outside"),
        ({"SourceImage": "gone.png"}, "missing"),
        ({"ItemID": "4"}, "twice"),
    ],
)
def test_a_wrong_item_is_named(bench, change, message):
    lines = (bench / "data.jsonl").read_text().splitlines()
    wrong = json.loads(lines[0]) | change
    (bench / "data.jsonl").write_text("\n".join([*lines[1:], json.dumps(wrong)]))
    with pytest.raises(DataError, match=message):
        read_items(bench / "data.jsonl")


class _Model(BaseHTTPRequestHandler):
    replies = ("1", "Answer: 0", "I cannot say")
    asked: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        text = self.replies[(len(self.asked) - 1) % len(self.replies)]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_a_judge_is_asked_several_times_and_unclear_replies_count_as_no(bench):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        judge = Judge(f"http://127.0.0.1:{server.server_port}/v1", "judge", repeats=3)
        verdict = judge.ask("make it red", bench / "source.png", bench / "made.png", mask=bench / "mask.png")
        judge._client.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert verdict == pytest.approx(1 / 3) and judge.num_unclear == 1
    content = _Model.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
    assert "make it red" in content[-1]["text"] and "outside the mask" in content[-1]["text"]


def test_only_requests_without_a_reference_or_with_a_mask_forbid_other_changes():
    assert "anything else changed" in question("x", False, False)
    assert "outside the mask" in question("x", True, True)
    assert "Also answer 0" not in question("x", False, True)


def test_dinov2_is_the_mean_of_all_tokens():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}
    model = Dinov2Model(Dinov2Config(**sizes))
    shown = picture(1, (300, 256))
    tokens = model.eval()(pixel_values=frame(shown, DINO_FRAMING)[None]).last_hidden_state
    assert tokens.shape[1] == 17
    found = DinoEncoder(model, DINO_FRAMING, mean_tokens=True).images([shown])
    assert torch.allclose(found, tokens.mean(dim=1), atol=1e-6)
    assert not torch.allclose(found, tokens[:, 0], atol=1e-2)


def test_controls_are_scored_against_the_control_itself(bench):
    colour = picture(3, (64, 64))
    colour.save(bench / "colour.png")
    colour.convert("L").save(bench / "gray.png")
    edges = cv2.Canny(np.asarray(colour), 100, 200)
    Image.fromarray(edges).save(bench / "edges.png")
    items = [
        IceItem("1", "Image Colorize", "", "", bench / "gray.png", None, None),
        IceItem("2", "Edge-guided Generation", "", "", bench / "edges.png", None, None),
        IceItem("3", "Image Deblur", "", "", bench / "colour.png", None, None),
    ]
    right = [pixel_metrics(item, colour) for item in items]
    assert right[0]["l1_colorize"] > 0.99 and right[1]["l1_canny"] == 1 and right[2]["ssim"] == pytest.approx(1)
    wrong = [pixel_metrics(item, Image.new("RGB", (64, 64), "white")) for item in items]
    assert wrong[0]["l1_colorize"] < 0.8 and wrong[1]["l1_canny"] < 1 and wrong[2]["ssim"] < 0.9
