"""What mining and labelling compare by: the main object, the meaning of a sentence, and what is unsafe."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ace.errors import CheckpointError
from ace.extract.consistency import ObjectFeatures, describe_object, object_places
from ace.extract.safety import CLASSES, SafetyNet, load_safety_net, read_weights
from ace.extract.sentence import SentenceFeatures
from tests.extract.photographs import needs, photograph

NSFWJS = ("nsfwjs-model", "nsfwjs-weights")
MINILM = ("minilm", "minilm-tokenizer")


def test_an_object_is_the_largest_part_that_answers():
    maps = np.zeros((3, 9, 9), np.float32)
    maps[:, 2:5, 2:6] = 1
    maps[0, 8, 8] = 5  # small, though it answers more
    places = object_places(maps)
    assert places[2:5, 2:6].all() and places.sum() == 12
    described = describe_object(maps)
    assert described.shape == (6,) and np.isclose(np.linalg.norm(described), 1)
    assert object_places(np.zeros((3, 9, 9), np.float32)).all()


@needs("efficientnet-lite2")
def test_the_same_object_is_consistent_in_another_picture_and_others_are_not():
    left = photograph("astronaut")
    height, width = left.shape[:2]
    nearer = np.ascontiguousarray(left[: int(0.8 * height), int(0.1 * width) : int(0.9 * width)][:, ::-1])
    names = ("coffee", "chelsea", "rocket")
    rows = ObjectFeatures()([left, nearer, *(photograph(name) for name in names)])
    scores = rows @ rows.T
    assert scores[0, 1] > 0.65
    assert scores[np.triu_indices(5, 1)].sum() - scores[0, 1] < 0.65 * 9
    assert all(scores[first, second] < 0.65 for first in range(5) for second in range(2, 5) if first != second)


@needs(*NSFWJS)
def test_photographs_are_neutral_and_line_art_is_a_drawing():
    grey = cv2.cvtColor(photograph("chelsea"), cv2.COLOR_RGB2GRAY)
    drawn = 255 - cv2.cvtColor(cv2.Canny(grey, 80, 160), cv2.COLOR_GRAY2RGB)
    net = SafetyNet()
    found = net.classify([photograph("coffee"), photograph("chelsea"), photograph("astronaut"), drawn])
    assert [CLASSES[best] for best in found.argmax(1)] == ["neutral", "neutral", "neutral", "drawing"]
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert (net([photograph("coffee"), photograph("chelsea")]) < 0.1).all()
    assert net([]).shape == (0,)


def test_weights_are_read_out_of_the_packages_scripts():
    listed = (
        '{name:"block_3_expand/kernel",shape:[1,1,2,3],dtype:"float32",quantization:{min:-1,scale:.5,dtype:"uint8"}},'
        '{name:"Conv1/bias",shape:[1],dtype:"float32",quantization:{min:2e0,scale:1e-1,dtype:"uint8"}}'
    )
    found = read_weights(listed, 'module.exports="AAECAwQFCg=="')  # the bytes 0 to 5, and 10
    assert list(found) == ["blocks.3.expand_conv.weight", "conv_stem.bias"]
    assert found["blocks.3.expand_conv.weight"].squeeze().tolist() == [[-1, 0.5], [-0.5, 1], [0, 1.5]]
    assert found["conv_stem.bias"].tolist() == [3]


def test_scripts_of_another_network_are_refused(tmp_path):
    for name in ("model.js", "weights.js"):
        (tmp_path / name).write_text('module.exports="AAAA"')
    with pytest.raises(CheckpointError, match="does not hold the weights of MobileNetV2"):
        load_safety_net(tmp_path / "model.js", tmp_path / "weights.js")


@needs(*MINILM)
def test_sentences_are_alike_as_they_mean_the_same():
    rows = SentenceFeatures()(
        [
            "Remove the red car on the left of {image}.",
            "Please delete the red car at the left of {image}",
            "Make {image} look like a watercolour painting",
        ]
    )
    alike = rows @ rows[0]
    assert alike[0] == pytest.approx(1, abs=1e-5) and alike[1] > 0.85 and alike[2] < 0.4


@needs(*MINILM)
def test_a_sentence_means_the_same_whatever_stands_beside_it():
    net = SentenceFeatures()
    alone, beside = net(["a dog"]), net(["a dog", "a much longer sentence about a cat on a table " * 3])
    assert np.allclose(alone[0], beside[0], atol=1e-5)


def test_the_object_of_a_picture_of_any_size():
    """Maps of other sizes than 9 by 9, from pictures that are not square."""
    image = Image.new("L", (12, 6), 0)
    ImageDraw.Draw(image).rectangle((3, 1, 8, 4), fill=255)
    places = object_places(np.asarray(image, np.float32)[None])
    assert places.shape == (6, 12) and places[1:5, 3:9].all() and places.sum() == 24
