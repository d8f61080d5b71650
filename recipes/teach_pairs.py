"""Ten pairs that teach an edit the small model does not know: pictures of the procedural world, and the same in sepia.

python recipes/teach_pairs.py out/teach
ace teach out/teach/before out/teach/after --name sepia
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

from ace.data.world import World

SIZE_PX, COUNT = 128, 10


def sepia(picture: Image.Image) -> Image.Image:
    """An old photograph's colours."""
    return ImageOps.colorize(ImageOps.grayscale(picture), (40, 20, 8), (255, 236, 196))


def write_pairs(folder: Path) -> None:
    """Write `before/00.png` to `before/09.png` and the same in `after`."""
    for side in ("before", "after"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    world = World(SIZE_PX, "held_out")
    for number in range(COUNT):
        picture = world.picture(100 + number)
        picture.save(folder / "before" / f"{number:02d}.png")
        sepia(picture).save(folder / "after" / f"{number:02d}.png")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1] if len(sys.argv) > 1 else "out/teach"))
