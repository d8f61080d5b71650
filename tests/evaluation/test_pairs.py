"""Every score against an independent computation in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ace.errors import DataError
from ace.evaluation.encoders import CLIP_FRAMING, DINO_FRAMING, DinoEncoder, Framing, load_clip, load_dino
from ace.evaluation.pairs import Pair, pixel_errors, score_pairs

from .random_encoders import picture, random_clip, random_dino


def framed64(image: Image.Image, framing: Framing) -> np.ndarray:
    """The evaluators' resize and crop, written out: torchvision's rules."""
    width, height = image.size
    if width <= height:
        new = (framing.resize_px, int(framing.resize_px * height / width))
    else:
        new = (int(framing.resize_px * width / height), framing.resize_px)
    values = np.asarray(image.resize(new, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    top = int(round((values.shape[0] - framing.crop_px) / 2.0))  # noqa: RUF046
    left = int(round((values.shape[1] - framing.crop_px) / 2.0))  # noqa: RUF046
    values = values[top : top + framing.crop_px, left : left + framing.crop_px]
    return ((values - framing.mean) / framing.std).transpose(2, 0, 1)


def cosine64(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    sizes = {"made": (64, 48), "reference": (80, 50), "tall": (40, 90)}
    for number, (name, size) in enumerate(sizes.items()):
        picture(number, size).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in sizes}


@pytest.mark.parametrize(("made", "reference"), [("made", "reference"), ("tall", "made"), ("reference", "reference")])
def test_every_score_equals_its_definition_in_float64(files, made, reference):
    clip, dino = random_clip(), random_dino()
    caption, before = "a red cat with hat", "a blue dog"
    pair = Pair("1", "all", files[made], files[reference], caption, before)
    (row,) = score_pairs([pair], clip, dino)
    a, b = (Image.open(files[name]).convert("RGB") for name in (made, reference))
    clip.model.double()
    dino.model.double()

    def tower(image, framing, network):
        return network(torch.from_numpy(framed64(image, framing))[None])[0].detach().numpy()

    def look(values):
        return clip.model.visual_projection(clip.model.vision_model(pixel_values=values).pooler_output)

    def self_supervised(values):
        return dino.model(pixel_values=values).last_hidden_state[:, 0]

    def read(words):
        tokens = torch.tensor([clip.tokenizer(words)["input_ids"]])
        return clip.model.text_projection(clip.model.text_model(input_ids=tokens).pooler_output)[0].detach().numpy()

    x, g = tower(a, CLIP_FRAMING, look), tower(b, CLIP_FRAMING, look)
    t, s = read(caption), read(before)
    fitted = np.asarray(a.resize(b.size, Image.Resampling.BICUBIC) if a.size != b.size else a, dtype=np.float64)
    difference = fitted / 255 - np.asarray(b, dtype=np.float64) / 255

    def unit(v):
        return v / math.sqrt(np.dot(v, v))

    assert row.scores.l1 == pytest.approx(np.abs(difference).mean(), abs=1e-6)
    assert row.scores.l2 == pytest.approx((difference**2).mean(), abs=1e-6)
    assert row.scores.clip_i == pytest.approx(cosine64(x, g), abs=1e-6)
    assert row.scores.dino == pytest.approx(
        cosine64(tower(a, DINO_FRAMING, self_supervised), tower(b, DINO_FRAMING, self_supervised)), abs=1e-6
    )
    assert row.scores.clip_t == pytest.approx(cosine64(x, t), abs=1e-6)
    assert row.scores.clip_t_oracle == pytest.approx(cosine64(g, t), abs=1e-6)
    if made == reference:
        assert row.scores.clip_dir == 0  # the picture does not change: no direction, and not a number divided by zero
    else:
        assert row.scores.clip_dir == pytest.approx(cosine64(unit(x) - unit(g), unit(t) - unit(s)), abs=1e-5)


def test_equal_captions_count_as_no_direction_and_missing_ones_as_absent(files):
    pairs = [
        Pair("same", "all", files["made"], files["reference"], "a cat", "a cat"),
        Pair("none", "all", files["made"], files["reference"]),
    ]
    same, none = (row.scores for row in score_pairs(pairs, random_clip(), None))
    assert same.clip_dir == 0 and same.no_direction
    assert none.clip_t is None and none.clip_dir is None and not none.no_direction
    assert same.dino is None and same.clip_i is not None


def test_alpha_is_dropped_as_the_reference_evaluators_do(tmp_path):
    solid = picture(3)
    clear = solid.copy()
    clear.putalpha(Image.new("L", solid.size, 10))
    solid.save(tmp_path / "solid.png")
    clear.save(tmp_path / "clear.png")
    (row,) = score_pairs([Pair("1", "all", tmp_path / "clear.png", tmp_path / "solid.png")], None, None)
    assert row.scores.l1 == 0


def test_only_pictures_that_changed_are_scored_again(files, tmp_path):
    made = tmp_path / "made.png"
    made.write_bytes(files["made"].read_bytes())
    pairs = [Pair(f"{n}", "all", made if n == 3 else files["tall"], files["reference"]) for n in range(20)]
    clip = random_clip()
    first = score_pairs(pairs, clip, None, tmp_path / "rows.jsonl")
    kept = (tmp_path / "rows.jsonl").read_bytes()
    clip.model.visual_projection.weight.data.zero_()  # whatever is scored now differs
    assert score_pairs(pairs, clip, None, tmp_path / "rows.jsonl") == first
    assert (tmp_path / "rows.jsonl").read_bytes() == kept
    picture(9).save(made)
    again = score_pairs(pairs, clip, None, tmp_path / "rows.jsonl")
    assert again[3].inputs_sha256 != first[3].inputs_sha256
    assert again[16:] == first[16:]


def test_two_pairs_of_one_id_are_refused(files):
    pair = Pair("7", "all", files["made"], files["reference"])
    with pytest.raises(DataError, match="7"):
        score_pairs([pair, pair], None, None)


def test_pixel_errors_are_on_a_scale_where_black_to_white_is_one():
    assert pixel_errors(Image.new("RGB", (4, 4)), Image.new("RGB", (8, 2), "white")) == (1.0, 1.0)


def test_other_captions_or_encoders_are_scored_again(files, tmp_path):
    def score(caption, clip):
        pair = Pair("1", "all", files["made"], files["reference"], caption)
        return score_pairs([pair], clip, None, tmp_path / "rows.jsonl")[0].scores

    first = score("a red cat", random_clip())
    assert score("a blue dog", random_clip()).clip_t != first.clip_t
    other = random_clip()
    other.model.visual_projection.weight.data.neg_()
    assert score("a red cat", other).clip_t == pytest.approx(-first.clip_t, abs=1e-6)


def test_encoders_are_told_apart_by_their_weights_and_not_by_where_they_lie(tmp_path):
    clip, dino = random_clip(), random_dino()
    for folder in (tmp_path / "clip", tmp_path / "moved" / "clip"):
        clip.model.save_pretrained(folder)
        clip.tokenizer.save_pretrained(folder)
    dino.model.save_pretrained(tmp_path / "dino")
    kept = load_clip(str(tmp_path / "clip")).sha256, load_dino(str(tmp_path / "dino")).sha256
    assert load_clip(str(tmp_path / "moved" / "clip")).sha256 == kept[0]
    clip.model.text_projection.weight.data[0, 0] += 1e-4
    clip.model.save_pretrained(tmp_path / "clip")
    dino.model.layernorm.bias.data[0] += 1e-4
    dino.model.save_pretrained(tmp_path / "dino")
    assert load_clip(str(tmp_path / "clip")).sha256 != kept[0]
    assert load_dino(str(tmp_path / "dino")).sha256 != kept[1]
    changed = DinoEncoder(dino.model).sha256
    assert DinoEncoder(dino.model, mean_tokens=True).sha256 != changed
    dino.model.config.layer_norm_eps = 1e-3
    assert DinoEncoder(dino.model).sha256 != changed
