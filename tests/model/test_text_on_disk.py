"""Whichever way the text encoder is kept, texts have the same states; what was encoded once is read back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from ace.errors import CheckpointError
from ace.model.text import encode_texts
from ace.model.text_on_disk import StatesCache, TextEncoderOnDisk, fingerprint, load_streamed, load_whole, weight_files
from tests.random_models import TOKENIZER, randomise

CPU = torch.device("cpu")
TEXTS = ["", "make the boy cry", "a photo of {image} with a much longer instruction that fills more than one block"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 encoder in several files, with the gated layers of version 1.1."""
    config = T5Config(
        vocab_size=114, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval()
    randomise(model, 3)
    folder = tmp_path_factory.mktemp("t5")
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def states(encoder) -> list[torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with torch.no_grad():
        return encode_texts(TEXTS, tokenizer, encoder, 24, False)


def equal(ours: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layer_by_layer_from_disk_gives_the_same_states(folder, dtype):
    streamed = load_streamed(folder, CPU, dtype)
    expected = states(load_whole(folder, CPU, dtype))
    wrapped = TextEncoderOnDisk(lambda: streamed, CPU, keep=True)
    assert equal(states(wrapped), expected)
    assert equal(states(wrapped), expected)  # the weights are still there
    assert all(parameter.device.type == "meta" for parameter in streamed.parameters())  # and not in memory


def test_one_request_loads_the_encoder_once_and_lets_go_of_it(folder):
    encoder = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=False)
    states(encoder)
    assert encoder.num_loads == 1  # texts of three lengths, three calls
    assert encoder._model is None
    kept = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=True)
    states(kept)
    states(kept)
    assert kept.num_loads == 1


def test_states_are_read_back_without_the_encoder(folder, tmp_path):
    cache = StatesCache(tmp_path / "prompts", fingerprint(folder, torch.bfloat16))
    first = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=False, cache=cache)
    made = states(first)
    again = TextEncoderOnDisk(lambda: pytest.fail("the encoder was loaded"), CPU, keep=False, cache=cache)
    assert equal(states(again), made)
    other = StatesCache(tmp_path / "prompts", fingerprint(folder, torch.float32))
    fresh = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.float32), CPU, keep=False, cache=other)
    states(fresh)
    assert fresh.num_loads == 1  # another precision, other states


def test_a_damaged_entry_is_encoded_again(folder, tmp_path):
    cache = StatesCache(tmp_path, "encoder")
    made = states(TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=False, cache=cache))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    again = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=False, cache=cache)
    assert equal(states(again), made)
    assert again.num_loads == 1


def test_a_folder_that_cannot_be_made_keeps_nothing(folder, tmp_path):
    (tmp_path / "file").write_text("")
    cache = StatesCache(tmp_path / "file" / "prompts", "encoder")
    encoder = TextEncoderOnDisk(lambda: load_whole(folder, CPU, torch.bfloat16), CPU, keep=False, cache=cache)
    assert len(states(encoder)) == len(TEXTS)


def test_the_least_recently_used_states_make_room(tmp_path):
    rows = [torch.tensor([number]) for number in range(4)]
    states = torch.zeros(1, 1000)
    cache = StatesCache(tmp_path, "encoder", max_bytes=3 * 4200)
    for row in rows[:3]:
        cache.write(row, row, states)
    assert cache.read(rows[0], rows[0]) is not None  # used again, so the second is now the oldest
    cache.write(rows[3], rows[3], states)
    assert [cache.read(row, row) is not None for row in rows] == [True, False, True, True]


def test_missing_and_cut_files_are_named(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    files = weight_files(tmp_path)
    path = files["encoder.final_layer_norm.weight"]
    rest = load_file(path)
    del rest["encoder.final_layer_norm.weight"]
    save_file(rest, path)
    with pytest.raises(CheckpointError, match="final_layer_norm"):
        load_streamed(tmp_path, CPU, torch.bfloat16)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{path.name} is missing, damaged or cut off"):
        load_streamed(tmp_path, CPU, torch.bfloat16)
