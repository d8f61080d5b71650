"""Every input is read the same at the command line and in training lists as the rooms below read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ace.cli import app
from ace.conditions.images import open_image, prepare_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.data.collect import open_picture
from ace.data.recipe import Collection
from ace.errors import InputError, MaskError
from ace.inference.latents import decode_latents, encode_pictures
from ace.inference.pipeline import Request
from ace.training.config import DataSource, TrainingStage
from ace.training.sources import open_records
from tests.input_cases import FILES, SELECTED, SIZE, masks, plain_mask, scene, soft_mask, write_mpo, write_turned
from tests.random_models import PUBLISHED_LIKE, random_pipeline

STAGE = TrainingStage("only", lr=1.0, steps=1)
KINDS = [
    "plain",
    "a black ground with a hole, as OpenAI has it",
    "white strokes on nothing",
    "alpha that is full everywhere, as a browser's canvas writes it",
    "the photograph with a hole",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=1).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))


def edit(model: Path, photo: Path, *more: object, words: str = "make it blue", code: int = 0) -> tuple[str, Path]:
    out = photo.parent / "out.png"
    asked = ("edit", photo, words, "--model", model, "--device", "cpu", "--seed", 1, "-o", out, *more)
    result = CliRunner().invoke(app, [str(one) for one in asked])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split()), out


def values(image) -> np.ndarray:
    return np.asarray(image).astype(int)


# The command line


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_selects_its_share_and_keeps_the_rest(kind, model, tmp_path):
    scene().save(tmp_path / "photo.png")
    masks()[kind].save(tmp_path / "mask.png")
    said, out = edit(model, tmp_path / "photo.png", "--mask", tmp_path / "mask.png")
    assert f"mask.png selects {100 * SELECTED:.1f} % of the picture" in said
    outside = values(plain_mask()) == 0
    np.testing.assert_array_equal(values(Image.open(out))[outside], values(scene())[outside])


def test_a_soft_mask_leaves_only_what_has_no_weight(model, tmp_path):
    scene().save(tmp_path / "photo.png")
    soft_mask().save(tmp_path / "mask.png")
    said, out = edit(model, tmp_path / "photo.png", "--mask", tmp_path / "mask.png")
    outside = values(soft_mask()) == 0
    np.testing.assert_array_equal(values(Image.open(out))[outside], values(scene())[outside])
    assert "drift outside the mask: none" in said


def test_a_turned_photo_takes_its_upright_mask_and_refuses_the_stored_one(model, tmp_path):
    photo, upright, stored = write_turned(tmp_path)
    said, out = edit(model, photo, "--mask", upright)
    assert f"selects {100 * SELECTED:.1f} %" in said
    assert open_image(out).size == SIZE[::-1]
    said, _ = edit(model, photo, "--mask", stored, code=2)
    assert "lies on its side" in said


def test_phones_and_new_formats_are_read(model, tmp_path):
    edit(model, write_mpo(tmp_path / "phone.jpg"))
    for name in ("a.avif", "iphone.heic"):
        if name.endswith("heic"):
            pytest.importorskip("pi_heif")
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
        edit(model, tmp_path / name)


def test_a_profile_goes_back_into_the_answer(model, tmp_path):
    (tmp_path / "p3.png").write_bytes((FILES / "p3.png").read_bytes())
    _, out = edit(model, tmp_path / "p3.png")
    assert open_image(out).icc_profile == open_image(FILES / "p3.png").icc_profile


def test_words_that_are_not_read_are_said(model, tmp_path):
    scene().save(tmp_path / "photo.png")
    said, _ = edit(model, tmp_path / "photo.png", words="very " * 200 + "Make it night.")
    assert "tokens are read, not" in said
    assert "Make it night." in said
    said, _ = edit(model, tmp_path / "photo.png")
    assert "tokens are read" not in said


def test_a_jpegs_drift_is_that_of_the_written_file(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    plain_mask().save(tmp_path / "mask.png")
    asked = ("edit", tmp_path / "photo.png", "x", "--model", model, "--device", "cpu", "--mask", tmp_path / "mask.png")
    for suffix, exact in ((".jpg", False), (".png", True), (".webp", True)):
        out = tmp_path / f"out{suffix}"
        result = CliRunner().invoke(app, [str(one) for one in (*asked, "-o", out, "--json")])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)["pictures"][0]["drift"]
        outside = values(plain_mask()) == 0
        difference = np.abs(values(open_image(out).stored) - noise.astype(int)).max(axis=2)[outside]
        assert told["max_difference"] == difference.max()
        assert (told["max_difference"] == 0) == exact


def test_after_a_whole_edit_no_drift_is_told_that_says_nothing(model, tmp_path):
    scene().save(tmp_path / "photo.png")
    said, _ = edit(model, tmp_path / "photo.png")
    assert "drift" not in said  # a model of random weights changes every pixel


def test_adapters_are_refused_or_said_by_their_kind(model, tmp_path):
    scene().save(tmp_path / "photo.png")
    width, layer = PUBLISHED_LIKE.hidden_size, "blocks.0.self_attn.to_v"
    sound = {f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(width, 2)}
    more = {
        "nan": {f"{layer}.alpha": torch.tensor(float("nan"))},
        "lokr": {"lycoris_blocks_0_self_attn_to_v.lokr_w1": torch.ones(2, 2)},
        "bias": {f"{layer}.lora_B.bias": torch.ones(width)},
        "text": {"lora_te1_text_model_layers_0_fc1.lora_down.weight": torch.ones(2, 8)},
    }
    said = {}
    for name, tensors in more.items():
        save_file({**sound, **tensors}, tmp_path / f"{name}.safetensors")
        code = 0 if name == "text" else None
        asked = ("edit", tmp_path / "photo.png", "make it blue", "--model", model, "--device", "cpu")
        asked = (*asked, "--lora", tmp_path / f"{name}.safetensors", "-o", tmp_path / f"{name}.png")
        result = CliRunner().invoke(app, [str(one) for one in asked])
        assert (result.exit_code == 0) == (code == 0), result.output
        assert (tmp_path / f"{name}.png").exists() == (code == 0)
        said[name] = " ".join(result.output.split())
    assert "values that are not finite" in said["nan"]
    assert "is a LoKr adapter" in said["lokr"]
    assert "has biases" in said["bias"]
    assert "tensors for the text encoder are left out" in said["text"]


def test_an_answer_that_is_not_finite_is_no_picture(tmp_path):
    pipeline = random_pipeline(PUBLISHED_LIKE, num_inference_steps=1)
    with torch.no_grad():
        next(pipeline.transformer.parameters()).fill_(float("nan"))
    pipeline.save_pretrained(tmp_path / "broken")
    scene().save(tmp_path / "photo.png")
    asked = ("edit", tmp_path / "photo.png", "x", "--model", tmp_path / "broken", "--device", "cpu")
    result = CliRunner().invoke(app, [str(one) for one in (*asked, "-o", tmp_path / "out.png")])
    assert result.exit_code != 0
    assert "not finite" in " ".join(result.output.split())
    assert not (tmp_path / "out.png").exists()


def test_what_arguments_and_headers_say_is_refused_before_torch(model, tmp_path):
    Image.new("RGB", (400, 20)).save(tmp_path / "ribbon.png")
    scene().save(tmp_path / "photo.png")
    Image.new("L", (10, 10), 255).save(tmp_path / "other.png")
    for arguments, words in (
        ((tmp_path / "ribbon.png", "make it blue"), "longer than 16 to 1"),
        ((tmp_path / "photo.png", "make it blue", "--mask", tmp_path / "other.png"), "10x10 px"),
    ):
        asked = ["ace", "edit", *map(str, arguments), "--model", str(model), "-o", str(tmp_path / "o.png")]
        script = (
            f"import sys\nsys.argv = {asked!r}\nfrom ace.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    print('code', end.code)\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert words in " ".join((done.stdout + done.stderr).split())
        assert "code 2" in done.stdout
        assert done.stdout.strip().endswith("False")


def test_the_round_trip_is_the_input_encoded_and_decoded():
    pipeline = random_pipeline(PUBLISHED_LIKE, num_inference_steps=1)
    unit = LongContextConditionUnit(ConditionUnit("make it blue", (scene(),)))
    edited, new = pipeline.prepare([Request(unit), Request(LongContextConditionUnit(ConditionUnit("a cat")))])
    assert pipeline.round_trip(new) is None
    trip = pipeline.round_trip(edited)
    assert trip.size == edited.inputs.size
    given = torch.from_numpy(prepare_image(scene(), trip.size))
    with torch.no_grad():
        (expected,) = decode_latents(pipeline.vae, encode_pictures(pipeline.vae, [given]))
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(values(trip) - levels).max() <= 1.5


# Lists and collections


def csv(folder: Path, rows: str) -> object:
    (folder / "list.csv").write_text(rows, encoding="utf-8")
    return open_records(DataSource("a", "csv", str(folder / "list.csv")), 64, STAGE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_reads_masks_as_the_command_line_does(kind, tmp_path):
    (tmp_path / "img").mkdir()
    scene().save(tmp_path / "img" / "scene.png")
    masks()[kind].save(tmp_path / "img" / "mask.png")
    row = "img\\scene.png#;#img\\mask.png#;##;#img/scene.png#;#make it blue#;#local"
    header = "edit_image#;#edit_mask#;#ref_image#;#target_image#;#prompt#;#data_type"
    (tmp_path / "list.jsonl").write_text(
        json.dumps(
            {
                "instruction": "a\u2028b",
                "images": ["img\\scene.png"],
                "masks": ["img/mask.png"],
                "target": "img/scene.png",
            },
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    jsonl = open_records(
        DataSource("b", "jsonl", str(tmp_path / "list.jsonl"), task="repainting/inpainting"), 64, STAGE
    )
    for records in (csv(tmp_path, row), csv(tmp_path, f"{header}\n{row}\n"), jsonl):
        assert len(records) == 1
        unit = records[0].request.current
        np.testing.assert_array_equal(unit.masks[0], plain_mask())
    assert jsonl[0].request.current.instruction == "a\u2028b"


def test_a_list_refuses_a_mask_of_another_size_and_trains_on_soft_ones(tmp_path):
    photo, _, stored = write_turned(tmp_path)
    records = csv(tmp_path, f"{photo.name}#;#{stored.name}#;##;#{photo.name}#;#make it blue#;#local")
    with pytest.raises(MaskError, match="lies on its side"):
        records[0]
    scene().save(tmp_path / "scene.png")
    soft_mask().save(tmp_path / "soft.png")
    unit = csv(tmp_path, "scene.png#;#soft.png#;##;#scene.png#;#x#;#local")[0].request.current
    assert len(np.unique(unit.masks[0])) > 50


def test_lists_and_collections_see_srgb(tmp_path):
    for name in ("p3.png", "a.avif"):
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
    unit = csv(tmp_path, "p3.png#;##;##;#p3.png#;#x#;#local")[0].request.current
    seen = open_picture((FILES / "p3.png").read_bytes(), "p3.png", Collection(str(tmp_path)))
    for image in (unit.images[0], seen):
        assert np.abs(np.subtract(image.getpixel((10, 10)), (90, 160, 220))).max() <= 1
    mpo = write_mpo(tmp_path / "phone.jpg")
    for path in (mpo, tmp_path / "a.avif"):
        opened = open_picture(path.read_bytes(), f"{path.stem}.bin", Collection(str(tmp_path), min_side_px=16))
        assert isinstance(opened, Image.Image)
    with pytest.raises(InputError, match=r"gone\.png"):
        csv(tmp_path, "gone.png#;##;##;#gone.png#;#x#;#local")[0]


# What comes out


def test_the_answer_has_the_pictures_size_and_its_change_mask_beside_it(model, tmp_path):
    scene((480, 360)).save(tmp_path / "photo.png")
    said, out = edit(model, tmp_path / "photo.png", "--save-change-mask")
    assert "of the pixels kept" in said
    kept = values(open_image(tmp_path / "out-change.png").image.convert("L")) == 0
    np.testing.assert_array_equal(values(open_image(out).image)[kept], values(scene((480, 360)))[kept])
    said, out = edit(model, tmp_path / "photo.png", "--detail", "model")
    assert f"made at {'x'.join(map(str, open_image(out).size))}; your picture is 480x360" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--feather", 3), "edits with a mask"),
        (("--focus", "0.1"), "edits with a mask"),
        (("--save-change-mask", "--detail", "model"), "change mask"),
        (("--save-change-mask", "--session", "talk"), "name it with --out"),
        (("--max-pixels", "1000"), "too large"),
        (("--max-pixels", "many"), "64MP"),
        (("--detail", "best"), "full or model"),
        (("--sign", "nobody"), "A.pem,B.pem"),
    ],
)
def test_an_option_is_used_or_refused(options, told, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene().save(tmp_path / "photo.png")
    asked = ["edit", "photo.png", "make it blue", "--model", str(model), "--device", "cpu", *map(str, options)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())


def test_a_mask_file_read_by_its_own_rule_is_made_again_by_it(model, tmp_path):
    scene().save(tmp_path / "photo.png")
    plain_mask().point(lambda level: 255 - level).save(tmp_path / "mask.png")
    said, out = edit(
        model, tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--mask-means", "black", "--feather", 2
    )
    assert f"selects {100 * SELECTED:.1f} %" in said
    again = CliRunner().invoke(app, ["replay", str(out), "--model", str(model), "--device", "cpu"])
    assert "the same to the byte" in again.output


def test_sixteen_bits_are_kept_in_tiff(model, tmp_path):
    cv2, tifffile = pytest.importorskip("cv2"), pytest.importorskip("tifffile")
    deep = np.random.default_rng(0).integers(0, 65536, (SIZE[1], SIZE[0], 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "photo.tif"), deep[..., ::-1])
    plain_mask().save(tmp_path / "mask.png")
    said, _ = edit(model, tmp_path / "photo.tif", "--mask", tmp_path / "mask.png", "-o", tmp_path / "out.tif")
    assert "8 bits" not in said
    written = tifffile.imread(tmp_path / "out.tif")
    outside = values(plain_mask()) == 0
    np.testing.assert_array_equal(written[outside], deep[outside])
    again = CliRunner().invoke(app, ["replay", str(tmp_path / "out.tif"), "--model", str(model), "--device", "cpu"])
    assert "the same to the byte" in again.output


def test_a_signed_answer_names_its_parents_and_a_changed_one_is_refused(model, tmp_path):
    pytest.importorskip("c2pa")
    scene().save(tmp_path / "photo.png")
    said, first = edit(model, tmp_path / "photo.png", "--sign", "local")
    assert "do not trust" in said
    first.rename(tmp_path / "first.png")
    scene().rotate(180).save(tmp_path / "other.png")
    _, out = edit(
        model, tmp_path / "first.png", "--reference", tmp_path / "other.png", "--sign", "local", words="like {image1}"
    )

    def replay() -> tuple[int, str]:
        again = CliRunner().invoke(app, ["replay", str(out), "--model", str(model), "--device", "cpu"])
        return again.exit_code, " ".join(again.output.split())

    code, told = replay()
    assert code == 0
    assert "every pixel is the same; the file is signed" in told
    assert "trusted" in told and "made from first.png, other.png" in told
    out.write_bytes(out.read_bytes() + bytes(8))  # which decoders do not mind
    code, told = replay()
    assert code == 1
    assert "invalid" in told
