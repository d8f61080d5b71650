"""The procedural world over the pack that ships with the package: split, exactness, history. Offline."""

import hashlib
import json
import pickle
import random
import re

import numpy as np
import pytest
from PIL import Image

from ace.data.sample import TASKS
from ace.data.wordings import TEMPLATES
from ace.data.world import SpriteLibrary, World
from ace.data.world.backgrounds import LANDSCAPES, PLACES, Background, paint
from ace.data.world.chance import (
    LETTERS,
    LONGEST_WORD,
    Chance,
    Material,
    is_held_out,
    split_templates,
    with_article,
)
from ace.data.world.levels import DEFAULT_STYLE, LEVELS, MIXTURE
from ace.data.world.places import CELLS, PAIRS, SLOTS, THING, TRIPLES, snapped
from ace.data.world.places import on_grid as place_on_grid
from ace.data.world.puppet import POSE_REQUESTS, POSES, Puppet, draw_puppet, keypoints
from ace.data.world.scene import Camera, Scene, SpriteObject, TextObject, draw, render
from ace.data.world.sprites import HELD_OUT_STYLE, SHIPPED_PACK
from ace.data.world.tasks.chain import edits_around
from ace.errors import ConfigError

# tasks in which a mask bounds the change
EVERY_SPLIT = ("train", "held_out")


@pytest.fixture(scope="module")
def library():
    return SpriteLibrary(SHIPPED_PACK)


@pytest.fixture(scope="module")
def worlds(library):
    return {split: World(64, split, library) for split in EVERY_SPLIT}


def pixels(sample):
    return [np.asarray(f.image) for f in sample.request.frames()] + [np.asarray(sample.target)]


@pytest.mark.parametrize("split", EVERY_SPLIT)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_samples_in_both_splits(worlds, task, split):
    for seed in range(12):
        sample = worlds[split].sample(seed, task)
        assert sample.task == task and sample.provenance["split"] == split and sample.provenance["seed"] == seed
        assert sample.target.mode == "RGB" and sample.target.size == (64, 64)
        for frame in sample.request.frames():
            assert frame.image.mode == "RGB" and frame.image.size == (64, 64)
            if frame.mask is not None:
                assert frame.mask.mode == "L" and set(np.unique(np.asarray(frame.mask))) == {0, 255}
        for turn in (*sample.request.history, None):
            instruction = turn.unit.instruction if turn else sample.request.current.instruction
            assert not re.search(r"[<>]|  ", instruction), instruction


def test_same_seed_same_sample_in_any_order_and_process(library, worlds):
    fresh = pickle.loads(pickle.dumps(worlds["train"]))
    for seed in reversed(range(40)):
        one, two = worlds["train"].sample(seed), fresh.sample(seed)
        assert one.request.current.instruction == two.request.current.instruction and one.provenance == two.provenance
        assert all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(two), strict=True))


def test_another_seed_is_another_sample(worlds):
    targets = {
        np.asarray(worlds["train"].sample(seed, "semantic_editing/background").target).tobytes() for seed in range(20)
    }
    assert len(targets) == 20


def test_a_task_drawn_from_the_mixture_is_the_sample_of_that_task(worlds):
    drawn = worlds["train"].sample(5)
    asked = worlds["train"].sample(5, drawn.task)
    assert drawn.request.current.instruction == asked.request.current.instruction
    assert np.array_equal(np.asarray(drawn.target), np.asarray(asked.target))


def test_the_resolution_changes_the_pixels_but_not_what_is_asked(library, worlds):
    large = World(128, "train", library)
    for seed in range(30):
        one, two = (
            worlds["train"].sample(seed, "element_editing/object_add"),
            large.sample(seed, "element_editing/object_add"),
        )
        assert one.request.current.instruction == two.request.current.instruction
        small = np.asarray(two.target.resize((64, 64), Image.Resampling.BOX)).astype(int)
        assert two.target.size == (128, 128)
        assert np.abs(small - np.asarray(one.target)).mean() < 12


def test_the_same_seed_is_another_sample_in_the_other_split(worlds):
    same = [
        np.array_equal(
            *(np.asarray(worlds[split].sample(seed, "semantic_editing/background").target) for split in EVERY_SPLIT)
        )
        for seed in range(20)
    ]
    assert not any(same)


def test_no_template_is_on_both_sides_of_the_split():
    for key, templates in TEMPLATES.items():
        train, held_out = (set(split_templates(key, split)) for split in EVERY_SPLIT)
        assert train and held_out, key
        assert not train & held_out, key
        assert train | held_out == set(templates), key


@pytest.fixture
def drawn_sprites(library, monkeypatch):
    """Every (concept, style) that the library is asked for."""
    drawn = set()
    concepts = {concept.slug: concept for concept in library.concepts}
    layer = library.layer

    def watched(slug, style, size_px):
        drawn.add((concepts[slug], style))
        return layer(slug, style, size_px)

    monkeypatch.setattr(library, "layer", watched)
    return drawn


def test_training_never_draws_a_held_out_concept_or_style(library, drawn_sprites):
    world = World(32, "train", library)
    for seed in range(400):
        sample = world.sample(seed)
        assert not any(sample.provenance[f"held_out_{kind}"] for kind in ("concept", "style", "face"))
    assert len(drawn_sprites) > 200
    assert not [concept for concept, _ in drawn_sprites if is_held_out(concept)]
    assert HELD_OUT_STYLE not in {style for _, style in drawn_sprites}


def test_held_out_samples_say_which_held_out_material_they_show(library, drawn_sprites):
    world = World(32, "held_out", library)
    flags = []
    for seed in range(200):
        drawn_sprites.clear()
        provenance = world.sample(seed, "element_editing/object_replace").provenance
        concept = any(is_held_out(concept) for concept, _ in drawn_sprites)
        style = any(style == HELD_OUT_STYLE for _, style in drawn_sprites)
        assert (provenance["held_out_concept"], provenance["held_out_style"]) == (concept, style)
        flags.append((concept, style))
    assert 30 < sum(c for c, _ in flags) < 150 and 5 < sum(s for _, s in flags) < 100


def test_about_a_tenth_of_the_concepts_outside_the_core_is_held_out(library):
    share = np.mean([is_held_out(concept) for concept in library.concepts if not concept.core])
    assert 0.05 < share < 0.16
    assert not any(is_held_out(concept) for concept in library.concepts if concept.core)


@pytest.mark.parametrize("task", TASKS)
def test_nothing_changes_outside_a_mask(worlds, task):
    for split in EVERY_SPLIT:
        for seed in range(40):
            sample = worlds[split].sample(seed, task)
            unit = sample.request.current
            if not unit.images or unit.masks[0] is None:
                continue
            keep = np.asarray(unit.masks[0]) == 0
            assert keep.any()
            assert np.array_equal(np.asarray(unit.images[0])[keep], np.asarray(sample.target)[keep]), (split, seed)


@pytest.mark.parametrize("subtask", ["object_add", "object_remove", "object_replace", "text_add", "text_remove"])
def test_an_element_edit_leaves_most_of_the_picture_alone_and_changes_something(worlds, subtask):
    for seed in range(60):
        sample = worlds["train"].sample(seed, f"element_editing/{subtask}")
        changed = (np.asarray(sample.request.current.images[0]) != np.asarray(sample.target)).any(2)
        assert 0 < changed.mean() < 0.55, seed


@pytest.mark.parametrize(
    "task", [t for t in TASKS if t.startswith(("semantic", "element", "layer", "repainting", "low", "contr"))]
)
def test_the_answer_differs_from_the_first_image(worlds, task):
    same = [
        np.array_equal(np.asarray(s.request.current.images[0]), np.asarray(s.target))
        for s in (worlds["train"].sample(seed, task) for seed in range(40))
    ]
    assert sum(same) <= 4  # a mask may fall on nothing that its signal would change


def test_chains_go_on_from_the_last_answer(worlds):
    lengths, masked, opened_by_text = set(), 0, 0
    for seed in range(150):
        request = worlds["train"].sample(seed, "multi_turn/chain").request
        lengths.add(len(request.history) + 1)
        first = (*(turn.unit for turn in request.history), request.current)[0]
        opened_by_text += not first.images
        assert len(first.images) <= 1
        for turn, unit in zip(request.history, [*(t.unit for t in request.history[1:]), request.current], strict=True):
            if unit.images:
                masked += 1
                assert unit.images == (turn.answer,) and unit.images[0] is turn.answer and unit.masks[0] is not None
        assert request.num_dropped_rounds == 0
    assert lengths == {2, 3, 4, 5}
    assert masked > 5 and 20 < opened_by_text < 80


def test_a_chain_is_exact_in_every_turn_that_has_a_mask(worlds):
    checked = 0
    for seed in range(150):
        request = worlds["train"].sample(seed, "multi_turn/chain").request
        for turn in request.history:
            if turn.unit.images and turn.unit.masks[0] is not None:
                keep = np.asarray(turn.unit.masks[0]) == 0
                assert np.array_equal(np.asarray(turn.unit.images[0])[keep], np.asarray(turn.answer)[keep])
                checked += 1
    assert checked


def test_undo_gives_back_the_picture_before(worlds):
    undo = set(TEMPLATES["multi_turn/chain#undo"])
    found = 0
    for seed in range(400):
        sample = worlds["train"].sample(seed, "multi_turn/chain")
        if sample.request.current.instruction not in undo or len(sample.request.history) < 2:
            continue
        found += 1
        assert np.array_equal(np.asarray(sample.target), np.asarray(sample.request.history[-2].answer)), seed
    assert found


def test_the_first_image_is_the_one_that_is_edited(worlds):
    for task in ("layer_editing/fusion", "reference_generation/style_reference"):
        for seed in range(20):
            request = worlds["train"].sample(seed, task).request
            assert request.source_index == 0


def test_pictures_come_from_all_over_the_world(worlds):
    pictures = [worlds["train"].picture(seed) for seed in range(60)]
    assert all(p.mode == "RGB" and p.size == (64, 64) for p in pictures)
    assert len({p.tobytes() for p in pictures}) > 50
    assert worlds["train"].picture(7).tobytes() == worlds["train"].picture(7).tobytes()


def test_the_mixture_covers_every_family_and_is_drawn_as_it_says(worlds):
    assert sum(MIXTURE.values()) == pytest.approx(1)
    drawn = [worlds["train"].sample(seed).task.split("/")[0] for seed in range(500)]
    for family, share in MIXTURE.items():
        assert abs(drawn.count(family) / 500 - share) < 0.07, family


def test_an_unknown_task_split_or_size_is_refused(library, worlds):
    with pytest.raises(ConfigError, match="unknown task"):
        worlds["train"].sample(0, "element_editing/object_paint")
    with pytest.raises(ConfigError, match="split"):
        World(64, "test", library)
    with pytest.raises(ConfigError, match="16 px"):
        World(8, "train", library)


# -- placement, words, vocabulary, levels ------------------------------------------------------------------------------


def on_grid(item):
    edges = (item.x - item.size / 2, item.y - item.size / 2, item.size)
    return all(abs(edge * CELLS - round(edge * CELLS)) < 1e-6 for edge in edges)


@pytest.mark.parametrize("task", ["text_guided_generation/text_to_image", "element_editing/object_add"])
def test_what_words_place_stands_on_whole_cells(library, task):
    world, sizes = World(128, "train", library, free_share=1.0), set()
    for seed in range(150):
        sample = world.sample(seed, task)
        if sample.request.current.masks and sample.request.current.masks[0] is not None:
            continue
        for drawn in world.drawn(seed, task):
            item = drawn.scene.objects[drawn.index]
            assert on_grid(item)
            sizes.add(item.size)
    assert sizes == {0.5}


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (None, 0.1, 0.35), (1.0, 0.9, 1)])
def test_what_a_picture_places_is_free_in_a_share_of_the_samples(library, share, low, high):
    world, task = World(32, "train", library, free_share=share), "element_editing/object_replace"
    items = [d.scene.objects[d.index] for seed in range(200) for d in world.drawn(seed, task)]
    assert low <= np.mean([not on_grid(item) for item in items]) <= high
    assert all(0 <= i.x - i.size / 2 + 1e-6 and i.x + i.size / 2 <= 1 + 1e-6 for i in items)


def test_every_slot_fits_the_picture_at_every_size():
    for slot in SLOTS:
        for cells in range(1, CELLS + 1):
            x, y, size = place_on_grid(slot, cells)
            assert size == cells / CELLS and (x, y, size) == snapped(x, y, cells)
            assert size / 2 <= min(x, y) and max(x, y) <= 1 - size / 2
    for pair in (*PAIRS, *((a, c) for a, _, c in TRIPLES)):
        (ax, ay, _), (bx, by, _) = map(place_on_grid, pair)
        assert max(abs(ax - bx), abs(ay - by)) >= THING / CELLS


def test_chains_stay_on_the_grid_too(library):
    world = World(32, "train", library, free_share=0.0)
    material = Material(library)
    for seed in range(30):
        chance = Chance(material, "train", random.Random(seed), 32, world.level)
        for step in edits_around(chance, 4)[1]:
            assert all(on_grid(item) for item in step.state.scene.objects)


def test_words_are_letters_of_one_font_in_cells_of_the_grid(library):
    world, lengths, made = World(128, "train", library), set(), set()
    for seed in range(80):
        sample = world.sample(seed, "element_editing/text_add")
        word = re.search('"(.*)"', sample.request.current.instruction)[1]
        assert set(word) <= set(LETTERS) and 1 <= len(word) <= LONGEST_WORD
        before, after = (np.asarray(p) for p in (sample.request.current.images[0], sample.target))
        rows, columns = np.nonzero((before != after).any(2))
        left = (CELLS - len(word)) // 2 * 16
        assert left <= columns.min() and columns.max() < left + 16 * len(word)
        assert rows.min() // 32 == rows.max() // 32 or rows.min() >= 48
        lengths.add(len(word))
        made.add(word)
    assert lengths == set(range(1, 7)) and len(made) > 60


def test_the_same_letter_has_the_same_pixels_wherever_it_stands(library):
    def word(text, x):
        scene = Scene(Background("plain", ("white",)), texts=(TextObject(text, "red", x, 0.125, 0.25, "mono"),))
        return draw(scene, library, 128)

    one, two = word("AB", 0.5), word("BA", 0.5)
    assert np.array_equal(one[:32, 48:64], two[:32, 64:80]) and np.array_equal(one[:32, 64:80], two[:32, 48:64])
    assert not np.array_equal(one[:32, 48:64], one[:32, 64:80])


def test_training_draws_core_concepts_from_their_names_and_shows_all_others(library):
    world = World(32, "train", library)
    concepts, drawn = {c.slug: c for c in library.concepts}, set()
    for task in (
        "text_guided_generation/text_to_image",
        "element_editing/object_add",
        "element_editing/object_replace",
    ):
        for seed in range(250):
            drawn |= {d.scene.objects[d.index].slug for d in world.drawn(seed, task)}
            assert world.sample(seed, task).provenance["unseen"] == 0
    assert all(concepts[slug].core for slug in drawn) and len(drawn) > 150
    kept = {c.slug for c in library.concepts if not c.core and not is_held_out(c)}
    removed = set()
    for seed in range(400):
        words = world.sample(seed, "element_editing/object_remove").request.current.instruction
        removed |= {slug for slug in kept if concepts[slug].name in words}
    assert len(removed) > 60


def test_the_held_out_side_says_what_has_to_be_drawn_unseen_and_can_do_without(library):
    task = "element_editing/object_add"
    world, seen = (World(32, "held_out", library, seen_only=only) for only in (False, True))
    concepts = {c.slug: c for c in library.concepts}
    flags = []
    for seed in range(150):
        (drawn,) = world.drawn(seed, task)
        item = drawn.scene.objects[drawn.index]
        flag = world.sample(seed, task).provenance["unseen"]
        assert flag == (is_held_out(concepts[item.slug]) or item.style == HELD_OUT_STYLE)
        flags.append(flag)
        sample = seen.sample(seed, task)
        assert not any(sample.provenance[name] for name in ("unseen", "held_out_concept", "held_out_style"))
    assert 0.1 < np.mean(flags) < 0.45


def test_levels_show_more_and_more(library):
    style = set()
    for level, most in (("one", 1), ("two", 2)):
        world = World(32, "train", library, level)
        for seed in range(60):
            sample = world.sample(seed)
            assert sample.task == "text_guided_generation/text_to_image"
            drawn = world.drawn(seed)
            assert 1 <= len(drawn) <= most and drawn[0].scene.background.kind == "plain"
            style |= {item.style for item in drawn[0].scene.objects}
    assert style == {DEFAULT_STYLE}
    tasks = {World(32, "train", library, "edits").sample(seed).task for seed in range(80)}
    assert tasks == set(LEVELS["edits"].tasks)
    assert len({World(32, "train", library, "tasks").sample(seed).task for seed in range(300)}) > 35
    with pytest.raises(ConfigError, match="level"):
        World(32, "train", library, "most")
    with pytest.raises(ConfigError, match="free_share"):
        World(32, "train", library, free_share=2)


def test_the_templates_are_those_that_were_frozen():
    """The split of templates is a hash of their words: a changed word may move to the other side."""
    digest = hashlib.sha256(json.dumps(TEMPLATES).encode()).hexdigest()
    assert digest.startswith("73169624252bef67")


# -- scenes -----------------------------------------------------------------------------------------------------------


def test_masks_depth_and_picture_agree(library):
    item = SpriteObject("cat", "noto", 0.3, 0.6, 0.5)
    with_cat, bare = (render(Scene(Background("meadow", (), "day"), objects), library, 64) for objects in ((item,), ()))
    changed = (with_cat.image != bare.image).any(2)
    assert changed.any() and not (changed & (with_cat.object_masks[0] == 0)).any()
    assert with_cat.labels == ("animals",)
    inside = with_cat.object_masks[0] == 1
    assert (with_cat.depth[inside] > bare.depth[inside]).all()
    assert np.array_equal(with_cat.depth[with_cat.object_masks[0] == 0], bare.depth[with_cat.object_masks[0] == 0])


def test_a_nearer_object_hides_part_of_the_mask_behind_it(library):
    back, front = (SpriteObject("cat", "noto", 0.45, 0.5, 0.5), SpriteObject("dog", "noto", 0.6, 0.5, 0.5))
    drawn = render(Scene(Background("plain", ("white",)), (back, front)), library, 64)
    assert (drawn.object_masks[0] + drawn.object_masks[1]).max() <= 1 + 1e-6


def test_mirroring_twice_and_looking_straight_are_the_same(library):
    scene = Scene(Background("city", (), "night"), (SpriteObject("cat", "noto", 0.3, 0.6, 0.5),))
    mirrored = Scene(scene.background, scene.objects, camera=Camera(mirrored=True))
    assert np.array_equal(draw(mirrored, library, 64)[:, ::-1], draw(scene, library, 64))


def test_panning_moves_everything_by_the_same_pixels(library):
    item = SpriteObject("cat", "noto", 0.5, 0.5, 0.5)
    scene = Scene(Background("plain", ("red",)), (item,))
    panned = Scene(scene.background, scene.objects, camera=Camera(x=0.75))
    straight, moved = draw(scene, library, 64), draw(panned, library, 64)
    assert np.array_equal(moved[:, :48], straight[:, 16:])


@pytest.mark.parametrize("kind", [*LANDSCAPES, *PLACES])
def test_backgrounds_go_on_beyond_the_picture(kind):
    background = Background(kind, (), "day" if kind in LANDSCAPES else "")
    wide = paint(background, 128, (-0.5, -0.5, 2.0)).image[32:96, 32:96].astype(int)
    assert np.abs(wide - paint(background, 64).image).mean() < 6


def test_times_of_day_differ_and_keep_the_place():
    for kind in LANDSCAPES:
        day, night = (paint(Background(kind, (), time), 64) for time in ("day", "night"))
        assert day.image.mean() > night.image.mean() + 40
        assert np.array_equal(day.classes, night.classes)


def test_an_unknown_background_is_refused():
    with pytest.raises(ConfigError, match="unknown background"):
        paint(Background("moon"), 32)


def test_the_puppet_covers_its_joints_in_every_pose():
    assert set(POSE_REQUESTS) == set(POSES)
    for pose in POSES:
        puppet = Puppet("red", "blue", "medium", "brown", pose)
        alpha = draw_puppet(puppet, 96)[..., 3]
        points = (keypoints(puppet)[5:] * 96).astype(int)
        assert ((points >= 0) & (points < 96)).all(), pose
        assert (alpha[points[:, 1], points[:, 0]] > 200).all(), pose


def test_names_get_the_article_they_need():
    names = ("red apple", "owl", "unicorn", "hourglass", "ufo", "scissors", "grapes", "octopus", "old man")
    assert [with_article(name) for name in names] == [
        "a red apple", "an owl", "a unicorn", "an hourglass", "a ufo", "scissors", "grapes", "an octopus", "an old man",
    ]  # fmt: skip
