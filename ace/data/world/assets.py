"""Build the procedural world's sprite packs: what `ace data assets` calls.

Pinned npm packages (`packages.py`) become one pack: vector drawings are rendered with resvg, cut to their outline,
centred and stored as WebP; avatars of one identity are cut alike; fonts are reduced to the characters we need.
`build_assets` makes the full pack in the cache folder, `build_shipped_pack` the small one that is committed to
`ace/tiny/world`. A pack is written into a folder beside its final place and moved there in one step when complete;
`sprites.py` says what is in it.

Only MIT, Apache-2.0, CC-BY-4.0, CC0, Unicode-3.0 and OFL sources: NOTICE lists them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ace.data.world.avatars import AVATAR_STYLES, Avatar, draw_avatars, list_identity
from ace.data.world.concepts import CORE, Drawable, key_of_path, keys_of_icons, list_concepts
from ace.data.world.packages import (
    BANGERS,
    BITTER,
    FLUENT_3D,
    FLUENT_FLAT,
    FLUENT_MONO,
    JETBRAINS_MONO,
    NOTO,
    NOTO_BLOB,
    NOTO_SANS_SC,
    NUNITO,
    PACIFICO,
    PACKAGES,
    SILKSCREEN,
    TWEMOJI,
    Package,
    fetch,
    read_json,
    read_member,
    read_members,
)
from ace.data.world.sprites import MASTER_PX, PACK_VERSION, SHIPPED_PACK, STYLES, cache_folder, full_pack
from ace.errors import MissingDependencyError, OutputError
from ace.extras import install_command

RENDER_PX = 256  # drawings are rendered at this side, then cut and reduced
ALPHA_SEEN = 8  # of 255: fainter pixels do not count as part of a drawing
EDIT_SEEN = 0.003  # an avatar's edit that changes a smaller share of its pixels is left out
ABANDONED_AFTER_S = 24 * 3600

Report = Callable[[str, int, int], None]  # called with what is being done, how much of it is done, how much there is


@dataclass(frozen=True)
class PackPlan:
    """How much goes into a pack.

    side_px: of every picture. quality: of lossy sprites, None = lossless. spread: beside the core concepts, every how
    manieth of the others; 1 = all. identities: per avatar style. max_edits: per identity, None = all."""

    side_px: int
    quality: int | None
    spread: int
    identities: int
    max_edits: int | None


FULL = PackPlan(side_px=MASTER_PX, quality=None, spread=1, identities=24, max_edits=None)
SHIPPED = PackPlan(side_px=80, quality=76, spread=6, identities=5, max_edits=6)


def build_assets(pack: Path | None = None, report: Report | None = None) -> Path:
    """Fetch everything and build the full pack; returns its folder.

    pack: where; None = the cache folder, where `SpriteLibrary()` looks. report: told of progress as it is made.
    Raises MissingDependencyError, CheckpointError (a package that is not the pinned one) or OutputError."""
    return _build(full_pack() if pack is None else pack, FULL, report)


def build_shipped_pack(pack: Path = SHIPPED_PACK, report: Report | None = None) -> Path:
    """Fetch everything and build the small pack that ships with the package. Returns and raises as `build_assets`."""
    return _build(pack, SHIPPED, report)


@contextmanager
def show_progress() -> Iterator[Report]:
    """A progress bar for each stage, on the terminal's standard error: pass what it gives as `report`."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TaskID

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        stages: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in stages:
                stages[what] = progress.add_task(what, total=total)
            progress.update(stages[what], completed=done)

        yield report


def _build(pack: Path, plan: PackPlan, report: Report | None) -> Path:
    tarballs = cache_folder() / "tarballs"
    report = report or (lambda what, done, total: None)
    for number, package in enumerate(PACKAGES):
        report("fetch packages", number, len(PACKAGES))
        fetch(package, tarballs)
    report("fetch packages", len(PACKAGES), len(PACKAGES))
    concepts = list_concepts(tarballs)
    others = [concept for concept in concepts if concept.name not in CORE][:: plan.spread]
    chosen = tuple(concept for concept in concepts if concept.name in CORE or concept in others)
    with write_pack(pack) as writer:
        writer.finish(
            {
                "master_px": plan.side_px,
                "built_from": {package.name: package.version for package in PACKAGES},
                "concepts": _add_sprites(writer, tarballs, chosen, plan, report),
                "faces": _add_faces(writer, tarballs, plan, report),
                "fonts": _add_fonts(writer, tarballs, report),
            }
        )
    return pack


def _add_sprites(
    writer: PackWriter, tarballs: Path, concepts: tuple[Drawable, ...], plan: PackPlan, report: Report
) -> list[dict]:
    """Render and store every style of the concepts; returns the index entries."""
    places: dict[str, dict[str, list[int]]] = {concept.slug: {} for concept in concepts}
    for style in STYLES:
        for number, (concept, picture) in enumerate(read_drawings(tarballs, style, concepts)):
            report(f"draw {style}", number, len(concepts))
            places[concept.slug][style] = writer.add(encode(centre([picture], plan.side_px)[0], plan.quality))
        report(f"draw {style}", len(concepts), len(concepts))
    return [
        {
            "slug": concept.slug,
            "name": concept.name,
            "zh": concept.name_zh,
            "group": concept.group,
            "core": concept.name in CORE,
            "styles": places[concept.slug],
        }
        for concept in concepts
    ]


def _add_faces(writer: PackWriter, tarballs: Path, plan: PackPlan, report: Report) -> list[dict]:
    """Draw and store the avatars, losslessly: an edit must not touch a pixel elsewhere. Returns the index entries."""
    identities = [list_identity(s, n, plan.max_edits) for s in AVATAR_STYLES for n in range(plan.identities)]
    avatars: tuple[Avatar, ...] = tuple(avatar for identity in identities for avatar in identity)
    report("draw avatars", 0, len(avatars))
    svgs = iter(draw_avatars(avatars, tarballs))
    entries: list[dict] = []
    for identity in identities:
        plain, *edits = centre([render_svg(next(svgs)) for _ in identity], plan.side_px)
        for avatar, picture in zip(identity, (plain, *edits), strict=True):
            if picture is not plain and _share_changed(plain, picture) < EDIT_SEEN:
                continue  # such as an earring that long hair hides
            entries.append(
                {
                    "identity": avatar.identity,
                    "style": avatar.style.name,
                    "attributes": avatar.attributes,
                    "key": avatar.key,
                    "place": writer.add(encode(picture, None)),
                }
            )
        report("draw avatars", avatars.index(identity[-1]) + 1, len(avatars))
    return entries


def _share_changed(before: Image.Image, after: Image.Image) -> float:
    """Share of the pixels of a drawing that look different in another."""
    first, second = (np.asarray(picture.convert("RGBa")).astype(np.int16) for picture in (before, after))
    return float((np.abs(first - second).max(axis=2) > 24).sum() / (first[..., 3] > ALPHA_SEEN).sum())


# --- drawings --------------------------------------------------------------------------------------------------------


def read_drawings(tarballs: Path, style: str, concepts: Iterable[Drawable]) -> Iterator[tuple[Drawable, Image.Image]]:
    """The concepts that a style draws, in the order of its package, each as an RGBA picture about RENDER_PX a side."""
    by_key = {concept.key: concept for concept in concepts}
    if style == "fluent-3d":
        for path, content in read_members(tarballs / FLUENT_3D.tarball, ".webp"):
            if key_of_path(path) in by_key:
                yield by_key.pop(key_of_path(path)), Image.open(io.BytesIO(content)).convert("RGBA")
    elif style in ("twemoji", "fluent-flat"):
        for path, content in read_members(tarballs / (TWEMOJI if style == "twemoji" else FLUENT_FLAT).tarball, ".svg"):
            if key_of_path(path) in by_key:
                yield by_key.pop(key_of_path(path)), render_svg(content.decode())
    else:
        package = {"noto": NOTO, "noto-blob": NOTO_BLOB, "fluent-mono": FLUENT_MONO}[style]
        named_by = FLUENT_MONO if style == "fluent-mono" else NOTO  # noto-v1 has no code points, but noto's icon names
        names = keys_of_icons(tarballs / named_by.tarball)
        icons = read_json(tarballs / package.tarball, "package/icons.json")
        for key, concept in by_key.items():
            svg = _iconify_svg(icons, names[key])
            if svg is not None:
                yield concept, render_svg(svg)


def _iconify_svg(icons: dict, name: str) -> str | None:
    alias = icons.get("aliases", {}).get(name)
    if alias is not None and set(alias) <= {"parent", "hidden"}:  # an alias may also turn or mirror: not needed here
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{view}" width="{width}" height="{height}">{icon["body"]}</svg>'


def render_svg(svg: str, width_px: int = RENDER_PX) -> Image.Image:
    """Render a drawing to an RGBA picture of that width. Raises MissingDependencyError without resvg."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependencyError(f"drawing SVGs needs resvg: {install_command('data')}") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=width_px, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def centre(pictures: list[Image.Image], side_px: int) -> list[Image.Image]:
    """Cut RGBA drawings of one size to the outline of them all and centre each, alike, in a square that they fill.

    Returns RGBA pictures of side_px. Raises OutputError if all of them are blank."""
    seen = np.any([np.asarray(picture)[..., 3] > ALPHA_SEEN for picture in pictures], axis=0)
    if not seen.any():
        raise OutputError("a drawing came out blank: the renderer is of a version that does not understand it")
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = max(bottom - top, right - left) * 1.03 / 2  # 1.5 % of air on each side keeps edges smooth
    pad = int(half) + 1  # `resize` cannot reach outside the picture
    middle_x, middle_y = (left + right) / 2 + pad, (top + bottom) / 2 + pad
    box = (middle_x - half, middle_y - half, middle_x + half, middle_y + half)
    squares = []
    for picture in pictures:
        padded = Image.new("RGBA", (picture.width + 2 * pad, picture.height + 2 * pad))
        padded.paste(picture, (pad, pad))
        squares.append(padded.resize((side_px, side_px), Image.Resampling.LANCZOS, box=box))
    return squares


def encode(picture: Image.Image, quality: int | None) -> bytes:
    """A WebP with alpha: lossless if `quality` is None, else lossy."""
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, method=4, quality=60)
    else:
        picture.save(buffer, "WEBP", quality=quality, alpha_quality=90, method=6)
    return buffer.getvalue()


# --- fonts -----------------------------------------------------------------------------------------------------------

LATIN = "".join(map(chr, range(0x20, 0x7F))) + "ÀÂÄÇÈÉÊËÎÏÑÔÖÙÛÜßàâäçèéêëîïñôöùûü–—‘’“”…€£"


@dataclass(frozen=True)
class Typeface:
    """A font of the pack. files: of the package; several are merged. weight: of a variable font, None if it is none."""

    name: str
    package: Package
    files: tuple[str, ...]
    weight: int | None = None
    characters: str = LATIN


TYPEFACES: tuple[Typeface, ...] = (
    Typeface("sans", NUNITO, ("nunito-latin-700-normal.woff2",)),
    Typeface("serif", BITTER, ("bitter-latin-700-normal.woff2",)),
    Typeface("mono", JETBRAINS_MONO, ("jetbrains-mono-latin-700-normal.woff2",)),
    Typeface("script", PACIFICO, ("pacifico-latin-400-normal.woff2",)),
    Typeface("comic", BANGERS, ("bangers-latin-400-normal.woff2",)),
    Typeface("pixel", SILKSCREEN, ("silkscreen-latin-400-normal.woff2",)),
    # The slices of the Chinese font with the highest numbers hold the most frequent characters, about 190 each.
    Typeface(
        "chinese",
        NOTO_SANS_SC,
        tuple(f"noto-sans-sc-{n}-wght-normal.woff2" for n in (118, 117, 116, 119)),
        weight=600,
        characters=LATIN + "，。、！？：；（）《》" + "".join(map(chr, range(0x4E00, 0xA000))),
    ),
)


def _add_fonts(writer: PackWriter, tarballs: Path, report: Report) -> dict[str, dict]:
    """Reduce and store the fonts with their licences; returns the index entries."""
    entries: dict[str, dict] = {}
    for number, typeface in enumerate(TYPEFACES):
        report("reduce fonts", number, len(TYPEFACES))
        tarball = tarballs / typeface.package.tarball
        parts = [read_member(tarball, f"package/files/{name}") for name in typeface.files]
        licence = read_member(tarball, "package/LICENSE")
        content, characters = reduce_font(parts, typeface.characters, typeface.weight)
        (writer.folder / "fonts" / f"{typeface.name}.ttf").write_bytes(content)
        (writer.folder / "fonts" / f"{typeface.name}-OFL.txt").write_bytes(licence)
        entries[typeface.name] = {"file": f"{typeface.name}.ttf", "characters": characters}
    report("reduce fonts", len(TYPEFACES), len(TYPEFACES))
    return entries


def reduce_font(parts: list[bytes], characters: str, weight: int | None) -> tuple[bytes, str]:
    """Merge the parts of a font and keep some of its characters.

    parts: WOFF2 files; the first that has a character supplies it. weight: to fix a variable font at, else None.
    Returns a TrueType file and the characters that it has, sorted. Raises MissingDependencyError without fontTools."""
    try:
        from fontTools import merge, subset
        from fontTools.ttLib import TTFont
        from fontTools.varLib import instancer
    except ImportError as error:
        raise MissingDependencyError(f"reducing fonts needs fontTools: {install_command('data')}") from error
    wanted = {ord(character) for character in characters}
    kept: set[int] = set()
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for number, part in enumerate(parts):
            font = TTFont(io.BytesIO(part), recalcTimestamp=False)
            if weight is not None:
                font = instancer.instantiateVariableFont(font, {"wght": weight})
            fresh = (wanted & set(font.getBestCmap() or ())) - kept
            kept |= fresh
            options = subset.Options(
                hinting=False, layout_features=["kern"] if len(parts) == 1 else [], drop_tables=["DSIG"]
            )
            subsetter = subset.Subsetter(options)
            subsetter.populate(unicodes=fresh)
            subsetter.subset(font)
            font.flavor = None
            paths.append(str(Path(scratch) / f"{number}.ttf"))
            font.save(paths[-1])
        first = TTFont(paths[0], recalcTimestamp=False)
        whole = merge.Merger().merge(paths) if len(paths) > 1 else first
        whole.recalcTimestamp = False  # the same bytes on every build
        whole["head"].created, whole["head"].modified = first["head"].created, first["head"].modified
        buffer = io.BytesIO()
        whole.save(buffer)
    return buffer.getvalue(), "".join(map(chr, sorted(kept)))


# --- packs -----------------------------------------------------------------------------------------------------------


class PackWriter:
    """Collects pictures and fonts in a folder beside the pack's final place; see `write_pack`."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "fonts").mkdir()
        self._sprites = (folder / "sprites.bin").open("wb")
        self._places: dict[bytes, list[int]] = {}

    def add(self, picture: bytes) -> list[int]:
        """Store a picture; returns its place, [offset, length]. The same bytes are stored once."""
        digest = hashlib.sha256(picture).digest()
        if digest not in self._places:
            self._places[digest] = [self._sprites.tell(), len(picture)]
            self._sprites.write(picture)
        return self._places[digest]

    def finish(self, index: dict) -> None:
        """Write the index, last of all."""
        size = self._sprites.tell()
        self.close()
        index = {"version": PACK_VERSION, "sprites_bytes": size, **index}
        text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
        (self.folder / "index.json").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        self._sprites.close()


@contextmanager
def write_pack(pack: Path) -> Iterator[PackWriter]:
    """Build a pack that takes its place in one step at the end; on any error, or if killed, the old one stays."""
    pack.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in pack.parent.glob(f".{pack.name}-*"):  # a killed build's; a younger one may still be at work
        if time.time() - abandoned.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{pack.name}-", dir=pack.parent) as scratch:
        building = Path(scratch) / "new"
        building.mkdir()
        writer = PackWriter(building)
        try:
            yield writer
        finally:
            writer.close()
        if not (building / "index.json").is_file():
            raise OutputError(f"the pack for {pack} was not finished")
        if pack.exists():
            os.replace(pack, Path(scratch) / "old")
        os.replace(building, pack)
