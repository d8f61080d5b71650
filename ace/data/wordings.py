"""What people say, read once from `wordings.toml`: words for places, times, looks and faces, and the tasks' templates.

`TEMPLATES[key]` are paraphrases of one request; a key is a task, or a task and a variant
("element_editing/object_add#masked"). Not here: which one is taken, and what is filled in.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _tuples(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(words) for key, words in table.items()}


SLOT_WORDS: dict[str, tuple[str, ...]] = _tuples(_FILE["slots"])
BARE_NAMES: frozenset[str] = frozenset(_FILE["bare_names"])  # names that take no article
ALIASES: dict[str, tuple[str, ...]] = _tuples(_FILE["aliases"])  # name of a concept -> other words for it
LOOK_WORDS: dict[str, tuple[str, ...]] = _tuples(_FILE["looks"])
TEMPLATES: dict[str, tuple[str, ...]] = _tuples(_FILE["templates"])
# time -> (as in "make it ...", as in "show it ...")
TIME_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    time: (tuple(words["names"]), tuple(words["moments"])) for time, words in _FILE["times"].items()
}
# (attribute, the value it gets) -> what to say; "*" = any other value
FACE_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    (attribute, value): tuple(words) for attribute, table in _FILE["faces"].items() for value, words in table.items()
}
# (attribute, value) -> what "no" takes away
FACE_OLD_WORDS: dict[tuple[str, str], str] = {
    (attribute, value): word for attribute, table in _FILE["faces_old"].items() for value, word in table.items()
}
