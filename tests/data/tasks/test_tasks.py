"""Every maker on real pictures: photographs in the public domain that ship in scikit-image."""

from random import Random

import numpy as np
import pytest
from PIL import Image
from skimage import data

from ace.data.tasks import TASK_MAKERS, Rejected, Source, Tools, check


@pytest.fixture(scope="module")
def tools():
    return Tools()


@pytest.fixture(scope="module")
def astronaut():
    image = Image.fromarray(data.astronaut()).resize((256, 256))
    return Source(image, "astronaut", "a woman in an orange space suit in front of a flag")


@pytest.mark.parametrize("task", TASK_MAKERS)
def test_what_is_made_passes_its_check(task, astronaut, tools):
    made = [TASK_MAKERS[task](astronaut, Random(seed), tools) for seed in range(6)]
    samples = [sample for sample in made if not isinstance(sample, Rejected)]
    assert len(samples) >= 1, made
    for sample in samples:
        assert sample.task == task
        assert check(sample, tools) is None


@pytest.mark.parametrize("task", TASK_MAKERS)
def test_the_same_dice_make_the_same_sample(task, astronaut, tools):
    first, second = (TASK_MAKERS[task](astronaut, Random(1), tools) for _ in range(2))
    assert isinstance(first, Rejected) == isinstance(second, Rejected)
    if not isinstance(first, Rejected) and not isinstance(second, Rejected):
        assert first.provenance == second.provenance
        assert first.request.current.instruction == second.request.current.instruction
        assert np.array_equal(np.asarray(first.target), np.asarray(second.target))
