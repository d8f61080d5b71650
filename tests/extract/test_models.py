"""The extractors with their published weights, on real photographs."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ace.data.tasks.writing import FONTS
from ace.errors import CheckpointError, ConfigError, ImageError, MissingDependencyError
from ace.extract import SIGNALS, draw_signal, naming
from ace.extract.exact import canny, gray, mosaic
from ace.extract.naming import Namer
from ace.extract.text import TextReader, same_text
from tests.extract.photographs import needs, overlap, photograph

POSE = ("pose-detector", "pose-landmarks")
MTCNN = ("mtcnn-p", "mtcnn-r", "mtcnn-o")
SAM2 = ("sam2-encoder", "sam2-decoder")


@pytest.fixture(scope="module")
def reader():
    return TextReader()


@pytest.mark.parametrize(
    ("text", "font"), [("Hello ACE 2024", "sans"), ("生日快乐", "chinese"), ("NO PARKING", "serif")]
)
def test_ocr_reads_english_and_chinese_on_a_photograph(reader, text, font):
    image = Image.fromarray(photograph("coffee"))
    ImageDraw.Draw(image).text((20, 30), text, fill="white", font=ImageFont.truetype(str(FONTS / f"{font}.ttf"), 40))
    lines = reader.read(np.asarray(image))
    assert any(same_text(line.text, text) for line in lines), [line.text for line in lines]
    line = next(line for line in lines if same_text(line.text, text))
    assert line.corners[:, 1].min() < 45 and line.corners[:, 1].max() > 55


def test_ocr_reads_nothing_where_nothing_is_written(reader):
    assert reader.read(photograph("coffee")) == []


def test_readings_are_compared_without_spaces_case_and_width():
    assert same_text("Hello  World", "HELLO WORLD") and same_text("ＡＢＣ１", "abc1")
    assert not same_text("春天", "夏天")


def test_canny_and_gray_are_opencvs_and_a_mosaic_is_cubic_down_nearest_up():
    image = photograph("chelsea")
    assert np.array_equal(canny(image)[..., 0], cv2.Canny(image, 100, 200))
    assert np.array_equal(gray(image)[..., 1], cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    blocks = mosaic(np.ascontiguousarray(image[:128, :256]), 64)
    assert len(np.unique(blocks.reshape(-1, 3), axis=0)) <= 8
    small = cv2.resize(np.ascontiguousarray(image[:128, :256]), (4, 2), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(blocks[32, 32], small[0, 0]) and np.array_equal(blocks[96, 224], small[1, 3])
    with pytest.raises(ConfigError, match="blocks"):
        mosaic(image, 1)


@needs(*MTCNN)
def test_mtcnn_finds_the_astronauts_face_and_none_in_a_cup():
    from ace.extract.faces import FaceFinder

    finder = FaceFinder()
    (face,) = finder.find(photograph("astronaut"))
    left, top, right, bottom = np.array(face.box) / 384
    assert 0.33 < left < 0.38 and 0.1 < top < 0.15 and 0.5 < right < 0.55 and 0.3 < bottom < 0.37
    eye_l, eye_r, nose, mouth_l, mouth_r = face.points
    assert eye_l[0] < nose[0] < eye_r[0] and max(eye_l[1], eye_r[1]) < nose[1] < min(mouth_l[1], mouth_r[1])
    assert finder.find(photograph("coffee")) == []


@needs(*MTCNN, "face-mesh")
def test_the_face_mesh_lies_on_the_landmarks_of_mtcnn():
    from ace.extract.faces import FaceFinder, FaceMesh

    image = photograph("astronaut")
    (face,) = FaceFinder().find(image)
    mesh = FaceMesh().points(image, face)
    assert mesh is not None and mesh.shape == (468, 2)
    width = face.box[2] - face.box[0]
    corners = mesh[[61, 291]]
    assert np.linalg.norm(corners - face.points[3:], axis=1).max() < 0.12 * width
    assert np.linalg.norm(mesh[1] - face.points[2]) < 0.15 * width  # the tip of the nose


@needs(*POSE)
def test_blazepose_finds_a_person_upright_and_nobody_in_a_cup():
    from ace.extract.people import PoseFinder, draw_person

    finder = PoseFinder()
    image = photograph("astronaut")
    person = finder.find(image)
    assert person is not None and person.score > 0.8
    nose, shoulders = person.keypoints[0], person.keypoints[5:7]
    assert 0.4 < nose[0] / 384 < 0.5 and 0.2 < nose[1] / 384 < 0.28
    assert shoulders[0, 0] > nose[0] > shoulders[1, 0] and (shoulders[:, 1] > nose[1]).all()
    assert person.mask[300, 150] and not person.mask[30, 30]  # her suit, the flag
    drawn = draw_person(person, *image.shape[:2])
    assert drawn.shape == image.shape and 0.002 < (drawn.max(2) > 60).mean() < 0.1
    assert finder.find(photograph("coffee")) is None


@needs("fastdepth")
def test_fastdepth_sees_the_astronaut_before_the_wall():
    from ace.extract.distance import FastDepth

    near = FastDepth()(photograph("astronaut"))
    assert near.shape == (384, 384) and near.min() == 0 and near.max() == 1
    assert near[250:330, 60:250].mean() > near[10:60, 250:300].mean() + 0.2


@needs("migan")
def test_migan_changes_nothing_outside_the_mask_and_removes_what_is_inside():
    from ace.extract.fill import MIGAN, smear

    image = photograph("rocket").copy()
    painted = image.copy()
    painted[100:130, 60:100] = (255, 0, 255)
    mask = np.zeros(image.shape[:2], bool)
    mask[97:133, 57:103] = True
    for fill in (MIGAN().fill, smear):
        made = fill(painted, mask)
        assert np.array_equal(made[~mask], painted[~mask])
        assert np.abs(made[mask].astype(int) - (255, 0, 255)).sum(1).min() > 60  # nothing of the paint
        assert np.abs(made[mask].astype(int) - image[mask]).mean() < 40
        with pytest.raises(ImageError, match="size"):
            fill(painted, mask[:50])


@needs("hed")
def test_hed_draws_the_rim_of_the_cup_and_not_the_grain_of_the_table():
    from ace.extract.hed import SoftEdges
    from ace.extract.sketch import draw_contour, draw_doodle, draw_scribble

    image = photograph("coffee", 256)
    edges = SoftEdges()(image)
    assert edges.shape == image.shape[:2] and 0 <= edges.min() and edges.max() <= 1
    table, rim = edges[120:165, 5:30], edges[10:60, 70:90]
    assert rim.max() > 0.9 and table.mean() < 0.2
    for draw in (draw_doodle, draw_contour, draw_scribble):
        drawn = draw(edges)
        assert drawn.shape == image.shape and 0.01 < (drawn < 128).mean() < 0.35
    assert (draw_doodle(edges) < 128).mean() < (draw_scribble(edges) < 128).mean()


@needs(*SAM2)
@pytest.mark.slow
def test_sam2_outlines_a_painted_shape_and_the_objects_of_a_photograph():
    from ace.extract.objects import Segmenter

    segmenter = Segmenter(num_threads=2)
    image = np.full((300, 400, 3), 90, np.uint8)
    yy, xx = np.mgrid[:300, :400]
    disc = np.hypot(yy - 150, xx - 130) < 60
    image[disc] = (220, 60, 40)
    assert overlap(segmenter.mask_at(image, points=[(130, 150)]).mask, disc) > 0.95
    assert overlap(segmenter.mask_at(image, box=(65, 85, 195, 215)).mask, disc) > 0.95
    objects = segmenter.find_objects(photograph("coffee"))
    assert len(objects) >= 3
    shares = [thing.share for thing in objects]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(ImageError, match="points or a box"):
        segmenter.mask_at(image)


def test_every_signal_without_a_model_keeps_the_size_of_the_picture():
    image = photograph("chelsea", 200)
    for name in ("mosaic", "degradation", "gray", "edge"):
        drawn = draw_signal(name, image)
        assert drawn.shape == image.shape and drawn.dtype == np.uint8 and not np.array_equal(drawn, image)
    with pytest.raises(ConfigError, match="segmentation, depth"):
        draw_signal("nonsense", image)
    assert len(SIGNALS) == 10


@needs(*POSE)
def test_the_pose_of_nobody_is_refused():
    with pytest.raises(ImageError, match="no person"):
        draw_signal("pose", photograph("coffee"))


def test_line_art_reads_its_own_weights_and_refuses_others(tmp_path):
    import torch

    from ace.extract.sketch import LineArt, load_line_art

    torch.manual_seed(0)
    torch.save(LineArt().state_dict(), tmp_path / "sk_model.pth")
    image = photograph("chelsea", 66)
    drawn = load_line_art(tmp_path / "sk_model.pth").draw(image)
    assert drawn.shape == image.shape and drawn.std() > 0
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        load_line_art(tmp_path / "other.pth")
    with pytest.raises(MissingDependencyError, match="hf download"):
        load_line_art(tmp_path / "nowhere.pth")


def test_a_depth_model_of_transformers_is_used_like_fastdepth(tmp_path):
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    from ace.extract.distance import HubDepth

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        is_hybrid=False, readout_type="ignore",
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    DPTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    near = HubDepth(str(tmp_path))(photograph("chelsea", 100))
    assert near.shape == photograph("chelsea", 100).shape[:2] and near.min() == 0 and near.max() == 1
    with pytest.raises(MissingDependencyError, match="hf download"):
        HubDepth("nobody/nothing")


@needs("efficientnet-lite2")
@pytest.mark.parametrize(("name", "word"), [("chelsea", "cat"), ("coffee", "cup of coffee")])
def test_things_are_called_by_everyday_words(name, word):
    image = photograph(name)
    assert Namer().name(image, np.ones(image.shape[:2], bool)) == word


@needs("efficientnet-lite2")
def test_what_is_no_thing_gets_no_name():
    image = photograph("coffee")
    corner = np.zeros(image.shape[:2], bool)
    corner[:40, :40] = True  # wood of the table
    assert Namer().name(image, corner) is None
    assert Namer().name(np.full((64, 64, 3), 90, np.uint8), np.ones((64, 64), bool)) is None


def test_a_word_that_the_caption_says_needs_less_certainty(monkeypatch):
    looks = np.zeros((2, len(naming.words())))
    looks[:, naming.words().index("cat")], looks[:, naming.words().index("dog")] = 0.15, 0.2
    monkeypatch.setattr(Namer, "certainties", lambda *_: looks)
    namer, picture, mask = Namer.__new__(Namer), np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
    assert namer.name(picture, mask) is None
    assert namer.name(picture, mask, "Two cats on a wall") == "cat"
    assert namer.name(picture, mask, "a cat and a dog") == "dog"
    assert namer.name(picture, mask, "a catalogue of horses") is None


def test_every_word_belongs_to_classes_that_exist_and_no_class_has_two():
    table, known = naming._table(), naming.words()
    assert len(known) > 250 and set(table[table >= 0]) == set(range(len(known)))
    covered = sorted(number for first_last, _ in naming._lines() for number in range(first_last[0], first_last[1] + 1))
    assert len(covered) == len(set(covered)) and covered[-1] < 1000
