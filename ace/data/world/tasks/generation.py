"""Text-guided generation: a caption that decides the whole picture."""

from __future__ import annotations

from ace.data.sample import EditSample
from ace.data.world.chance import Chance
from ace.data.world.levels import DEFAULT_STYLE
from ace.data.world.scene import Scene
from ace.data.world.sprites import STYLE_NAMES
from ace.data.world.tasks.common import draw_scene, sample

TASK = "text_guided_generation/text_to_image"


def described_scene(chance: Chance) -> tuple[Scene, str, str | None]:
    """A scene, the caption that says all of it but its style, and the style of its sprites (None: it has none)."""
    kind = "objects"
    if chance.level.other_kinds:
        kind = chance.weighted(
            {"objects": 0.8, "puppet": 0.08, "text": 0.06 if chance.library.fonts else 0.0, "background": 0.06}
        )
    if kind == "puppet":
        scene = chance.puppet_scene()
        return scene, chance.caption(scene, ("middle",)), None
    if kind == "text":
        background = chance.background()
        scene = Scene(background, texts=(chance.text(background, "middle"),))
        return scene, chance.caption(scene), None
    if kind == "background":
        scene = Scene(chance.background())
        return scene, scene.background.words, None
    style = DEFAULT_STYLE if not chance.held_out_style and chance.chance(0.7) else chance.style()
    scene, slots = chance.scene(made=True, style=style)
    return scene, chance.caption(scene, slots), style


def text_to_image(chance: Chance) -> EditSample:
    """A picture from its caption alone; the style is said unless it is the default one."""
    scene, caption, style = described_scene(chance)
    if style is not None and (style != DEFAULT_STYLE or (chance.level.styled and chance.chance(0.15))):
        instruction = chance.say(f"{TASK}#style", caption=caption, style=chance.choice(STYLE_NAMES[style]))
    else:
        instruction = chance.say(TASK, caption=caption)
    return sample(TASK, instruction, (), draw_scene(chance, scene))
