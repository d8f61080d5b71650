"""Fuzz: damaged and hostile files against every reader of ours, in a process with limits, until the time is up.

    python benchmarks/fuzz.py                    # for ten minutes
    python benchmarks/fuzz.py --seconds 30 --readers picture recipe
    python benchmarks/fuzz.py --keep tests/corpus    # files that break a rule are kept there

Seeds are small valid files of every kind that is read from elsewhere; each is changed at random (bytes set, flipped,
cut out, doubled, swapped with another file's; numbers made extreme; JSON values replaced). A reader may give something
or raise an error of ours in one line; anything else (another exception, a crash, more than `SLOW_S` seconds of
processor time, more than `MEMORY` bytes) is a fault. Prints inputs per reader, how they ended, and the faults; the exit
code is 1 with any.

The readers run in one process at a time that a parent starts again after a fault, so that a crash costs one input.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

SLOW_S = 10.0  # of processor time, for one input
HANGS_S = 300.0  # on the clock, also where the machine does other things
MEMORY = 3 * 2**30  # of address space beyond what the imports took
Reader = Callable[[bytes, Path], object]
CORPUS = Path(__file__).parents[1] / "tests" / "corpus"


def picture(data: bytes, folder: Path) -> object:
    from ace.conditions.images import open_bytes

    return open_bytes(data, max_pixels=1_000_000, name="image")


def mask(data: bytes, folder: Path) -> object:
    from ace.conditions.masks import read_mask

    return read_mask(data, (32, 24), undecided="transparent")


def recipe(data: bytes, folder: Path) -> object:
    from ace.conversation.job import Settings
    from ace.conversation.recipe import Recipe

    read = Recipe.from_json(data)
    return Settings.of_recipe(read), read.to_json()


def recipe_in_picture(data: bytes, folder: Path) -> object:
    from ace.conversation import recipe as recipes

    (folder / "a.png").write_bytes(data)
    return recipes.read(folder / "a.png")


def session(data: bytes, folder: Path) -> object:
    """An archive, its files looked over in this process."""
    import shutil

    from ace.conversation import session as sessions

    sessions.open_files = lambda files, *_, **__: [picture(one, folder) for one, _ in files]  # type: ignore[assignment]
    shutil.rmtree(folder / "talk", ignore_errors=True)
    talk = sessions.Session.create(folder / "talk")
    talk.add_archive(io.BytesIO(data))
    return [talk.history(name) for name in talk.node_ids()[:2]]


def adapter(data: bytes, folder: Path) -> object:
    from ace.adapter_files import check_file

    (folder / "a.safetensors").write_bytes(data)
    (folder / "adapter_config.json").unlink(missing_ok=True)
    return check_file(folder / "a.safetensors")


def adapter_settings(data: bytes, folder: Path) -> object:
    from ace.adapter_files import read_settings

    (folder / "adapter_config.json").write_bytes(data)
    settings = read_settings(folder / "b.safetensors")
    return settings.strength("blocks.0.attn.q", 4)


def jsonl(data: bytes, folder: Path) -> object:
    from ace.lists import read_objects, read_table

    (folder / "a.jsonl").write_bytes(data)
    return list(read_objects(folder / "a.jsonl")), list(read_table(folder / "a.jsonl", ("a", "b"), "#;#"))


def training_list(data: bytes, folder: Path) -> object:
    from ace.errors import DataError
    from ace.training.sources import JsonlRecords

    (folder / "list.jsonl").write_bytes(data)
    records = JsonlRecords(folder / "list.jsonl", "edit")
    for number in range(len(records)):
        try:
            records[number]
        except DataError:
            continue
    return records


def training_recipe(data: bytes, folder: Path) -> object:
    from ace.training.config import read_recipe

    (folder / "a.toml").write_bytes(data)
    return read_recipe(folder / "a.toml")


def request(data: bytes, folder: Path) -> object:
    """A body of the server, as the routes read it."""
    from pydantic import ValidationError

    from ace.server.schema import EditBody, GenerationBody, TurnBody

    for body in (GenerationBody, EditBody, TurnBody):
        try:
            fields = body.model_validate_json(data)
            fields.settings(0, 20, 64_000_000)
        except ValidationError:
            continue
    return None


READERS: dict[str, Reader] = {
    one.__name__: one
    for one in (
        *(picture, mask, recipe, recipe_in_picture, session, adapter, adapter_settings),
        *(jsonl, training_list, training_recipe, request),
    )
}


# Valid files


def seeds() -> dict[str, list[bytes]]:
    """Small valid files for each reader."""
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save

    from ace.conversation.recipe import Environment, FileRef, Recipe, encode

    values = np.random.default_rng(0).integers(0, 255, (24, 32, 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    rgb = rgba.convert("RGB")

    def file_of(image: Image.Image, kind: str, **settings: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **settings)
        return stream.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [file_of(rgb, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")]
    pictures += [file_of(rgba, kind) for kind in ("PNG", "WEBP", "TIFF", "AVIF")]
    pictures += [
        file_of(rgb, "JPEG", progressive=True, exif=exif),
        file_of(rgb.convert("CMYK"), "JPEG"),
        file_of(rgb.convert("P"), "PNG"),
        file_of(rgb, "TIFF", compression="tiff_lzw"),
        file_of(rgb, "GIF", save_all=True, append_images=[rgb]),
        file_of(Image.fromarray(values[..., 0].astype(np.uint16) * 257), "PNG"),
    ]
    cases = CORPUS.parent / "cases"
    pictures += [path.read_bytes() for path in sorted(cases.iterdir()) if path.stat().st_size < 20_000]
    made = Recipe(
        model="ace-tiny",
        model_sha256="0" * 64,
        instruction="make {image} blue",
        seed=1,
        num_inference_steps=2,
        guidance_scale=3.0,
        guidance_rescale=0.0,
        size_px=(32, 24),
        images=(FileRef(name="a.png", sha256="1" * 64),),
        settings={"feather_px": 3, "size": "chosen", "adapters": "[]"},
        environment=Environment.here(),
    )
    pair = {"blocks.0.attn.q.lora_A.weight": np.ones((2, 4), np.float32)}
    pair |= {"blocks.0.attn.q.lora_B.weight": np.ones((4, 2), np.float32), "blocks.0.attn.q.alpha": np.ones(1)}
    settings = {"lora_alpha": 4, "r": 4, "alpha_pattern": {r"attn\.(q|k)": 8, "ffn.*": 2}, "use_rslora": False}
    body = {
        "prompt": "a",
        "n": 1,
        "size": "64x64",
        "seed": "1",
        "images": [{"image_url": "data:image/png;base64,AA=="}],
    }
    row = {"instruction": "make it blue", "images": ["a.png"], "target": "b.png", "task": "edit"}
    toml = (CORPUS.parents[1] / "recipes" / "lora.toml").read_bytes()
    return {
        "picture": pictures,
        "mask": [file_of(Image.new("L", (32, 24), 0), "PNG"), file_of(rgba, "PNG"), file_of(rgba, "WEBP")],
        "recipe": [made.to_json().encode()],
        "recipe_in_picture": [encode(rgb, kind, made) for kind in ("PNG", "JPEG", "WEBP")],
        "session": [_archive(rgb, made.model_copy(update={"images": ()}))],
        "adapter": [save(pair, {"a": json.dumps(settings)}), save(pair, {"ss_network_alpha": "4"})],
        "adapter_settings": [json.dumps(settings).encode()],
        "jsonl": [b'{"a": 1}\n{"b": [1, 2]}\n', b"a#;#b\n1#;#2\n"],
        "training_list": [json.dumps(row).encode() + b"\n", json.dumps({**row, "history": [row]}).encode()],
        "training_recipe": [toml],
        "request": [json.dumps(body).encode()],
    }


def _archive(image, recipe) -> bytes:  # type: ignore[no-untyped-def]
    import numpy as np

    from ace.conditions.units import ConditionUnit
    from ace.conversation.session import Session

    with tempfile.TemporaryDirectory() as folder:
        talk = Session.create(Path(folder) / "talk")
        named = recipe.model_copy(update={"instruction": "a cat"})
        latents = np.zeros((2, 3, 4), np.float32)
        first = talk.add_node(ConditionUnit("a cat", (image,)), image, named, latents=latents)
        talk.add_node(ConditionUnit("a cat"), image, named, parents=(first.id,))
        stream = io.BytesIO()
        talk.write_archive(stream)
        return stream.getvalue()


# Changes

_EXTREME = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1)
_WRONG = (None, True, -1, 10**30, 1e308, "", "\x1b[2J", "../../a", [], {}, [[[]]], "a" * 3000, "nan", 0.5)


def changed(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """A file with some of it otherwise."""
    if draw.random() < 0.5 and data[:1] in (b"{", b"["):
        return changed_json(data, draw)
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(out) or 1)
        kind = draw.randrange(7)
        if not out:
            break
        if kind == 0:
            out[place] = draw.randrange(256)
        elif kind == 1:
            out[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del out[place : place + draw.choice((1, 4, 64, 1000))]
        elif kind == 3:
            out[place:place] = out[place : place + draw.choice((1, 8, 200))] * draw.choice((1, 2, 50))
        elif kind == 4:
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(_EXTREME) & (2 ** (8 * width) - 1)
            packed = struct.pack("<Q", number)[:width]
            out[place : place + width] = packed if draw.random() < 0.5 else packed[::-1]
        elif kind == 5:
            start = draw.randrange(len(other) or 1)
            out[place : place + 64] = other[start : start + draw.choice((1, 16, 64))]
        else:
            out = out[:place]
    return bytes(out)


def changed_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with a value that does not belong there."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return data[: draw.randrange(len(data) or 1)]
    value, holder, key = root, None, None
    while isinstance(value, dict | list) and value and (holder is None or draw.random() < 0.8):
        holder = value
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        value = value[key]  # type: ignore[index]
    if holder is not None:
        if draw.random() < 0.15:
            del holder[key]
        elif isinstance(holder, dict) and draw.random() < 0.1:
            holder[draw.choice(("x", "", "\x00"))] = draw.choice(_WRONG)
        else:
            holder[key] = draw.choice(_WRONG)
    return json.dumps(root).encode()


# The process that reads


def serve(pipe: Connection) -> None:
    """Read what comes; the answer is how it ended."""
    import warnings

    from ace.errors import AceError

    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  libraries complain there
    with tempfile.TemporaryDirectory() as folder:
        limited = False
        while True:
            name, data = pipe.recv()
            began = time.process_time()
            try:
                READERS[name](data, Path(folder))
                end = "read"
            except AceError as error:
                end = "refused" if "\n" not in str(error) else f"several lines: {error!s:.200}"
            except BaseException as error:  # noqa: BLE001  that is what is looked for
                last = traceback.extract_tb(error.__traceback__)[-1]
                end = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error!s:.160}"
            if limited and time.process_time() - began > SLOW_S:
                end = f"slow: {end}"
            pipe.send(end)
            if not limited:  # after the first, when everything is imported
                limited = _limit()


def _limit() -> bool:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    except (ImportError, OSError):
        pass
    return True


class Reading:
    """A process that reads, started again when it has to be."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def read(self, name: str, data: bytes) -> str:
        """How reading it ended."""
        try:
            self.pipe.send((name, data))
            if self.pipe.poll(HANGS_S):
                return self.pipe.recv()
            end = f"more than {HANGS_S:g} s"
        except (EOFError, OSError):
            self.process.join()
            end = f"the process ended with {self.process.exitcode}"
        self.stop()
        self._start()
        return end

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--readers", nargs="*", choices=list(READERS), default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that break a rule")
    arguments = parser.parse_args()
    known = seeds()
    for path in sorted(CORPUS.glob("*.bin")):
        known[path.name.split("-")[0]].append(path.read_bytes())
    draw, reading = random.Random(arguments.seed), Reading()
    ends: dict[str, Counter[str]] = {name: Counter() for name in arguments.readers}
    faults: dict[str, tuple[int, str]] = {}
    taken = dict.fromkeys(arguments.readers, 0.0)
    began, spent = time.monotonic(), dict.fromkeys(arguments.readers, 0.0)
    signal.signal(signal.SIGTERM, lambda *_: spent.update(dict.fromkeys(spent, float("inf"))))  # report and end
    while time.monotonic() - began < arguments.seconds and min(spent.values()) < float("inf"):
        name = min(spent, key=spent.__getitem__)  # each reader gets as much time as any other
        started = time.monotonic()
        for _ in range(50):
            data = draw.choice(known[name])
            for _ in range(draw.choice((1, 1, 2))):
                data = changed(data, draw.choice(known[name]), draw)
            end = reading.read(name, data)
            ends[name][end if end in ("read", "refused") else "fault"] += 1
            if end not in ("read", "refused"):
                key = f"{name}: {end}"
                count, sha = faults.get(key, (0, hashlib.sha256(data).hexdigest()[:12]))
                faults[key] = (count + 1, sha)
                if count == 0 and arguments.keep is not None:
                    (arguments.keep / f"{name}-{sha}.bin").write_bytes(data)
            if time.monotonic() - started > 5:
                break
        spent[name] += time.monotonic() - started
        taken[name] += time.monotonic() - started
    reading.stop()
    for name, counts in ends.items():
        print(f"{name:18} {sum(counts.values()):8,} inputs in {taken[name]:4.0f} s  {dict(counts)}")
    print(f"{sum(sum(counts.values()) for counts in ends.values()):,} inputs in {time.monotonic() - began:.0f} s")
    for key, (count, sha) in sorted(faults.items(), key=lambda one: -one[1][0]):
        print(f"fault, {count} times ({sha}): {key}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
