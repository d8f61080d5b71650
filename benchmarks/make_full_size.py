"""A published model of full size with random weights, in the published layout: for measuring memory and loading.

    python benchmarks/make_full_size.py FOLDER                      # 12.3 GB, ACE-0.6B-512px
    ace convert FOLDER --output CONVERTED
    python benchmarks/bench_memory.py CONVERTED

The transformer (depth 28, width 1152) is a float32 pickle, so is the autoencoder; the text encoder (T5 v1.1 XXL, 4.8 B
parameters) bfloat16 safetensors in shards. Written tensor by tensor: about 3 GB of memory. Pictures made with it are
noise; sizes, names and number types are those of the released files. The vocabulary is a small one of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import T5Config, T5EncoderModel

from ace.conditions.prompt import IMAGE_NAMES
from ace.model.config import ACEConfig
from ace.model.convert import key_map, unused_keys
from ace.model.transformer import ACETransformer
from ace.model.unpickle import write_weights
from ace.weights.convert import PUBLISHED, TIED

TEXT_SIZES = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
SHARD_BYTES = 1_000_000_000


class Noise:
    """Normal numbers cut out of one long strip: a tensor costs a copy, and no two begin at the same place."""

    def __init__(self, seed: int) -> None:
        self.strip = torch.randn(16_777_259, generator=torch.Generator().manual_seed(seed))
        self.place = 0

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Weights of a linear layer that keeps the size of what goes through it; vectors are ones and small."""
        count = torch.Size(shape).numel()
        parts = []
        while count:
            part = self.strip[self.place : self.place + count].to(dtype)
            self.place = (self.place + len(part)) % len(self.strip)
            count -= len(part)
            parts.append(part)
        values = torch.cat(parts).view(shape)
        fan_in = torch.Size(shape[1:]).numel()
        return values.mul_(fan_in**-0.5 if len(shape) > 1 else 0.02)


def write_text_encoder(folder: Path, config: T5Config, noise: Noise) -> None:
    """T5's encoder as Hugging Face folders hold it: shards and their index."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in T5EncoderModel(config).state_dict().items()}
    del shapes[TIED]
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * torch.Size(shape).numel()
    written: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"

        def make(key: str, own: dict[str, tuple[int, ...]] = shard) -> torch.Tensor:
            values = noise.tensor(own[key], torch.bfloat16)
            return values + 1 if "layer_norm" in key else values

        total += write_weights(folder / name, {key: (shape, torch.bfloat16) for key, shape in shard.items()}, make)
        written.update(dict.fromkeys(shard, name))
        print(f"  text encoder: shard {number} of {len(shards)}", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": written}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config.architectures, config.dtype = ["T5EncoderModel"], torch.bfloat16
    config.save_pretrained(folder)


def write_transformer(path: Path, config: ACEConfig, noise: Noise) -> None:
    """The transformer under its published names, a bare float32 pickle."""
    path.parent.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in ACETransformer(**dataclasses.asdict(config)).state_dict().items()}
    state = {}
    for published, ours in key_map(config).items():
        shape = shapes[ours]
        if published == "x_embedder.proj.weight":
            shape = (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
        state[published] = noise.tensor(shape, torch.float32)
        if published.endswith("norm_q.weight"):
            state[published] += 1
    for name in unused_keys(config):
        state[name] = torch.ones(config.hidden_size)
    torch.save(state, path)


def write_autoencoder(path: Path, config: dict, noise: Noise) -> None:
    """The autoencoder, in diffusers' names."""
    path.parent.mkdir(parents=True)
    vae = AutoencoderKL(**config)
    state = vae.state_dict()
    for name, value in state.items():
        if value.ndim > 1:
            state[name] = noise.tensor(tuple(value.shape), value.dtype)
    torch.save(state, path)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer like SentencePiece's: letters, a few words, the image names as single tokens."""
    folder.mkdir(parents=True)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = ("the", "a", "of", "in", "to", "make", "add", "remove", "change", "background", "boy", "girl", "cry")
    pieces += [(f"▁{word}", -4.0) for word in words] + [(chr(code), -6.0) for code in range(33, 127)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(IMAGE_NAMES))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="made here; must not exist")
    parser.add_argument("--text-layers", type=int, default=TEXT_SIZES["num_layers"], help="fewer, for a quick try")
    arguments = parser.parse_args()
    models = arguments.folder / "models"
    model = PUBLISHED["ace-0.6b-512"]
    free = shutil.disk_usage(arguments.folder.absolute().parent).free
    if free < 14e9:
        raise SystemExit(f"14 GB are needed on the disk, {free / 1e9:.1f} GB are free: make room first")
    noise = Noise(0)
    models.mkdir(parents=True)
    write_tokenizer(models / "tokenizer" / "t5-v1_1-xxl")
    print("  autoencoder", flush=True)
    write_autoencoder(models / "vae" / "vae.bin", dict(model.vae), noise)
    print("  transformer", flush=True)
    write_transformer(models / "dit" / "ace_0.6b_512px.pth", model.config, noise)
    text_config = T5Config(**{**TEXT_SIZES, "num_layers": arguments.text_layers})
    write_text_encoder(models / "text_encoder" / "t5-v1_1-xxl", text_config, noise)
    size = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    print(f"{arguments.folder}  {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
