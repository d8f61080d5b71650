"""Full-size answers against plain enlarging: edits whose truth is known, made at a model's size, put back.

python benchmarks/bench_detail.py                        # 40 pictures, 128 and 512 px, without a model
python benchmarks/bench_detail.py --autoencoder          # through the small model's autoencoder at 128 px
python benchmarks/bench_detail.py --sheet details.png    # a contact sheet to look at

The pictures are scikit-image's photographs, whole and in halves. The truth of every edit is made at full size; the
"model's answer" is the truth reduced to 128 or 512 px (longer side), with `--autoencoder` encoded and decoded as well,
and so is the round trip of the input. Reported per edit: the mean gain in PSNR over enlarging the answer (bicubic), the
worst gain, and, where the truth leaves pixels alone, the share of those that are the input's to the byte.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from ace.conditions.images import OpenedImage, normalise_image
from ace.inference.detail import Delivered, deliver

COLOUR = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
GREY = ("camera", "brick", "grass", "gravel", "coins", "moon", "cell", "page", "clock")
NUM_PICTURES = 40

Edit = Callable[[np.ndarray, int], np.ndarray]  # float64 (H, W, 3) in 0 to 1, number of the picture → the truth


def pictures() -> list[tuple[str, Image.Image]]:
    """Photographs, whole and in halves, so many that there are 40."""
    whole = [(name, Image.fromarray(getattr(skimage.data, name)()).convert("RGB")) for name in (*COLOUR, *GREY)]
    left, right, _ = skimage.data.stereo_motorcycle()
    whole += [("motorcycle left", Image.fromarray(left)), ("motorcycle right", Image.fromarray(right))]
    halves = []
    for name, image in whole:
        width, height = image.size
        halves.append((f"{name}, left half", image.crop((0, 0, width // 2, height))))
        halves.append((f"{name}, lower half", image.crop((0, height // 2, width, height))))
    return [*whole, *halves][:NUM_PICTURES]


def ellipse(shape: tuple[int, ...], number: int, size: float, soft: float) -> np.ndarray:
    """(H, W, 1) from 1 inside an ellipse to 0 outside; `soft`: how slowly, in shares of the radius."""
    height, width = shape[:2]
    place = np.random.default_rng(number).uniform(0.35, 0.65, 2)
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot((y / height - place[0]) / size, (x / width - place[1]) / (1.2 * size))
    return np.clip((1 - distance) / soft + 0.5, 0, 1)[..., None]


def tone(image: np.ndarray, number: int) -> np.ndarray:
    """An S-shaped curve."""
    return 0.5 + 0.5 * np.tanh(2.2 * (image - 0.5)) / np.tanh(1.1)


def night(image: np.ndarray, number: int) -> np.ndarray:
    """Dark and blue."""
    grey = image.mean(axis=2, keepdims=True)
    return (0.6 * image + 0.4 * grey) ** 1.4 * np.array([0.35, 0.42, 0.65])


def sepia(image: np.ndarray, number: int) -> np.ndarray:
    """Brown tones of the grey picture."""
    return image @ np.array([[0.393, 0.349, 0.272], [0.769, 0.686, 0.534], [0.189, 0.168, 0.131]])


def autumn(image: np.ndarray, number: int) -> np.ndarray:
    """Warmer, with greens to orange."""
    red, green, blue = np.moveaxis(image, 2, 0)
    more = np.clip(green - np.maximum(red, blue), 0, 1)
    return np.stack([red * 1.1 + 1.2 * more, green * 0.95, blue * 0.8], axis=2)


def relight(image: np.ndarray, number: int) -> np.ndarray:
    """A lamp on one part of the picture, its light falling off softly."""
    lamp = ellipse(image.shape, number, 0.35, 0.9)
    return image * (1 + lamp * np.array([0.7, 0.5, 0.2]))


def recolour(image: np.ndarray, number: int) -> np.ndarray:
    """Another colour on one part with a clear edge."""
    part = ellipse(image.shape, number, 0.25, 0.05)
    return image * (1 - part) + part * (image[..., [1, 2, 0]] * 0.8 + np.array([0.15, 0.0, 0.1]))


def paste(image: np.ndarray, number: int) -> np.ndarray:
    """A thing from another photograph, at full size."""
    part = ellipse(image.shape, number, 0.22, 0.01)
    other = Image.fromarray(skimage.data.astronaut() if number % 2 else skimage.data.coffee())
    thing = np.asarray(other.resize((image.shape[1], image.shape[0])), dtype=np.float64) / 255
    return image * (1 - part) + part * thing


def nothing(image: np.ndarray, number: int) -> np.ndarray:
    """The input itself."""
    return image


SMOOTH: tuple[Edit, ...] = (tone, night, sepia, autumn, relight, recolour)
EDITS: tuple[Edit, ...] = (*SMOOTH, paste, nothing)


def to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))


def psnr(first: Image.Image, second: Image.Image) -> float:
    """dB; at most 99, for equal pictures."""
    error = np.mean((np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)) ** 2)
    return min(99.0, 10 * np.log10(255**2 / max(error, 1e-9)))


def model_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(16, round(size[0] * scale / 16) * 16), max(16, round(size[1] * scale / 16) * 16)


def autoencode(images: list[Image.Image]) -> list[Image.Image]:
    """Through the small model's autoencoder."""
    import torch

    from ace import load_tiny
    from ace.inference.latents import decode_latents, encode_pictures

    if not hasattr(autoencode, "vae"):
        autoencode.vae = load_tiny("cpu").vae
    with torch.no_grad():
        batch = [torch.from_numpy(np.array(i, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1 for i in images]
        decoded = decode_latents(autoencode.vae, encode_pictures(autoencode.vae, batch))
    return [to_image((picture.permute(1, 2, 0).numpy() + 1) / 2) for picture in decoded]


def measure(
    image: Image.Image, edit: Edit, number: int, side: int, through: bool
) -> tuple[float, float, float | None, Delivered, Image.Image, Image.Image]:
    """(PSNR of `deliver`, PSNR of enlarging, share of exact untouched pixels or None, delivered, truth, enlarged)."""
    truth = to_image(edit(np.asarray(image, dtype=np.float64) / 255, number))
    size = model_size(image.size, side)
    answer, trip = (one.resize(size, Image.Resampling.BICUBIC) for one in (truth, image))
    if through:
        answer, trip = autoencode([answer, trip])
    opened: OpenedImage = normalise_image(image)
    made = deliver(opened, answer, trip)
    plain = answer.resize(image.size, Image.Resampling.BICUBIC)
    same = (np.asarray(truth) == np.asarray(image)).all(axis=2)
    exact = None
    if same.mean() > 0.5:
        exact = float((np.asarray(made.image) == np.asarray(image)).all(axis=2)[same].mean())
    return psnr(made.image, truth), psnr(plain, truth), exact, made, truth, plain


def row_of(images: list[Image.Image], width: int = 240) -> Image.Image:
    height = round(width * images[0].height / images[0].width)
    row = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (place * width, 0))
    return row


def write_sheet(rows: list[Image.Image], path: str) -> None:
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    ImageDraw.Draw(sheet).text((4, 4), "input, truth, enlarged, delivered, change mask", fill="red")
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoder", action="store_true", help="also encode and decode, as the small model does")
    parser.add_argument("--sides", type=int, nargs="+", default=None, help="longer sides of the model's picture, px")
    parser.add_argument("--limit", type=int, default=NUM_PICTURES, help="how many pictures")
    parser.add_argument("--sheet", default=None, help="write a contact sheet here")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    sides = asked.sides or ([128] if asked.autoencoder else [128, 512])
    images = pictures()[: asked.limit]
    print(f"{len(images)} pictures, {os.cpu_count()} CPU cores, numpy {np.__version__}")
    print("side  edit       PSNR enlarged  delivered  gain: mean  worst   exact of the untouched: mean  worst")
    rows = []
    for side in sides:
        for edit in EDITS:
            results = [measure(image, edit, n, side, asked.autoencoder) for n, (_, image) in enumerate(images)]
            gains = [result[0] - result[1] for result in results]
            exact = [result[2] for result in results if result[2] is not None]
            untouched = f"{100 * np.mean(exact):8.2f} % {100 * min(exact):8.2f} %" if exact else ""
            print(
                f"{side:4d}  {edit.__name__:10s} {np.mean([r[1] for r in results]):10.2f} dB "
                f"{np.mean([r[0] for r in results]):7.2f} dB {np.mean(gains):8.2f} dB {min(gains):6.2f} dB "
                f"({images[int(np.argmin(gains))][0]})   {untouched}"
            )
            for n in (1, 2):
                made, truth, plain = results[n][3:]
                rows.append(row_of([images[n][1], truth, plain, made.image, made.change_mask]))
    if asked.sheet:
        write_sheet(rows, asked.sheet)


if __name__ == "__main__":
    main()
