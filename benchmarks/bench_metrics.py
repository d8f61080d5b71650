"""How many pictures a second each metric scores, at 64 and 512 px, on one thread. Networks have random weights of the
real sizes: their cost does not depend on the weights.

    python benchmarks/bench_metrics.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from ace.evaluation.encoders import CLIP_FRAMING, DINO_FRAMING, frame
from ace.evaluation.facts import ssim
from ace.evaluation.lpips import LPIPS, as_tensor
from ace.evaluation.metrics import levels
from ace.evaluation.networks.musiq import Musiq
from ace.evaluation.pairs import pixel_errors
from ace.evaluation.styles import StyleClassifier
from ace.extract.text import TextReader

SECONDS = 2.0


def rate(score: Callable[[], object]) -> float:
    """Calls per second, after one that warms up."""
    score()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        score()
        calls += 1
    return calls / (time.perf_counter() - start)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, one thread; pictures per second")
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    clip = CLIPModel(CLIPConfig(vision_config={**vision, "image_size": 224, "patch_size": 32})).eval().vision_model
    small = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    dino = ViTModel(ViTConfig(**small, image_size=224, patch_size=16), add_pooling_layer=False).eval()
    lpips, reader, styles, musiq = LPIPS().eval(), TextReader(), StyleClassifier(), Musiq().eval()
    for side in (64, 512):
        dice = np.random.default_rng(0)
        first, second = (
            Image.fromarray(dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side)) for _ in range(2)
        )
        a, b = levels(first), levels(second)
        scores: dict[str, Callable[[], object]] = {
            "L1 and L2": lambda x=first, y=second: pixel_errors(x, y),
            "SSIM": lambda x=a, y=b: ssim(x, y),
            "LPIPS (AlexNet)": lambda x=first, y=second: lpips(as_tensor([x]), as_tensor([y])),
            "CLIP ViT-B/32": lambda x=first: clip(pixel_values=frame(x, CLIP_FRAMING)[None]),
            "style (ace-world)": lambda x=first: styles.classify([x]),
            "MUSIQ": lambda x=first: musiq.score(x),
            "DINO ViT-S/16": lambda x=first: dino(pixel_values=frame(x, DINO_FRAMING)[None]),
            "one line by OCR": lambda x=first: reader.read_line(np.asarray(x.resize((200, 48)))),
        }
        for name, score in scores.items():
            print(f"{side:4d} px  {name:17s} {rate(score):9.1f}")


if __name__ == "__main__":
    main()
