"""What may be drawn, and the dice: the split between training and held-out material, and one sample's random choices.

What has to be drawn from its name alone is one of the core concepts, in training always. All others are only kept,
moved, removed or drawn in another style. The split is by hash, fixed before any training: a tenth of the concepts
outside the core, one style, a tenth of each task's instruction templates, and all seeds (a seed means different dice in
each split). Training draws none of them; held-out samples use held-out dice and templates, some of them held-out
concepts or the held-out style, and say so.

Not here: what a task does with its choices (`tasks/`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from ace.data.wordings import ALIASES, BARE_NAMES, SLOT_WORDS, TEMPLATES
from ace.data.world.backgrounds import COLORS, GROUNDED, LANDSCAPES, PATTERNS, PLACES, TIMES, Background
from ace.data.world.levels import DEFAULT_STYLE, LEVELS, Level
from ace.data.world.places import CELLS, LOW, LOW_PAIRS, PAIRS, SLOTS, THING, TRIPLES, on_grid, word_place
from ace.data.world.puppet import HAIRS, POSES, SHIRTS, SKINS, TROUSERS, Puppet
from ace.data.world.scene import GRID_FONT, FaceObject, PuppetObject, Scene, SceneObject, SpriteObject, TextObject
from ace.data.world.sprites import HELD_OUT_STYLE, STYLES, Concept, SpriteFace, SpriteLibrary

Split = Literal["train", "held_out"]
T = TypeVar("T")

LINE_STYLE = "fluent-mono"
CORE_SHARE = 0.4  # of what is only kept, moved or removed; what is made from its name is always core
ALIAS_SHARE = 0.15  # of the names of core concepts that are said in another way


def fraction(text: str) -> float:
    """A text's place in 0..1, the same for ever (SHA-256)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def is_held_out(concept: Concept) -> bool:
    """True for the tenth of the concepts outside the core that training never sees."""
    return not concept.core and fraction(f"concept:{concept.slug}") < 0.1


def split_templates(key: str, split: Split) -> tuple[str, ...]:
    """The instruction templates of `TEMPLATES[key]` on one side of the split:

    the tenth with the smallest hashes is held out."""
    ordered = sorted(TEMPLATES[key], key=lambda t: fraction(f"template:{key}:{t}"))
    count = max(1, round(len(ordered) / 10))
    return tuple(ordered[:count] if split == "held_out" else ordered[count:])


def with_article(name: str) -> str:
    """The name with its article, if it takes one: a red apple, an orange, grapes."""
    if name in BARE_NAMES:
        return name
    vowel = name.startswith("hour") or (name[0] in "aeiou" and not name.startswith(("uni", "one", "eu", "uf")))
    return f"{'an' if vowel else 'a'} {name}"


@dataclass(frozen=True)
class Drawn:
    """A thing that an answer had to draw from its name. scene: the answer's; index: of the thing in its objects."""

    scene: Scene
    index: int


class Material:
    """A library sorted by split: made once, shared by all samples of a world."""

    def __init__(self, library: SpriteLibrary):
        self.library = library
        self.concepts: dict[str, Concept] = {c.slug: c for c in library.concepts}
        pools: dict[tuple[bool, str, bool], list[Concept]] = {}
        for concept in library.concepts:
            held_out = is_held_out(concept)
            for style in library.styles_of(concept.slug):
                pools.setdefault((held_out, style, False), []).append(concept)
                if concept.core:
                    pools.setdefault((held_out, style, True), []).append(concept)
        self._colors: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._pools = {key: tuple(value) for key, value in pools.items()}

    def pool(self, style: str, *, core: bool, held_out: bool) -> tuple[Concept, ...]:
        """Concepts that can be drawn in a style; all of that side of the split if none of them is core."""
        return self._pools.get((held_out, style, core)) or self._pools.get((held_out, style, False), ())

    def name(self, slug: str) -> str:
        return self.concepts[slug].name

    def mean_color(self, slug: str, style: str) -> tuple[int, int, int]:
        """The average colour of a drawing."""
        found = self._colors.get((slug, style))
        if found is None:
            rgba = self.library.sprite(slug, style, 16).astype(np.float32)
            weight = rgba[..., 3:]
            r, g, b = (rgba[..., :3] * weight).sum((0, 1)) / max(1.0, float(weight.sum()))
            found = self._colors[slug, style] = (round(float(r)), round(float(g)), round(float(b)))
        return found

    @cached_property
    def editable_faces(self) -> dict[Split, tuple[SpriteFace, ...]]:
        """Faces with at least one attribute edit, by the split of their identity."""
        sides: dict[Split, list[SpriteFace]] = {"train": [], "held_out": []}
        for face in self.library.faces():
            if self.library.face_edits(face):
                sides["held_out" if fraction(f"face:{face.identity}") < 0.1 else "train"].append(face)
        return {split: tuple(faces) for split, faces in sides.items()}


class Chance:
    """One sample's dice, and everything that is drawn with them from one side of the split.

    rng: the sample's own; split, level, seen_only: as in `World`. held_out_concept, held_out_style: whether such
    material is wanted; used: what was shown of it; unseen: what of it has to be drawn without having been seen. free:
    things that a picture or a mask places stand off the grid. drawn: what had to be drawn from its name.
    restyled: the answer of an edit of the style."""

    def __init__(
        self,
        material: Material,
        split: Split,
        rng: random.Random,
        size_px: int,
        level: Level = LEVELS["all"],
        *,
        seen_only: bool = False,
    ):
        self.material = material
        self.library = material.library
        self.split: Split = split
        self.rng = rng
        self.size_px = size_px
        self.level = level
        unseen = split == "held_out" and not seen_only
        self.held_out_concept = unseen and rng.random() < 0.2
        self.held_out_style = unseen and rng.random() < 0.1
        self.free = rng.random() < level.free_share
        self.used: set[str] = set()  # "concept", "style", "face"
        self.unseen: set[str] = set()
        self.drawn: list[Drawn] = []
        self.restyled: Scene | None = None

    # -- plain choices ------------------------------------------------------------------------------------------------

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def weighted(self, options: dict[T, float]) -> T:
        return self.rng.choices(list(options), list(options.values()))[0]

    # -- words --------------------------------------------------------------------------------------------------------

    def say(self, key: str, **words: str) -> str:
        """An instruction from this split's templates of `key`, with `<word>` filled in."""
        text = self.choice(_templates(key, self.split))
        for name, value in words.items():
            text = text.replace(f"<{name}>", value)
        return text

    def where(self, slot: str) -> str:
        """Words for a slot: "on the left"."""
        return self.choice(SLOT_WORDS[slot])

    def called(self, slug: str) -> str:
        """What a concept is called: mostly its name, sometimes another word for it."""
        concept = self.material.concepts[slug]
        others = ALIASES.get(concept.name, ()) if concept.core else ()
        return self.choice(others) if others and self.chance(ALIAS_SHARE) else concept.name

    def noun(self, item: SceneObject) -> str:
        """What an object is called, without an article: "red apple"."""
        if isinstance(item, SpriteObject):
            return self.called(item.slug)
        return item.puppet.words[2:] if isinstance(item, PuppetObject) else "face"

    def a(self, item: SceneObject) -> str:
        """What an object is called, with its article: "a red apple"."""
        return with_article(self.noun(item)) if isinstance(item, SpriteObject) else f"a {self.noun(item)}"

    def the(self, item: SceneObject) -> str:
        if isinstance(item, PuppetObject):
            return "the person"
        return f"the {self.noun(item)}"

    # -- concepts and styles ------------------------------------------------------------------------------------------

    def style(self) -> str:
        """A colour style: mostly the default one."""
        if self.held_out_style:
            return HELD_OUT_STYLE
        return DEFAULT_STYLE if not self.level.styled or self.chance(0.55) else self.choice(COLOR_STYLES)

    def other_style(self, style: str, slugs: Sequence[str]) -> str | None:
        """Another style in which all these concepts can be drawn, for them to be drawn in; None if there is none."""
        known = (*COLOR_STYLES, HELD_OUT_STYLE) if self.held_out_style else COLOR_STYLES
        both = [s for s in known if s != style and all(s in self.library.styles_of(slug) for slug in slugs)]
        chosen = self.choice(both) if both else None
        if chosen == HELD_OUT_STYLE:
            self.used.add("style")
            self.unseen.add("style")
        return chosen

    def concept(self, style: str, *, made: bool, avoid: Collection[str] = (), also: str | None = None) -> Concept:
        """A concept that exists in `style` (and `also`).

        made: it will have to be drawn from its name, so it is a core one unless a held-out one is wanted. avoid:
        concepts whose names may not share a word with it."""
        pool = ()
        if self.held_out_concept:
            pool = self.material.pool(style, core=False, held_out=True)
        if not pool:
            pool = self.material.pool(style, core=made or self.chance(CORE_SHARE), held_out=False)
        words = {word for slug in avoid for word in self.material.name(slug).split()}
        for _ in range(100):
            concept = self.choice(pool)
            if also is not None and also not in self.library.styles_of(concept.slug):
                continue
            if concept.slug not in avoid and not words & set(concept.name.split()):
                break
        shown = {"concept"} if is_held_out(concept) else set()
        shown |= {"style"} if style == HELD_OUT_STYLE else set()
        self.used |= shown
        if made:
            self.unseen |= shown
        return concept

    # -- backgrounds --------------------------------------------------------------------------------------------------

    def background(self, avoid: Background | None = None) -> Background:
        """Any background, but not `avoid`: two fifths plain, two fifths landscapes, the rest patterns and places."""
        while True:
            kind = (
                "plain"
                if self.level.plain
                else self.weighted({"plain": 0.36, "landscape": 0.4, "pattern": 0.16, "place": 0.08})
            )
            if kind == "plain":
                made = Background("plain", (self.choice(_COLOR_NAMES),))
            elif kind == "landscape":
                made = Background(
                    self.choice(_LANDSCAPE_NAMES), (), self.weighted({"day": 0.5, "sunset": 0.25, "night": 0.25})
                )
            elif kind == "pattern":
                first, second = self.rng.sample(_COLOR_NAMES, 2)
                made = Background(self.choice(PATTERNS[1:]), (first, second))
            else:
                made = Background(self.choice(_PLACE_NAMES))
            if made != avoid:
                return made

    def new_background(self, scene: Scene) -> Background:
        """Another background than the scene's, on which its objects can be seen."""
        items = [o for o in scene.objects if isinstance(o, SpriteObject)]
        colors = [self.material.mean_color(o.slug, o.style) for o in items]
        while True:
            made = self.showing(self.background(avoid=scene.background), colors)
            if made != scene.background:
                return made

    def landscape(self) -> Background:
        return Background(self.choice(_LANDSCAPE_NAMES), (), self.choice(TIMES))

    def plain(self, avoid: Collection[str] = ()) -> Background:
        return Background("plain", (self.choice([c for c in _COLOR_NAMES if c not in avoid]),))

    # -- objects and scenes -------------------------------------------------------------------------------------------

    def layout(self, count: int, background: Background) -> tuple[str, ...]:
        """Slots for `count` objects that do not touch; on the ground, where there is one, unless they are three."""
        grounded = background.kind in GROUNDED
        if count == 1:
            return (self.weighted({n: 4.0 if n == "middle" else 1.0 for n in (LOW if grounded else SLOTS)}),)
        slots = list(self.choice(TRIPLES if count == 3 else LOW_PAIRS if grounded else PAIRS))
        self.rng.shuffle(slots)
        return tuple(slots)

    def place(self, slot: str, cells: int = THING, *, free: bool = False) -> tuple[float, float, float]:
        """Centre x, y and side (fractions of the picture) of a thing of so many cells in a slot.

        free: it may be a little off the grid, larger or smaller; for things that a picture or a mask places."""
        x, y, size = on_grid(slot, cells)
        if not (free and self.free):
            return x, y, size
        size *= self.choice(_FREE_SIZES)
        x, y = (v + (self.rng.random() - 0.5) / CELLS for v in (x, y))
        return min(max(x, size / 2), 1 - size / 2), min(max(y, size / 2), 1 - size / 2), size

    def scene(
        self,
        count: int | None = None,
        *,
        made: bool = False,
        style: str | None = None,
        background: Background | None = None,
        also: str | None = None,
        vary: bool = True,
    ) -> tuple[Scene, tuple[str, ...]]:
        """A scene of `count` sprites (None: one to three) and their slots.

        made: it has to be drawn from words, so sizes are the usual ones, things on the grid and concepts core ones;
        else sizes vary and things may stand freely, unless `vary` is False. also: another style in which all of it can
        be drawn."""
        count = min(count or self.weighted({1: 0.5, 2: 0.35, 3: 0.15}), self.level.max_things)
        style = style or self.style()
        given, background = background, background or self.background()
        slots = self.layout(count, background)
        vary = vary and not made
        cells = self.choice((3, 4, 4, 5) if count == 1 else (3, 4, 4)) if vary else THING
        objects: list[SceneObject] = []
        slugs: list[str] = []
        for slot in slots:
            concept = self.concept(style, made=made, avoid=slugs, also=also)
            slugs.append(concept.slug)
            x, y, size = self.place(slot, cells, free=vary)
            objects.append(SpriteObject(concept.slug, style, x, y, size))
        if given is None:
            background = self.showing(background, [self.material.mean_color(slug, style) for slug in slugs])
        scene = Scene(background, tuple(objects))
        if made:
            self.draws(scene, *range(count))
        return scene, slots

    def draws(self, scene: Scene, *indices: int) -> None:
        """Note that the answer shows this scene and has to draw these of its objects from their names."""
        self.drawn += [Drawn(scene, index) for index in indices]

    def showing(self, background: Background, colors: Sequence[tuple[int, int, int]]) -> Background:
        """The background, with another colour if it is plain and something of these colours would be lost on it."""
        for _ in range(12):
            if background.kind != "plain" or all(
                _distance(COLORS[background.colors[0]], color) > 90 for color in colors
            ):
                break
            background = self.plain()
        return background

    def puppet(self, pose: str | None = None) -> Puppet:
        look = self.choice(SHIRTS), self.choice(TROUSERS), self.choice(tuple(SKINS)), self.choice(tuple(HAIRS))
        return Puppet(*look, pose or self.choice(tuple(POSES)))

    def puppet_scene(self, background: Background | None = None) -> Scene:
        """A person on a background that shows it well."""
        puppet = self.puppet()
        if background is None:
            hidden = ("black", "brown", "beige", puppet.shirt, puppet.trousers)
            background = self.plain(hidden) if self.chance(0.5) else self.landscape()
        return Scene(background, (PuppetObject(puppet, 0.5, 0.5, 0.96),))

    def face_scene(self, background: Background | None = None) -> Scene:
        """An avatar that has attribute edits."""
        faces = self.material.editable_faces
        if not faces["train"]:  # a pack without avatars
            return self.puppet_scene(background)
        face = self.choice(faces[self.split] or faces["train"])
        if self.split == "held_out" and faces["held_out"]:
            self.used.add("face")
        return Scene(background or self.plain(("black", "brown")), (FaceObject(face, 0.5, 0.5, 0.94),))

    def word(self) -> str:
        """Something short to write: letters and digits at random, or a word."""
        if self.chance(0.4):
            return self.choice(_WORDS[self.split])
        letters = LETTERS if self.chance(0.25) else LETTERS[:26]
        return "".join(self.choice(letters) for _ in range(self.rng.randint(1, LONGEST_WORD)))

    def text(self, background: Background, slot: str, *, any_font: bool = False) -> TextObject:
        """A word in a slot ("top", "middle" or "bottom"), in a colour that is not the background's.

        What has to be written stands on the grid in one font, what is only wiped off in any that writes Latin
        letters."""
        color = self.choice([c for c in _TEXT_COLORS if c not in background.colors])
        word = self.word()
        font = self.choice(self.library.fonts) if any_font else GRID_FONT
        x, y, height = word_place(len(word), slot)
        if font != GRID_FONT:
            x, height = 0.5, 0.3 if len(word) <= 4 else 0.24 if len(word) == 5 else 0.2
            y = min(max(y, height / 2), 1 - height / 2)
        return TextObject(word, color, x, y, height, font)

    def text_scene(self, *, any_font: bool = False) -> tuple[Scene, str]:
        """A scene with one word and at most one object below or above it, and the slot of the word."""
        background = self.background()
        if self.chance(0.35):
            slot = self.choice(("top", "middle", "bottom"))
            return Scene(background, texts=(self.text(background, slot, any_font=any_font),)), slot
        slot = "top" if background.kind in GROUNDED or self.chance(0.5) else "bottom"
        style = self.style()
        where = self.choice([n for n, (_, row) in SLOTS.items() if row != (0 if slot == "top" else 2)])
        x, y, size = self.place(where)
        item = SpriteObject(self.concept(style, made=False).slug, style, x, y, size)
        background = self.showing(background, [self.material.mean_color(item.slug, style)])
        return Scene(background, (item,), (self.text(background, slot, any_font=any_font),)), slot

    # -- captions -----------------------------------------------------------------------------------------------------

    def things(self, scene: Scene, slots: Sequence[str]) -> str:
        """The objects of a scene with their places: "a cat on the left and a dog on the right"."""
        parts = []
        for item, slot in zip(scene.objects, slots, strict=True):
            if isinstance(item, PuppetObject):
                parts.append(f"{item.puppet.all_words} {item.puppet.pose}")
            elif len(scene.objects) == 1 and slot == "middle" and self.chance(0.6):
                parts.append(self.a(item))
            else:
                parts.append(f"{self.a(item)} {self.where(slot)}")
        if scene.texts:
            parts += [f'the word "{t.text}" in {t.color} letters' for t in scene.texts]
        return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"

    def caption(self, scene: Scene, slots: Sequence[str] = ()) -> str:
        """The scene in words: "a cat on the left, on a plain blue background"."""
        things = self.things(scene, slots)
        if not things:
            return scene.background.words
        return f"{things}{self.choice((',', '', ','))} {scene.background.preposition} {scene.background.words}"


def without(scene: Scene, index: int) -> Scene:
    """The scene less one object."""
    return replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])


def with_object(scene: Scene, index: int, item: SceneObject) -> Scene:
    """The scene with one object exchanged."""
    return replace(scene, objects=(*scene.objects[:index], item, *scene.objects[index + 1 :]))


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    """Sum of the differences of two colours."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


COLOR_STYLES = tuple(s for s in STYLES if s not in (LINE_STYLE, HELD_OUT_STYLE))
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"  # what words are made of
LONGEST_WORD = 6
_FREE_SIZES = (0.8, 0.9, 1.0, 1.08, 1.16)  # of the usual one, off the grid
_COLOR_NAMES = tuple(COLORS)
_TEXT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
_LANDSCAPE_NAMES = tuple(LANDSCAPES)
_PLACE_NAMES = tuple(PLACES)
_ALL_WORDS = (
    "HI", "OK", "GO", "UP", "YES", "NO", "WOW", "SUN", "SEA", "FUN", "HOT", "NEW", "ICE", "TEA", "ART", "BIG",
    "RED", "LOVE", "HOME", "PARK", "SALE", "OPEN", "STOP", "TAXI", "CAFE", "SHOP", "ZOO", "BUS", "MAP", "KEY",
    "JAZZ", "ROCK", "MOON", "STAR", "FISH", "HELLO", "PIZZA", "MUSIC", "HAPPY", "PARTY", "SUPER", "TIGER", "QUIZ",
    "EXIT", "FREE", "COOL", "NICE", "LUCK", "JOY", "BOX", "CAT", "DOG", "OWL", "BEE", "FOX", "VAN", "JET", "GYM",
    "SPA", "BAR", "1", "2", "3", "7", "10", "42", "99", "100", "2024", "A", "B", "X", "Z", "ABC", "XYZ", "A1", "B2",
    "C3", "TV", "DJ", "WEB", "APP", "LIKE", "PLAY", "GAME", "WIN", "TOP", "VIP", "BLUE", "GOLD",
)  # fmt: skip
_WORDS: dict[Split, tuple[str, ...]] = {
    "train": tuple(w for w in _ALL_WORDS if fraction(f"word:{w}") >= 0.1),
    "held_out": tuple(w for w in _ALL_WORDS if fraction(f"word:{w}") < 0.1),
}
_SPLIT_TEMPLATES = {(key, split): split_templates(key, split) for key in TEMPLATES for split in ("train", "held_out")}


def _templates(key: str, split: Split) -> tuple[str, ...]:
    return _SPLIT_TEMPLATES[key, split]
