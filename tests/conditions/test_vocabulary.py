"""What a model has learnt to draw, and what a request asks beyond it: the world's own instructions are the measure."""

import json

import pytest

from ace.conditions.vocabulary import FILE, Vocabulary
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.data.world.vocabulary import vocabulary_of
from ace.errors import CheckpointError


@pytest.fixture(scope="module")
def library():
    return SpriteLibrary(SHIPPED_PACK)


@pytest.fixture(scope="module")
def vocabulary(library):
    return vocabulary_of(library)


def test_it_travels_with_a_model(vocabulary, tmp_path):
    assert Vocabulary.load(tmp_path) is None
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary
    (tmp_path / FILE).write_text(json.dumps({"version": 99}))
    with pytest.raises(CheckpointError, match=FILE):
        Vocabulary.load(tmp_path)


def test_it_lists_the_core_and_nothing_else(vocabulary, library):
    core = {concept.name for concept in library.concepts if concept.core}
    assert set(vocabulary.concepts) == core and len(core) > 150


def test_other_words_for_a_thing_are_not_names_of_others(vocabulary, library):
    names = {concept.name for concept in library.concepts}
    others = [word for words in vocabulary.concepts.values() for word in words]
    assert not names & set(others) and len(others) == len(set(others))


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("add a giraffe to the left", (), ("giraffe",)),
        ("Draw a zebra and a cat in a forest.", ("cat",), ("zebra",)),
        ("replace the dog with a kangaroo", ("dog",), ("kangaroo",)),
        ("two giraffes on a red car", ("car",), ("giraffes",)),
        ("draw spaghetti", (), ("spaghetti",)),
        ("a photo of an astronaut riding a horse", ("horse",), ("astronaut",)),
        ("remove the giraffe", (), ()),
        ("put the giraffe back", (), ()),
        ("add a very big puppy on the right", ("dog",), ()),
        ("a red car on a sandy beach at sunset", ("car",), ()),
        ('write "A GIRAFFE" at the top in red', (), ()),
        ("make it night", (), ()),
        ("give him a beard", (), ()),
        ("a 3d render of kittens", ("cat",), ()),
        ("", (), ()),
    ],
)
def test_what_a_request_asks_for(vocabulary, text, known, unknown):
    assert vocabulary.known(text) == known and vocabulary.unknown(text) == unknown


def test_the_worlds_training_asks_for_nothing_unlearnt(vocabulary, library):
    world = World(32, "train", library)
    for seed in range(600):
        sample = world.sample(seed)
        if not sample.task.startswith(("repainting/outpainting", "multi_turn")):  # they also say what is kept
            assert vocabulary.unknown(sample.request.current.instruction) == ()


def test_unlearnt_things_of_the_held_out_side_are_found(vocabulary, library):
    world, names = World(32, "held_out", library), {c.slug: c for c in library.concepts}
    asked = found = 0
    for seed in range(200):
        for task in ("element_editing/object_add", "element_editing/object_replace"):
            instruction = world.sample(seed, task).request.current.instruction
            (drawn,) = world.drawn(seed, task)
            concept = names[drawn.scene.objects[drawn.index].slug]
            if not concept.core and not vocabulary.known(concept.name):  # "weary cat" is a cat
                asked += 1
                found += any(concept.name in name or name in concept.name for name in vocabulary.unknown(instruction))
    assert asked > 50 and found / asked > 0.7


def test_a_note_names_what_is_unlearnt(vocabulary):
    assert "ace-tiny has not learnt 'giraffe'" in str(vocabulary.note("ace-tiny", "add a giraffe"))
    assert vocabulary.note("ace-tiny", "add a cat") is None
