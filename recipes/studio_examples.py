"""The images of the studio's examples gallery (`ace/web/page/examples`): a held-out sample of the world for every task.

    python recipes/studio_examples.py

Deterministic: the same seeds give the same files. Inputs and words only; what the model answers is up to it.
"""

from __future__ import annotations

import json
from pathlib import Path

from ace.data.sample import TASKS
from ace.data.world import World

FOLDER = Path(__file__).parents[1] / "ace" / "web" / "page" / "examples"
SIZE_PX = 128
FIRST_SEED = 3
SEEDS = {"layer_editing/decouple": 9}  # task -> seed, where the first one shows little


def main() -> None:
    """Draw every example and write `examples.json`."""
    world = World(SIZE_PX, "held_out")
    for old in FOLDER.glob("*.webp"):
        old.unlink()
    examples = []
    for task in TASKS:
        sample = world.sample(SEEDS.get(task, FIRST_SEED), task)
        units = [*(turn.unit for turn in sample.request.history), sample.request.current]
        name = task.replace("/", "-")
        pictures, mask = [], None
        for number, image in enumerate(units[0].images):
            pictures.append(f"{name}-{number}.webp")
            image.save(FOLDER / pictures[-1], lossless=True, method=6)
        if units[0].masks and units[0].masks[0] is not None:
            mask = f"{name}-mask.webp"
            units[0].masks[0].convert("RGB").save(FOLDER / mask, lossless=True, method=6)
        examples.append({"task": task, "texts": [u.instruction for u in units], "pictures": pictures, "mask": mask})
        print(task, units[0].instruction)
    (FOLDER / "examples.json").write_text(json.dumps(examples, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
