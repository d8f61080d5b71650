"""Seconds per step and peak memory of one 1024 x 1024 edit with FLUX.1-Fill's or ACE++ FFT's full size, random weights.

python benchmarks/bench_plus.py --kind fft --bits 16 --reference     one canvas of 1024 x 1024 px and a reference
python benchmarks/bench_plus.py --kind fft --bits 8
python benchmarks/bench_plus.py --small                              a tiny network, to see that it runs

Only the transformer is measured: texts and latents are random. `--bits 8` is what `--quantize fp8` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from ace.plus.fp8 import Fp8Linear, to_fp8
from ace.plus.inputs import position_ids
from ace.plus.layouts import ACE_PLUS_FFT, FLUX_FILL, FluxSizes


def random_model(sizes: FluxSizes, bits: int, device: str, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The network, made on the device layer by layer, so that the host holds nothing."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(**sizes.config())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            weight = torch.randn(module.weight.shape, device=device, dtype=dtype) * 0.02
            bias = None if module.bias is None else torch.zeros(module.bias.shape, device=device, dtype=dtype)
            if bits == 8 and "transformer_blocks." in name:
                parent, _, leaf = name.rpartition(".")
                model.get_submodule(parent).register_module(leaf, Fp8Linear(*to_fp8(weight), bias))
                continue
            module.weight = nn.Parameter(weight, requires_grad=False)
            module.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        else:
            for own, parameter in list(module.named_parameters(recurse=False)):
                ones = torch.ones(parameter.shape, device=device, dtype=dtype)
                module.register_parameter(own, nn.Parameter(ones, requires_grad=False))
    return model.eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("fill", "fft"), default="fft")
    parser.add_argument("--bits", type=int, choices=(8, 16), default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--reference", action="store_true", help="a canvas twice as wide")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sizes = ACE_PLUS_FFT if options.kind == "fft" else FLUX_FILL
    rows, columns, words = 128, 256 if options.reference else 128, 512
    if options.small:
        sizes = FluxSizes(sizes.in_channels, 64, 64, 32, 1, 1, 32, 24, True, 256)
        rows, columns, words = 16, 16, 8
    model = random_model(sizes, options.bits, device, dtype)
    tokens = rows * columns // 4
    inputs = {
        "hidden_states": torch.randn(1, tokens, sizes.in_channels, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, words, sizes.text_channels, device=device, dtype=dtype),
        "pooled_projections": torch.randn(1, sizes.pooled_channels, device=device, dtype=dtype),
        "timestep": torch.full((1,), 0.5, device=device),
        "guidance": torch.full((1,), 50.0, device=device),
        "img_ids": position_ids(rows, columns, device),
        "txt_ids": torch.zeros(words, 3, device=device),
        "return_dict": False,
    }
    seconds = []
    for _ in range(options.steps + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(**inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "sizes": dataclasses.asdict(sizes),
        "bits": options.bits,
        "tokens": tokens,
        "seconds_per_step": min(seconds[1:]),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
