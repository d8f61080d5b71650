"""Image intake: one normaliser for every entrance, and the geometry that turns a picture into what a model reads.

Whatever comes in (a file, a stream, a picture in memory) leaves `open_image` or `normalise_image` as 8-bit RGB, upright
(EXIF orientation applied), with everything that must reach the output again beside it: alpha, ICC profile, 16 bits. A
model reads `image`, which is sRGB. What a file is, its content says, never its name. Sizes are checked from the header,
before anything is decoded. Masks are files like others, read by `masks.py`.

Two geometries: ours never crops, keeps the aspect as nearly as the model's cells allow and never loses a thin mask;
`prepare_published` is the original's, step by step, for its weights. No torch here: arrays are numpy, channels first.

Not here: tensors, latents, profiles (`colour.py`), pasting the result back (`ace/inference/preserve.py`).
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, features

from ace.conditions.colour import is_readable, to_srgb
from ace.conditions.rules import MAX_PIXELS
from ace.conditions.sixteen import EXTRA, can_keep, read_sixteen
from ace.errors import ImageError, MissingDependencyError
from ace.extras import install_command

# The first five need no further Pillow plugins, so they are tried first. Of JPEG files with several pictures (MPO, as
# phones make them) and of animations the first one counts. HEIC needs an extra (`_read_heic`).
ALLOWED_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")
# Of files that are worth opening in a folder; what they are, their content says.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".mpo", ".gif", ".bmp", ".ppm", ".pgm", ".pnm", ".webp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
)
MASK_THRESHOLD = 128  # brighter than this = change (published rule)
MAX_ASPECT = 16.0  # of our own geometry; the models were trained up to 4
PUBLISHED_MAX_ASPECT = 4
PUBLISHED_CELL_PX = 16
PUBLISHED_BLANKING_TASKS = ("inpainting", "Try On", "Inpainting")

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SIXTEEN_BIT_FORMATS = ("PNG", "TIFF")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}  # the others undo themselves


@dataclass(frozen=True)
class OpenedImage:
    """A picture that has passed intake.

    image: RGB, upright, sRGB; what a model reads (alpha composited over white). A picture in memory that already is
    upright 8-bit sRGB is this very object.
    stored: RGB, upright; the values as they are in the file, in its profile, under the alpha; the same object as
    `image` without alpha and without a profile of its own.
    alpha: "L" of the same size, or None. icc_profile: of an RGB colour space, or None. mode: Pillow's mode of the
    original. converted: what was converted on the way, in words, or None. name: for messages; never a path.
    deep: uint16 (H, W, 3 or 4), upright: `stored` (and alpha) in 16 bits, where the file has them, or None."""

    image: Image.Image
    stored: Image.Image
    alpha: Image.Image | None = None
    icc_profile: bytes | None = None
    mode: str = "RGB"
    converted: str | None = None
    name: str = "image"
    deep: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px, upright."""
        return self.image.size


def open_image(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> OpenedImage:
    """Read a picture file (or an open binary stream) of one of `ALLOWED_FORMATS` or HEIC; of several frames the first.

    Raises ImageError if it is missing, not a picture, cut off, or has more than `max_pixels` pixels (checked in the
    header; Pillow's own limit of about 179 million pixels stays in force above that), MissingDependencyError for HEIC
    without its extra."""
    label = name or _name_of(source)
    try:
        formats = _formats_of(source, label)
        with quiet_pillow(), Image.open(source, formats=formats) as image:
            data = _bytes_if_sixteen(source, image, max_pixels)
            return normalise_image(image, max_pixels=max_pixels, name=label, data=data)
    except FileNotFoundError:
        raise ImageError(f"{label}: no such file: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{label} is a folder: name a picture file") from None
    except PermissionError:
        raise ImageError(f"{label} cannot be read: permission denied, check its access rights") from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(label, None, max_pixels)) from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{label} is not a picture that can be read: save it as PNG, JPEG or WebP") from None
    except _DECODE_ERRORS:  # a plugin that stumbles over a header
        raise ImageError(f"{label} is damaged: save it again as PNG or JPEG") from None


def open_header(source: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """A picture file opened by its content and not decoded: format, mode and size. Raises what Pillow raises, and
    MissingDependencyError for HEIC without its extra."""
    return Image.open(source, formats=_formats_of(source, name or _name_of(source)))


def open_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS, name: str = "image") -> OpenedImage:
    """The same for a file in memory."""
    return open_image(io.BytesIO(data), max_pixels=max_pixels, name=name)


def normalise_image(
    image: Image.Image, *, max_pixels: int = MAX_PIXELS, name: str = "image", data: bytes | None = None
) -> OpenedImage:
    """The same for a picture in memory (or opened by Pillow and not decoded yet). data: the file's bytes, if its 16
    bits are to be kept. Raises ImageError like `open_image`."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height} px, an empty picture: give one with at least one pixel")
    if width * height > max_pixels:
        raise ImageError(_too_large(name, (width, height), max_pixels))
    notes: list[str] = []
    sixteen_bit = _is_sixteen_bit(image)
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            image.seek(0)
            notes.append("animation to its first frame")
        image.load()
    except MemoryError:
        raise ImageError(f"{name} is {width}x{height} px, too large for the memory: make it smaller first") from None
    except _DECODE_ERRORS:
        raise ImageError(f"{name} is damaged or cut off: save or download it again") from None
    icc_profile = image.info.get("icc_profile")
    icc_profile = icc_profile if isinstance(icc_profile, bytes) and icc_profile else None
    mode = image.mode
    turn = _turn_of(image)
    upright = image if turn is None else _turned(image, turn)
    try:
        stored, alpha = _to_rgb(upright, icc_profile, name, notes)
    except (OSError, ValueError, KeyError):
        raise ImageError(
            f"{name} has colours that cannot be converted (mode {mode}): save it as 8-bit RGB PNG"
        ) from None
    deep = None if data is None else _deep_of(data, stored, turn)
    if deep is None and sixteen_bit and not any("16-bit" in note for note in notes):
        notes.append("16-bit to 8-bit")
    elif deep is not None:
        notes = [note for note in notes if "16-bit" not in note]
    if data is not None and deep is None and not can_keep():
        notes[-1] += f" ({EXTRA} keeps 16 bits where nothing changes)"
    if icc_profile is not None and icc_profile[16:20] != b"RGB ":
        icc_profile = None  # describes grey or ink, not the RGB that leaves here
    seen = to_srgb(stored, icc_profile)
    if icc_profile is not None and seen is stored and not is_readable(icc_profile):
        notes.append("the colour profile is damaged: read as sRGB")
    return OpenedImage(
        image=seen if alpha is None else _over_white(seen, alpha),
        stored=stored,
        alpha=alpha,
        icc_profile=icc_profile,
        mode=mode,
        converted=", ".join(notes) or None,
        name=name,
        deep=deep,
    )


def with_values(picture: OpenedImage, values: Image.Image) -> OpenedImage:
    """A picture drawn from another: RGB or RGBA values in that one's profile and under its name."""
    values = values.copy()
    values.info = {} if picture.icc_profile is None else {"icc_profile": picture.icc_profile}
    return normalise_image(values, name=picture.name)


def over_white(picture: OpenedImage) -> Image.Image:
    """The values as they are in the file, RGB, composited over white."""
    return picture.stored if picture.alpha is None else _over_white(picture.stored, picture.alpha)


# Geometry


def fit_size(
    width: int, height: int, budget: int, cell_px: int, *, enlarge: bool = False, published: bool = False
) -> tuple[int, int]:
    """The size (width, height) at which a model reads a picture: whole cells, at most `budget` of them.

    budget: number of cells; cell_px: side of a cell, VAE factor times patch size. Never enlarged, unless `enlarge`
    fills the budget. Sides are never less than one cell. A picture of whole cells within the budget keeps its size.
    published: the original's rule to the pixel (both sides rounded down, a side under one cell becomes 0); ours takes
    the neighbouring whole number of cells that keeps the aspect best.
    Raises ImageError if one side is more than 16 times the other (ours only)."""
    if width < 1 or height < 1 or budget < 1 or cell_px < 1:
        raise ImageError(f"cannot fit {width}x{height} px into {budget} cells of {cell_px} px: all must be at least 1")
    scale = math.sqrt(budget / ((height / cell_px) * (width / cell_px)))
    if not enlarge or published:
        scale = min(1.0, scale)
    if published:
        return int(width * scale) // cell_px * cell_px, int(height * scale) // cell_px * cell_px
    check_aspect((width, height))
    across, down = width * scale / cell_px, height * scale / cell_px
    aspect = width / height
    most = (budget, budget) if enlarge else (max(1, width // cell_px), max(1, height // cell_px))
    sizes = {(c, r) for r in _neighbours(down) for c in (*_neighbours(r * aspect), *_neighbours(across), budget // r)}
    sizes |= {(c, r) for c in _neighbours(across) for r in (*_neighbours(c / aspect), budget // c)}
    sizes |= {(budget, 1)} if width > height else {(1, budget)}
    within = {(min(c, most[0]), min(r, most[1])) for c, r in sizes if c >= 1 and r >= 1 and c * r <= budget}

    def cost(cells: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        columns, rows = cells  # a bent aspect costs twice a lost area
        bend = abs(math.log(columns / rows / aspect))
        return round(bend + 0.5 * max(0.0, math.log(across * down / (columns * rows))), 9), cells

    columns, rows = min(within, key=cost)
    return columns * cell_px, rows * cell_px


def check_aspect(size: tuple[int, int]) -> None:
    """Raise ImageError for a picture whose one side is more than 16 times the other, which no model here reads."""
    width, height = size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the picture is {width}x{height} px, longer than 16 to 1: crop it to the part that matters")


def _neighbours(value: float) -> tuple[int, int]:
    """The whole numbers around a value, at least 1; a value that is whole but for rounding counts as whole."""
    return max(1, math.floor(value + 1e-9)), max(1, math.ceil(value - 1e-9))


def aspect_size(size: tuple[int, int], model_size: tuple[int, int]) -> tuple[int, int]:
    """The size (width, height) with the aspect of `size` and about the area of `model_size`: whole cells bend the
    aspect a little on the way in, this undoes it on the way out."""
    scale = math.sqrt(model_size[0] * model_size[1] / (size[0] * size[1]))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def prepare_image(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB picture as a model reads it at `size` (width, height): the whole picture, resized (bicubic), never
    cropped.

    Returns float32 (3, height, width) in [-1, 1]."""
    if image.mode != "RGB":
        raise ImageError(f"expected an RGB picture, got mode {image.mode}: pass it through normalise_image first")
    resized = image if image.size == tuple(size) else image.resize(size, Image.Resampling.BICUBIC)
    return _to_array(resized)


def prepare_mask(mask: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    """A mask at `size` (width, height): 1 where any of its pixels says change, so that thin masks are not lost.

    mask: "L", above 128 = change, or None for all of it. Returns float32 (1, height, width) of 0 and 1."""
    width, height = size
    if mask is None:
        return np.ones((1, height, width), dtype=np.float32)
    change = np.asarray(mask.convert("L")) > MASK_THRESHOLD
    rows = np.arange(height) * change.shape[0] // height
    columns = np.arange(width) * change.shape[1] // width
    covered = np.logical_or.reduceat(np.logical_or.reduceat(change, rows, axis=0), columns, axis=1)
    return covered[None].astype(np.float32)


def prepare_published(
    image: Image.Image, mask: Image.Image | None, *, task: str, budget: int, cell_px: int = PUBLISHED_CELL_PX
) -> tuple[np.ndarray, np.ndarray]:
    """The original's inference preparation, step by step: centre crop over 4 to 1, budget, bicubic picture, nearest
    mask, an all-black mask means everything, three task names blank the masked area.

    image: RGB; mask: "L" of its size or None. Returns float32 (3, H, W) in [-1, 1] and (1, H, W) of 0 and 1.
    Raises ImageError if a side would be under one cell, where the original fails later on an empty picture."""
    mask = Image.new("L", image.size, 0) if mask is None else mask.convert("L")
    width, height = image.size
    if height / width > PUBLISHED_MAX_ASPECT:
        image, mask = (_centre_crop(picture, width, int(PUBLISHED_MAX_ASPECT * width)) for picture in (image, mask))
    elif width / height > PUBLISHED_MAX_ASPECT:
        image, mask = (_centre_crop(picture, int(PUBLISHED_MAX_ASPECT * height), height) for picture in (image, mask))
    size = fit_size(*image.size, budget, cell_px, published=True)
    if 0 in size:
        raise ImageError(f"the picture is {width}x{height} px: this model needs at least {cell_px} px on each side")
    array = _to_array(image.resize(size, Image.Resampling.BICUBIC))
    change = (np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > MASK_THRESHOLD).astype(np.float32)[None]
    if not change.any():
        change = np.ones_like(change)
    if task in PUBLISHED_BLANKING_TASKS:
        array = np.where(change > 0, np.float32(-1), array)
    return array, change


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left = round((image.width - width) / 2)  # half to even, as upstream
    top = round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_array(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((values - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


# Conversion


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns of oddities in files (broken EXIF, cut tags); what matters to the user is raised here as one
    line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def _name_of(source: str | Path | BinaryIO) -> str:
    if isinstance(source, str | Path):
        return Path(source).name or str(source)
    return "image"


def _too_large(name: str, size: tuple[int, int] | None, max_pixels: int) -> str:
    is_size = f"is {size[0]}x{size[1]} px, too large" if size else "is far too large"
    return f"{name} {is_size}: make it at most {max_pixels / 1e6:g} million pixels"


def _is_sixteen_bit(image: Image.Image) -> bool:
    """True if the file stores 16 bits per channel, which Pillow cuts to 8 for colour while it decodes."""
    if image.mode.startswith("I;16"):
        return True
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()) or ())


def _formats_of(source: str | Path | BinaryIO, name: str) -> tuple[str, ...]:
    """The decoders to try for a file, by its first bytes. Raises MissingDependencyError, ImageError."""
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            head = file.read(64)
    else:
        start = source.tell()
        head = source.read(64)
        source.seek(start)
    if head[4:8] != b"ftyp":
        return ALLOWED_FORMATS
    brands = [head[place : place + 4] for place in range(8, min(len(head), 64), 4)]
    if b"avif" in brands or b"avis" in brands:
        if not features.check("avif"):
            raise ImageError(f"{name} is AVIF, which this Pillow cannot read: save it as PNG, JPEG or WebP")
        return ("AVIF",)
    if any(brand in _HEIC_BRANDS for brand in brands):
        return _read_heic(name)
    return ALLOWED_FORMATS


def _read_heic(name: str) -> tuple[str, ...]:
    """Make Pillow read HEIC; the name of the decoder. Raises MissingDependencyError."""
    try:
        import pi_heif
    except ImportError:
        raise MissingDependencyError(
            f"{name} is HEIC, which needs a decoder: {install_command('heic')}, or save it as JPEG"
        ) from None
    if "HEIF" not in Image.OPEN:
        pi_heif.register_heif_opener(thumbnails=False)
    return ("HEIF",)


def _bytes_if_sixteen(source: str | Path | BinaryIO, image: Image.Image, max_pixels: int) -> bytes | None:
    """The bytes of a file of 16 bits per channel, for `read_sixteen`; None for any other, and for one too large."""
    if image.format not in _SIXTEEN_BIT_FORMATS or not _is_sixteen_bit(image):
        return None
    if image.width * image.height > max_pixels:
        return None
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    place = source.tell()
    source.seek(0)
    data = source.read()
    source.seek(place)
    return data


def _deep_of(data: bytes, stored: Image.Image, turn: Image.Transpose | None) -> np.ndarray | None:
    """The 16-bit values behind an upright picture, turned as it was."""
    eight = np.asarray(stored if turn is None else stored.transpose(_BACK.get(turn, turn)))
    deep = read_sixteen(data, eight)
    return deep if deep is None or turn is None else _turn_array(deep, turn)


def _turn_array(values: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    """`Image.transpose` for an array (H, W, C)."""
    kinds = Image.Transpose
    turned = {
        kinds.FLIP_LEFT_RIGHT: lambda v: v[:, ::-1],
        kinds.FLIP_TOP_BOTTOM: lambda v: v[::-1],
        kinds.ROTATE_90: lambda v: np.rot90(v, 1),
        kinds.ROTATE_180: lambda v: v[::-1, ::-1],
        kinds.ROTATE_270: lambda v: np.rot90(v, 3),
        kinds.TRANSPOSE: lambda v: v.transpose(1, 0, 2),
        kinds.TRANSVERSE: lambda v: v[::-1, ::-1].transpose(1, 0, 2),
    }[turn](values)
    return np.ascontiguousarray(turned)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        orientation = 1  # EXIF that cannot be read says nothing about the orientation
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    turned = image.transpose(turn)
    for key in _ORIENTATION_KEYS:  # or a second pass through here would turn it again
        turned.info.pop(key, None)
    return turned


def _to_rgb(
    image: Image.Image, icc_profile: bytes | None, name: str, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """(RGB, alpha or None); appends to `notes` what was converted."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, None
    if mode.startswith("I") or mode == "F":
        image, depth = _to_grey(image, name)
        notes.append(f"{depth} to 8-bit")
    elif mode == "CMYK":
        notes.append("CMYK to RGB" + (" by its ICC profile" if icc_profile and icc_profile[16:20] == b"CMYK" else ""))
        return _from_cmyk(image, icc_profile), None
    elif mode == "LAB":
        notes.append("LAB to RGB")
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return converted if converted is not None else image.convert("RGB"), None
    elif mode in ("P", "PA"):
        notes.append("palette to RGB")
    elif mode == "1":
        notes.append("1-bit to 8-bit")
    elif mode in ("YCbCr", "HSV"):
        notes.append(f"{mode} to RGB")
    if mode in ("L", "LA") and icc_profile is not None and icc_profile[16:20] == b"GRAY":
        return _from_grey(image, icc_profile, notes)
    if image.has_transparency_data:
        straight = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        return straight.convert("RGB"), straight.getchannel("A")
    return image.convert("RGB"), None


def _to_grey(image: Image.Image, name: str) -> tuple[Image.Image, str]:
    """One-channel pictures of more than 8 bits as "L"."""
    values = np.asarray(image).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if np.isfinite(values).all() else (-1.0, -1.0)
    if image.mode != "F" and low >= 0 and high <= 65535:
        return Image.fromarray(np.round(values / 257).astype(np.uint8)), "16-bit"
    if image.mode == "F" and low >= 0 and high <= 255:
        return Image.fromarray(np.round(values * (255 if high <= 1 else 1)).astype(np.uint8)), "floating point"
    raise ImageError(f"{name} holds values beyond 0 to 1, 0 to 255 or 16 bits: save it as 8-bit RGB PNG")


def _from_grey(image: Image.Image, icc_profile: bytes, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """A grey picture by its own profile, which describes no RGB and so does not go along."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image.convert("L")
    converted = to_srgb(plain, icc_profile)
    if converted is not plain:
        notes.append("grey to sRGB by its ICC profile")
    return converted.convert("RGB"), alpha


def _from_cmyk(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile and icc_profile[16:20] == b"CMYK":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile: convert without it
    return image.convert("RGB")


def _over_white(stored: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.composite(stored, Image.new("RGB", stored.size, (255, 255, 255)), alpha)
