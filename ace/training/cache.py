"""Latents and text states of frozen encoders on disk, each computed once.

An entry is found by what was encoded and by which encoder, so that a folder can serve many runs, and every entry is the
one that encoding again would give. Entries are whole or absent: written beside their place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class FeatureCache:
    """A folder of tensors by content. setting: all that decides how the encoder works, beside its weights."""

    def __init__(self, folder: Path, encoder: nn.Module, setting: str) -> None:
        self.folder = folder / _fingerprint(encoder, setting)

    def path(self, content: bytes) -> Path:
        """Where the entry of a content is or would be."""
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, content: bytes) -> Tensor | None:
        """The entry, or None; a damaged one counts as absent."""
        try:
            return load_file(self.path(content))["value"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, content: bytes, value: Tensor) -> None:
        """Keep an entry."""
        path = self.path(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file({"value": value.detach().cpu().contiguous()}, partial)
        os.replace(partial, path)


def picture_content(picture: Tensor) -> bytes:
    """What an entry of a picture is found by."""
    return json.dumps(list(picture.shape)).encode() + picture.contiguous().numpy().tobytes()


def _fingerprint(encoder: nn.Module, setting: str) -> str:
    """Short name of an encoder: its class, setting, and a part of every weight."""
    digest = hashlib.blake2b(f"{type(encoder).__name__} {setting}".encode(), digest_size=8)
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten()[:64].float().cpu().numpy().tobytes())
        digest.update(value.flatten()[-64:].double().sum().to(torch.float64).cpu().numpy().tobytes())
    return digest.hexdigest()
