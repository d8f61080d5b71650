"""Semantic editing: the same content in another style, place, time, pose or view."""

from __future__ import annotations

from dataclasses import replace

from ace.data.sample import EditSample
from ace.data.world.chance import Chance
from ace.data.world.tasks.common import scene_edit


def background(chance: Chance) -> EditSample:
    task = "semantic_editing/background"
    kind = chance.weighted({"objects": 0.8, "puppet": 0.1, "face": 0.1})
    if kind == "objects":
        before, _ = chance.scene()
    else:
        before = chance.puppet_scene() if kind == "puppet" else chance.face_scene()
    new = chance.background(avoid=before.background)
    words = chance.say(task, background=new.words, prep=new.preposition)
    return scene_edit(chance, task, words, before, replace(before, background=new))
