"""A plain run of the published order of computation, on published weights: what our transformer is measured against.

Written from the description of the published models: the time embedding and its six rows for every
token, rotary turns in complex128 in every call, the text MLP and its keys and values in every call, attention sample by
sample and frame by frame, the final layer over all frames. Attention is torch's own, in float32, where the original
wants flash-attention. `check` compares it with the recorded numbers of the published code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One sample of a batch. latents: (4, h, w); edits: (4, h_k, w_k) each; masks: (1, h, w) or None;
    texts: one (L, 4096) per frame, the target's first."""

    latents: Tensor
    timestep: int
    texts: tuple[Tensor, ...]
    mask: Tensor | None = None
    edits: tuple[Tensor, ...] = ()
    edit_masks: tuple[Tensor | None, ...] = ()


class PublishedOrder:
    """The network on a state dict with published names."""

    def __init__(self, state: Mapping[str, Tensor], num_heads: int, indicators: Tensor | None) -> None:
        self.state, self.heads, self.indicators = state, num_heads, indicators
        self.width = state["t_block.1.weight"].shape[1]
        self.depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        self.patch = state["x_embedder.proj.weight"].shape[-1]
        self.tables = self._rotary_tables(1024)

    def __call__(self, samples: list[Sample]) -> list[Tensor]:
        """Predictions (out_channels, h, w), one per sample."""
        tokens, texts, frames, steps = [], [], [], []
        for sample in samples:
            images = (sample.latents, *sample.edits)
            masks = (sample.mask, *(sample.edit_masks or (None,) * len(sample.edits)))
            for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
                row = number - 1 if number else len(sample.edits)
                plane = torch.cat([image, torch.ones_like(image[:1]) if mask is None else mask])
                frame = F.conv2d(plane[None], *self._linear("x_embedder.proj"), stride=self.patch).flatten(2)[0].T
                text = self._mlp("y_embedder", sample.texts[number])
                if self.indicators is not None:
                    indicator = self._mlp("y_embedder", self.indicators)[row]
                    frame, text = frame + indicator, text + indicator
                tokens.append(frame)
                texts.append(text)
                frames.append((image.shape[-2] // self.patch, image.shape[-1] // self.patch))
            steps.append(sum(rows * cols for rows, cols in frames[-len(images) :]))
        x, y = torch.cat(tokens), torch.cat(texts)
        timestep = torch.repeat_interleave(torch.tensor([s.timestep for s in samples]), torch.tensor(steps))
        e = self._time(timestep)  # (T, D): every token its own
        c = F.linear(F.silu(e), *self._linear("t_block.1")).unflatten(1, (6, -1))  # (T, 6, D)
        counts = [1 + len(sample.edits) for sample in samples]
        text_lengths = [len(text) for text in texts]
        for n in range(self.depth):
            table = self.state[f"blocks.{n}.scale_shift_table"]
            shift1, scale1, gate1, shift2, scale2, gate2 = (table[None] + c).unbind(1)
            x = x + gate1 * self._self_attention(f"blocks.{n}.attn", self._norm(x, shift1, scale1), frames, counts)
            x = x + self._cross_attention(f"blocks.{n}.cross_attn", x, y, frames, text_lengths)
            x = x + gate2 * self._mlp(f"blocks.{n}.mlp", self._norm(x, shift2, scale2))
        shift, scale = (self.state["final_layer.scale_shift_table"][None] + e[:, None]).unbind(1)
        out = F.linear(self._norm(x, shift, scale), *self._linear("final_layer.linear"))
        predictions, start = [], 0
        for sample_number, count in enumerate(counts):
            first = sum(counts[:sample_number])
            (rows, cols), p = frames[first], self.patch
            target = out[start : start + rows * cols].reshape(rows, cols, p, p, -1)
            predictions.append(target.permute(4, 0, 2, 1, 3).reshape(-1, rows * p, cols * p))
            start += sum(h * w for h, w in frames[first : first + count])
        return predictions

    def _self_attention(self, name: str, x: Tensor, frames: list[tuple[int, int]], counts: list[int]) -> Tensor:
        q, k, v = self._heads_of(name, x, x)
        q, k = self._rotate(q, frames, counts), self._rotate(k, frames, counts)
        lengths, first = [], 0
        for count in counts:
            lengths.append(sum(h * w for h, w in frames[first : first + count]))
            first += count
        return self._attend(name, q, k, v, lengths, lengths)

    def _cross_attention(
        self, name: str, x: Tensor, y: Tensor, frames: list[tuple[int, int]], text_lengths: list[int]
    ) -> Tensor:
        return self._attend(name, *self._heads_of(name, x, y), [h * w for h, w in frames], text_lengths)

    def _heads_of(self, name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (F.linear(i, *self._linear(f"{name}.{part}")) for part, i in (("q", x), ("k", y), ("v", y)))
        norm = self.state.get(f"{name}.norm_q.weight")  # for keys as well
        if norm is not None:
            q, k = (i.float() * torch.rsqrt(i.float().pow(2).mean(-1, keepdim=True) + 1e-6) * norm for i in (q, k))
        return tuple(i.unflatten(1, (self.heads, -1)) for i in (q, k, v))

    def _attend(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, query_lengths: list[int], key_lengths: list[int]
    ) -> Tensor:
        outputs = []
        for own in zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True):
            out = F.scaled_dot_product_attention(*(i.transpose(0, 1)[None] for i in own))
            outputs.append(out[0].transpose(0, 1).flatten(1))
        return F.linear(torch.cat(outputs), *self._linear(f"{name}.o"))

    def _rotate(self, x: Tensor, frames: list[tuple[int, int]], counts: list[int]) -> Tensor:
        frame_table, row_table, column_table = self.tables
        turns = []
        first = 0
        for count in counts:
            for number, (rows, cols) in enumerate(frames[first : first + count]):
                parts = (
                    frame_table[number].expand(rows, cols, -1),
                    row_table[:rows, None].expand(rows, cols, -1),
                    column_table[None, :cols].expand(rows, cols, -1),
                )
                turns.append(torch.cat(parts, dim=-1).flatten(0, 1))
            first += count
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.cat(turns)[:, None]).flatten(-2).to(x.dtype)

    def _rotary_tables(self, length: int) -> list[Tensor]:
        head = self.width // self.heads
        s = head // 6
        tables = []
        for axis in (head - 4 * s, 2 * s, 2 * s):
            frequencies = 10000.0 ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)
            angle = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
            tables.append(torch.polar(torch.ones_like(angle), angle))
        return tables

    def _time(self, timestep: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angle = timestep[:, None].float() * frequencies
        hidden = F.linear(torch.cat([angle.cos(), angle.sin()], dim=1), *self._linear("t_embedder.mlp.0"))
        return F.linear(F.silu(hidden), *self._linear("t_embedder.mlp.2"))

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, *self._linear(f"{name}.fc1")), approximate="tanh")
        return F.linear(hidden, *self._linear(f"{name}.fc2"))

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]


def check(folder: Path, tolerance: float = 1e-4) -> dict[str, float]:
    """Run every recorded case of kind "dit" in a folder.

    Returns the largest difference of each, relative to the recorded output's largest value. Raises AssertionError if
    one is beyond the tolerance or there is none."""
    differences: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta.get("kind") != "dit":
            continue
        tensors = load_file(path.with_suffix(".safetensors"))
        if meta.get("weights_file"):
            tensors = load_file(folder / meta["weights_file"]) | tensors
        state = {name.removeprefix("sd."): value for name, value in tensors.items() if name.startswith("sd.")}
        model = PublishedOrder(state, meta["config"]["NUM_HEADS"], tensors.get("in.text_position_embeddings"))
        samples = [_recorded_sample(tensors, n, own) for n, own in enumerate(meta["samples"])]
        recorded = tensors["out.eps"]
        with torch.no_grad():
            predictions = model(samples)
        worst = 0.0
        for n, prediction in enumerate(predictions):
            ours = prediction[: recorded.shape[1]].flatten(1)
            worst = max(worst, (ours - recorded[n, :, : ours.shape[1]]).abs().max().item())
        differences[path.stem] = worst / recorded.abs().max().item()
    assert differences, "no recorded case of the transformer there"
    assert max(differences.values()) <= tolerance, differences
    return differences


def _recorded_sample(tensors: dict[str, Tensor], number: int, own: dict) -> Sample:
    h, w = own["target"]
    lengths = tensors[f"in.context_mask.{number}"].sum(dim=1).tolist()
    masks = [tensors.get(f"in.edit_mask.{number}.{k}") for k in range(len(own["edits"]))]
    mask = tensors.get(f"in.x_mask.{number}")
    return Sample(
        latents=tensors["in.x"][number, :, : h * w].unflatten(1, (h, w)),
        timestep=int(tensors["in.t"][number]),
        texts=tuple(rows[:n] for rows, n in zip(tensors[f"in.context.{number}"], lengths, strict=True)),
        mask=None if mask is None else mask[0],
        edits=tuple(tensors[f"in.edit.{number}.{k}"][0] for k in range(len(own["edits"]))),
        edit_masks=tuple(None if m is None else m[0] for m in masks),
    )
