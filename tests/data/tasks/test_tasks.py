"""Every maker on real photographs, and the promises that its samples keep."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ace.conditions.units import ConditionUnit
from ace.data.sample import TASKS, EditSample
from ace.data.tasks import TASK_MAKERS, Rejected, Source, Tools, check
from ace.data.tasks.common import as_bool, pixels
from ace.data.tasks.signals import BLANK, LEAST_DRAWN
from ace.data.tasks.tools import needed_weights
from ace.data.tasks.writing import FONTS
from ace.errors import MissingDependencyError
from ace.extract.text import same_text
from ace.extract.weights import is_there
from tests.extract.photographs import photograph

SLOW = {  # these ask SAM 2 or HED, which take seconds a picture
    *(f"{family}/{name}" for family in ("low_level_analysis", "controllable_generation")
      for name in ("segmentation", "doodle", "contour", "scribble")),
    *(f"element_editing/object_{verb}" for verb in ("add", "remove", "replace")),
    "layer_editing/decouple", "layer_editing/fusion", "reference_generation/multi_condition",
}  # fmt: skip
NEED_A_SET = {"reference_generation/series", "reference_generation/face_reference"}
SIDE_PX = 256


def picture(name: str) -> Image.Image:
    return Image.fromarray(photograph(name, SIDE_PX))


@pytest.fixture(scope="module")
def tools():
    """Without looking for objects where a task does not have to: that takes seconds a picture."""
    return Tools(segment=False)


@pytest.fixture(scope="module")
def astronaut():
    others = (
        Source(picture("coffee"), "coffee", "a cup of coffee on a table"),
        Source(picture("chelsea"), "cat", "the face of a tabby cat"),
        Source(picture("rocket"), "rocket", "a rocket on its launch pad"),
        Source(picture("astronaut").rotate(3, Image.Resampling.BICUBIC), "tilted", "the woman again"),
    )
    return Source(picture("astronaut"), "astronaut", "a woman in an orange space suit", others, "any")


def make_some(task: str, source: Source, tools: Tools, count: int = 3) -> list[EditSample]:
    made = [TASK_MAKERS[task](source, Random(f"{task}{seed}"), tools) for seed in range(count)]
    samples = [sample for sample in made if not isinstance(sample, Rejected)]
    assert samples, made
    return samples


def test_there_is_a_maker_for_every_task():
    assert list(TASK_MAKERS) == list(TASKS)


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow if t in SLOW else ()) for t in TASKS if t not in NEED_A_SET]
)
def test_what_is_made_passes_its_check_and_the_same_dice_make_it_again(task, astronaut, tools):
    missing = tools.missing(task)
    if missing:
        pytest.skip(f"weights missing ({', '.join(missing)}): run `ace data setup`")
    source = astronaut
    if task == "semantic_editing/pose":  # a person who is not cut off by the border
        canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), (110, 130, 120))
        canvas.paste(picture("astronaut").resize((150, 150)), (53, 106))
        source = replace(astronaut, image=canvas, others=())
    if task.startswith(("element_editing/object", "layer_editing")):  # a ball on a table: one whole object for certain
        table = picture("coffee").crop((0, 100, 60, 160)).resize((SIDE_PX, SIDE_PX))
        ImageDraw.Draw(table).ellipse((90, 80, 180, 170), fill=(40, 90, 210))
        source = replace(astronaut, image=table, others=())
    for sample in make_some(task, source, tools):
        assert sample.task == task and check(sample, tools) is None, sample.request.current.instruction
        assert sample.provenance["source"] == "astronaut"
        unit = sample.request.current
        for image, mask in zip(unit.images, unit.masks, strict=True):
            if mask is not None and image.size == sample.target.size and image is unit.images[0]:
                same = (pixels(image) == pixels(sample.target)).all(2)
                assert same[~as_bool(mask)].all() and not same[as_bool(mask)].all()
    first, second = (TASK_MAKERS[task](source, Random("again"), tools) for _ in range(2))
    assert isinstance(first, Rejected) == isinstance(second, Rejected)
    if isinstance(first, EditSample) and isinstance(second, EditSample):
        assert first.provenance == second.provenance
        assert first.request.current.instruction == second.request.current.instruction
        assert np.array_equal(pixels(first.target), pixels(second.target))


@pytest.mark.parametrize("task", [f"low_level_analysis/{name}" for name in ("gray", "edge", "mosaic", "degradation")])
def test_signals_come_whole_and_in_regions(task, astronaut, tools):
    samples = make_some(task, astronaut, tools, 10)
    assert {sample.provenance["variant"] for sample in samples} == {"global", "regional"}
    for sample in samples:
        assert (sample.request.current.masks[0] is None) == (sample.provenance["variant"] == "global")


def test_a_region_in_which_nothing_is_drawn_is_no_sample(tools):
    half = Image.new("RGB", (SIDE_PX, SIDE_PX), (120, 140, 160))
    half.paste(picture("chelsea").crop((0, 0, 60, 120)), (0, 0))  # lines in one corner, nothing elsewhere
    for task in ("low_level_analysis/edge", "controllable_generation/edge"):
        made = [TASK_MAKERS[task](Source(half, "half"), Random(seed), tools) for seed in range(24)]
        assert Rejected(BLANK) in made
        for sample in made:
            if isinstance(sample, EditSample) and sample.provenance["variant"] == "regional":
                drawn = sample.target if task.startswith("low") else sample.request.current.images[0]
                assert pixels(drawn)[as_bool(sample.request.current.masks[0])].std() >= LEAST_DRAWN


def test_control_is_analysis_turned_round(astronaut, tools):
    for sample in make_some("controllable_generation/edge", astronaut, tools, 6):
        assert np.array_equal(pixels(sample.target), pixels(astronaut.image))


def test_written_text_is_read_back_in_both_languages(astronaut, tools):
    texts = [str(s.provenance["slot.text"]) for s in make_some("element_editing/text_add", astronaut, tools, 8)]
    assert any(text.isascii() for text in texts) and any(not text.isascii() for text in texts)


def test_a_text_that_cannot_be_read_in_the_target_fails_the_check(astronaut, tools):
    sample = make_some("element_editing/text_add", astronaut, tools)[0]
    spoilt = replace(sample, target=sample.target.resize((16, 16)).resize(sample.target.size))
    assert check(spoilt, tools) is not None


@pytest.mark.skipif(not is_there("migan"), reason="weights missing (migan): run `ace data setup`")
@pytest.mark.parametrize(("text", "font"), [("OPEN DAY", "sans"), ("欢迎", "chinese")])
def test_text_that_a_picture_has_is_removed_by_filling(text, font, tools):
    image = picture("coffee")
    ImageDraw.Draw(image).text((20, 20), text, fill="white", font=ImageFont.truetype(str(FONTS / f"{font}.ttf"), 34))
    sample = make_some("element_editing/text_remove", Source(image, "sign"), tools, 1)[0]
    assert "MI-GAN" in str(sample.provenance["made_by"])
    assert any(same_text(line.text, text) for line in tools.reader.read(pixels(sample.request.current.images[0])))
    assert tools.reader.read(pixels(sample.target)) == []
    assert check(sample, tools) is None


def test_text_is_not_added_where_there_is_some(tools):
    image = picture("coffee")
    ImageDraw.Draw(image).text((20, 20), "SALE", fill="white", font=ImageFont.truetype(str(FONTS / "sans.ttf"), 40))
    made = TASK_MAKERS["element_editing/text_add"](Source(image, "sign"), Random(0), tools)
    assert made == Rejected("there is text already")


def test_a_series_shows_three_to_eight_pictures_and_not_the_answer(astronaut, tools):
    source = replace(astronaut, relation="series")
    for sample in make_some("reference_generation/series", source, tools, 4):
        assert 3 <= len(sample.request.current.images) <= 8 and check(sample, tools) is None
        assert "{image2}" in sample.request.current.instruction
    made = TASK_MAKERS["reference_generation/series"](replace(astronaut, others=()), Random(0), tools)
    assert isinstance(made, Rejected)


@pytest.mark.skipif(bool(Tools().missing("reference_generation/face_reference")), reason="run `ace data setup`")
def test_the_face_is_gone_from_the_edit_picture_of_a_face_reference(astronaut, tools):
    source = replace(astronaut, relation="face", others=astronaut.others[-1:])
    for sample in make_some("reference_generation/face_reference", source, tools):
        edit, reference = sample.request.current.images
        assert tools.faces(pixels(edit)) == [] and len(tools.faces(pixels(reference))) == 1
        assert check(sample, tools) is None
    alone = TASK_MAKERS["reference_generation/face_reference"](replace(astronaut, others=()), Random(0), tools)
    assert isinstance(alone, Rejected)


def test_a_mixed_chain_goes_on_from_each_answer(astronaut, tools):
    source = replace(astronaut, others=(), relation="")
    for sample in make_some("multi_turn/chain", source, tools):
        turns = sample.request.history
        assert 1 <= len(turns) <= 3
        for turn, following in zip(turns, [*(t.unit for t in turns[1:]), sample.request.current], strict=True):
            assert following.images[0] is turn.answer
        assert len(set(str(sample.provenance["tasks"]).split())) == sample.provenance["rounds"]


def test_a_chain_through_a_set_ends_at_its_last_picture(astronaut, tools):
    source = replace(astronaut, relation="series")
    samples = make_some("multi_turn/chain", source, tools, 8)
    walks = [sample for sample in samples if sample.provenance["kind"] == "homogeneous"]
    assert walks
    for sample in walks:
        assert str(sample.provenance["slot.caption"]) in sample.request.current.instruction
        assert any(np.array_equal(pixels(sample.target), pixels(other.image)) for other in source.others)


def test_pictures_of_one_caption_are_no_chain(astronaut, tools):
    fishes = tuple(replace(other, caption="fish") for other in astronaut.others)
    source = replace(astronaut, caption="fish", others=fishes, relation="series")
    kinds = {sample.provenance["kind"] for sample in make_some("multi_turn/chain", source, tools, 3)}
    assert kinds == {"mixed"}


@pytest.mark.slow
@pytest.mark.skipif(bool(Tools().missing("element_editing/object_remove")), reason="run `ace data setup`")
def test_an_object_that_has_a_name_is_asked_for_by_it():
    wall = Image.new("RGB", (SIDE_PX, SIDE_PX), (176, 170, 160))
    wall.paste(picture("chelsea").resize((120, 90)), (70, 60))
    for sample in make_some("repainting/text_guided_inpainting", Source(wall, "poster"), Tools(), 2):
        assert "cat" in str(sample.provenance["slot.object_name"]) and check(sample, Tools()) is None


def test_captions_that_hold_marks_of_templates_do_no_harm(astronaut, tools):
    source = replace(astronaut, caption="a {image7} <signal>\n of \\1 things. ")
    for task in ("text_guided_generation/text_to_image", "repainting/text_guided_inpainting", "repainting/outpainting"):
        for sample in make_some(task, source, tools):
            assert check(sample, tools) is None


@pytest.mark.parametrize("size", [(1, 1), (300, 5), (40, 40)])
def test_pictures_that_are_too_small_are_rejected_with_a_reason(size, tools):
    source = Source(Image.new("RGB", size, "red"), "small", "something red")
    for task in TASKS:
        made = TASK_MAKERS[task](source, Random(0), tools)
        assert isinstance(made, Rejected) and "small" in made.reason


def test_a_flat_picture_gives_nothing_that_passes_by_mistake(tools):
    source = Source(Image.new("RGB", (128, 128), (90, 90, 90)), "flat")
    for task in ("low_level_analysis/gray", "low_level_analysis/edge", "text_guided_generation/text_to_image"):
        assert isinstance(TASK_MAKERS[task](source, Random(0), tools), Rejected)
    for seed in range(5):
        made = TASK_MAKERS["repainting/inpainting"](source, Random(seed), tools)
        if isinstance(made, EditSample) and check(made, tools) is None:  # grey filled with white or black is a change
            assert pixels(made.request.current.images[0]).std() > 0


def test_the_check_sees_a_change_outside_the_mask_and_an_open_slot(astronaut, tools):
    sample = make_some("repainting/inpainting", astronaut, tools)[0]
    mask = as_bool(sample.request.current.masks[0])
    row, column = np.argwhere(~mask)[0]
    target = pixels(sample.target).copy()
    target[row, column] ^= 255
    assert check(replace(sample, target=Image.fromarray(target)), tools) == "something changed outside the mask"
    same = replace(sample, target=sample.request.current.images[0])
    assert check(same, tools) == "nothing changed inside the mask"
    unit = ConditionUnit("fill in the <place> of {image}", sample.request.current.images, sample.request.current.masks)
    opened = replace(sample, request=replace(sample.request, current=unit))
    assert check(opened, tools) == "a slot of the instruction is open"


def test_missing_weights_are_named_before_any_work(tmp_path, monkeypatch, astronaut):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    assert {"sam2-encoder", "efficientnet-lite2", "migan"} <= set(Tools().missing("element_editing/object_add"))
    assert needed_weights("controllable_generation/pose") == needed_weights("low_level_analysis/pose") != ()
    with pytest.raises(MissingDependencyError, match="ace data setup"):
        TASK_MAKERS["low_level_analysis/pose"](astronaut, Random(0), Tools())
