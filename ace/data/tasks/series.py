"""Series generation (B.8.1): three to eight pictures of a set show the rule, one more of the set is the answer."""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import caption_of, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TASK = "reference_generation/series"
FEWEST, MOST = 3, 8
RELATIONS = ("content", "face", "style", "series")
TEMPLATES = (
    "continue the series <pictures>",
    "one more picture that belongs to <pictures>",
    "<pictures> belong together: add another one",
    "continue the series <pictures> with <caption>",
    "in the manner of <pictures>, show <caption>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`reference_generation/series`; the source is the answer."""
    if source.relation not in RELATIONS or len(source.others) < FEWEST:
        return Rejected("no set of four or more", f"{len(source.others) + 1} in the set")
    shown = rng.sample(source.others, rng.randint(FEWEST, min(MOST, len(source.others))))
    names = [f"{{image{number or ''}}}" for number in range(len(shown))]
    slots = {"pictures": f"{', '.join(names[:-1])} and {names[-1]}"}
    caption = caption_of(source)
    if caption and rng.random() < 0.7:
        slots["caption"] = caption
    return finish(
        TASK,
        source,
        say(TEMPLATES, slots, rng),
        pixels(source.image),
        images=tuple(pixels(other.image) for other in shown),
        slots=slots,
    )


def check(sample: EditSample, tools: Tools) -> str | None:
    """Three to eight pictures, none of which is the answer."""
    images = sample.request.current.images
    if not FEWEST <= len(images) <= MOST:
        return f"{len(images)} pictures in the series"
    answer = (sample.target.size, sample.target.tobytes())
    return "the answer is among the pictures" if any((i.size, i.tobytes()) == answer for i in images) else None
