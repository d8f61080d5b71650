"""Adapter files before any model is loaded: what they are, how strong they are, whether they are sound. No torch.

ACE and ACE++ read the same: settings beside the file (PEFT's `adapter_config.json`) or in its metadata (diffusers',
kohya's), with alpha, patterns and rank stabilisation (alpha / sqrt(rank)). What can be refused by name is refused here:
DoRA, LoKr, LoHa and other kinds that are no LoRA, and weights that are not finite. Imports: errors.

Not here: layers (`model/lora.py`, `plus/layouts.py`).
"""

from __future__ import annotations

import json
import math
import re
import string
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ace.errors import CheckpointError

WEIGHT_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # of an adapter's folder
_HEADER_LIMIT = 100_000_000  # bytes; what safetensors itself allows
_MAX_SETTINGS_BYTES, _MAX_PATTERNS = 4 * 2**20, 2_000
_READ_AT_ONCE = 1 << 24  # values that are checked at a time
_OTHER_KINDS = {
    "LoKr": re.compile(r"[._]lokr_"),
    "LoHa": re.compile(r"[._]hada_"),
    "OFT": re.compile(r"[._]oft_|\.oft\."),
    "IA3": re.compile(r"[._]ia3_"),
    "GLoRA": re.compile(r"\.[abcd][12]\.weight$"),
}
_FACTOR = re.compile(r"\.lora_(A|B|down|up)(\.[^.]+)?\.weight$")
_MAGNITUDES = re.compile(r"lora_magnitude_vector|\.dora_scale$|\.magnitude$")
_OF_TEXT_ENCODERS = re.compile(r"^(lora_te\d*[._]|text_encoder(_\d+)?\.|(base_model\.model\.)?text_model\.|te\d*\.)")
# safetensors' name of a number type → (numpy's for its bits, mask of the exponent that only infinite and NaN have)
_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),  # has no infinity: all ones is NaN
}


@dataclass(frozen=True)
class AdapterSettings:
    """What stands beside an adapter's tensors. alpha: None = the rank, a strength of one. alpha_pattern: layer (a name,
    its end, or a pattern) → alpha. rslora: alpha / sqrt(rank) instead of alpha / rank. dora: its layers have
    magnitudes."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False

    def strength(self, layer: str, rank: int, alpha: float | None = None) -> float:
        """What B · A of a layer is multiplied by. alpha: of the layer itself, where the file has one."""
        if alpha is None:
            own = next((value for key, value in self.alpha_pattern.items() if _means(key, layer)), self.alpha)
            alpha = float(rank) if own is None else own
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name → dtype, shape, data_offsets; `__metadata__`.

    Raises CheckpointError for another file and for one that is cut off."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name} is no safetensors file: convert it, or get the safetensors version")
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if path.stat().st_size < 8 + length + max(ends, default=0):
            raise CheckpointError(f"{path.name} is cut off: get the file again")
        return header
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(f"{path.name} is damaged or no safetensors file: get the file again") from None


def read_settings(path: Path, metadata: Mapping[str, str] | None = None) -> AdapterSettings:
    """The settings of an adapter's file: beside it, else in its metadata. Raises CheckpointError if they are damaged,
    or if they ask for what the file does not have."""
    beside = path.parent / "adapter_config.json"
    try:
        found = _beside(beside) if beside.is_file() else _in_metadata(metadata or {})
        given = found.get("alpha_pattern") or {}
        if len(given) > _MAX_PATTERNS:
            raise ValueError
        pattern = {str(key): _strength(value) for key, value in given.items()}
        alpha = found.get("lora_alpha")
        switches = [found.get(name) or False for name in ("use_rslora", "use_dora")]
        if not all(isinstance(value, bool) for value in switches):
            raise TypeError
        return AdapterSettings(None if alpha is None else _strength(alpha), pattern, *switches)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(f"the settings of {path.name} cannot be read: get the adapter again") from None


def _beside(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_SETTINGS_BYTES:
        raise ValueError
    return json.loads(path.read_text(encoding="utf-8"))


def _strength(value: Any) -> float:
    """A finite number, also as text (kohya's metadata); nothing else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
        raise TypeError
    return float(value)


def check_kind(name: str, keys: Iterable[str], settings: AdapterSettings) -> None:
    """Raise CheckpointError, naming the kind, for an adapter that is no LoRA. name: the file's; keys: its tensors."""
    keys = list(keys)
    for kind, pattern in _OTHER_KINDS.items():
        if any(pattern.search(key) for key in keys):
            raise CheckpointError(f"{name} is a {kind} adapter, which cannot be attached: train or get it as LoRA")
    magnitudes = any(_MAGNITUDES.search(key) for key in keys)
    if magnitudes:
        raise CheckpointError(f"{name} is a DoRA adapter, which cannot be attached: merge it, or train a LoRA")
    if settings.dora:
        raise CheckpointError(f"{name} is an incomplete DoRA adapter: its magnitudes are missing, get it again")


def check_file(path: Path) -> tuple[str, ...]:
    """Look an adapter's file over before anything is loaded; what of it will be left out, a line each.

    Raises CheckpointError for a damaged file, a kind that is no LoRA, and for weights that are not finite."""
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    check_kind(path.name, header, read_settings(path, metadata))
    _check_shapes(path.name, header)
    _check_finite(path, header)
    return left_out(path.name, header)


def is_of_text_encoder(key: str) -> bool:
    """Whether a tensor belongs to a text encoder, which no model here changes."""
    return bool(_OF_TEXT_ENCODERS.search(key))


def left_out(name: str, keys: Iterable[str]) -> tuple[str, ...]:
    """What is said of a file's tensors for text encoders; nothing if it has none."""
    count = sum(map(is_of_text_encoder, keys))
    return (f"{name}: its {count} tensors for the text encoder are left out, the rest is loaded",) if count else ()


def _in_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The transformer's settings in a file's metadata: diffusers' (JSON under any key), else kohya's single alpha."""
    found: dict[str, Any] = {}
    for text in metadata.values():
        if not text.startswith("{"):
            continue
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError):
            continue
        for key, value in settings.items() if isinstance(settings, dict) else ():
            owner, _, name = key.rpartition(".")
            if not owner.startswith("text_encoder"):
                found[name] = value
    if "lora_alpha" not in found and "ss_network_alpha" in metadata:
        found["lora_alpha"] = metadata["ss_network_alpha"]
    return found


def _means(pattern: str, layer: str) -> bool:
    """Whether a key of PEFT's patterns is about a layer: its name, the end of its name, or a regular expression."""
    if layer == pattern or layer.endswith(f".{pattern}"):
        return True
    steps = _read_pattern(pattern)
    # As `re.match(rf"(.*\.)?({pattern})$", layer)`, by the set of places that are reached: no backtracking.
    starts = {0} | {place + 1 for place, letter in enumerate(layer) if letter == "."}
    return steps is not None and any(len(layer) in _ends(one, layer, starts) for one in steps)


_Step = tuple[frozenset[str] | None, bool, str]  # letters (None = any), whether all others are meant, "", "?", "*", "+"
_CLASSES = {"d": frozenset(string.digits), "w": frozenset(string.ascii_letters + string.digits + "_")}
_MAX_PATTERN = 200  # letters


def _read_pattern(pattern: str) -> list[list[_Step]] | None:
    """The alternatives of a regular expression as steps; None for one with parts that no adapter's names need: groups
    that repeat, counts, back references, look-around."""
    if len(pattern) > _MAX_PATTERN or pattern.count("|") > 16:
        return None
    inner = pattern
    while inner.startswith("(") and inner.endswith(")") and inner.count("(") == 1:
        inner = inner[1:-1].removeprefix("?:")
    prefix, group, rest = inner.partition("(")
    if group:  # one group of alternatives with something around it
        body, _, suffix = rest.partition(")")
        body = body.removeprefix("?:")
        alternatives = [prefix + one + suffix for one in body.split("|")] if "|" not in prefix + suffix else [inner]
    else:
        alternatives = inner.split("|")
    read = [_read_steps(one.removeprefix("^").removesuffix("$")) for one in alternatives]
    return None if any(one is None for one in read) else [one for one in read if one is not None]


_ATOM = re.compile(r"\\([dw.\-\\])|\[(\^?)((?:[A-Za-z0-9_.]|\w-\w|\\[dw.\-])+)\]|(\.)|([A-Za-z0-9_\-/ ])")


def _read_steps(text: str) -> list[_Step] | None:
    steps: list[_Step] = []
    place = 0
    while place < len(text):
        found = _ATOM.match(text, place)
        if found is None:
            return None
        escaped, negated, members, _, letter = found.groups()
        letters = frozenset(letter) if letter else None
        if escaped:
            letters = _CLASSES.get(escaped, frozenset(escaped))
        elif members:
            letters = _members(members)
        place = found.end()
        repeat = text[place] if place < len(text) and text[place] in "?*+" else ""
        place += len(repeat)
        if repeat and text[place : place + 1] == "?":  # lazy: the same names
            place += 1
        steps.append((letters, bool(negated), repeat))
    return steps


def _members(text: str) -> frozenset[str]:
    """The letters of a class such as `0-9_`."""
    found: set[str] = set()
    for one in re.finditer(r"\\(.)|(\w)-(\w)|(.)", text):
        escaped, first, last, single = one.groups()
        if first:
            found |= {chr(code) for code in range(ord(first), min(ord(last), ord(first) + 128) + 1)}
        else:
            found |= _CLASSES.get(escaped or "", frozenset(escaped or single))
    return frozenset(found)


def _ends(steps: list[_Step], text: str, starts: set[int]) -> set[int]:
    """Where steps may end that begin at one of `starts`."""
    places = starts
    for letters, negated, repeat in steps:
        reached = set(places) if repeat in ("?", "*") else set()
        todo = set(places)
        while todo:
            todo = {
                place + 1
                for place in todo
                if place < len(text) and (letters is None or (text[place] in letters) != negated)
            } - reached
            reached |= todo
            if repeat not in ("*", "+"):
                break
        places = reached
    return places


def _check_shapes(name: str, header: Mapping[str, Any]) -> None:
    """Raise CheckpointError for factors without a rank and for an alpha that is no single number."""
    for key, entry in header.items():
        entry = entry if isinstance(entry, dict) else {}
        lists = [entry.get("shape"), entry.get("data_offsets")]
        whole = all(isinstance(one, list) for one in lists) and isinstance(entry.get("dtype"), str)
        shape, offsets = [one for one in lists if isinstance(one, list)] if whole else ([], [])
        sound = all(isinstance(one, int) and 0 <= one < 2**62 for one in (*shape, *offsets))
        if not sound or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise CheckpointError(f"{name} is damaged (its header does not describe {key[:80]}): get the file again")
        if _FACTOR.search(key) and (len(shape) < 2 or 0 in shape):
            raise CheckpointError(f"{name} has an empty or flat factor ({key[:80]}, shape {shape}): get it again")
        if key.endswith(".alpha") and math.prod(shape) != 1:
            raise CheckpointError(f"{name} has an alpha of {math.prod(shape)} values ({key[:80]}): get it again")


def _check_finite(path: Path, header: Mapping[str, Any]) -> None:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if path.stat().st_size > 8 + length else np.empty(0)
    for name, entry in header.items():
        kind = _EXPONENTS.get(entry["dtype"])
        if kind is None:
            continue
        bits, exponent = np.dtype(kind[0]), kind[1]
        start, end = entry["data_offsets"]
        for first in range(start, end, _READ_AT_ONCE * bits.itemsize):
            part = np.ascontiguousarray(data[first : min(end, first + _READ_AT_ONCE * bits.itemsize)])
            values = part[: len(part) // bits.itemsize * bits.itemsize].view(bits)
            if ((values & bits.type(exponent)) == bits.type(exponent)).any():
                raise CheckpointError(f"{path.name} holds values that are not finite, in {name}: get the adapter again")
