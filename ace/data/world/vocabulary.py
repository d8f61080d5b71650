"""The vocabulary of a model that learns from the world: what `ace.conditions.Vocabulary` says of it."""

from __future__ import annotations

import re

from ace.conditions.vocabulary import Vocabulary
from ace.data.wordings import (
    ALIASES,
    FACE_OLD_WORDS,
    FACE_WORDS,
    LOOK_WORDS,
    SLOT_WORDS,
    TEMPLATES,
    TIME_WORDS,
)
from ace.data.world.backgrounds import COLORS, LANDSCAPES, PATTERNS, PLACES
from ace.data.world.chance import COLOR_STYLES, LETTERS, LONGEST_WORD
from ace.data.world.puppet import POSE_REQUESTS, POSES
from ace.data.world.sprites import STYLE_NAMES, SpriteLibrary
from ace.data.world.tasks.signals import SIGNAL_WORDS


def vocabulary_of(library: SpriteLibrary) -> Vocabulary:
    """What the world teaches to draw with a library: core concepts, colour styles, places, grounds, letters."""
    core = sorted(concept.name for concept in library.concepts if concept.core)
    grounds = (*PATTERNS, *(words for words, _ in (*LANDSCAPES.values(), *PLACES.values())))
    said = [
        *(text for texts in TEMPLATES.values() for text in texts),
        *(text for texts in (*SLOT_WORDS.values(), *FACE_WORDS.values(), *SIGNAL_WORDS.values()) for text in texts),
        *(text for names, moments in TIME_WORDS.values() for text in (*names, *moments)),
        *(text for texts in (*POSE_REQUESTS.values(), *LOOK_WORDS.values()) for text in texts),
        *FACE_OLD_WORDS.values(),
        *POSES,
        *grounds,
        "plain background gradient from stripes checks dots vertical horizontal person hair skin shirt trousers",
        "word letters letter text degraded light",
    ]
    words = set(re.findall(r"[a-z][a-z'-]*", " ".join(re.sub(r"<\w+>|\{\w+\}", " ", text.lower()) for text in said)))
    return Vocabulary(
        concepts={name: ALIASES.get(name, ()) for name in core},
        styles={style: STYLE_NAMES[style] for style in COLOR_STYLES} | dict(LOOK_WORDS),
        places=tuple(words for ways in SLOT_WORDS.values() for words in ways),
        grounds=grounds,
        colours=tuple(COLORS),
        letters=LETTERS,
        longest_word=LONGEST_WORD,
        frame=tuple(sorted(words)),
    )
