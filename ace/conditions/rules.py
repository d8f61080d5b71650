"""How pictures and masks of a request are read, worked on and given back: one record for every entrance.

Each field is one option (`--mask-means`, `--max-pixels`, `--feather`, `--focus`, `--detail`, …) with the same meaning
wherever a request comes from. The record checks itself; `as_settings` and `of_settings` put it into a recipe and read
it back.

Not here: what the rules do (`images.py`, `masks.py`, `inference/preserve.py`, `inference/focus.py`,
`inference/detail.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from ace.errors import ConfigError

MaskMeans = Literal["auto", "opaque", "transparent", "white", "black"]
Detail = Literal["full", "model"]
MAX_PIXELS = 64_000_000  # of one picture, where no operator chose another limit
MOST_PIXELS = 178_000_000  # beyond, Pillow takes a file for an attack
MAX_FEATHER_PX = 100
_OF_MASKS = {
    "--mask-means": "mask_means",
    "--mask-threshold": "mask_threshold",
    "--feather": "feather_px",
    "--focus": "focus",
    "--focus-margin": "focus_margin",
}


@dataclass(frozen=True)
class ImageRules:
    """mask_means: which part of a mask file changes; "auto" decides from the file. mask_threshold: 1 to 254, cut soft
    masks there (brighter = change); None = the greys are weights of the blend. max_pixels: of one picture.
    feather_px: width of a blend inside a mask's edge, 0 to 100; None = none, the seam is matched instead.
    focus: "auto" works on the mask's box where the mask covers less than a quarter of the picture, "off" never, a
    number: below that share, 0 to 1. focus_margin: context around the box, in shares of its longer side, 0 to 4.
    detail: "full" = the answer has the input's size and keeps what the model did not change, "model" = the model's
    picture as it is. Raises ConfigError, naming the option."""

    mask_means: MaskMeans = "auto"
    mask_threshold: int | None = None
    max_pixels: int = MAX_PIXELS
    feather_px: int | None = None
    focus: str | float = "auto"
    focus_margin: float = 0.5
    detail: Detail = "full"

    def __post_init__(self) -> None:
        if self.mask_means not in get_args(MaskMeans):
            raise ConfigError(f"--mask-means {self.mask_means}: use {', '.join(get_args(MaskMeans))}")
        if self.detail not in get_args(Detail):
            raise ConfigError(f"--detail {self.detail}: use {' or '.join(get_args(Detail))}")
        object.__setattr__(self, "focus", _read_focus(self.focus))
        _check_range("--mask-threshold", self.mask_threshold, 1, 254)
        _check_range("--max-pixels", self.max_pixels, 1, MOST_PIXELS)
        _check_range("--feather", self.feather_px, 0, MAX_FEATHER_PX)
        _check_range("--focus-margin", self.focus_margin, 0, 4)

    @property
    def focus_below(self) -> float:
        """The share of the picture below which a mask is worked on in its own box; 0 = never."""
        if isinstance(self.focus, str):
            return 0.25 if self.focus == "auto" else 0.0
        return self.focus

    def of_masks(self) -> tuple[str, ...]:
        """The options that were given and that mean nothing without a mask."""
        standard = ImageRules()
        return tuple(option for option, name in _OF_MASKS.items() if getattr(self, name) != getattr(standard, name))

    def read(self) -> ImageRules:
        """The same rules for a mask that has been read: how its file is read is done with."""
        return replace(self, mask_means="auto", mask_threshold=None)

    def as_settings(self) -> dict[str, str | int | float]:
        """What differs from the defaults, for a recipe. The limit of pixels is not part of a picture."""
        standard = ImageRules()
        return {
            one.name: value
            for one in fields(self)
            if one.name != "max_pixels" and (value := getattr(self, one.name)) != getattr(standard, one.name)
        }

    @classmethod
    def of_settings(cls, settings: Mapping[str, object]) -> ImageRules:
        """The rules that a recipe's settings record; what is not there has its default. Raises ConfigError."""
        names = {one.name for one in fields(cls)} - {"max_pixels"}
        return cls(**{name: value for name, value in settings.items() if name in names})  # type: ignore[arg-type]


def parse_pixels(text: str) -> int:
    """A number of pixels as people write it: "64MP", "64M", "24.5mp" or "64000000". Raises ConfigError."""
    plain = text.strip().lower().removesuffix("p")
    try:
        pixels = round(float(plain.removesuffix("m")) * 1e6) if plain.endswith("m") else int(plain)
    except (ValueError, OverflowError):
        raise ConfigError(f"--max-pixels {text}: write it as 64MP or 64000000") from None
    _check_range("--max-pixels", pixels, 1, MOST_PIXELS)
    return pixels


def _read_focus(value: str | float) -> str | float:
    if value in ("off", "auto"):
        return value
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--focus {value}: use off, auto, or a share of the picture from 0 to 1")
    return share


def _check_range(option: str, value: float | None, least: float, most: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (number and least <= value <= most):
        raise ConfigError(f"{option} {value}: use {least} to {most}")
