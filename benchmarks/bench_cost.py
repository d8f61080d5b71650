"""Seconds and memory of one denoising step against the number of tokens, beside the ideal multiplication count.

python benchmarks/bench_cost.py                          # 1k to 16k tokens, hidden 1152, depth 2; writes cost.png
python benchmarks/bench_cost.py --out docs/images/cost.png
python benchmarks/bench_cost.py --smoke                  # small sizes, to see that it runs

One request: a target and as many images of 1024 tokens as make up the total (beyond ten frames, larger ones). The ideal
line is the step's operations (`ace/model/cost.py`) at the speed of the largest matrix product measured here. Memory is
what a process of its own holds at most beyond its weights. Seconds are those of the processor, best of several: with
`--threads 1` they mean something on a busy machine too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from bench_forward import processor
from PIL import Image, ImageDraw, ImageFont

from ace.model.config import ACEConfig
from ace.model.cost import step_cost
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACETransformer

TEXT = 60


def images_of(tokens: int, most: int) -> list[int]:
    """Tokens of every frame, the target first: frames of at most `most` tokens, ten of them at most."""
    count = max(1, -(-tokens // most))
    if count > 10:
        count, most = 10, tokens // 10
    return [most if count > 1 else tokens] * count


def side_of(tokens: int) -> int:
    """Latent cells per side of a square frame of about so many tokens of 2x2 cells."""
    return 2 * max(1, round(tokens**0.5))


@torch.no_grad()
def one_point(tokens: int, depth: int, hidden: int, threads: int, repeats: int) -> dict[str, float]:
    """Measured in this process: processor seconds of a step, MiB beyond the weights, its operations."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = ACEConfig(depth=depth, hidden_size=hidden, num_heads=16 if hidden >= 256 else 4, text_channels=256)
    model = ACETransformer(**dataclasses.asdict(config)).eval()
    sides = [side_of(frame) for frame in images_of(tokens, 4096 if tokens > 10_240 else 1024)]
    frames = RequestFrames(
        (sides[0], sides[0]),
        tuple(torch.randn(TEXT, config.text_channels) for _ in sides),
        None,
        tuple(torch.randn(4, side, side) for side in sides[1:]),
        (None,) * (len(sides) - 1),
    )
    layout = make_layout([frames], 2, config.head_dim)
    kept = model.encode_text(torch.cat(frames.texts), layout)
    packed = pack_latents([torch.randn(4, sides[0], sides[0])], [condition_patches(frames, 2, 0)], 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        model(packed, torch.tensor([500]), layout, text_keys_values=kept)
        best = min(best, time.process_time() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x, w = torch.randn(1024, hidden), torch.randn(4 * hidden, hidden)
    speed = 0.0
    for _ in range(3):
        start = time.process_time()
        x @ w.T
        speed = max(speed, 2 * x.shape[0] * w.numel() / (time.process_time() - start))
    cost = step_cost(config, [(side // 2) ** 2 for side in sides], [TEXT] * len(sides))
    total = sum((side // 2) ** 2 for side in sides)
    return {
        "tokens": total,
        "seconds": best,
        "mib": (after - before) / 1024,
        "operations": cost.total,
        "speed": speed,
    }


def draw(points: list[dict[str, float]], title: str, out: Path) -> None:
    """Two panels: processor seconds with the ideal, and memory, both over tokens; axes from zero."""
    width, height, margin = 1400, 640, 90
    picture = Image.new("RGB", (width, height), "white")
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(22), ImageFont.load_default(16)
    speed = max(point["speed"] for point in points)
    ideal = [point["operations"] / speed for point in points]
    panels = (
        ("processor seconds of one step", [p["seconds"] for p in points], ideal),
        ("MiB beyond the weights", [p["mib"] for p in points], None),
    )
    pen.text((margin, 14), title, fill="#222222", font=font)
    for number, (name, values, line) in enumerate(panels):
        left, right = margin + number * width // 2, width // 2 - 40 + number * width // 2
        top, bottom = 110, height - 80
        most_x, most_y = max(p["tokens"] for p in points), 1.1 * max([*values, *(line or [])])

        def place(x: float, y: float, left=left, right=right, top=top, bottom=bottom, mx=most_x, my=most_y):
            return left + (right - left) * x / mx, bottom - (bottom - top) * y / my

        pen.line([(left, top), (left, bottom), (right, bottom)], fill="#888888", width=2)
        for part in range(5):
            x, y = most_x * part / 4, most_y * part / 4
            label = f"{y:.2g}" if most_y < 10 else f"{y:.0f}"
            pen.text((left - 60, place(0, y)[1] - 10), label, fill="#555555", font=small)
            pen.text((place(x, 0)[0] - 20, bottom + 10), f"{x / 1000:.0f}k", fill="#555555", font=small)
        pen.text((left, top - 40), name, fill="#222222", font=font)
        if line is not None:
            ideal_places = [place(p["tokens"], v) for p, v in zip(points, line, strict=True)]
            pen.line(ideal_places, fill="#d98032", width=3)
            pen.text((left + 20, top + 34), f"ideal at {speed / 1e9:.0f} GFLOP/s", fill="#d98032", font=font)
            pen.text((left + 20, top + 4), "measured", fill="#2a5db0", font=font)
        places = [place(p["tokens"], v) for p, v in zip(points, values, strict=True)]
        pen.line(places, fill="#2a5db0", width=3)
        for x, y in places:
            pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill="#2a5db0")
        pen.text(((left + right) / 2 - 60, bottom + 38), "tokens of a request", fill="#222222", font=small)
    picture.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 12288, 16384])
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1152)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("cost.png"))
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a point of its own process
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one_point(options.one, options.depth, options.hidden, options.threads, options.repeats)))
        return
    tokens = [64, 256, 1024] if options.smoke else options.tokens
    depth, hidden = (1, 96) if options.smoke else (options.depth, options.hidden)
    head = (
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, float32, hidden {hidden}, depth {depth}"
    )
    print(f"{head}; load {os.getloadavg()[0]:.1f}")
    print(f"command: python benchmarks/bench_cost.py {' '.join(sys.argv[1:])}".rstrip())
    points = []
    for count in tokens:
        sizes = ["--depth", str(depth), "--hidden", str(hidden), "--threads", str(options.threads)]
        command = [sys.executable, __file__, "--one", str(count), *sizes, "--repeats", str(options.repeats)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        points.append(json.loads(answer))
        point = points[-1]
        rate = point["operations"] / point["seconds"] / 1e9
        print(
            f"  {point['tokens']:6.0f} tokens {point['seconds']:8.2f} s, {point['mib']:7.0f} MiB, "
            f"{point['operations'] / 1e9:8.0f} GFLOP, {rate:5.0f} GFLOP/s",
            flush=True,
        )
    if not options.smoke:
        draw(points, head, options.out)
        print(f"written: {options.out.name}")


if __name__ == "__main__":
    main()
