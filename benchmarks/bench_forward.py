"""One guided forward at the published width: ours against a plain run of the published order of computation.

python benchmarks/bench_forward.py                # hidden 1152, 16 heads, depth 4, 1024 + 1024 tokens, 2 threads
python benchmarks/bench_forward.py --smoke        # small sizes, to see that it runs

Same process, same random weights, float32. The plain run must first pass the recorded cases, and both must agree to
1e-4. What is timed is one denoising step: two plain forward passes, as published, against our one packed pass with
the text's keys and values kept from before. Without guidance it is one pass each. Runs alternate; medians are
compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from published_order import PublishedOrder, Sample, check
from torch import Tensor

from ace.model.config import ACEConfig
from ace.model.convert import from_published, key_map
from ace.model.cost import step_cost
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, unpack_latents
from ace.model.transformer import ACETransformer

CASES = Path(__file__).parents[1] / "tests" / "parity" / "cases"


def published_weights(config: ACEConfig) -> dict[str, Tensor]:
    """Random weights under published names."""
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in ACETransformer(**dataclasses.asdict(config)).state_dict().items()
        }
    state = {}
    for published, ours in key_map(config).items():
        shape = shapes[ours]
        if published == "x_embedder.proj.weight":
            shape = (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 1
        value = torch.randn(shape) * (fan_in**-0.5 if len(shape) > 1 else 0.02)
        state[published] = 1 + value if ".norm_" in published else value
        if ".norm_q." in published:
            state[published.replace("norm_q", "norm_k")] = torch.ones(shape)
    return state


def timed(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured in turn after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="latent cells per side of target and edit image")
    parser.add_argument("--text", type=int, default=120, help="text tokens of each frame")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--cases", type=Path, default=Path(os.environ.get("ACE_PARITY_DIR", CASES)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    differences = check(options.cases)
    print(f"plain run: {len(differences)} recorded cases pass, at most {max(differences.values()):.1e} off")
    width = {"hidden_size": 96, "num_heads": 4, "text_channels": 64} if options.smoke else {}
    side = 16 if options.smoke else options.side
    config = ACEConfig(depth=options.depth, **width)
    state = published_weights(config)
    indicators = torch.randn(10, config.text_channels)
    latents, edit = torch.randn(4, side, side), torch.randn(4, side, side)
    texts = tuple(torch.randn(options.text, config.text_channels) for _ in range(2))
    null_texts = tuple(torch.randn(1, config.text_channels) for _ in range(2))  # the empty instruction is one token

    plain = PublishedOrder(state, config.num_heads, indicators)
    samples = [Sample(latents, 500, own, edits=(edit,)) for own in (texts, null_texts)]
    model = ACETransformer(**dataclasses.asdict(config)).eval()
    model.load_state_dict({**from_published(state, config), "indicator_states": indicators}, strict=True)
    frames = [RequestFrames((side, side), own, None, (edit,), (None,)) for own in (texts, null_texts)]

    def ready(count: int) -> Callable[[], list[Tensor]]:
        """One step of the first `count` branches, with everything that is kept between steps made beforehand."""
        p = config.patch_size
        layout = make_layout(frames[:count], p, config.head_dim, [n > 0 for n in range(count)])
        patches = [condition_patches(frames[0], p, 0)]
        kept = model.encode_text(torch.cat([text for own in frames[:count] for text in own.texts]), layout)
        steps = torch.tensor([500])

        def step() -> list[Tensor]:
            packed = pack_latents([latents], patches, p)
            return unpack_latents(model(packed, steps, layout, text_keys_values=kept), layout, p, 4)

        return step

    guided, single = ready(2), ready(1)
    for ours, sample in zip(guided(), samples, strict=True):
        theirs = plain([sample])[0][:4]
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        assert difference <= 1e-4, f"ours and the plain run differ by {difference:.1e}"
        print(f"same prediction: {difference:.1e} of its largest value apart")
    seconds = timed(
        {
            "plain, guided": lambda: [plain([sample]) for sample in samples],
            "ours, guided": guided,
            "plain, one branch": lambda: plain(samples[:1]),
            "ours, one branch": single,
        },
        1 if options.smoke else options.repeats,
    )
    tokens = (side // config.patch_size) ** 2
    cost = step_cost(config, [tokens] * 2, [options.text] * 2, [1] * 2).total
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(
        f"hidden {config.hidden_size}, {config.num_heads} heads, depth {config.depth}, {tokens} + {tokens} tokens,",
        end=" ",
    )
    print(f"text {options.text}; command: python benchmarks/bench_forward.py {' '.join(sys.argv[1:])}".rstrip())
    for name, value in seconds.items():
        print(f"  {name:18} {value:8.3f} s")
    print(f"  ours, guided: {cost / seconds['ours, guided'] / 1e9:.0f} GFLOP/s of matrix products")
    print(f"ratio guided {seconds['plain, guided'] / seconds['ours, guided']:.2f},", end=" ")
    print(f"one branch {seconds['plain, one branch'] / seconds['ours, one branch']:.2f}")


if __name__ == "__main__":
    main()
