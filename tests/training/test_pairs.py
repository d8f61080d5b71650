"""Whether pairs of pictures can teach an edit, said before anything is trained."""

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from ace.data.world import World
from ace.errors import ConfigError, DataError
from ace.training.pairs import Pair, check_pairs, read_pairs


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), (40, 20, 8), (255, 236, 196))


def night(picture: Image.Image) -> Image.Image:
    return picture.point([int(value * share) for share in (0.2, 0.3, 0.9) for value in range(256)])


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    world = World(64)
    return [world.picture(seed) for seed in range(10)]


def pairs_of(pictures, edits) -> list[Pair]:
    return [Pair(f"{n:02d}", picture, edits[n % len(edits)](picture)) for n, picture in enumerate(pictures)]


EDITS = {
    "sepia": sepia,
    "night": night,
    "invert": ImageOps.invert,
    "mirror": ImageOps.mirror,
    "edges": lambda one: one.filter(ImageFilter.FIND_EDGES),
    "grey": ImageOps.grayscale,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_pairs_of_one_edit_are_taken(pictures, edit):
    check_pairs(pairs_of(pictures, [lambda one: edit(one).convert("RGB")]))


def test_two_edits_at_once_contradict_each_other(pictures):
    with pytest.raises(DataError, match=r"contradict each other: .* teach one edit at a time"):
        check_pairs(pairs_of(pictures, [sepia, night]))


def test_a_pair_the_wrong_way_round_is_named(pictures):
    pairs = pairs_of(pictures, [night])
    pairs[3] = Pair("03", pairs[3].after, pairs[3].before)
    with pytest.raises(DataError, match=r"^the pairs contradict each other: 03 goes another way"):
        check_pairs(pairs)


def test_the_same_picture_with_two_answers_is_named(pictures):
    pairs = [*pairs_of(pictures, [sepia]), Pair("other", pictures[0], ImageOps.flip(sepia(pictures[0])))]
    with pytest.raises(DataError, match=r"00 and other contradict each other"):
        check_pairs(pairs)


def test_too_few_pairs_and_pairs_without_a_change_are_refused(pictures):
    with pytest.raises(DataError, match=r"2 pairs are too few .* about ten are good"):
        check_pairs(pairs_of(pictures[:2], [sepia]))
    with pytest.raises(DataError, match=r"there is no edit to learn"):
        check_pairs(pairs_of(pictures, [lambda one: one]))
    with pytest.raises(DataError, match=r"nothing changes in 00, 02, 04, 06 and 1 more"):
        check_pairs(pairs_of(pictures, [lambda one: one, sepia]))


def test_folders_are_matched_by_name_and_read_at_one_size(pictures, tmp_path):
    for side in ("before", "after"):
        (tmp_path / side).mkdir()
    pictures[0].resize((400, 200)).save(tmp_path / "before" / "a.png")
    sepia(pictures[0]).resize((200, 100)).save(tmp_path / "after" / "a.jpg")
    (pair,) = read_pairs(tmp_path / "before", tmp_path / "after", side_px=128)
    assert pair.before.size == pair.after.size == (128, 64)
    assert np.asarray(pair.after).std() > 0
    pictures[1].save(tmp_path / "before" / "b.png")
    with pytest.raises(ConfigError, match=r"^b: in one folder only"):
        read_pairs(tmp_path / "before", tmp_path / "after")
    pictures[1].resize((64, 20)).save(tmp_path / "after" / "b.png")
    with pytest.raises(DataError, match=r"b: 64x64 px before and 64x20 px after"):
        read_pairs(tmp_path / "before", tmp_path / "after")
    with pytest.raises(ConfigError, match=r"there is no folder nowhere"):
        read_pairs(tmp_path / "nowhere", tmp_path / "after")
