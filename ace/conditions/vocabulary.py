"""What a small model has learnt to draw from words: `vocabulary.json` in its folder, and what a request asks beyond it.

A model that learnt from the procedural world knows a fixed list of things, styles and grounds. A request may name any
other thing that is already in a picture; only a new thing that must be drawn from its name has to be known. New are
things with an indefinite article or a number ("a giraffe"), and those after a verb of making ("draw giraffes"). This is
a grammar of a few lines: it serves a note to the user and decides nothing.

Not here: making the list (`ace.data.world.vocabulary`), showing notes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ace.errors import CheckpointError

FILE = "vocabulary.json"
VERSION = 1

_MADE = r"add|draw|put|insert|place|include|paint|illustrate|generate|create|sketch|give me|show me|let there be"
_ARTICLE = r"an?|another|some|one|two|three|four|five|several|many"
_NEW = rf"\b(?:{_ARTICLE})\s|\b(?:{_MADE})\s(?!(?:{_ARTICLE}|the|me|it)\s)"
_STOP = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those it its them him her his me my your our their is are be was to of in on at by
        for from with into onto over under behind beside between next near above below inside outside around through
        and or but so then as like than where which who whose there here not no instead please again back up down
        out off away too also now just only wearing holding sitting standing lying looking playing eating riding
        flying swimming running jumping
        """,
    )
)
_LOOKS = frozenset(
    re.findall(
        r"\w+",
        """
        big large small little tiny huge giant tall short long old young new cute nice pretty beautiful happy sad
        angry funny cool bright dark light simple single second third other different bigger smaller larger nicer
        more few lot couple pair very really bit shiny golden
        """,
    )
)


@dataclass(frozen=True)
class Vocabulary:
    """What a model was taught.

    concepts: names of things that it can draw, with other words for each. styles, places, grounds: words for styles,
    for where a thing is, for backgrounds. colours: their names. letters: that words to write are made of;
    longest_word: of them. frame: all other words that its instructions were made of."""

    concepts: dict[str, tuple[str, ...]]
    styles: dict[str, tuple[str, ...]]
    places: tuple[str, ...]
    grounds: tuple[str, ...]
    colours: tuple[str, ...]
    letters: str
    longest_word: int
    frame: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Vocabulary | None:
        """The vocabulary of the model in a folder; None if it has none. Raises CheckpointError if it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read.pop("version") != VERSION:
                raise ValueError("another version")
            concepts, styles = ({k: tuple(v) for k, v in read[name].items()} for name in ("concepts", "styles"))
            lists = {name: tuple(map(str, read[name])) for name in ("places", "grounds", "colours", "frame")}
            letters, longest = str(read["letters"]), int(read["longest_word"])
            return cls(concepts, styles, letters=letters, longest_word=longest, **lists)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path.name} of the model in {folder.name} cannot be read: {error}") from error

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def known(self, text: str) -> tuple[str, ...]:
        """The names of the things in a text that the model can draw, in their order, each once."""
        found = (self._names[match[0]] for match in self._things.finditer(_plain(text)))
        return tuple(dict.fromkeys(found))

    def unknown(self, text: str) -> tuple[str, ...]:
        """What a text asks to be drawn that the model never learnt, in the text's words, each once."""
        rest = self._phrases.sub(" ; ", self._things.sub(" * ", _plain(text)))
        found: list[str] = []
        for match in re.finditer(_NEW, rest):
            words: list[str] = []
            for word in map(str, re.findall(r"[a-z][a-z'-]*|\S", rest[match.end() :])):
                if not word[0].isalpha() or word in _STOP:
                    words += ["*"] if word == "*" else []
                    break
                words.append(word)
            if "*" not in words and not all(word in self._frame for word in words):
                while words and words[0] in self._frame:
                    words = words[1:]
                found.append(" ".join(words))
        return tuple(dict.fromkeys(found))

    def note(self, model_name: str, text: str) -> str | None:
        """What to tell a user who asks for things that the model never learnt; None if there is nothing to tell."""
        names = self.unknown(text)
        if not names:
            return None
        listed = ", ".join(f"'{name}'" for name in names)
        return f"{model_name} has not learnt {listed}; `ace models MODEL` lists what a model can draw"

    @cached_property
    def _names(self) -> dict[str, str]:
        """Every way to write a thing that it knows -> its name."""
        forms: dict[str, str] = {}
        for name, others in self.concepts.items():
            for words in (name, *others):
                for form in (words, f"{words}s", f"{words}es", f"{words[:-1]}ies" if words.endswith("y") else words):
                    forms.setdefault(form, name)
        return forms

    @cached_property
    def _things(self) -> re.Pattern[str]:
        return _any_of(self._names)

    @cached_property
    def _phrases(self) -> re.Pattern[str]:
        """Styles and grounds, whose words are not names of things."""
        return _any_of((*self.grounds, *(words for ways in self.styles.values() for words in ways)))

    @cached_property
    def _frame(self) -> frozenset[str]:
        return _LOOKS.union(self.frame, self.colours)


def _plain(text: str) -> str:
    """Small letters without quoted words and names of images."""
    return re.sub(r"\"[^\"]*\"|“[^”]*”|\{[^}]*\}", " ; ", text).lower()


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b" if longest_first else r"(?!)")
