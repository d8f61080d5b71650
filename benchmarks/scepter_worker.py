"""Runs the published network, from `scepter` on PyPI, in an environment of its own; `bench_published.py` talks to it.

Only the backbone module of the package is imported. Where it wants flash-attention it gets torch's own
`scaled_dot_product_attention`, segment by segment, and the numbers in the precision of the weights instead of float16,
so that the outputs can be compared. Nothing else is changed. One line of JSON comes in per run, one goes out.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import time
import types
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **flash_settings: object
) -> Tensor:
    """`flash_attn_varlen_func` by torch. q, k, v: (T, heads, d)."""
    outputs = []
    bounds = [cu.tolist() for cu in (cu_seqlens_q, cu_seqlens_k)]
    for first, end, key_first, key_end in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        own = (q[first:end], k[key_first:key_end], v[key_first:key_end])
        out = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in own))
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def published_network(state: dict[str, Tensor], settings: dict[str, int]) -> torch.nn.Module:
    """The published class on given weights, in evaluation mode."""
    flash = types.ModuleType("flash_attn")
    flash.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    flash.flash_attn_varlen_func = attention  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = flash
    from scepter.modules.model.backbone.ace.ace import ACE  # type: ignore[import-not-found]
    from scepter.modules.model.backbone.ace.layers import MultiHeadAttention  # type: ignore[import-not-found]
    from scepter.modules.utils.config import Config  # type: ignore[import-not-found]

    ACE.window_size = 0  # read before it is set
    plain = {"NAME": "ACE", "PRED_SIGMA": True, "QK_NORM": True, "DROP_PATH": 0.0, **settings}
    network = ACE(Config(cfg_dict=plain, load=False), logger=None)
    network.load_state_dict(state, strict=True)
    for module in network.modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_pre_hook(_in_own_precision, with_kwargs=True)
    return network.eval()


def _in_own_precision(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "dtype": args[0].dtype}


def main() -> None:
    """weights.safetensors, settings and device by the command line; then one request a line: inputs (a file), branches
    (names of texts in it), batch (how many copies at once), autocast (a dtype, or null), save (a file, or null)."""
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    weights, settings, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    network = published_network(load_file(Path(weights)), json.loads(settings)).to(device)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        inputs = load_file(Path(asked["inputs"]), device=device)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for branch in asked["branches"]:
            precision = getattr(torch, asked["autocast"] or "bfloat16")
            with torch.autocast(device, precision, enabled=asked["autocast"] is not None):
                prediction = run(network, inputs, branch, asked["batch"])
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if asked["save"]:
            size = inputs["latents"].shape[1:]
            save_file({"prediction": prediction[0].float().unflatten(1, size).contiguous()}, Path(asked["save"]))
        memory = torch.cuda.max_memory_allocated() if device != "cpu" else 0
        print(json.dumps({**seconds, "memory": memory}), flush=True)


def run(network: torch.nn.Module, inputs: dict[str, Tensor], branch: str, batch: int) -> Tensor:
    """One published forward pass of one guidance branch, for `batch` copies of the sample."""
    latents = inputs["latents"]
    edits = [inputs[name] for name in sorted(inputs) if name.startswith("edit")]
    texts = [inputs[f"{branch}.{n}"] for n in range(len(edits) + 1)]
    ones = [torch.ones(len(text), dtype=torch.long, device=latents.device) for text in texts]
    return network(
        latents.flatten(1).expand(batch, -1, -1),
        t=torch.full((batch,), 500, device=latents.device),
        cond={
            "crossattn": [texts] * batch,
            "x_shapes": [tuple(latents.shape[1:])] * batch,
            "x_mask": [None] * batch,
            "edit": [[edit[None] for edit in edits]] * batch,
            "edit_mask": [[None] * len(edits)] * batch,
        },
        mask=[ones] * batch,
        text_position_embeddings=inputs["indicators"],
    )


if __name__ == "__main__":
    main()
