"""The recipe of a picture: what made it, carried inside the file, and read again to make it anew.

A `Recipe` is one strict record (pydantic, unknown fields refused, versioned). `embed` writes a picture whole or not at
all, with its recipe as one XMP packet: the same packet in PNG (an iTXt chunk), JPEG, WebP and TIFF, which names the
IPTC digital source type of generated media too. Files appear by name and hash only, never by folder, and there is no
time stamp, so the same edit on the same machine gives the same bytes.

Not here: making the picture again (`ace replay`), session folders.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ace.conditions.images import DECODE_ERRORS, open_image, quiet_pillow
from ace.conditions.sixteen import XMP_TAG, can_write_tiff, encode_png, encode_tiff, plain_png
from ace.errors import ImageError, InputError, OutputError
from ace.files import hash_file, reason_of, write_atomically
from ace.video.files import hash_clip

FORMAT_VERSION = 2
# What is decided by rule and not by the request, each with the number of the rule in force. A recipe records them, and
# an image made by older rules is made again by those. Format 1 was written before there were numbers: all are 1.
CURRENT_RULES = {"masks": 2, "blend": 2, "size": 1, "noise_schedule": 2, "focus": 2, "detail": 2}
REPLAYED_RULES = frozenset({"masks", "blend", "size", "focus", "detail"})  # of these the older ones are still known
FIRST_RULES = dict.fromkeys(CURRENT_RULES, 1)
OF_THE_WEIGHTS = ("adapters", "fast", "transformer", "quantize", "quantize_text", "tile_px")  # settings that say how
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
PACKAGES = ("ace-allround", "diffusers", "numpy", "pillow", "safetensors", "torch", "transformers")
MAX_RECIPE_BYTES = 1_000_000
_MATRIX_FEATURES = ("avx512_bf16", "amx_tile", "asimd", "sve", "bf16")
_KERNEL_SETTINGS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
)
_MAX_JPEG_PACKET_BYTES = 65_504
_NAMESPACE = "urn:ace-allround:recipe"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


# The record


def _plain_name(name: object) -> object:
    if isinstance(name, str) and ("/" in name or "\\" in name or not name):
        raise ValueError("a file is recorded by its name, without a folder")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(max_length=255), BeforeValidator(_plain_name)]
Setting = bool | int | float | str
# Settings that are read again when an image is made again, by what they are; others are only told.
_SETTING_KINDS: dict[type, tuple[str, ...]] = {
    bool: ("edits",),
    int: ("feather_px", "max_seq_length", "tile_px", "canvas_cells", "batch_size"),
    float: ("repainting_scale",),
    str: (
        *("size", "control", "places", "fits", "adapters", "fast", "transformer", "quantize", "quantize_text"),
        *("refine", "pipeline", "family", "latents"),
    ),
}
_KIND_OF_SETTING = {name: kind for kind, names in _SETTING_KINDS.items() for name in names}


def _known_settings(settings: dict[str, Setting]) -> dict[str, Setting]:
    for name, value in settings.items():
        kind = _KIND_OF_SETTING.get(name)
        allowed = (int, float) if kind is float else kind
        if allowed is not None and (not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool)):
            raise ValueError(f"{name} is of another type")
        if kind in (int, float) and not 0 <= value <= 10**9:  # type: ignore[operator]
            raise ValueError(f"{name} is out of range")
    return settings


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class FileRef(_Record):
    """A file as a recipe knows it: its name and the SHA-256 of its bytes."""

    name: FileName
    sha256: Sha256

    @classmethod
    def of(cls, path: str | Path) -> FileRef:
        """Hash a file. Raises InputError if it cannot be read."""
        return cls(name=Path(path).name, sha256=hash_file(path))


class Environment(_Record):
    """Where a picture was made: all that may change its bytes beside the recipe itself.

    arch: processor family, the vector instructions that torch uses, and what else chooses the kernels of MKL and
    oneDNN: maker, further instructions, settings of the environment. device, dtype: as torch names them."""

    system: str
    arch: str
    device: str
    dtype: str
    num_threads: int = Field(ge=1)
    python: str
    packages: dict[str, str]

    @classmethod
    def here(cls, *, device: str = "cpu", dtype: str = "float32") -> Environment:
        """This machine and this process. torch is asked only if it is loaded already."""
        torch = sys.modules.get("torch")
        arch = platform.machine()
        num_threads = os.cpu_count() or 1
        if torch is not None:
            arch = " ".join(
                (arch, torch.backends.cpu.get_cpu_capability(), *_maker_and_features(), *_kernel_settings())
            )
            num_threads = torch.get_num_threads()
        return cls(
            system=platform.system(),
            arch=arch,
            device=device,
            dtype=dtype,
            num_threads=num_threads,
            python=platform.python_version(),
            packages=package_versions(),
        )


class Round(_Record):
    """An earlier round of a conversation: its request and its answer, files by name and hash.

    latents: hash of the latents of the answer (`hash_latents`) where the image was made from them; None where it was
    made from the answer's file."""

    instruction: str
    images: tuple[FileRef, ...] = ()
    masks: tuple[FileRef | None, ...] = ()
    answer: FileRef
    latents: Sha256 | None = None


class Recipe(_Record):
    """What made an image.

    format_version: 2, or 1 as it was read; it is written again as it was. family: the kind of model; rules: see
    `CURRENT_RULES`.
    model: the name it was asked for by; model_sha256: see `hash_model`. seed: of this picture's noise. size_px: (width,
    height) the model worked at. images, masks: in order; a mask per image or none at all. history: oldest first.
    settings: further options of the request that change the result (scheduler, paste-back, …)."""

    format_version: Literal[1, 2] = FORMAT_VERSION
    family: str = "ace"
    model: str
    model_sha256: Sha256
    instruction: str
    negative_instruction: str = ""
    seed: int = Field(ge=0, lt=2**64)
    num_inference_steps: int = Field(ge=1, le=100_000)
    guidance_scale: float = Field(ge=-10_000, le=10_000)
    guidance_rescale: float = Field(ge=-10_000, le=10_000)
    size_px: tuple[Annotated[int, Field(ge=1, le=2**20)], Annotated[int, Field(ge=1, le=2**20)]]
    images: tuple[FileRef, ...] = ()
    masks: tuple[FileRef | None, ...] = ()
    history: tuple[Round, ...] = ()
    settings: Annotated[dict[str, Setting], AfterValidator(_known_settings)] = Field(default_factory=dict)
    rules: dict[str, int] = Field(default_factory=lambda: dict(CURRENT_RULES))
    environment: Environment

    @model_validator(mode="after")
    def _of_format_1(self) -> Recipe:
        if self.format_version == 1:
            object.__setattr__(self, "family", str(self.settings.get("family", "ace")))
            object.__setattr__(self, "rules", dict(FIRST_RULES))
        return self

    @model_validator(mode="after")
    def _masks_belong_to_images(self) -> Recipe:
        for unit in (self, *self.history):
            if unit.masks and len(unit.masks) != len(unit.images):
                raise ValueError("masks: one per image, or none at all")
        return self

    def files(self) -> tuple[FileRef, ...]:
        """Every file that is needed to make the picture again, in the model's order, each hash once."""
        found: dict[str, FileRef] = {}
        for unit in (*self.history, self):
            for file in (*unit.images, *unit.masks, *((unit.answer,) if isinstance(unit, Round) else ())):
                if file is not None:
                    found.setdefault(file.sha256, file)
        return tuple(found.values())

    def to_json(self) -> str:
        """One line of ASCII, so that any container and any parser keeps it as it is."""
        written = self.model_dump(mode="json")
        if self.format_version == 1:
            del written["family"], written["rules"]
            for asked in written["history"]:
                del asked["latents"]
        return json.dumps(written, separators=(",", ":"))

    @property
    def needs_latents(self) -> bool:
        """Whether the image was made from kept latents, which no picture file holds."""
        kept = self.settings.get("latents") == "kept"  # format 1
        return kept or any(asked.latents is not None for asked in self.history)

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "the recipe") -> Recipe:
        """Read a recipe strictly. Raises InputError for anything that is not exactly one."""
        if len(text) > MAX_RECIPE_BYTES:
            raise InputError(f"{name} holds {len(text)} bytes of recipe, more than any real one: use the original file")
        try:
            version = FormatVersion.model_validate_json(text).format_version
        except ValidationError:
            raise InputError(f"{name} holds a damaged recipe: use the original file") from None
        if not 1 <= version <= FORMAT_VERSION:
            raise InputError(
                f"{name} holds a recipe of format {version}, this version reads 1 to {FORMAT_VERSION}: update ace"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:80] or "as a whole"
            raise InputError(
                f"{name} holds a damaged recipe ({place}: {first['msg'][:120]}): use the original file"
            ) from None


class FormatVersion(BaseModel):
    """The format version of a JSON record, whatever else is in it."""

    model_config = ConfigDict(strict=True)
    format_version: int


@cache
def _maker_and_features() -> tuple[str, ...]:
    """The processor's maker and its instructions for matrices, as Linux tells them; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").lower().splitlines()
    except OSError:
        return ()
    told = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in lines)}
    maker = told.get("vendor_id") or told.get("cpu implementer") or []
    features = {*told.get("flags", []), *told.get("features", [])}
    return (*maker[:1], *(name for name in _MATRIX_FEATURES if name in features))


def _kernel_settings() -> tuple[str, ...]:
    """Settings of the environment that make MKL or oneDNN choose other kernels."""
    set_here = ((name, os.environ.get(name, "")) for name in _KERNEL_SETTINGS)
    return tuple(f"{name}={re.sub(r'[^A-Za-z0-9_.]', '?', value)[:40]}" for name, value in set_here if value)


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that take part in making a picture."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hash_latents(latents: np.ndarray) -> str:
    """SHA-256 of latents: their shape and their values as little-endian float32."""
    values = np.ascontiguousarray(latents, dtype="<f4")
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def match_files(recipe: Recipe, candidates: Iterable[str | Path]) -> dict[str, Path]:
    """SHA-256 → path for every file that the recipe needs, found among the candidates whatever their names are now.

    Raises InputError that names the missing ones."""
    found = {hash_clip(Path(path)): Path(path) for path in candidates}
    needed = recipe.files()
    missing = [file.name for file in needed if file.sha256 not in found]
    if missing:
        raise InputError(f"not among the given files: {', '.join(missing)}: give each with --image, unchanged")
    return {file.sha256: found[file.sha256] for file in needed}


def compare(recipe: Recipe, now: Environment, *, model_sha256: str | None = None) -> tuple[str, ...]:
    """What differs between then and now and may change the picture, a line each; empty if nothing does."""
    differences: list[str] = []

    def note(what: str, then: object, today: object) -> None:
        if then != today:
            differences.append(f"{what}: {then} then, {today} now")

    then = recipe.environment
    if model_sha256 is not None and model_sha256 != recipe.model_sha256:
        differences.append(f"model {recipe.model}: {recipe.model_sha256[:12]} then, {model_sha256[:12]} now")
    note("system", then.system, now.system)
    known = len(then.arch.split())  # recipes of before say the first two words only
    note("processor", then.arch, now.arch if known > 2 else " ".join(now.arch.split()[:known]))
    note("device", then.device, now.device)
    note("number type", then.dtype, now.dtype)
    note("threads", then.num_threads, now.num_threads)
    note("python", then.python, now.python)
    for rule in sorted(CURRENT_RULES.keys() | recipe.rules.keys()):
        if rule not in REPLAYED_RULES:
            note(f"rule of the {rule.replace('_', ' ')}", recipe.rules.get(rule, 1), CURRENT_RULES.get(rule, "unknown"))
    for package in sorted(then.packages.keys() | now.packages.keys()):
        note(package, then.packages.get(package, "absent"), now.packages.get(package, "absent"))
    return tuple(differences)


def changed_settings(then: Recipe, now: Recipe) -> tuple[str, ...]:
    """How the weights of an image made again were held otherwise than in its recipe, a line each."""
    return tuple(
        f"{name.replace('_', ' ')}: {then.settings.get(name, 'none')} then, {now.settings.get(name, 'none')} now"
        for name in OF_THE_WEIGHTS
        if then.settings.get(name) != now.settings.get(name)
    )


# Writing


def check_output(path: str | Path, formats: Mapping[str, str] = FORMATS) -> str:
    """The format ("PNG", …) for a path by its extension, after checking that it can be written there.

    Writes nothing. Raises OutputError for an unknown extension, a missing folder, a folder or device in its place, or
    missing rights."""
    path = Path(path)
    file_format = formats.get(path.suffix.lower())
    if file_format is None:
        raise OutputError(f"{path.name} has no extension that the answer can be written with: use {', '.join(formats)}")
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode if target.exists() else None
        folder_is_there = target.parent.is_dir()
    except (OSError, ValueError) as error:
        raise OutputError(f"{path.name[:80]} cannot be written ({reason_of(error)}): choose another name") from None
    if not folder_is_there:
        raise OutputError(f"the folder of {path.name} does not exist: create it first or choose another")
    if mode is not None and not stat.S_ISREG(mode):
        raise OutputError(f"{path.name} is not a file that can be replaced: choose another name")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {path.name} cannot be written to: choose another or change its access rights")
    return file_format


def embed(image: Image.Image, path: str | Path, recipe: Recipe | None = None) -> None:
    """Write a picture (RGB, RGBA or L), with its recipe if one is given, in the format of the path's extension.

    The file appears whole or not at all; a file that was there is replaced. The ICC profile in `image.info` goes
    along, in a PNG or TIFF the 16 bits of `paste_back` too, and nothing else of it. JPEG cannot hold alpha: it is
    composited over white. Raises OutputError if it cannot be written."""
    data = encode(image, check_output(path), recipe)
    write_atomically(Path(path), data)


def encode(image: Image.Image, file_format: str, recipe: Recipe | None = None) -> bytes:
    """The bytes that `embed` writes. All but JPEG are lossless, that is of quality 95 without colour subsampling."""
    packet = None if recipe is None else xmp_packet(recipe)
    icc_profile = image.info.get("icc_profile")
    if image.mode == "RGBA" and file_format == "JPEG":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        plain = Image.alpha_composite(white, image).convert("RGB")
    else:
        plain = image.copy() if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
    plain.info = {}
    stream = io.BytesIO()
    try:
        deep = image.info.get("sixteen_bit")
        deep = deep if isinstance(deep, np.ndarray) and deep.shape[1::-1] == image.size else None
        if file_format == "PNG" and deep is not None:
            plain_png().save(stream, "PNG", pnginfo=_png_chunks(packet), icc_profile=icc_profile)
            return encode_png(deep, like=stream.getvalue())
        if file_format == "PNG":
            chunks = _png_chunks(packet)
            plain.save(stream, "PNG", pnginfo=chunks, icc_profile=icc_profile, compress_level=4)
        elif file_format == "JPEG":
            if packet is not None and len(packet) > _MAX_JPEG_PACKET_BYTES:
                raise OutputError("the recipe of this long conversation does not fit into a JPEG: write .png or .webp")
            extra = {} if packet is None else {"xmp": packet}
            plain.save(stream, "JPEG", quality=95, subsampling=0, icc_profile=icc_profile, **extra)
        elif file_format == "TIFF" and deep is not None and can_write_tiff():
            return encode_tiff(deep, icc_profile, packet)
        elif file_format == "TIFF":
            tags = {} if packet is None else {XMP_TAG: packet}
            plain.save(stream, "TIFF", compression="tiff_adobe_deflate", icc_profile=icc_profile, tiffinfo=tags)
        elif file_format == "WEBP":
            plain.save(
                stream, "WEBP", lossless=True, exact=True, icc_profile=icc_profile or b"", xmp=packet or b"", method=3
            )
        else:
            raise OutputError(f"unknown picture format {file_format}: use PNG, JPEG, WEBP or TIFF")
    except (OSError, ValueError) as error:
        size = f"{image.width}x{image.height} px"
        raise OutputError(
            f"a picture of {size} cannot be stored as {file_format} ({error}): write .png instead"
        ) from None
    return stream.getvalue()


def _png_chunks(packet: bytes | None) -> PngInfo:
    chunks = PngInfo()
    if packet is not None:
        chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
    return chunks


def xmp_packet(recipe: Recipe) -> bytes:
    """A recipe as it is put into files: `parse_packet` reads it."""
    is_edit = bool(recipe.images or recipe.history)
    source = "compositeWithTrainedAlgorithmicMedia" if is_edit else "trainedAlgorithmicMedia"
    tool = f"ace-allround {recipe.environment.packages.get('ace-allround', '')}".strip()
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:ace="{_NAMESPACE}">'
        f"<xmp:CreatorTool>{escape(tool)}</xmp:CreatorTool>"
        f"<Iptc4xmpExt:DigitalSourceType>{_SOURCE_TYPES}{source}</Iptc4xmpExt:DigitalSourceType>"
        f"<ace:recipe>{escape(recipe.to_json())}</ace:recipe>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


# Reading


def read(path: str | Path) -> Recipe:
    """The recipe inside a picture file. Raises InputError if there is none, or none that can be trusted to be whole."""
    name = Path(path).name
    return parse_packet(read_packet(path, name), name)


def parse_packet(packet: bytes, name: str) -> Recipe:
    """The recipe inside an XMP packet. name: of its file, for messages. Raises InputError."""
    if len(packet) > 2 * MAX_RECIPE_BYTES or b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise InputError(f"{name} holds metadata that no recipe has: use the original file")
    try:
        root = ElementTree.fromstring(packet.decode("utf-8").strip("\0\ufeff \r\n\t"))
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise InputError(f"{name} holds damaged metadata: use the original file") from None
    tag = f"{{{_NAMESPACE}}}recipe"
    for element in root.iter():
        text = element.text if element.tag == tag else element.get(tag)  # other tools may turn it into an attribute
        if text:
            return Recipe.from_json(text, name=name)
    raise InputError(f"{name} carries no recipe: it was not made by ace, or was saved without metadata")


def read_packet(path: str | Path, name: str) -> bytes:
    """The XMP packet of an image file. Raises InputError if there is none."""
    try:
        with quiet_pillow(), Image.open(path, formats=("PNG", "JPEG", "WEBP", "TIFF")) as image:
            packet = image.info.get("xmp")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file: check the path") from None
    except DECODE_ERRORS:
        open_image(path)  # says what is wrong with it as a picture
        raise InputError(f"{name} holds damaged metadata: use the original file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} is too large to be an output of ace: use the original file") from None
    if isinstance(packet, str):
        packet = packet.encode()
    if not isinstance(packet, bytes) or not packet:
        raise InputError(f"{name} carries no recipe: it was not made by ace, or was saved without metadata")
    return packet
