"""Real pictures become sets: by the offline encoder, by SigLIP, by objects, styles and faces, without the unsafe."""

import json
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance, ImageOps

from ace.data import mine
from ace.data.cluster import second_turn
from ace.data.collect import list_pictures
from ace.data.recipe import Collection, DataRecipe, Filtering, Labelling, Mining, Synthesis
from ace.data.run import build, mine_only
from ace.data.shards import read_shards
from ace.errors import ConfigError, MissingDependencyError
from tests.data.pictures import collection, draw
from tests.extract.photographs import needs

NETWORKS = ("hed", "efficientnet-lite2", "nsfwjs-model", "nsfwjs-weights")


def photographs(folder):
    """Four photographs, each also mirrored and lighter, and nearer: four sets of three."""
    folder.mkdir()
    for name in ("astronaut", "coffee", "chelsea", "motorcycle"):
        array = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
        image = Image.fromarray(array).convert("RGB")
        image.thumbnail((256, 256))
        width, height = image.size
        image.save(folder / f"{name}-0.png")
        ImageEnhance.Brightness(ImageOps.mirror(image)).enhance(1.15).save(folder / f"{name}-1.png")
        image.crop((width // 10, height // 12, width, height)).save(folder / f"{name}-2.png")
    return folder


def tiny_siglip(folder):
    """SigLIP's own classes with random weights."""
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        vision_config={**size, "image_size": 64, "patch_size": 16}, text_config={**size, "vocab_size": 32}
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def members(folder):
    """The names of the pictures of every set."""
    sets = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        found = json.loads(line)
        if "set" in found:
            sets.setdefault(found["set"], []).append(found["file_name"])
    return sorted(sets.values())


@needs(*NETWORKS)
def test_views_of_one_object_are_a_set_and_every_pair_of_it_is_found(tmp_path):
    pictures = photographs(tmp_path / "pictures")
    recipe = DataRecipe(Collection(str(pictures)), mine=Mining(feature_low=0.7, feature_high=0.999))
    built = mine_only(recipe, tmp_path / "mined")
    names = ("astronaut", "chelsea", "coffee", "motorcycle")
    assert members(tmp_path / "mined") == [[f"{name}-{n}.png" for n in range(3)] for name in names]
    pairs = [json.loads(line) for line in (tmp_path / "mined" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == built.manifest.count == 12
    assert not list((tmp_path / "mined" / "work").rglob(".*"))
    # the caption file that was written is a collection's, with its sets
    (pictures / "metadata.jsonl").write_bytes((tmp_path / "mined" / "metadata.jsonl").read_bytes())
    listed = list_pictures(Collection(str(pictures)))
    assert {(found.file.split("-")[0], found.relation) for found in listed} == {(name, "content") for name in names}
    assert len({found.set for found in listed}) == 4


def test_siglip_embeds_through_transformers(tmp_path):
    pictures = collection(tmp_path / "pictures", 6)
    settings = Mining("siglip", tiny_siglip(tmp_path / "siglip"), relation="series", max_unsafe=1.0)
    rows = mine.load_encoder(settings)([draw(n) for n in range(5)])
    assert rows.shape == (5, 32) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[:1], mine.load_encoder(settings)([draw(0)]), atol=1e-5)
    built = mine_only(DataRecipe(Collection(str(pictures)), mine=settings), tmp_path / "mined")
    assert {stage.stage: stage.kept for stage in built.stages}["embed"] == 6


@needs("hed")
def test_pictures_embedded_together_are_as_if_alone():
    vgg = mine._Vgg()
    pictures = [draw(n, (80 + 16 * n, 96)) for n in range(mine._AT_ONCE + 1)]
    for encode in (vgg.features, vgg.style):
        together = encode(pictures)
        assert np.allclose(together[-1], encode(pictures[-1:])[0], atol=1e-5)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@needs("hed")
def test_two_pictures_in_a_style_are_more_alike_than_in_two():
    def oils(image):
        import cv2

        return Image.fromarray(cv2.stylization(np.asarray(image), sigma_s=60, sigma_r=0.6))

    def charcoal(image):
        import cv2

        return Image.fromarray(cv2.pencilSketch(np.asarray(image), sigma_s=60, sigma_r=0.07)[0]).convert("RGB")

    cat, cup = (Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee"))
    rows = mine._Vgg().style([charcoal(cat), charcoal(cup), oils(cat), oils(cup)])
    scores = rows @ rows.T
    low, _ = Mining(relation="style").score_bounds
    assert scores[0, 1] > low and scores[0, 1] > scores[0, 2] and scores[0, 1] > scores[0, 3]


@pytest.mark.parametrize(
    ("relation", "bounds"),
    [("face", (0.8, 0.9)), ("style", (0.65, 1.01)), ("content", (0.65, 1.01)), ("series", (-1, 1.01))],
)
def test_a_relation_brings_its_bounds_unless_others_are_said(relation, bounds):
    settings = Mining(relation=relation, face_model="arcface.onnx")
    assert settings.score_bounds == bounds
    assert replace(settings, score_low=0.1, score_high=0.4).score_bounds == (0.1, 0.4)


def test_faces_that_are_too_alike_or_not_alike_are_parted():
    """1 and 2 are one person, 3 is a copy of 2, 4 somebody else."""
    scores = np.eye(4)
    scores[0, 1] = scores[0, 2] = 0.85
    scores[1, 2], scores[:3, 3] = 0.99, 0.3
    settings = Mining(relation="face", face_model="arcface.onnx")
    (found,) = second_turn(np.array([4, 7, 8, 9]), lambda members: scores, settings)
    assert found.tolist() == [4, 7, 8]


@needs(*NETWORKS)
def test_what_is_unsafe_or_blurred_is_rejected_with_its_reason(tmp_path):
    pictures = photographs(tmp_path / "pictures")
    for file in sorted(pictures.glob("*.png"))[4:]:
        file.unlink()
    Image.new("RGB", (128, 128), "teal").save(pictures / "flat.png")
    # nothing offensive is shipped: a bound that no picture meets stands for one
    settings = Mining(relation="series", min_sharpness=1, max_unsafe=1e-9)
    built = mine_only(DataRecipe(Collection(str(pictures)), mine=settings), tmp_path / "mined")
    assert {stage.stage: stage.rejected for stage in built.stages}["embed"] == {"blurred": 1, "unsafe": 4}


@needs(*NETWORKS)
def test_the_filter_drops_what_is_unsafe(tmp_path):
    pictures = collection(tmp_path / "pictures", 2)
    recipe = DataRecipe(
        Collection(str(pictures)),
        synthesize=Synthesis(("low_level_analysis/gray",)),
        filter=Filtering(max_unsafe=1e-9),
    )
    assert build(recipe, tmp_path / "set").manifest.count == 0
    assert read_shards(tmp_path / "set" / "rejected").column("reason") == ["unsafe", "unsafe"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mine": Mining("siglip", "nowhere")}, "the encoder nowhere is not here"),
        ({"mine": Mining(relation="face", face_model="nowhere.onnx")}, "nowhere.onnx"),
        ({"label": Labelling("local", model="nowhere")}, "the model nowhere cannot be loaded"),
    ],
)
def test_what_a_recipe_names_is_looked_for_before_work_starts(tmp_path, monkeypatch, settings, said):
    monkeypatch.setattr("ace.data.mine._hed", lambda: None)
    monkeypatch.setattr("ace.data.mine._Vgg", lambda: type("Encoder", (), {"features": None})())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pictures = collection(tmp_path / "pictures", 1)
    with pytest.raises(MissingDependencyError, match=said):
        build(DataRecipe(Collection(str(pictures)), **settings), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_pairs_without_mining_are_refused():
    with pytest.raises(ConfigError, match="pairs are found by mining"):
        DataRecipe(Collection("pictures"), label=Labelling("local", model="any", pairs=True))
