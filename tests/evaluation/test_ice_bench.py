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
from ace.evaluation.benchmarks.ice_metrics import (
    IceNetworks,
    colorfulness,
    load_networks,
    luma_ssim,
    pixel_metrics,
    weight_files,
)
from ace.evaluation.cases import read_cases
from ace.evaluation.encoders import DINO_FRAMING, DinoEncoder, frame
from ace.evaluation.ice import IceScorers, evaluate_ice_bench, read_gen_info, request_of, score_items
from ace.evaluation.judge import Judge, question, question_in_chinese
from ace.evaluation.networks.aesthetic import HEAD
from ace.evaluation.networks.controls import DEPTH
from ace.evaluation.networks.musiq import MUSIQ
from ace.evaluation.networks.weights import files_sha256
from ace.evaluation.systems import Contestant

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
    scores = score_items(items, made, IceScorers(IceNetworks(random_clip(), random_dino())))
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
    scorers = IceScorers(IceNetworks(random_clip()), raw=more)
    scores = score_items(items, {i.id: bench / "made.png" for i in items if i.id != "1"}, scorers)
    table = make_table("mine", items, scores)
    by_name = {row.name: row for row in table.rows}
    assert by_name["Text2Image"].values[0] is not None and by_name["Local Subject Addition"].values[0] is None
    assert by_name["overall"].source == "mean of 1 of 31 tasks"
    notes = " ".join(table.notes)
    assert "RESIZED" not in notes
    assert "PARTIAL: no items of 27 tasks: Face Reference Generation, " in notes
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


@pytest.fixture
def endpoint():
    """A chat endpoint that answers yes, no and something else in turn."""
    _Model.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_is_asked_several_times_and_unclear_replies_count_as_no(bench, endpoint):
    with Judge(endpoint, "judge", repeats=3) as judge:
        verdict = judge.ask("make it red", bench / "source.png", bench / "made.png", mask=bench / "mask.png")
    assert verdict.score == pytest.approx(1 / 3) and verdict.num_unclear == 1
    content = _Model.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
    assert "make it red" in content[-1]["text"] and "outside the mask" in content[-1]["text"]


def test_a_judged_run_keeps_its_verdicts_and_tells_their_interval(bench, endpoint, tmp_path):
    (bench / "gen_info.json").write_text(json.dumps({str(n): "made.png" for n in (1, 2, 3, 4)}))

    def run():
        finished = Contestant("mine", None, {})
        with Judge(endpoint, "judge", repeats=3) as judge:
            scorers = IceScorers(IceNetworks(), judge=judge)
            evaluate_ice_bench(
                bench / "data.jsonl", finished, tmp_path / "run", scorers, results=bench / "gen_info.json", quiet=True
            )
        return (tmp_path / "run" / "table.md").read_text()

    first = run()
    assert "Measured by: judge judge in en." in first
    assert "vllmqa: 3 times each, 3 replies unclear, mean 0.333 [0.333, 0.333]." in first  # text2image is not asked
    assert len(_Model.asked) == 9
    assert run() == first and len(_Model.asked) == 9


def test_a_judge_that_cannot_be_reached_is_told_in_one_line(bench):
    with Judge("http://127.0.0.1:9/v1", "judge") as judge, pytest.raises(DataError, match="the judge at http"):
        judge.ask("make it red", bench / "source.png", bench / "made.png")


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


def test_ssim_is_over_rounded_luma_with_structure_not_below_zero():
    first, second = picture(1, (64, 48)), picture(2, (64, 48))
    window = torch.exp(-(torch.arange(-5.0, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    kernel = (window / window.sum())[:, None] * (window / window.sum())
    luma = [torch.tensor(np.asarray(p, int)) @ torch.tensor([299, 587, 114]) / 1000 for p in (first, second)]
    x, y = (part.double().round()[None, None] for part in luma)

    def mean(values):
        return torch.nn.functional.conv2d(values, kernel[None, None])

    mx, my = mean(x), mean(y)
    c1, c2 = 2.55**2, 7.65**2
    structure = (2 * (mean(x * y) - mx * my) + c2) / (mean(x * x) - mx**2 + mean(y * y) - my**2 + c2)
    expected = ((2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure.relu()).mean().item()
    assert (structure < 0).any()
    assert luma_ssim(first, second) == pytest.approx(expected, abs=1e-6)


def test_an_item_becomes_a_request_with_its_pictures_named(bench):
    (_, _, guided, alone) = read_items(bench / "data.jsonl")
    item = IceItem("5", guided.task, "put <REF_1> into <SOURCE>", "", guided.source, guided.mask, guided.references)
    unit = request_of(item).current
    assert unit.instruction == "put {image1} into {image}" and len(unit.images) == 2
    assert unit.masks[0] is not None and unit.masks[1] is None
    only_reference = IceItem("6", "Style Reference Generation", "as <REF_1>", "", None, None, guided.references)
    assert request_of(only_reference).current.instruction == "as {image}"
    assert not request_of(alone).current.images


class _Counting:
    """A network that counts what it has scored."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, shown):
        self.calls += 1
        return 5.0


def test_answers_are_made_once_and_scored_again_only_with_other_networks(bench, tmp_path):
    asked, aesthetic = [], _Counting()

    def edit(units, seeds):
        asked.extend(units)
        if units[0].current.images and units[0].current.masks[0] is not None:
            raise ConditionError("no masks")
        return [picture(seeds[0] % 100, (64, 64))]

    def run(*names):
        scorers = IceScorers(IceNetworks(random_clip(), aesthetic=aesthetic), names, ("style: gone",))
        evaluate_ice_bench(bench / "data.jsonl", Contestant("mine", edit, {}), tmp_path, scorers, quiet=True)
        return len(asked), aesthetic.calls

    assert run("one") == (4, 2)
    before = (tmp_path / "table.md").read_bytes()
    assert run("one") == (4 + 2, 2)  # only what the system has no form for is asked again
    assert (tmp_path / "table.md").read_bytes() == before
    assert run("other") == (4 + 4, 4)
    next((tmp_path / "answers").iterdir()).write_bytes(b"damaged")
    assert run("other") == (4 + 4 + 3, 4)  # made again, with the same bytes, so not scored again
    page = (tmp_path / "table.md").read_text()
    assert (
        "PARTIAL: 2 items have no picture that can be read, such as 2, 3." in page and "mean of 0 of 31 tasks" in page
    )
    assert "Measured by: other." in page and "Absent: style: gone." in page
    assert [case.answer is not None for case in read_cases(tmp_path)] == [True, False, False, True]
    with pytest.raises(ConfigError, match="another name"):
        evaluate_ice_bench(
            bench / "data.jsonl", Contestant("other", edit, {}), tmp_path, IceScorers(IceNetworks()), quiet=True
        )


def test_damaged_pictures_and_ids_twice_in_gen_info_are_told(bench):
    items = read_items(bench / "data.jsonl")
    (bench / "damaged.png").write_bytes(b"no picture")
    scores = score_items(items, {"1": bench / "made.png", "4": bench / "damaged.png"}, IceScorers(IceNetworks()))
    assert set(scores) == {"1"}
    (bench / "gen_info.json").write_text('{"1": "made.png", "1": "made.png"}')
    with pytest.raises(DataError, match="1 ids occur twice, such as 1"):
        read_gen_info(bench / "gen_info.json")


def test_pictures_of_another_size_are_counted_and_named(bench):
    items = read_items(bench / "data.jsonl")
    picture(1, (32, 32)).save(bench / "small.png")
    made = {item.id: bench / ("small.png" if item.id in "24" else "made.png") for item in items}
    table = make_table("mine", items, score_items(items, made, IceScorers(IceNetworks())))
    told = "RESIZED to the source's size for the pixel metrics: 1 pictures, such as 2."
    assert told in table.notes  # 4 has no source, so nothing it would have to fit


def test_the_gallery_shows_cases_without_clip_as_well(bench, tmp_path):
    (bench / "gen_info.json").write_text(json.dumps({str(n): "made.png" for n in (1, 2, 3, 4, 77)}))
    finished = Contestant("mine", None, {})
    for networks, heading in ((IceNetworks(), "unranked: CLIP is absent"), (IceNetworks(random_clip()), "clip_cap")):
        scorers, output = IceScorers(networks), tmp_path / heading[:4]
        evaluate_ice_bench(bench / "data.jsonl", finished, output, scorers, results=bench / "gen_info.json", quiet=True)
        page = (output / "gallery.html").read_text()
        assert heading in page and page.count(">answer<img") == 4 and page.count(">REF_1<img") == 1
        assert "1 ids of the results are no items of the benchmark: 77." in page


def test_ids_that_occur_twice_in_the_benchmarks_files_are_counted_and_named(bench):
    whole = (bench / "data.jsonl").read_text()
    (bench / "data.jsonl").write_text(whole + "".join(whole.splitlines(keepends=True)[1:3]))
    with pytest.raises(DataError, match=r"data.jsonl: 2 ids occur twice, such as 2, 3;"):
        read_items(bench / "data.jsonl")
    (bench / "eval_result.txt").write_text('1#;#Text2Image#;#{"clip_cap": 0.2}\n' * 2)
    with pytest.raises(DataError, match=r"eval_result.txt: 1 ids occur twice, such as 1;"):
        read_raw(bench / "eval_result.txt")


def test_other_weights_under_the_same_name_score_again(bench):
    items = read_items(bench / "data.jsonl")
    made = {item.id: bench / "made.png" for item in items}

    def score(clip):
        return score_items(items, made, IceScorers(IceNetworks(clip), ("clip folder",)), bench / "scored.jsonl")

    first = score(random_clip())
    kept = (bench / "scored.jsonl").read_bytes()
    assert score(random_clip()) == first and (bench / "scored.jsonl").read_bytes() == kept
    other = random_clip()
    other.model.visual_projection.weight.data.neg_()
    assert score(other)["4"]["clip_cap"] == pytest.approx(-first["4"]["clip_cap"], abs=1e-6)


def test_the_files_of_the_other_networks_are_part_of_what_tells_weights_apart(tmp_path):
    models = tmp_path / "models"
    (models / DEPTH).mkdir(parents=True)
    files = [models / f"{MUSIQ}.pth", models / f"{HEAD}.safetensors", models / DEPTH / "config.json"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    (models / "readme.txt").write_text("no weights")
    assert {*weight_files(models)} == {*files}
    before = files_sha256(weight_files(models))
    files[-1].write_bytes(b"other")
    assert files_sha256(weight_files(models)) != before
    assert IceNetworks(files_sha256="a").sha256 != IceNetworks(files_sha256="b").sha256


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
