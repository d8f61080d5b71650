"""Text-guided generation: a caption that decides the whole picture."""

from __future__ import annotations

from dataclasses import replace

from ace.data.sample import EditSample
from ace.data.world.chance import DEFAULT_STYLE, Chance
from ace.data.world.scene import Scene
from ace.data.world.sprites import STYLE_NAMES
from ace.data.world.tasks.common import picture, sample

TASK = "text_guided_generation/text_to_image"


def described_scene(chance: Chance) -> tuple[Scene, str]:
    """A scene and the caption that says all of it, except a style that is not the default one."""
    kind = chance.weighted({"objects": 0.8, "puppet": 0.08, "text": 0.06 if chance.library.fonts else 0.0, "background": 0.06})
    if kind == "puppet":
        scene = chance.puppet_scene()
        puppet = scene.objects[0].puppet
        look = f"a person with {puppet.hair} hair and {puppet.skin} skin in a {puppet.shirt} shirt and {puppet.trousers} trousers"
        return scene, f"{look} {puppet.pose}, {scene.background.preposition} {scene.background.words}"
    if kind == "text":
        background = chance.background()
        scene = Scene(background, texts=(chance.text(background, "middle"),))
        return scene, chance.caption(scene)
    if kind == "background":
        scene = Scene(chance.background())
        return scene, scene.background.words
    style = DEFAULT_STYLE if not chance.held_out_style and chance.chance(0.7) else chance.style()
    scene, slots = chance.scene(made=True, style=style)
    return scene, chance.caption(scene, slots)


def text_to_image(chance: Chance) -> EditSample:
    scene, caption = described_scene(chance)
    style = getattr(scene.objects[0], "style", DEFAULT_STYLE) if scene.objects else DEFAULT_STYLE
    if style != DEFAULT_STYLE or (scene.objects and hasattr(scene.objects[0], "slug") and chance.chance(0.15)):
        instruction = chance.say(f"{TASK}#style", caption=caption, style=chance.choice(STYLE_NAMES[style]))
    else:
        instruction = chance.say(TASK, caption=caption)
    return sample(TASK, instruction, (), picture(chance, replace(scene)))
