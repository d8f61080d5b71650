"""Which emoji become concepts of the procedural world, and what they are called.

A concept is kept if noto, twemoji and all fluent styles draw it, it is no flag or symbol, and it is not one of a run of
nearly the same pictures. Names are the words that a person would use in an instruction. Order is Unicode's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ace.data.world.packages import (
    CLDR,
    EMOJI_NAMES,
    FLUENT_3D,
    FLUENT_FLAT,
    FLUENT_MONO,
    NOTO,
    TWEMOJI,
    read_json,
    read_members,
)
from ace.errors import CheckpointError

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
    "ice cream": "bowl of ice cream", "doughnut": "donut", "wrapped gift": "gift",
    "jack-o-lantern": "halloween pumpkin", "musical keyboard": "piano", "honeybee": "bee", "lady beetle": "ladybug",
    "evergreen tree": "pine tree", "deciduous tree": "tree", "flying saucer": "ufo", "ringed planet": "planet",
    "wastebasket": "trash can", "billed cap": "cap", "thong sandal": "flip flop", "gem stone": "diamond",
    "linked paperclips": "paper clips", "pool 8 ball": "eight ball", "game die": "dice", "flying disc": "frisbee",
    "tennis": "tennis ball", "spiral shell": "sea shell", "bullseye": "target", "steaming bowl": "bowl of noodles",
    "magnifying glass tilted left": "magnifying glass", "shallow pan of food": "pan of food",
    "globe showing Europe-Africa": "globe", "T-Rex": "tyrannosaurus", "sauropod": "long neck dinosaur",
    "see-no-evil monkey": "monkey covering its eyes", "hear-no-evil monkey": "monkey covering its ears",
    "speak-no-evil monkey": "monkey covering its mouth", "snow-capped mountain": "snowy mountain",
    "passenger ship": "cruise ship", "beach with umbrella": "beach", "speaker high volume": "loudspeaker",
    "loudspeaker": "public address speaker", "dollar banknote": "dollar bill", "optical disk": "compact disc",
    "clapper board": "movie clapper", "mantelpiece clock": "mantel clock", "ewe": "sheep",
    "hourglass done": "hourglass", "closed mailbox with raised flag": "mailbox", "closed book": "red book",
    "horizontal traffic light": "traffic light", "crossed swords": "swords", "carpentry saw": "saw",
    "roll of paper": "toilet paper", "performing arts": "theater masks", "sun behind cloud": "sun and cloud",
    "sun behind rain cloud": "sun and rain", "cloud with rain": "rain cloud", "cloud with snow": "snow cloud",
    "cloud with lightning": "storm cloud", "man’s shoe": "shoe", "woman’s clothes": "blouse",
    "woman’s sandal": "sandal", "woman’s boot": "boot", "woman’s hat": "sun hat",
    "rescue worker’s helmet": "rescue helmet", "1st place medal": "gold medal", "heart suit": "playing card heart",
    "pile of poo": "poop", "high voltage": "lightning bolt", "spouting whale": "whale spouting water",
    "police car light": "siren", "glass of milk": "milk", "meat on bone": "meat", "cheese wedge": "cheese",
    "fork and knife with plate": "plate with fork and knife", "bowl with spoon": "bowl of soup",
    "bottle with popping cork": "champagne bottle", "teacup without handle": "cup of tea",
    "cup with straw": "soda cup", "OK hand": "ok hand", "goal net": "goal", "flag in hole": "golf flag",
    "martial arts uniform": "karate uniform", "page facing up": "sheet of paper",
    "person in motorized wheelchair": "person in electric wheelchair", "sign of the horns": "rock hand sign",
    "man blond hair": "man with blond hair", "man red hair": "man with red hair",
    "man curly hair": "man with curly hair", "man white hair": "man with white hair", "man bald": "bald man",
    "woman red hair": "woman with red hair", "woman curly hair": "woman with curly hair",
    "woman white hair": "woman with white hair", "woman bald": "bald woman",
    "woman blond hair": "woman with blond hair", "backhand index pointing up": "hand pointing up",
    "index pointing up": "raised index finger", "hand with index finger and thumb crossed": "finger heart",
    "person gesturing NO": "person saying no", "person gesturing OK": "person saying ok", "Santa Claus": "santa claus",
    "Mrs. Claus": "mrs claus",
}  # emoji name -> the word people use; other names only lose capitals and punctuation  # fmt: skip

# Common, visually distinct, short to say: what a small model is shown most, and what the shipped pack always has.
CORE: tuple[str, ...] = (
    # animals
    "cat", "dog", "fox", "wolf", "lion", "tiger", "horse", "unicorn", "cow", "pig", "sheep", "goat", "camel",
    "elephant", "rhinoceros", "mouse", "rabbit", "bear", "panda", "koala", "monkey", "chicken", "baby chick", "bird",
    "penguin", "eagle", "duck", "owl", "frog", "crocodile", "turtle", "snake", "dragon", "whale", "dolphin", "fish",
    "shark", "octopus", "crab", "snail", "butterfly", "bee", "ladybug", "spider",
    # plants
    "rose", "sunflower", "tulip", "tree", "pine tree", "palm tree", "cactus", "four leaf clover", "mushroom",
    # food
    "grapes", "watermelon", "lemon", "banana", "pineapple", "red apple", "pear", "cherries", "strawberry", "tomato",
    "avocado", "eggplant", "carrot", "corn", "bread", "croissant", "cheese", "hamburger", "french fries", "pizza",
    "hot dog", "fried egg", "popcorn", "sushi", "ice cream cone", "donut", "cookie", "birthday cake", "lollipop",
    "cup of coffee", "beer mug",
    # travel
    "globe", "volcano", "house", "castle", "tent", "ferris wheel", "steam train", "bus", "ambulance", "fire engine",
    "police car", "taxi", "car", "truck", "tractor", "motorcycle", "bicycle", "traffic light", "sailboat",
    "cruise ship", "airplane", "helicopter", "rocket", "hourglass", "alarm clock", "crescent moon", "sun", "star",
    "cloud", "rainbow", "umbrella", "lightning bolt", "snowman", "fire", "droplet",
    # activities
    "christmas tree", "halloween pumpkin", "balloon", "gift", "trophy", "soccer ball", "basketball",
    "american football", "dice", "artist palette",
    # objects
    "glasses", "t shirt", "dress", "backpack", "high heeled shoe", "crown", "top hat", "ring", "diamond", "bell",
    "guitar", "trumpet", "violin", "drum", "laptop", "television", "camera", "candle", "light bulb", "red book",
    "money bag", "envelope", "pencil", "scissors", "key", "hammer", "swords", "shield",
    # smileys and people
    "robot", "ghost", "alien", "skull", "red heart", "santa claus", "thumbs up",
)  # fmt: skip


def clean_name(emoji_name: str) -> str:
    """The words for an emoji in an instruction: lower case, no punctuation, no accents ("piñata" -> "pinata")."""
    name = NAMES.get(emoji_name, emoji_name).replace("’", "").replace("-", " ").replace("&", "and")
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
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
    """The concepts drawn by all of noto, twemoji and fluent, in Unicode's order.

    Raises CheckpointError if the data is not as expected: a core concept missing, or two concepts of one name."""
    names = read_json(tarballs / EMOJI_NAMES.tarball, "package/data-by-emoji.json")
    chinese = read_json(tarballs / CLDR.tarball, "package/annotations/zh/annotations.json")["annotations"][
        "annotations"
    ]
    drawn = set.intersection(
        *(set(keys_of_icons(tarballs / package.tarball)) for package in (NOTO, FLUENT_MONO)),
        *(
            {key_of_path(path) for path, _ in read_members(tarballs / package.tarball, suffix)}
            for package, suffix in ((TWEMOJI, ".svg"), (FLUENT_FLAT, ".svg"), (FLUENT_3D, ".webp"))
        ),
    )
    all_names = {entry["name"] for entry in names.values()}
    concepts: list[Drawable] = []
    is_plant = False
    for emoji, entry in names.items():
        name = entry["name"]
        is_plant = (is_plant or name == FIRST_PLANT) and entry["group"] == "Animals & Nature"
        key = _key(f"{ord(character):04x}" for character in emoji)
        if key not in drawn or entry["group"] not in GROUPS or DROPPED.fullmatch(name) or _is_gendered(name, all_names):
            continue
        zh = chinese.get(emoji, chinese.get(emoji.replace("\ufe0f", ""), {})).get("tts", [""])[0]
        concepts.append(Drawable(clean_name(name), zh, "plants" if is_plant else GROUPS[entry["group"]], key))
    known = [concept.name for concept in concepts]
    repeated = sorted({name for name in known if known.count(name) > 1})
    missing = sorted(set(CORE) - set(known))
    if repeated or missing:
        raise CheckpointError(f"the emoji data has changed: named twice {repeated}, core concepts missing {missing}")
    return tuple(concepts)


def keys_of_icons(tarball: Path) -> dict[str, str]:
    """Code point key -> icon name, of an Iconify package."""
    return {_key(points.split("-")): name for points, name in read_json(tarball, "package/chars.json").items()}


def key_of_path(path: str) -> str:
    """Code point key of a picture named after its code points."""
    return _key(Path(path).stem.split("-"))


def _key(code_points: Iterable[str]) -> str:
    return "-".join(point for point in code_points if point != "fe0f")


def _is_gendered(name: str, all_names: set[str]) -> bool:
    """True for "man X" or "woman X" where a neutral "X" or "person X" is drawn too."""
    gender, _, rest = name.partition(" ")
    return gender in ("man", "woman") and any(prefix + rest in all_names for prefix in NEUTRAL_PREFIXES)
