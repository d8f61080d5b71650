"""The sprite library: every drawing that the procedural world is made of, read lazily from one pack.

A pack is a folder: `index.json` (concepts, faces, fonts, where each picture lies), `sprites.bin` (WebP pictures end to
end, memory-mapped) and `fonts/`. A small pack ships in `ace/tiny/world`; `ace data assets` builds the full one in the
cache folder. Constructing a library reads the index only; pictures are decoded when first asked for, kept at half size
for the small uses that training makes of them, and resized results are kept up to a byte budget.

Not here: downloading and rendering (`assets.py`), scenes (`scene.py`).
"""

from __future__ import annotations

import io
import json
import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFont

from ace.errors import InputError

PACK_VERSION = 1  # raise it whenever the layout of a pack changes: an older one in the cache is then not used
MASTER_PX = 128  # side of the pictures of a full pack; the shipped pack has smaller ones

STYLES: tuple[str, ...] = (
    "noto",
    "twemoji",
    "fluent-3d",
    "fluent-flat",
    "fluent-mono",
    "noto-blob",
)
HELD_OUT_STYLE = "noto-blob"  # never drawn in training

STYLE_NAMES: dict[str, tuple[str, ...]] = {
    "noto": ("shaded cartoon", "soft cartoon", "noto"),
    "twemoji": ("flat sticker", "simple flat cartoon", "twemoji"),
    "fluent-3d": ("3d render", "3d clay", "glossy 3d"),
    "fluent-flat": ("flat vector", "flat design", "flat colour illustration"),
    "fluent-mono": ("black and white line art", "ink drawing", "black line drawing"),
    "noto-blob": ("rounded blob cartoon", "blob style", "old round cartoon"),
}

CACHE_BYTES = 256 * 2**20  # for decoded pictures, and again for resized ones

SHIPPED_PACK = Path(__file__).parents[2] / "tiny" / "world"


def cache_folder() -> Path:
    """Where the world keeps what it downloads and builds: `$ACE_CACHE/world`, else `~/.cache/ace/world`."""
    root = os.environ.get("ACE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "ace") / "world"


def full_pack() -> Path:
    """Folder of the full pack; it exists only after `ace data assets` has finished."""
    return cache_folder() / f"pack-v{PACK_VERSION}"


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn, in several styles.

    slug: identifier, "red-apple". name: words for instructions, "red apple". name_zh: its Chinese name, "" if unknown.
    group: food, animals, plants, people, objects, travel, activities or smileys.
    core: one of about 160 common, visually distinct concepts."""

    slug: str
    name: str
    group: str
    core: bool
    name_zh: str = ""


@dataclass(frozen=True)
class SpriteFace:
    """One avatar. Faces of the same identity differ in attributes only; everything else is drawn alike.

    attributes: what an instruction can speak of, each style having some of
    hair: brown, black, blond, red, blue, pink; mouth: smile, sad, laugh, surprised, serious, angry;
    eyes: open, closed, wink; glasses: no, yes, sunglasses; beard: no, yes, mustache; earrings, flowers, mask: no, yes;
    shirt: red, blue, green, yellow, purple. key: its name in the pack."""

    identity: str
    style: str
    attributes: dict[str, str] = field(hash=False)
    key: str = ""


class Layer(NamedTuple):
    """A drawing ready to be laid over a picture: (below * veil + ink) // 255, rounded.

    ink: (h, w, 3) uint16, colour times alpha and 127; veil: (h, w, 3) uint16, 255 - alpha, the same in all channels:
    numpy is several times faster without broadcasting."""

    ink: np.ndarray
    veil: np.ndarray

    @property
    def alpha(self) -> np.ndarray:
        """(h, w) float32, 0 to 1."""
        return (255 - self.veil[..., 0]) * np.float32(1 / 255)


def as_layer(rgba: np.ndarray) -> Layer:
    """The layer of a drawing, (h, w, 4) uint8 RGBA with straight alpha."""
    alpha = rgba[..., 3:].astype(np.uint16)
    layer = Layer(rgba[..., :3] * alpha + np.uint16(127), (255 - alpha).repeat(3, axis=2))
    for array in layer:
        array.setflags(write=False)
    return layer


class _Recent:
    """A cache that forgets the least recently used values beyond a byte budget."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[tuple, tuple[Any, int]] = OrderedDict()

    def get(self, key: tuple) -> Any | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: tuple, value: Any, num_bytes: int) -> None:
        self._values[key] = (value, num_bytes)
        self._bytes += num_bytes
        while self._bytes > self._max_bytes and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1][1]


class SpriteLibrary:
    """Drawings by concept and style, avatars by identity and attributes, and fonts, all from one pack.

    pack: folder of a pack; None = the full one if `ace data assets` has built it, else the one in this package.
    Raises InputError if the folder holds no complete pack of this version."""

    def __init__(self, pack: Path | None = None):
        if pack is None:
            pack = full_pack() if (full_pack() / "index.json").is_file() else SHIPPED_PACK
        self.pack = Path(pack)
        self._index = _read_index(self.pack)
        self.master_px: int = self._index["master_px"]
        self.concepts: tuple[Concept, ...] = tuple(
            Concept(c["slug"], c["name"], c["group"], c["core"], c["zh"]) for c in self._index["concepts"]
        )
        self._places: dict[str, dict[str, list[int]]] = {c["slug"]: c["styles"] for c in self._index["concepts"]}
        self._faces: tuple[SpriteFace, ...] = tuple(
            SpriteFace(f["identity"], f["style"], f["attributes"], f["key"]) for f in self._index["faces"]
        )
        self._face_places: dict[str, list[int]] = {f["key"]: f["place"] for f in self._index["faces"]}
        self.face_styles: tuple[str, ...] = tuple(dict.fromkeys(f.style for f in self._faces))
        self.fonts: tuple[str, ...] = tuple(self._index["fonts"])
        self._decoded = _Recent(CACHE_BYTES)
        self._resized = _Recent(CACHE_BYTES)
        self._layers = _Recent(CACHE_BYTES)

    @cached_property
    def _blob(self) -> mmap.mmap:
        with open(self.pack / "sprites.bin", "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> Path:
        return self.pack  # a data-loading worker opens the pack itself: nothing that is cached travels

    def __setstate__(self, pack: Path) -> None:
        self.__init__(pack)

    def styles_of(self, slug: str) -> tuple[str, ...]:
        """The styles in which a concept is drawn, in the order of `STYLES`. Raises InputError for an unknown slug."""
        return tuple(style for style in STYLES if style in self._styles(slug))

    def sprite(self, slug: str, style: str, size_px: int) -> np.ndarray:
        """One drawing, centred in its square and filling it.

        Returns (size_px, size_px, 4) uint8 RGBA, straight alpha, read-only. Raises InputError if there is none."""
        return self._picture(self._place(slug, style), size_px)

    def layer(self, slug: str, style: str, size_px: int) -> Layer:
        """`sprite`, ready to be laid over a picture."""
        return self._layer(self._place(slug, style), size_px)

    def face_layer(self, face: SpriteFace, size_px: int) -> Layer:
        """`face`, ready to be laid over a picture."""
        return self._layer(self._face_place(face), size_px)

    def faces(self) -> tuple[SpriteFace, ...]:
        """Every avatar of the pack, identity by identity, the identity's plain form first."""
        return self._faces

    def face(self, face: SpriteFace, size_px: int) -> np.ndarray:
        """One avatar: (size_px, size_px, 4) uint8 RGBA, straight alpha, read-only, on a transparent ground.

        All avatars of one identity are placed alike. Raises InputError if it is not in the pack."""
        return self._picture(self._face_place(face), size_px)

    def face_edits(self, face: SpriteFace) -> tuple[tuple[str, SpriteFace], ...]:
        """The avatars of the same identity that differ from this one in exactly one attribute: (attribute, avatar)."""
        edits = []
        for other in self._identities.get(face.identity, ()):
            changed = [name for name, value in face.attributes.items() if other.attributes[name] != value]
            if len(changed) == 1:
                edits.append((changed[0], other))
        return tuple(edits)

    def font(self, name: str, size_px: int) -> ImageFont.FreeTypeFont:
        """A font of the pack at a size in pixels per em. Raises InputError for an unknown name."""
        if name not in self.fonts:
            raise InputError(f"no font {name!r} in {self.pack}: choose one of {', '.join(self.fonts)}")
        return _open_font(self.pack / "fonts" / self._index["fonts"][name]["file"], size_px)

    def font_characters(self, name: str) -> frozenset[str]:
        """The characters that a font of the pack can draw."""
        if name not in self.fonts:
            raise InputError(f"no font {name!r} in {self.pack}: choose one of {', '.join(self.fonts)}")
        return frozenset(self._index["fonts"][name]["characters"])

    @cached_property
    def _identities(self) -> dict[str, list[SpriteFace]]:
        groups: dict[str, list[SpriteFace]] = {}
        for face in self._faces:
            groups.setdefault(face.identity, []).append(face)
        return groups

    def _styles(self, slug: str) -> dict[str, list[int]]:
        if slug not in self._places:
            raise InputError(f"no concept {slug!r} in {self.pack}: take a slug from `concepts`")
        return self._places[slug]

    def _place(self, slug: str, style: str) -> list[int]:
        styles = self._styles(slug)
        if style not in styles:
            raise InputError(
                f"{slug!r} is not drawn in style {style!r}: choose one of {', '.join(self.styles_of(slug))}"
            )
        return styles[style]

    def _face_place(self, face: SpriteFace) -> list[int]:
        if face.key not in self._face_places:
            raise InputError(f"no face {face.key!r} in {self.pack}: take one from faces()")
        return self._face_places[face.key]

    def _layer(self, place: list[int], size_px: int) -> Layer:
        key = (place[0], size_px)
        layer = self._layers.get(key)
        if layer is None:
            layer = as_layer(self._resize(place, size_px))
            self._layers.put(key, layer, layer.ink.nbytes + layer.veil.nbytes)
        return layer

    def _picture(self, place: list[int], size_px: int) -> np.ndarray:
        key = (place[0], size_px)
        pixels = self._resized.get(key)
        if pixels is None:
            pixels = self._resize(place, size_px)
            self._resized.put(key, pixels, pixels.nbytes)
        return pixels

    def _resize(self, place: list[int], size_px: int) -> np.ndarray:
        picture = self._decode(place, half=2 * size_px <= self.master_px)
        if picture.width != size_px:
            picture = picture.resize((size_px, size_px), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture.convert("RGBA"))
        pixels.setflags(write=False)
        return pixels

    def _decode(self, place: list[int], half: bool) -> Image.Image:
        """The picture at a place of the pack with premultiplied alpha (mode "RGBa"), at full or half size."""
        key = (place[0], half)
        picture = self._decoded.get(key)
        if picture is None:
            start, length = place
            with Image.open(io.BytesIO(self._blob[start : start + length])) as opened:
                picture = opened.convert("RGBA").convert("RGBa")
            if half:
                picture = picture.reduce(2)
            self._decoded.put(key, picture, 4 * picture.width * picture.height)
        return picture


def _read_index(pack: Path) -> dict:
    try:
        index = json.loads((pack / "index.json").read_text(encoding="utf-8"))
        size = (pack / "sprites.bin").stat().st_size
    except (OSError, ValueError) as error:
        raise InputError(f"no sprite pack in {pack} ({error}): run `ace data assets`") from error
    if index.get("version") != PACK_VERSION or index.get("sprites_bytes") != size:
        raise InputError(f"the sprite pack in {pack} is incomplete or of another version: run `ace data assets` again")
    return index


@lru_cache(maxsize=256)
def _open_font(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)
