"""About 200 openly licensed photographs out of packages, to build a data set of (docs/data.md).

    python recipes/pictures.py photos
    ace data synthesize photos --output sets/photos

Needs a Debian system (`apt-get download`, `dpkg-deb`) and scikit-image. The packages are fetched and unpacked, not
installed. Pictures are reduced to 512 px; captions and series come from file names and folders, so they are short and
some are vague. `licences/` holds each package's own statement: read it before you pass pictures on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

LONGEST_PX = 512
SMALLEST_PX = 200  # of the shorter side
MOST_OF_A_GROUP = 18  # or animals, fishes and tools would be half of everything


@dataclass(frozen=True)
class Group:
    """Photographs that belong together. package: Debian's, "" = scikit-image. licence: in short. files: a pattern of
    their paths in the package, or in the Qt resource files in it. series: its name, "" = they show no one thing."""

    package: str
    licence: str
    files: str
    series: str = ""


GCOMPRIS = "CC0, CC-BY, CC-BY-SA, GPL-3+ or public domain, by picture"
GROUPS = (
    Group("gcompris-qt-data", GCOMPRIS, r"erase/resource/\D+\.webp", "animals"),
    Group("gcompris-qt-data", GCOMPRIS, r"explore_(world|farm)_animals/resource/animals/.*", "creatures"),
    Group("gcompris-qt-data", GCOMPRIS, r"explore_monuments/resource/(egypt|france|germany)/.*", "old buildings"),
    Group("gcompris-qt-data", GCOMPRIS, r"explore_monuments/resource/(india|usa|world)/.*", "sights"),
    Group("gcompris-qt-data", GCOMPRIS, r"explore_world_music/resource/.*", "music"),
    Group("gcompris-qt-data", GCOMPRIS, r"categorization/.*/fishes/.*", "fishes"),
    Group("gcompris-qt-data", GCOMPRIS, r"categorization/.*/tools/.*", "tools"),
    Group("gcompris-qt-data", GCOMPRIS, r"categorization/.*/others/.*", "household"),
    Group("gcompris-qt-data", GCOMPRIS, r"categorization/.*/renewable/windmill.*", "windmills"),
    Group(
        "gcompris-qt-data",
        GCOMPRIS,
        r"details/.*/(Chenonceau|Egeskov|Eilan|Gizah|Louvre|NDP|Nagoya|Neusch|Opera|TajMahal|TourE|Tower).*_background.*",
        "castles and towers",
    ),
    Group(
        "opencv-doc",
        "Apache-2.0 and BSD-3-Clause",
        r".*/examples/data/(HappyFish|aero1|aloeL|apple|butterfly|cards|chicky_512|fruits|home|orange|rubberwhale1"
        r"|smarties|squirrel_cls|stuff)\.(jpg|png)",
    ),
    Group("mate-backgrounds", "GPL-2+ and CC-BY-SA-4.0", r".*/mate/nature/.*\.jpg", "nature"),
    Group("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA-4.0 and CC0", r".*/backgrounds/(?!analog|free)\w+\.jpg"),
    Group("", "public domain and CC0", r"(astronaut|chelsea|coffee|rocket|motorcycle_left)\.(png|jpg)"),
)


def main() -> None:
    """Fetch, choose, reduce; write `metadata.jsonl` and the licences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        packages = {name: unpack(name, Path(scratch)) for name in sorted({group.package for group in GROUPS})}
        rows = [row for group in GROUPS for row in gather(group, packages[group.package], folder)]
        for name, root in packages.items():
            statement = root / "README.txt" if not name else root / "usr/share/doc" / name / "copyright"
            (folder / "licences").mkdir(exist_ok=True)
            shutil.copy(statement, folder / "licences" / f"{name or 'scikit-image'}.txt")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} pictures in {folder}")


def unpack(name: str, scratch: Path) -> Path:
    """The folder of an unpacked Debian package, or of scikit-image's data."""
    if not name:
        import skimage.data

        return Path(skimage.data.__file__).parent
    subprocess.run(["apt-get", "--quiet=2", "download", name], cwd=scratch, check=True)
    (package,) = scratch.glob(f"{name}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, scratch / name], check=True)
    return scratch / name


def gather(group: Group, root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Save the pictures of a group and yield their lines of `metadata.jsonl`."""
    found = sorted((path, data) for path, data in files_in(root) if re.fullmatch(rf"(?:.*/)?{group.files}", path))
    kept = 0
    for path, data in found:
        with Image.open(BytesIO(data)) as image:
            if min(image.size) < SMALLEST_PX or kept == MOST_OF_A_GROUP:
                continue
            picture = image.convert("RGB")
        picture.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
        name = f"{group.package or 'scikit-image'}-{group.series or 'single'}-{Path(path).stem}.png".replace(" ", "-")
        picture.save(folder / name)
        kept += 1
        row = {"file_name": name, "text": caption(Path(path).stem), "licence": group.licence}
        yield row | ({"set": group.series, "relation": "series"} if group.series else {})


def files_in(root: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of every picture file below a folder, those inside Qt resource files too."""
    for file in sorted(root.rglob("*")):
        if file.suffix == ".rcc":
            yield from read_resources(file.read_bytes())
        elif file.suffix in (".jpg", ".png") and not file.is_symlink():
            yield file.relative_to(root).as_posix(), file.read_bytes()


def read_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of the pictures in a Qt resource file (`rcc --binary`): a tree of nodes, names, contents."""
    version, tree, contents, names = struct.unpack_from(">4i", data, 4)
    node_size = 22 if version >= 2 else 14
    waiting = [(0, "")]
    while waiting:
        index, prefix = waiting.pop()
        at = tree + index * node_size
        name_at, flags, first, second = struct.unpack_from(">IHII", data, at)
        (length,) = struct.unpack_from(">H", data, names + name_at)
        name = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
        path = f"{prefix}/{name}".lstrip("/") if index else ""
        if flags & 2:  # a folder: how many children, and where they begin
            waiting += [(second + child, path) for child in range(first)]
        elif path.endswith((".webp", ".jpg", ".png")):  # a file: country and language, then where it lies
            (size,) = struct.unpack_from(">I", data, contents + second)
            content = data[contents + second + 4 : contents + second + 4 + size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content


def caption(stem: str) -> str:
    """What a file name says: "redPyramid_background" -> "red pyramid"; of wallpapers what stands before the author."""
    words = re.sub(r"(_by_.*|_background|_left|\d.*|_cls|_?[A-Z]$)", "", stem)
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", words).strip().lower()


if __name__ == "__main__":
    main()
