"""Every kind of model keeps the same contract: ACE, ACE++ and pipelines of diffusers, all small and real."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.conditions.images import normalise_image
from ace.conditions.rules import ImageRules
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation import (
    ChatSession,
    Family,
    Job,
    Loading,
    Made,
    Mask,
    Message,
    Node,
    Picture,
    Progress,
    Session,
    Settings,
    make,
    open_message,
    run,
)
from ace.conversation.family import COMMON_LOADING, LOADING_NAMES, open_job
from ace.conversation.job import OPTIONAL_SETTINGS
from ace.conversation.recipe import embed, encode, match_files, read
from ace.conversation.replay import Replay, job_of_recipe
from ace.conversation.run import conclude
from ace.errors import ConditionError, ConfigError, StoppedError
from ace.evaluation import contestant_of
from ace.families import family_of_recipe, find_family
from ace.server import Engine
from tests.random_flux import random_plus
from tests.random_library import save_klein, save_kontext

SIZE = (64, 48)
# Values that are right where an option is taken.
OPTIONS = {
    "negative_instruction": "blurred",
    "guidance_rescale": 0.5,
    "control": "canny",
    "fits": "align",
    "max_seq_length": 1024,
    "places": "left",
    "repainting_scale": 0.5,
    "frames": 5,
    "fps": 8,
    "shift": 2.0,
    "strength": 0.5,
}
LOADINGS = {
    "adapters": ("style.safetensors",),
    "transformer": "other.safetensors",
    "quantize": "int8",
    "fast": "cache",
    "compile": True,
    "refine": "folder",
    "refine_strength": 0.3,
}


@dataclass
class Case:
    """A family: where it is found, and settings that make it quick."""

    find: Callable[[Path], str]
    settings: Settings = field(default_factory=lambda: Settings(seed=1, num_inference_steps=2))
    kind: str = "diffusers"


SMALL = Settings(seed=1, num_inference_steps=2, size=(64, 64))
CASES = {
    "ace-tiny": Case(lambda folder: "ace-tiny", kind="ace"),
    "plus": Case(lambda folder: random_plus().save_pretrained(folder) or str(folder), kind="ace-plus"),
    "kontext": Case(lambda folder: str(save_kontext(folder)), SMALL),
    "klein": Case(lambda folder: str(save_klein(folder)), SMALL),
}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def name(case, tmp_path_factory) -> str:
    """What the model is called: its name or folder."""
    return case.find(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def family(case, name) -> Family:
    found = find_family(name)
    found.load(Loading(device="cpu"))
    assert found.kind == case.kind
    return found


def picture(seed: int = 0, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def photo(seed: int = 0, **options) -> Picture:
    return Picture.of_image(normalise_image(picture(seed, **options), name="photo"), "photo")


def half(size: tuple[int, int] = SIZE) -> Mask:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return Mask(mask)


def edit(family: Family, case: Case, text: str = "make it red", seed: int = 1, steps: int = 2, **message) -> Job:
    settings = replace(case.settings, seed=seed, num_inference_steps=steps)
    return open_message(family, Message(text, settings, message.pop("photo", photo()), **message))


def bytes_of(made: Made) -> bytes:
    return encode(made.image, "PNG", made.recipe)


def stepping_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ace-stepwise"]


def wait_for_no_threads() -> None:
    for thread in stepping_threads():
        thread.join(20)
    assert stepping_threads() == []


# Before anything is loaded


@pytest.mark.parametrize("option", sorted(OPTIONAL_SETTINGS))
def test_an_option_is_taken_or_refused_by_its_name(family, case, option):
    given = {option: OPTIONS[option]}
    own = {name: value for name, value in given.items() if name in {f.name for f in fields(Settings)}}
    settings = replace(case.settings, **own, **({} if own else {"options": given}))
    if option in family.traits.options:
        references = (photo(1),) if option in ("fits", "places") else ()
        job = open_message(family, Message("make it red", settings, photo(), references))
        assert job.settings.optional()[option] == OPTIONS[option]
    else:
        with pytest.raises(ConfigError, match="does not take") as refused:
            open_message(family, Message("make it red", settings, photo()))
        assert OPTIONAL_SETTINGS[option] in str(refused.value)


@pytest.mark.parametrize("option", sorted(LOADING_NAMES))
def test_a_way_of_loading_is_taken_or_refused_by_its_name(family, name, option):
    assert {f.name for f in fields(Loading)} == COMMON_LOADING | set(LOADING_NAMES)
    loading = Loading(**{option: LOADINGS[option]})
    if option in family.traits.loading:
        assert type(find_family(name, loading)) is type(family)
    else:
        with pytest.raises(ConfigError, match="does not take") as refused:
            find_family(name, loading)
        assert LOADING_NAMES[option] in str(refused.value)


def test_what_a_model_cannot_do_is_refused_in_one_line(name, case):
    family = find_family(name)  # not loaded
    traits = family.traits
    images = tuple(photo(number) for number in range(traits.max_images + 1))
    with pytest.raises(ConditionError, match=rf"takes one image, 2 given|{traits.max_images + 1} images"):
        edit(family, case, photo=images[0], references=images[1:])
    if not traits.text_to_image:
        with pytest.raises(ConditionError, match="makes nothing from words alone"):
            open_message(family, Message("a red apple", case.settings))
    if not traits.history:
        shown = picture()
        unit = LongContextConditionUnit(ConditionUnit("now red"), (Turn(ConditionUnit("a cat", (shown,)), shown),))
        with pytest.raises(ConditionError, match="sees no earlier rounds"):
            open_job(family, Job(unit, case.settings))


# Making


def test_any_mixture_of_requests_gives_the_bytes_of_each_alone(family, case):
    jobs = [edit(family, case, "make it red", 1, 2), edit(family, case, "a hat", 2, 3, mask=half())]
    alone = [bytes_of(make(family, [job])[0]) for job in jobs]
    first, second = family.prepare(jobs)
    family.step([second])
    family.step([second, first])
    (third,) = family.prepare(jobs[:1])
    family.preview(second)
    family.step([first, third])
    answers = dict(zip((0, 2), family.finish([first, third]), strict=True)) if third.done else {}
    family.step([third, second]) if not third.done else family.step([second])
    assert first.done and second.done and third.done
    answers = answers or dict(zip((0, 2), family.finish([first, third]), strict=True))
    answers[1] = family.finish([second])[0]
    mixed = [bytes_of(conclude(family, jobs[n % 2], answers[n])) for n in range(3)]
    assert mixed == [alone[0], alone[1], alone[0]]
    wait_for_no_threads()


def test_a_seed_is_an_image(family, case):
    seeds = (1, 1, 2, 2**64 - 1)
    made = make(family, [edit(family, case, seed=seed) for seed in seeds])
    images = [one.image.tobytes() for one in made]
    assert images[0] == images[1]
    assert len(set(images)) == 3
    assert [one.recipe.seed for one in made] == list(seeds)


def test_progress_counts_steps_and_previews_are_images(family, case):
    events = list(run(family, [edit(family, case, steps=3)], previews=True))
    *progress, made = events
    assert isinstance(made, Made)
    assert [(one.step, one.total) for one in progress if isinstance(one, Progress)] == [(n, 3) for n in range(4)]
    shown = [one.previews[0] for one in progress if isinstance(one, Progress) and one.previews]
    assert [image.mode for image in shown] == ["RGB", "RGB"]


def test_a_cost_is_counted_before_anything_runs_and_grows_with_the_work(family, case):
    one, longer = (family.cost(edit(family, case, steps=steps)) for steps in (2, 4))
    assert (one.num_steps, longer.num_steps) == (2, 4)
    assert 0 < one.step_operations == longer.step_operations and one.operations < longer.operations
    assert min(one.image_tokens, one.text_tokens, one.target_tokens, one.num_bytes) > 0


def test_the_servers_engine_makes_the_same_bytes_and_cancels(family, case):
    jobs = [edit(family, case, seed=seed, steps=steps) for seed, steps in ((1, 2), (2, 4))]
    alone = [make(family, [job])[0] for job in jobs]
    engine = Engine(family)
    engine.start()
    try:
        (endless,) = engine.submit([edit(family, case, steps=1000)], "another")
        together = [request.result.result(timeout=120) for request in engine.submit(jobs, "somebody")]
        engine.cancel([endless])
        with pytest.raises(StoppedError, match="cancelled"):
            endless.result.result(timeout=120)
    finally:
        engine.stop()
    assert [bytes_of(made) for made in together] == [bytes_of(made) for made in alone]
    del endless
    gc.collect()
    wait_for_no_threads()


def test_cancelling_stops_before_the_next_step_and_leaves_nothing_behind(family, case):
    steps: list[int] = []
    for event in run(family, [edit(family, case, steps=40)], cancelled=lambda: 2 in steps):
        assert isinstance(event, Progress)
        steps.append(event.step)
    assert steps == [0, 1, 2]
    gc.collect()
    wait_for_no_threads()
    assert len(make(family, [edit(family, case)])) == 1, "the next request is answered"


def test_outside_the_mask_every_value_stays_and_alpha_with_it(family, case):
    given = photo(3, mode="RGBA")
    (made,) = make(family, [edit(family, case, photo=given, mask=half())])
    result = np.asarray(made.image)
    np.testing.assert_array_equal(result[:, SIZE[0] // 2 :, :3], np.asarray(given.opened.stored)[:, SIZE[0] // 2 :])
    np.testing.assert_array_equal(result[..., 3], np.asarray(given.opened.alpha))
    assert made.drift is not None
    assert made.drift.masked
    assert made.drift.max_difference == 0
    inside = np.asarray(given.opened.stored)[:, : SIZE[0] // 2]
    assert (result[:, : SIZE[0] // 2, :3] != inside).any()
    assert any("does not see masks" in note for note in made.notes) is not family.traits.sees_masks


def test_a_benchmark_measures_what_a_user_gets(family, case):
    steps = case.settings.num_inference_steps
    contestant = contestant_of(family, steps)
    shown = picture(3)
    mask = half().image
    unit = LongContextConditionUnit(ConditionUnit("make it red", (shown,), (mask,)))
    (image,) = contestant.edit([unit], [5])
    message = Message("make it red", Settings(5, steps), photo(3), mask=half())
    (made,) = make(family, [open_message(family, message)])
    assert image.tobytes() == made.image.tobytes()
    assert made.unpasted is not None
    assert contestant.settings["num_inference_steps"] == steps


# What comes out


def test_an_edit_of_a_whole_image_has_its_size_or_is_the_models_own(family, case, tmp_path):
    given, settings = photo(3, size=(450, 300)), replace(case.settings, size=None, num_inference_steps=1)
    (made,) = make(family, [open_message(family, Message("make it red", settings, given))])
    assert made.image.size == (450, 300)
    assert made.delivered is not None and made.delivered.change_mask.size == (450, 300)
    assert sum(made.delivered.as_dict()[name] for name in ("kept", "recoloured", "redrawn")) == pytest.approx(
        1, abs=1e-4
    )
    kept = np.asarray(made.delivered.change_mask) == 0
    np.testing.assert_array_equal(np.asarray(made.image)[kept], np.asarray(given.opened.stored)[kept])
    assert any(note.startswith("made at ") and "kept" in note for note in made.notes)
    assert made.recipe.settings["changes"] == str(made.delivered)
    own = replace(settings, images=ImageRules(detail="model"))
    (model,) = make(family, [open_message(family, Message("make it red", own, given))])
    assert model.delivered is None
    assert model.recipe.settings["detail"] == "model"
    assert (model.image.size == (450, 300)) is not any("your picture is 450x300" in note for note in model.notes)


def test_a_small_mask_is_worked_on_close_up_and_all_else_stays(family, case, tmp_path):
    options = {"max_seq_length": 1024} if "max_seq_length" in family.traits.options else {}
    settings = replace(case.settings, size=None, options=options, num_inference_steps=1)
    photograph = picture(3, size=(800, 600))
    photograph.save(tmp_path / "photo.png")
    dot = Image.new("L", (800, 600))
    dot.paste(255, (600, 100, 640, 130))
    dot.save(tmp_path / "mask.png")
    given, mask = Picture.of_file(tmp_path / "photo.png"), Mask.of_file(tmp_path / "mask.png")
    job = open_message(family, Message("make it red", settings, given, mask=mask))
    assert job.part is not None
    assert job.part.box.size[0] * job.part.box.size[1] >= 0.9 * family.working_px(job)
    (made,) = make(family, [job])
    assert made.image.size == (800, 600)
    assert made.drift is not None and made.drift.max_difference == 0
    assert made.recipe.settings["focus_box"] == str(job.part.box)
    again = job_of_recipe(made.recipe, match_files(made.recipe, tmp_path.iterdir()))
    (remade,) = make(family, [open_job(family, again)])
    assert bytes_of(remade) == bytes_of(made)
    whole = replace(settings, images=ImageRules(focus="off"))
    assert open_message(family, Message("make it red", whole, given, mask=mask)).part is None
    old = made.recipe.model_copy(update={"rules": {"masks": 2, "blend": 2}})
    assert open_job(family, job_of_recipe(old, match_files(old, tmp_path.iterdir()))).part is None


def test_rules_that_mean_nothing_here_are_refused(family, case):
    def opened(rules: ImageRules, mask: Mask | None = None, **more) -> Job:
        settings = replace(case.settings, images=rules, **more)
        return open_message(family, Message("make it red", settings, photo(), mask=mask))

    for rules in (ImageRules(feather_px=3), ImageRules(focus=0.1), ImageRules(mask_means="white")):
        with pytest.raises(ConfigError, match="edits with a mask"):
            opened(rules)
    with pytest.raises(ConfigError, match="whole image"):
        opened(ImageRules(detail="model"), half())


# Recipes and sessions


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_file_is_made_again_to_the_byte_from_its_recipe(family, case, name, tmp_path, with_mask):
    picture(5).save(tmp_path / "photo.png")
    half().image.save(tmp_path / "mask.png")
    mask = Mask.of_file(tmp_path / "mask.png") if with_mask else None
    job = edit(family, case, photo=Picture.of_file(tmp_path / "photo.png"), mask=mask, seed=2**63)
    (made,) = make(family, [job])
    embed(made.image, tmp_path / "out.png", made.recipe)
    recipe = read(tmp_path / "out.png")
    assert recipe == made.recipe
    assert (recipe.format_version, recipe.family) == (2, case.kind)
    again, loading = family_of_recipe(recipe, name, device="cpu")
    assert (again.kind, again.name, again.sha256) == (recipe.family, recipe.model, recipe.model_sha256)
    again.load(loading)
    files = match_files(recipe, [tmp_path / "photo.png", tmp_path / "mask.png"])
    opened = open_job(again, job_of_recipe(recipe, files, references_apart=again.traits.references_apart))
    (remade,) = make(again, [opened])
    embed(remade.image, tmp_path / "again.png", remade.recipe)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_a_conversation_of_two_rounds_goes_on_from_its_answer_and_replays(family, case, tmp_path):
    chat = ChatSession(Session.create(tmp_path / "talk"), family)

    def ask(message: Message, start: str | None = None) -> Node:
        (node,) = (one for one in chat.ask(message, start) if isinstance(one, Node))
        return node

    first = ask(Message("make it red", case.settings, photo(), mask=half()))
    second = ask(Message("add a hat", case.settings), first.id)
    assert second.parents == (first.id,)
    if family.traits.history:
        assert [asked.instruction for asked in second.recipe.history] == ["make it red"]
        assert second.recipe.images == ()
    else:
        assert second.recipe.history == ()
        assert [file.name for file in second.recipe.images] == ["image.png"]
    reopened = ChatSession(Session.open(tmp_path / "talk"), family)
    for node in (first, second):
        *_, replay = reopened.replay(node.id)
        assert isinstance(replay, Replay)
        assert replay.same_pixels, (node.id, replay)
        assert replay.differences == ()


def test_a_thing_of_300_px_in_a_photograph_of_24_million_is_drawn_at_the_models_full_size():
    model = find_family("ace-tiny")
    model.load(Loading(device="cpu"))
    source = normalise_image(Image.radial_gradient("L").resize((6000, 4000)).convert("RGB"), name="photo")
    mask = Image.new("L", source.size)
    mask.paste(255, (3000, 1700, 3300, 2000))
    unit = LongContextConditionUnit(ConditionUnit("add a red star", (source.image,), (mask,)))
    sharpness = []
    for focus in ("auto", "off"):
        settings = Settings(1, 4, images=ImageRules(focus=focus))
        (made,) = make(model, [open_job(model, Job(unit, settings, source))])
        inside = np.asarray(made.image.crop((3010, 1710, 3290, 1990)).convert("L"), dtype=float)
        sharpness.append(float(np.abs(np.diff(inside, axis=1)).max()))
        assert made.drift is not None and made.drift.max_difference == 0
    assert sharpness[0] > 3 * sharpness[1]
