"""Our network against the published implementation itself, on identical weights: one forward, and guided steps.

python benchmarks/bench_published.py             # hidden 1152, depth 4, 1024 + 1024 tokens, text 120, 2 CPU threads
python benchmarks/bench_published.py --smoke     # small sizes, to see that it runs

`scepter==1.4.1` is installed from PyPI, without its dependencies, into an environment of its own in the cache folder;
it uses this environment's torch, so both run the same kernels (`scepter_worker.py` says what is replaced). Outputs must
agree to 1e-4. Ours is measured as it comes, in float32 and in bfloat16. Runs alternate; the best of several counts,
in seconds of the clock and of the processor: on a busy machine only the second, with `--threads 1`, says much. In one
forward, texts' keys and values are at hand, as in every step of an edit but the first. A guided step is two forward
passes there and one packed pass here; in an edit the texts are counted in. With CUDA a table follows: 512 and 1024 px,
1 and 3 images, batches of 1, 4 and 16, with memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import torch
from bench_forward import processor, published_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from ace.model.config import ACEConfig
from ace.model.convert import from_published
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, unpack_latents
from ace.model.transformer import ACETransformer

PACKAGES = ("scepter==1.4.1", "einops==0.8.1")
Seconds = dict[str, float]  # "wall" and "cpu"; "memory" in bytes on a GPU


def environment() -> Path:
    """The interpreter of scepter's environment, made on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ace" / PACKAGES[0].replace("==", "-")
    python = cache / "bin" / "python"
    if not (cache / "ready").exists():
        print(f"installing {' and '.join(PACKAGES)} into an environment of their own (once)")
        venv.create(cache, clear=True)
        packages = next((cache / "lib").glob("python*/site-packages"))
        (packages / "torch_and_friends.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *PACKAGES]
        subprocess.run(pip, check=True)
        (cache / "ready").touch()
    return python


class Published:
    """The published network in its own process."""

    def __init__(self, weights: Path, config: ACEConfig, device: str, threads: int) -> None:
        settings = {
            "PATCH_SIZE": config.patch_size,
            "IN_CHANNELS": config.latent_channels,
            "HIDDEN_SIZE": config.hidden_size,
            "DEPTH": config.depth,
            "NUM_HEADS": config.num_heads,
            "MLP_RATIO": config.mlp_ratio,
            "Y_CHANNELS": config.text_channels,
            "MAX_SEQ_LEN": config.max_positions,
        }
        worker = Path(__file__).with_name("scepter_worker.py")
        command = [str(environment()), str(worker), str(weights), json.dumps(settings), device, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self._line() != "ready":
            pass

    def __call__(
        self,
        inputs: Path,
        branches: tuple[str, ...] = ("text",),
        batch: int = 1,
        autocast: str | None = None,
        save: Path | None = None,
    ) -> Seconds:
        asked = {"inputs": str(inputs), "branches": branches, "batch": batch, "autocast": autocast}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**asked, "save": save and str(save)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the published network's process ended: its message is above")
        return line.strip()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """One edit of ours: texts read when it is made, one denoising step per call."""

    def __init__(self, model: ACETransformer, inputs: dict[str, Tensor], branches: tuple[str, ...], batch: int = 1):
        self.model, self.branches, self.batch = model, branches, batch
        self.latents = [inputs["latents"].to(model.device)] * batch
        edits = tuple(inputs[n].to(model.device, model.dtype) for n in sorted(inputs) if n.startswith("edit"))
        frames = []
        for branch in branches:
            texts = tuple(inputs[f"{branch}.{n}"].to(model.device, model.dtype) for n in range(len(edits) + 1))
            size = (edits[0].shape[-2], edits[0].shape[-1])
            frames.append(RequestFrames(size, texts, None, edits, (None,) * len(edits)))
        p = model.sizes.patch_size
        repeats = [number > 0 for number in range(len(branches))] * batch
        self.layout = make_layout(frames * batch, p, model.sizes.head_dim, repeats).to(model.device)
        self.patches = [condition_patches(frames[0], p, 0)] * batch
        self.texts = torch.cat([text for one in frames * batch for text in one.texts])
        self.kept = model.encode_text(self.texts, self.layout)

    def __call__(self) -> list[Tensor]:
        sizes = self.model.sizes
        packed = pack_latents(self.latents, self.patches, sizes.patch_size)
        steps = torch.full((self.batch,), 500, device=self.model.device)
        predicted = self.model(packed, steps, self.layout, text_keys_values=self.kept)
        return unpack_latents(predicted.float(), self.layout, sizes.patch_size, sizes.latent_channels)


def measure(run: Callable[[], object], device: str = "cpu") -> Seconds:
    """One run."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() if device != "cpu" else 0
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": memory}


def alternate(runs: dict[str, Callable[[], Seconds]], repeats: int) -> dict[str, Seconds]:
    """The best of each, measured in turn; all have run before, when outputs were compared."""
    best: dict[str, Seconds] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds = run()
            known = best.setdefault(name, seconds)
            best[name] = {key: min(known[key], value) for key, value in seconds.items()}
    return best


def make_inputs(folder: Path, config: ACEConfig, side: int, images: int, text: int) -> Path:
    """Random latents and texts of one edit; the empty instruction is one token."""
    channels = config.text_channels
    tensors = {"latents": torch.randn(4, side, side), "indicators": torch.randn(10, channels)}
    tensors |= {f"edit{n}": torch.randn(4, side, side) for n in range(images)}
    tensors |= {f"text.{n}": torch.randn(text, channels) for n in range(images + 1)}
    tensors |= {f"null.{n}": torch.randn(1, channels) for n in range(images + 1)}
    path = folder / f"inputs-{side}-{images}.safetensors"
    save_file(tensors, path)
    return path


def our_network(config: ACEConfig, state: dict[str, Tensor], indicators: Tensor, dtype: torch.dtype) -> ACETransformer:
    """The same weights in our network."""
    model = ACETransformer(**dataclasses.asdict(config)).eval()
    model.load_state_dict({**from_published(state, config), "indicator_states": indicators}, strict=True)
    return model.to(dtype)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="latent cells per side of target and edit image")
    parser.add_argument("--text", type=int, default=120, help="text tokens of each frame")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="guided steps of an edit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width = {"hidden_size": 96, "num_heads": 4, "text_channels": 64} if options.smoke else {}
    config = ACEConfig(depth=options.depth, **width)
    side, repeats, steps = (16, 1, 2) if options.smoke else (options.side, options.repeats, options.steps)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} before")
    print(f"command: python benchmarks/bench_published.py {' '.join(sys.argv[1:])}".rstrip())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = published_weights(config)
        save_file(state, folder / "weights.safetensors")
        compare(
            folder, config, state, make_inputs(folder, config, side, 1, options.text), options.threads, steps, repeats
        )
        if torch.cuda.is_available():
            compare_on_gpu(folder, config, state, options.text, options.threads, repeats)


def compare(
    folder: Path, config: ACEConfig, state: dict[str, Tensor], inputs: Path, threads: int, steps: int, repeats: int
) -> None:
    """The comparison on the CPU, printed."""
    published = Published(folder / "weights.safetensors", config, "cpu", threads)
    tensors = load_file(inputs)
    both = ("text", "null")
    networks = {
        "ours": our_network(config, state, tensors["indicators"], torch.float32),
        "ours, bfloat16": our_network(config, state, tensors["indicators"], torch.bfloat16),
    }
    saved = folder / "prediction.safetensors"
    published(inputs, save=saved)
    theirs = load_file(saved)["prediction"]
    for name, model in networks.items():
        (own,) = Ours(model, tensors, ("text",))()
        apart = ((own - theirs).abs().max() / theirs.abs().max()).item()
        print(f"  {name} and the published network are {apart:.1e} of its largest value apart", flush=True)
        assert "bfloat16" in name or apart <= 1e-4, "the outputs differ"

    def edit(model: ACETransformer) -> None:
        step = Ours(model, tensors, both)
        for _ in range(steps):
            step()

    def published_edit() -> Seconds:
        seconds = [published(inputs, both) for _ in range(steps)]
        return {key: sum(one[key] for one in seconds) for key in seconds[0]}

    one = {name: Ours(model, tensors, ("text",)) for name, model in networks.items()}
    forwards = alternate(
        {"published": lambda: published(inputs), **{n: lambda step=step: measure(step) for n, step in one.items()}},
        repeats,
    )
    report("one forward, one branch", forwards)
    if not steps:
        return published.close()
    edits = alternate(
        {
            "published": published_edit,
            **{name: lambda model=model: measure(lambda: edit(model)) for name, model in networks.items()},
        },
        max(1, repeats // 3),
    )
    report(f"an edit of {steps} guided steps", edits)
    return published.close()


def compare_on_gpu(
    folder: Path, config: ACEConfig, state: dict[str, Tensor], text: int, threads: int, repeats: int
) -> None:
    """Guided steps in bfloat16 on a GPU against the published order under autocast, printed."""
    published = Published(folder / "weights.safetensors", config, "cuda", threads)
    for side in (64, 128):
        for images in (1, 3):
            inputs = make_inputs(folder, config, side, images, text)
            tensors = load_file(inputs)
            model = our_network(config, state, tensors["indicators"], torch.bfloat16).to("cuda")
            for batch in (1, 4, 16):
                step = Ours(model, tensors, ("text", "null"), batch)
                published(inputs, ("text", "null"), batch, "bfloat16")
                step()  # both once before anything is measured
                seconds = alternate(
                    {
                        "published": lambda i=inputs, b=batch: published(i, ("text", "null"), b, "bfloat16"),
                        "ours, bfloat16": lambda step=step: measure(step, "cuda"),
                    },
                    repeats,
                )
                report(f"guided step on CUDA, {8 * side} px, {images} images, batch {batch}", seconds)
    published.close()


def report(title: str, seconds: dict[str, Seconds]) -> None:
    """A table: seconds, and how many times the published one's speed."""
    first = seconds["published"]
    print(title)
    for name, own in seconds.items():
        line = f"  {name:24} {own['wall']:8.3f} s, {own['cpu']:8.3f} s of the processor"
        line += f"; {first['wall'] / own['wall']:5.2f} times, {first['cpu'] / own['cpu']:5.2f} times"
        print(line + (f"; {own['memory'] / 2**20:.0f} MiB" if own["memory"] else ""), flush=True)


if __name__ == "__main__":
    main()
