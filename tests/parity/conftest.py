"""Recorded numbers of the published code, read case by case.

A case is `<name>.json` (its kind, settings, layout) beside `<name>.safetensors`. Cases come from `tests/parity/cases`,
or from the folder that `ACE_PARITY_DIR` names (the full set); every case of a kind that lies there is run, none is
skipped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SHIPPED = Path(__file__).parent / "cases"


def folder() -> Path:
    """Where the cases are read from."""
    return Path(os.environ["ACE_PARITY_DIR"]) if "ACE_PARITY_DIR" in os.environ else SHIPPED


@dataclass(frozen=True)
class Case:
    """One recorded run: meta is its json, tensors hold `in.*`, `out.*`, `mid.*` and weights (own and of
    `weights_file`)."""

    name: str
    meta: dict[str, Any]
    path: Path
    tensors: dict[str, torch.Tensor] = field(repr=False)

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix such as "sd.", without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def read_case(meta_file: Path) -> Case:
    """Read one case. A missing tensor or weights file is an error, never a skip."""
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    tensors: dict[str, torch.Tensor] = {}
    if meta.get("weights_file"):
        weights = meta_file.parent / meta["weights_file"]
        if not weights.is_file():
            raise FileNotFoundError(f"case {meta_file.stem} needs {weights.name}, which is not beside it")
        tensors.update(load_file(weights))
    tensors.update(load_file(meta_file.with_suffix(".safetensors")))
    return Case(meta_file.stem, meta, meta_file.parent, tensors)


def cases(kind: str, place: Path | None = None) -> list[Case]:
    """Every case of a kind in a folder (None: the one that is tested), by name.

    Of the shipped folder a kind without a case is an error; another folder need not have all kinds, but some case."""
    place = place or folder()
    kinds = {file: json.loads(file.read_text(encoding="utf-8")).get("kind") for file in sorted(place.glob("*.json"))}
    if kind not in kinds.values() and (place == SHIPPED or not any(kinds.values())):
        raise FileNotFoundError(f"no case of kind {kind!r} in {place.name}: point ACE_PARITY_DIR at the recorded cases")
    return [read_case(file) for file, own in kinds.items() if own == kind]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity(kind): run once per recorded case of this kind")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `parity("kind")` with an argument `case` runs once per case of that kind."""
    marker = metafunc.definition.get_closest_marker("parity")
    if marker is not None:
        found = cases(marker.args[0])
        metafunc.parametrize("case", found, ids=[case.name for case in found])


def assert_close(ours: torch.Tensor, recorded: torch.Tensor, tolerance: float) -> None:
    """Equal up to `tolerance` times the recorded tensor's largest magnitude."""
    assert ours.shape == recorded.shape
    difference = (ours.double() - recorded.double()).abs().max().item()
    largest = recorded.double().abs().max().item()
    assert difference <= tolerance * largest, f"off by {difference:.3e}, largest value {largest:.3e}"


@pytest.fixture(name="assert_close")
def _assert_close():
    return assert_close
