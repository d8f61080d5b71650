"""Avatars for exact face edits: DiceBear faces that differ from their identity in one attribute and nothing else.

Every part of an identity (hairdo, skin, eyes, clothes …) is drawn from the literal choices below and passed to DiceBear
explicitly, so nothing is left to its own dice: changing the options of one attribute changes the pixels of that
attribute only. Left out are attributes that can hardly be seen in a small picture, such as freckles. Drawing needs Node
(`packages.py`); only styles under CC0 or CC-BY-4.0 are here.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ace.data.world.packages import (
    ADVENTURER,
    BIG_SMILE,
    DICEBEAR_CORE,
    LORELEI,
    MICAH,
    OPEN_PEEPS,
    PERSONAS,
    TOON_HEAD,
    Package,
    run_node,
    unpack,
)

Option = str | int  # a component's variant or colour, or a probability: 0 = never, 100 = always
Look = dict[str, Option]  # DiceBear options that make one value of an attribute

HAIR = {"brown": "6f4a2f", "black": "2a2430", "blond": "e6c063", "red": "c2512d", "blue": "4f86d9", "pink": "e487b8"}
SHIRTS = {"red": "d8404a", "blue": "3f6fd8", "green": "3fa35b", "yellow": "f2c53d", "purple": "8a55c9"}
SKIN = ("f8d9c0", "f0c09a", "d99a6c", "b5734a", "8a5233", "6b3f28")


def _colors(option: str, colors: dict[str, str]) -> dict[str, Look]:
    return {name: {option: color} for name, color in colors.items()}


def _optional(option: str, variant: str, name: str = "yes") -> dict[str, Look]:
    """Values "no" and `name` of a component that may be absent."""
    return {"no": {f"{option}Probability": 0}, name: {f"{option}Probability": 100, option: variant}}


@dataclass(frozen=True)
class AvatarStyle:
    """One DiceBear style. parts: option -> choices, drawn once per identity. attributes: name -> value -> options.

    An attribute named in `drawn` starts at a value drawn per identity; the others start at their first value."""

    name: str
    package: Package
    parts: dict[str, tuple[Option, ...]]
    attributes: dict[str, dict[str, Look]]
    drawn: tuple[str, ...] = ("hair", "mouth", "shirt")


AVATAR_STYLES: tuple[AvatarStyle, ...] = (
    AvatarStyle(
        "micah",
        MICAH,
        parts={
            "baseColor": SKIN,
            "ears": ("attached", "detached"),
            "hair": ("fonze", "dannyPhantom", "full", "pixie", "mrT"),
            "nose": ("curve", "pointed", "tound"),
            "eyebrows": ("up", "down", "eyelashesUp"),
            "eyes": ("eyes", "round"),
            "shirt": ("open", "crew", "collared"),
            "facialHairColor": ("2a2430", "6f4a2f"),
            "glassesColor": ("202024", "9287ff"),
            "earringColor": ("f4d150", "6bd9e9"),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {
                "smile": {"mouth": "smile"},
                "sad": {"mouth": "sad"},
                "laugh": {"mouth": "laughing"},
                "surprised": {"mouth": "surprised"},
            },
            "glasses": _optional("glasses", "round"),
            "beard": _optional("facialHair", "beard"),
            "earrings": _optional("earrings", "hoop"),
            "shirt": _colors("shirtColor", SHIRTS),
        },
    ),
    AvatarStyle(
        "toon-head",
        TOON_HEAD,
        parts={
            "skinColor": SKIN,
            "hair": ("sideComed", "undercut", "spiky", "bun"),
            "rearHair": ("longStraight", "longWavy", "shoulderHigh", "neckHigh"),
            "rearHairProbability": (0, 0, 100),
            "eyebrows": ("raised", "happy", "neutral"),
            "clothes": ("turtleNeck", "openJacket", "shirt", "tShirt"),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {
                "smile": {"mouth": "smile"},
                "sad": {"mouth": "sad"},
                "laugh": {"mouth": "laugh"},
                "surprised": {"mouth": "agape"},
                "angry": {"mouth": "angry"},
            },
            "eyes": {"open": {"eyes": "wide"}, "closed": {"eyes": "bow"}, "wink": {"eyes": "wink"}},
            "beard": {
                **_optional("beard", "fullBeard"),
                "mustache": {"beardProbability": 100, "beard": "moustacheTwirl"},
            },
            "shirt": _colors("clothesColor", SHIRTS),
        },
    ),
    AvatarStyle(
        "personas",
        PERSONAS,
        parts={
            "skinColor": ("eeb4a4", "e7a391", "d78774", "b16a5b", "f0c09a", "d99a6c"),  # its faces are paler than asked
            "hair": (
                *("long", "sideShave", "shortCombover", "curlyHighTop", "bobCut", "curly", "pigtails", "curlyBun"),
                *("bobBangs", "bunUndercut", "fade", "straightBun", "extraLong", "mohawk"),
            ),
            "nose": ("mediumRound", "smallRound"),
            "body": ("squared", "rounded", "small"),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {
                "smile": {"mouth": "smile"},
                "sad": {"mouth": "frown"},
                "laugh": {"mouth": "bigSmile"},
                "surprised": {"mouth": "surprise"},
            },
            "glasses": {"no": {"eyes": "open"}, "yes": {"eyes": "glasses"}, "sunglasses": {"eyes": "sunglasses"}},
            "beard": {
                **_optional("facialHair", "beardMustache"),
                "mustache": {"facialHairProbability": 100, "facialHair": "walrus"},
            },
            "shirt": _colors("clothingColor", SHIRTS),
        },
    ),
    AvatarStyle(
        "big-smile",
        BIG_SMILE,
        parts={
            "skinColor": SKIN,
            "hair": (
                *("shortHair", "mohawk", "wavyBob", "bowlCutHair", "curlyBob", "straightHair", "bunHair", "froBun"),
                *("bangs", "curlyShortHair"),
            ),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {
                "smile": {"mouth": "teethSmile"},
                "sad": {"mouth": "openSad"},
                "laugh": {"mouth": "openedSmile"},
                "serious": {"mouth": "unimpressed"},
            },
            "eyes": {"open": {"eyes": "cheery"}, "closed": {"eyes": "sleepy"}, "wink": {"eyes": "winking"}},
            "glasses": {
                **_optional("accessories", "glasses"),
                "sunglasses": {"accessoriesProbability": 100, "accessories": "sunglasses"},
            },
            "beard": _optional("accessories", "mustache", "mustache"),
        },
        drawn=("hair", "mouth"),
    ),
    AvatarStyle(
        "open-peeps",
        OPEN_PEEPS,
        parts={
            "skinColor": SKIN,
            "head": ("bangs", "grayBun", "grayMedium", "grayShort", "mediumBangs2", "short4"),
        },
        attributes={
            "hair": _colors("headContrastColor", HAIR),
            "mouth": {
                "smile": {"face": "smile"},
                "laugh": {"face": "smileBig"},
                "serious": {"face": "serious"},
                "angry": {"face": "veryAngry"},
            },
            "glasses": {
                **_optional("accessories", "glasses2"),
                "sunglasses": {"accessoriesProbability": 100, "accessories": "sunglasses"},
            },
            "beard": {
                **_optional("facialHair", "full3"),
                "mustache": {"facialHairProbability": 100, "facialHair": "moustache2"},
            },
            "mask": _optional("mask", "medicalMask"),
            "shirt": _colors("clothingColor", SHIRTS),
        },
    ),
    AvatarStyle(
        "lorelei",
        LORELEI,
        parts={
            "skinColor": SKIN,
            "hair": tuple(f"variant{n:02d}" for n in (48, 46, 43, 42, 40, 37, 36, 33, 32, 30, 24, 23, 19, 17, 10, 4)),
            "head": ("variant04", "variant03", "variant02", "variant01"),
            "eyes": ("variant24", "variant20", "variant16", "variant12", "variant09", "variant04"),
            "eyebrows": ("variant13", "variant10", "variant06", "variant01"),
            "nose": ("variant01", "variant03", "variant05"),
            "glassesColor": ("202024", "702020"),
            "hairAccessoriesColor": ("d8404a", "f2c53d"),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {"smile": {"mouth": "happy01"}, "sad": {"mouth": "sad09"}, "laugh": {"mouth": "happy12"}},
            "glasses": {
                **_optional("glasses", "variant04"),
                "sunglasses": {"glassesProbability": 100, "glasses": "variant02"},
            },
            "beard": _optional("beard", "variant01"),
            "flowers": _optional("hairAccessories", "flowers"),
        },
        drawn=("hair", "mouth"),
    ),
    AvatarStyle(
        "adventurer",
        ADVENTURER,
        parts={
            "skinColor": SKIN,
            "hair": (
                *(f"short{n:02d}" for n in (1, 3, 4, 5, 7, 9, 11, 14, 16, 19)),
                *(f"long{n:02d}" for n in (1, 3, 5, 7, 9, 12, 15, 18, 21, 24)),
            ),
            "eyes": tuple(f"variant{n:02d}" for n in (1, 3, 5, 12, 15, 24, 26)),
            "eyebrows": tuple(f"variant{n:02d}" for n in (1, 4, 8, 10)),
        },
        attributes={
            "hair": _colors("hairColor", HAIR),
            "mouth": {
                "smile": {"mouth": "variant01"},
                "sad": {"mouth": "variant14"},
                "laugh": {"mouth": "variant26"},
                "surprised": {"mouth": "variant18"},
                "serious": {"mouth": "variant09"},
            },
            "glasses": {
                **_optional("glasses", "variant04"),
                "sunglasses": {"glassesProbability": 100, "glasses": "variant01"},
            },
            "beard": _optional("features", "mustache", "mustache"),
            "earrings": _optional("earrings", "variant02"),
        },
        drawn=("hair", "mouth"),
    ),
)


@dataclass(frozen=True)
class Avatar:
    """One avatar to draw: who, what can be said of it, and the DiceBear options that draw it."""

    identity: str
    style: AvatarStyle
    attributes: dict[str, str]
    options: Look

    @property
    def key(self) -> str:
        """Its name in a pack, e.g. "micah-3/brown,smile,no,no,no,red"."""
        return f"{self.identity}/{','.join(self.attributes.values())}"


def list_identity(style: AvatarStyle, number: int, max_edits: int | None = None) -> tuple[Avatar, ...]:
    """An identity's plain avatar, then those that differ from it in one attribute.

    number: which identity; the same number is always the same face. max_edits: keep so many edits, as varied as
    possible; None = all."""
    dice = random.Random(f"{style.name}-{number}")
    parts: Look = {option: dice.choice(choices) for option, choices in sorted(style.parts.items())}
    first: dict[str, str] = {}
    for name, values in style.attributes.items():
        first[name] = dice.choice(list(values)) if name in style.drawn else next(iter(values))
    others = {name: [value for value in values if value != first[name]] for name, values in style.attributes.items()}
    for values in others.values():
        dice.shuffle(values)
    rounds = range(max(len(values) for values in others.values()))
    edits = [(name, others[name][turn]) for turn in rounds for name in others if turn < len(others[name])]
    changes: list[dict[str, str]] = [{}, *({name: value} for name, value in edits[:max_edits])]
    identity = f"{style.name}-{number}"
    return tuple(Avatar(identity, style, first | change, _options(style, parts, first, change)) for change in changes)


def _options(style: AvatarStyle, parts: Look, first: dict[str, str], change: dict[str, str]) -> Look:
    options = dict(parts)
    looks = [style.attributes[name][value] for name, value in first.items()]
    looks += [
        style.attributes[name][value] for name, value in change.items()
    ]  # last: two attributes may share a component
    for look in looks:
        options |= look
    return options


_DRAW = """
import { readFileSync, writeFileSync } from 'node:fs';
import { createAvatar } from '@dicebear/core';
const wanted = JSON.parse(readFileSync('wanted.json', 'utf8'));
const styles = {};
for (const name of new Set(wanted.map((avatar) => avatar.style))) styles[name] = await import(`@dicebear/${name}`);
const svgs = wanted.map((avatar) => createAvatar(styles[avatar.style], avatar.options).toString());
writeFileSync('drawn.json', JSON.stringify(svgs));
"""


def draw_avatars(avatars: tuple[Avatar, ...], tarballs: Path) -> list[str]:
    """The SVG of each avatar, drawn by DiceBear in Node from the verified tarballs in the folder `tarballs`."""
    wanted = [
        {
            "style": avatar.style.name,
            "options": {
                "seed": avatar.identity,
                **{name: value if isinstance(value, int) else [value] for name, value in avatar.options.items()},
            },
        }
        for avatar in avatars
    ]
    with tempfile.TemporaryDirectory(prefix="ace-avatars-") as name:
        folder = Path(name)
        modules = folder / "node_modules" / "@dicebear"
        modules.mkdir(parents=True)
        for package in {DICEBEAR_CORE, *(avatar.style.package for avatar in avatars)}:
            unpack(tarballs / package.tarball, modules / package.name.removeprefix("@dicebear/"))
        (folder / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
        (folder / "draw.mjs").write_text(_DRAW, encoding="utf-8")
        run_node(["draw.mjs"], folder)
        return json.loads((folder / "drawn.json").read_text(encoding="utf-8"))
