"""Weights of the published metric networks: safetensors, or torch pickles read in a process of their own."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from ace.errors import CheckpointError, MissingDependencyError
from ace.model.unpickle import read_pickle

SUFFIXES = (".safetensors", ".pth", ".pt")


def find_file(folder: Path, stem: str) -> Path:
    """The file of that name in a folder, safetensors before pickles. Raises MissingDependencyError."""
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise MissingDependencyError(f"no {stem}{{{','.join(SUFFIXES)}}} in {folder.name}")


def files_sha256(files: Iterable[Path]) -> str:
    """A hash of names and contents, wherever the files lie."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in float32, by name. Raises CheckpointError if it is damaged or holds code."""
    if file.suffix == ".safetensors":
        return {name: value.float() for name, value in load_file(file).items()}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.safetensors"
        read_pickle(file, target, "float32")
        return load_file(target)


def fill(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Give a network its weights, every one of them and no other. Raises CheckpointError."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{file.name} does not hold the weights of {type(network).__name__}: {error}") from error
    network.eval().requires_grad_(False)
