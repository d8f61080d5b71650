"""Wordings: paraphrase grammars, and what language models are asked and how their answers are judged (section 3.2).

The task files write the first wording from templates with slots. Here it is varied: by phrase classes, offline and
free (`paraphrase`), or by a language model that is shown all earlier wordings (`ask_rewording`). For mined pairs a
model that sees is asked what differs and what stays (`ask_difference`), then for the instruction (`ask_instruction`).

Pure functions of text and pictures; who is asked, and how, is in `label.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from ace.errors import ConditionError

LONGEST = 400  # characters of an instruction

# words that may stand for each other in an instruction; the first match of each class is replaced
PHRASES: tuple[tuple[str, ...], ...] = (
    ("remove", "delete", "erase", "take away", "get rid of"),
    ("add", "put in", "insert", "place"),
    ("replace", "exchange", "substitute", "swap"),
    ("change", "alter", "modify"),
    ("make", "turn"),
    ("convert", "transform"),
    ("generate", "create", "produce"),
    ("extract", "derive", "compute", "get"),
    ("fill in", "complete", "fill"),
    ("restore", "bring back", "recover"),
    ("extend", "expand", "enlarge"),
    ("repair", "mend", "fix"),
    ("background", "backdrop", "surroundings"),
    ("picture", "image", "photo"),
    ("region", "area", "part"),
    ("combine", "merge", "bring together"),
    ("draw", "sketch"),
)
FRAMES: tuple[str, ...] = (
    "{}",
    "please {}",
    "{}, please",
    "could you {}?",
    "can you {}?",
    "I would like you to {}",
    "your task: {}",
    "now {}",
)
KINDS = ("background", "time_of_day", "pose", "camera", "style", "face")  # of general editing, as tasks name them


@dataclass(frozen=True)
class Question:
    """What a model is asked: words, and the pictures that they are about, in order.

    attempt: how often it was asked before; another answer is wanted then."""

    text: str
    pictures: tuple[Image.Image, ...] = ()
    attempt: int = 0


def paraphrase(instruction: str, earlier: Sequence[str], rng: Random) -> str | None:
    """Another wording by the phrase classes, unlike all earlier ones; None if none is found in 40 tries.

    `{image}` names and everything in quotes stay as they are."""
    for _ in range(40):
        text = instruction
        for phrases in PHRASES:
            found = re.search(rf"\b({'|'.join(sorted(phrases, key=len, reverse=True))})\b", _outside_quotes(text))
            if found and rng.random() < 0.6:
                text = text[: found.start()] + rng.choice(phrases) + text[found.end() :]
        frame = rng.choice(FRAMES)
        body = text[:1].lower() + text[1:] if frame != "{}" and not text[:2].isupper() else text
        text = frame.replace("{}", body.rstrip(".")) if frame != "{}" else text
        if why_not(text, instruction, earlier) is None:
            return text
    return None


def ask_rewording(instruction: str, earlier: Sequence[str]) -> Question:
    """Ask for one more wording, unlike all that there are."""
    known = "\n".join(f"- {text}" for text in (instruction, *earlier))
    return Question(
        "Reword this instruction for editing a picture. Keep its meaning, every quoted text, every name, colour and "
        "place, and write names in braces such as {image} exactly as they are. Choose words and a sentence structure "
        f"that differ from every wording below. Answer with the new instruction alone.\n{known}"
    )


def ask_difference(first: Image.Image, second: Image.Image, captions: tuple[str, str] = ("", "")) -> Question:
    """Ask what two pictures share and how they differ."""
    said = "".join(
        f"\nThe {which} picture is described as: {text}"
        for which, text in zip(("first", "second"), captions, strict=True)
        if text
    )
    return Question(
        "Here are two related pictures. List first what they have in common, then what is different in the second: "
        f"subjects, their number, pose and looks, background, light, viewpoint and style. Only what can be seen.{said}",
        (first, second),
    )


def ask_instruction(analysis: str) -> Question:
    """Ask for the instruction that leads from the first picture to the second, given the analysis."""
    return Question(
        "An analysis of two pictures follows. Write the instruction that a person would give to turn the first picture "
        "into the second, naming the first {image}, and a caption of the second. Answer as JSON: "
        f'{{"instruction": "...", "caption": "...", "kind": one of {json.dumps(KINDS)}}}.\n\n{analysis}'
    )


def read_instruction(answer: str) -> tuple[str, str, str]:
    """(instruction, caption, kind) of an answer to `ask_instruction`. Raises ConditionError, saying what is wrong."""
    found = re.search(r"\{.*\}", answer, flags=re.DOTALL)
    try:
        told = json.loads(found[0]) if found else {}
        instruction, kind = clean(str(told["instruction"])), str(told["kind"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConditionError("the answer is not the JSON asked for") from None
    if kind not in KINDS:
        raise ConditionError("the answer names no known kind of edit")
    if "{image}" not in instruction:
        instruction = f"{instruction.rstrip('.')}, starting from {{image}}"
    reason = why_not(instruction, instruction, ())
    if reason:
        raise ConditionError(reason)
    return instruction, clean(str(told.get("caption", ""))), kind


def clean(answer: str) -> str:
    """A model's answer without what it wraps instructions in: quotes, bullets, a leading label, line breaks."""
    text = " ".join(answer.split())
    text = re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", text)
    text = re.sub(r"^(?:new |reworded )?instruction:\s*", "", text, flags=re.IGNORECASE)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1]
    return text.strip()


def why_not(text: str, original: str, earlier: Sequence[str]) -> str | None:
    """None if a wording can stand for the original beside the earlier ones, else the reason."""
    if not text.strip():
        return "the wording is empty"
    if len(text) > LONGEST:
        return "the wording is too long"
    if _names(text) != _names(original):
        return "the wording names other pictures"
    if any(
        quoted not in text for quoted in re.findall(r'"([^"]+)"|“([^”]+)”', original) for quoted in quoted if quoted
    ):
        return "the wording lost a quoted text"
    if _bare(text) in {_bare(known) for known in (*earlier, *([original] if text is not original else []))}:
        return "the wording repeats an earlier one"
    return None


def _names(text: str) -> Counter[str]:
    return Counter(re.findall(r"\{image\d*\}", text))


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _outside_quotes(text: str) -> str:
    """The text with quoted parts and names in braces blanked, of the same length."""
    return re.sub(r'"[^"]*"|“[^”]*”|\{[^}]*\}', lambda found: "\0" * len(found[0]), text)
