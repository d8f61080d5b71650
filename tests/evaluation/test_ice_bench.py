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

from ace.errors import ConditionError, ConfigError, DataError
from ace.evaluation.benchmarks.ice_bench import (
    TASKS,
    IceItem,
    make_table,
    raw_metrics,
    read_items,
    read_raw,
    task_score,
    write_raw,
)
from ace.evaluation.benchmarks.ice_metrics import IceNetworks, colorfulness, load_networks, pixel_metrics
from ace.evaluation.cases import read_cases
from ace.evaluation.encoders import DINO_FRAMING, DinoEncoder, frame
from ace.evaluation.ice import make_answers, read_gen_info, request_of, score_items, write_results
from ace.evaluation.judge import Judge, question, question_in_chinese

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
    scores = score_items(items, made, IceNetworks(random_clip(), random_dino()))
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
    scores = score_items(
        items, {i.id: bench / "made.png" for i in items if i.id != "1"}, IceNetworks(random_clip()), more=more
    )
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
        IceItem("1", "Image Colorize", "", "", bench / "gray.png", None),
        IceItem("2", "Edge-guided Generation", "", "", bench / "edges.png", None),
        IceItem("3", "Image Deblur", "", "", bench / "colour.png", None),
    ]
    right = [pixel_metrics(item, colour) for item in items]
    assert right[0]["l1_colorize"] > 0.99 and right[1]["l1_canny"] == 1 and right[2]["ssim"] == pytest.approx(1)
    wrong = [pixel_metrics(item, Image.new("RGB", (64, 64), "white")) for item in items]
    assert wrong[0]["l1_colorize"] < 0.8 and wrong[1]["l1_canny"] < 1 and wrong[2]["ssim"] < 0.9


def test_an_item_becomes_a_request_with_its_pictures_named(bench):
    (_, _, guided, alone) = read_items(bench / "data.jsonl")
    item = IceItem("5", guided.task, "put <REF_1> into <SOURCE>", "", guided.source, guided.mask, guided.references)
    unit = request_of(item).current
    assert unit.instruction == "put {image1} into {image}" and len(unit.images) == 2
    assert unit.masks[0] is not None and unit.masks[1] is None
    only_reference = IceItem("6", "Style Reference Generation", "as <REF_1>", "", None, None, guided.references)
    assert request_of(only_reference).current.instruction == "as {image}"
    assert not request_of(alone).current.images


def test_answers_are_made_once_scored_once_and_a_killed_run_ends_with_the_same_files(bench, tmp_path):
    items, asked = read_items(bench / "data.jsonl"), []

    def edit(units, seeds):
        asked.extend(units)
        if units[0].current.images and units[0].current.masks[0] is not None:
            raise ConditionError("no masks")
        return [picture(seeds[0] % 100, (64, 64))]

    class Counting:
        calls = 0

        def score(self, shown):
            self.calls += 1
            if self.calls == 2 and self.stops:
                raise KeyboardInterrupt
            return 5.0

    def whole(folder, stops=False):
        aesthetic = Counting()
        aesthetic.stops = stops
        made = make_answers(items, edit, folder, 0)
        networks = IceNetworks(random_clip(), aesthetic=aesthetic)
        scores = score_items(items, made, networks, rows=folder / "scored.jsonl", measured_by="x")
        write_results(folder, "mine", items, made, scores, ["Measured by: x."])
        return aesthetic.calls

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "killed", stops=True)
    assert whole(tmp_path / "killed") == 1 and len(asked) == 4 + 2  # only what has no form is asked again
    assert whole(tmp_path / "whole") == 2
    for name in (
        "table.md",
        "table.json",
        "table.tex",
        "rows.parquet",
        "gallery.html",
        "gen_info.json",
        "scored.jsonl",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    page = (tmp_path / "whole" / "table.md").read_text()
    assert "PARTIAL: 2 items have no picture, such as 2, 3." in page and "mean of 0 of 31 tasks" in page
    assert [case.answer is not None for case in read_cases(tmp_path / "whole")] == [True, False, False, True]


def test_damaged_pictures_and_ids_twice_in_gen_info_are_told(bench):
    items = read_items(bench / "data.jsonl")
    (bench / "damaged.png").write_bytes(b"no picture")
    scores = score_items(items, {"1": bench / "made.png", "4": bench / "damaged.png"}, IceNetworks())
    assert set(scores) == {"1"}
    (bench / "gen_info.json").write_text('{"1": "made.png", "1": "made.png"}')
    with pytest.raises(DataError, match="1 ids occur twice, such as 1"):
        read_gen_info(bench / "gen_info.json")


def test_weights_that_are_not_there_are_listed(tmp_path):
    networks, absent = load_networks(tmp_path)
    assert networks.aesthetic is networks.imaging is networks.style is networks.depth is networks.faces is None
    told = " ".join(absent)
    for name in ("aesthetic_predictor_v2_5", "musiq_koniq", "csd_vit_l", "dpt-hybrid-midas", "--face-weights"):
        assert name in told


def test_the_question_is_asked_in_chinese_as_well():
    told = question_in_chinese("add a cat", True, True)
    assert "add a cat" in told and "第四张" in told and "掩码以外" in told
    assert "其他部分" in question_in_chinese("x", False, False)
    assert "也回答0" not in question_in_chinese("x", False, True)
    with pytest.raises(ConfigError, match="en or zh"):
        Judge("http://127.0.0.1:9/v1", "judge", language="fr")
