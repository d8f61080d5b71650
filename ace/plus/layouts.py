"""FLUX weights and adapters in the layouts that ACE++ is published in → diffusers' `FluxTransformer2DModel`.

Checkpoints: Black Forest Labs' names (flux1-fill-dev, ACE++ FFT; bare or under `model.diffusion_model.`) or diffusers'
own. Adapters: ComfyUI (`lora_unet_…lora_down`), Swift (`model.….lora_A.0_SwiftLoRA.weight`), BFL and diffusers names,
with full-weight and bias entries; alpha counts: the strength of a pair is alpha / rank. Everything is strict: a key
that has no place is an error that names it.

A weight is read as `Piece`s (which rows of which published tensor), so that 12 B parameters can pass one at a time.

Not here: files and folders (`ace/plus/weights.py`), the network itself (diffusers').
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ace.adapter_files import AdapterSettings, check_kind, is_of_text_encoder, left_out
from ace.errors import CheckpointError

LORA_CHANNELS = 384  # noise 64, edit 64, mask 256: FLUX.1-Fill and its LoRAs
FFT_CHANNELS = 448  # noise 64, edit 64, change 64, mask 256
CHANGE_AT = 128  # where the change channels begin
BFL_PREFIX = "model.diffusion_model."

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class FluxSizes:
    """The sizes of a FLUX transformer, read off its weights. head_dim: of one attention head."""

    in_channels: int
    out_channels: int
    hidden_size: int
    head_dim: int
    num_layers: int
    num_single_layers: int
    text_channels: int
    pooled_channels: int
    guidance: bool
    mlp_size: int

    def config(self) -> dict[str, object]:
        """The settings of diffusers' `FluxTransformer2DModel`. Raises CheckpointError for sizes that it cannot have."""
        if self.hidden_size % self.head_dim or self.mlp_size != 4 * self.hidden_size:
            raise CheckpointError(
                f"hidden size {self.hidden_size}, heads of {self.head_dim}, MLP of {self.mlp_size}: no FLUX has these"
            )
        axis = round(self.head_dim * 7 / 32) * 2  # 56 of 128
        return {
            "patch_size": 1,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.num_layers,
            "num_single_layers": self.num_single_layers,
            "attention_head_dim": self.head_dim,
            "num_attention_heads": self.hidden_size // self.head_dim,
            "joint_attention_dim": self.text_channels,
            "pooled_projection_dim": self.pooled_channels,
            "guidance_embeds": self.guidance,
            "axes_dims_rope": (self.head_dim - 2 * axis, axis, axis),
        }


FLUX_FILL = FluxSizes(LORA_CHANNELS, 64, 3072, 128, 19, 38, 4096, 768, True, 12288)
ACE_PLUS_FFT = replace(FLUX_FILL, in_channels=FFT_CHANNELS)


@dataclass(frozen=True)
class Piece:
    """Where a parameter of diffusers' model comes from: rows `start` to `stop` of a published tensor (None: all of it),
    with its two halves exchanged if `swapped`."""

    source: str
    start: int | None = None
    stop: int | None = None
    swapped: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a tensor whose first dimension is the published one's."""
        part = tensor if self.start is None else tensor[self.start : self.stop]
        return torch.cat(part.chunk(2)[::-1]) if self.swapped else part


@dataclass(frozen=True)
class _Linear:
    """A published linear layer and the layers that it is in diffusers' model, with their numbers of rows."""

    source: str
    targets: tuple[tuple[str, int], ...]
    columns: int
    swapped: bool = False


def _linears(sizes: FluxSizes) -> list[_Linear]:
    d, mlp = sizes.hidden_size, sizes.mlp_size
    single = d + mlp
    found = [
        _Linear("img_in", (("x_embedder", d),), sizes.in_channels),
        _Linear("txt_in", (("context_embedder", d),), sizes.text_channels),
        _Linear("final_layer.linear", (("proj_out", sizes.out_channels),), d),
        _Linear("final_layer.adaLN_modulation.1", (("norm_out.linear", 2 * d),), d, swapped=True),
    ]
    embedders = {"time_in": ("timestep_embedder", 256), "vector_in": ("text_embedder", sizes.pooled_channels)}
    if sizes.guidance:
        embedders["guidance_in"] = ("guidance_embedder", 256)
    for old, (new, columns) in embedders.items():
        found.append(_Linear(f"{old}.in_layer", ((f"time_text_embed.{new}.linear_1", d),), columns))
        found.append(_Linear(f"{old}.out_layer", ((f"time_text_embed.{new}.linear_2", d),), d))
    for n in range(sizes.num_layers):
        old, new = f"double_blocks.{n}", f"transformer_blocks.{n}"
        streams = (
            ("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
            ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
        )
        for stream, norm, heads, out, feed in streams:
            found += [
                _Linear(f"{old}.{stream}_mod.lin", ((f"{new}.{norm}.linear", 6 * d),), d),
                _Linear(f"{old}.{stream}_attn.qkv", tuple((f"{new}.attn.{head}", d) for head in heads), d),
                _Linear(f"{old}.{stream}_attn.proj", ((f"{new}.attn.{out}", d),), d),
                _Linear(f"{old}.{stream}_mlp.0", ((f"{new}.{feed}.net.0.proj", mlp),), d),
                _Linear(f"{old}.{stream}_mlp.2", ((f"{new}.{feed}.net.2", d),), mlp),
            ]
    for n in range(sizes.num_single_layers):
        old, new = f"single_blocks.{n}", f"single_transformer_blocks.{n}"
        parts = tuple((f"{new}.attn.{head}", d) for head in ("to_q", "to_k", "to_v"))
        found += [
            _Linear(f"{old}.modulation.lin", ((f"{new}.norm.linear", 3 * d),), d),
            _Linear(f"{old}.linear1", (*parts, (f"{new}.proj_mlp", mlp)), d),
            _Linear(f"{old}.linear2", ((f"{new}.proj_out", d),), single),
        ]
    return found


def _norms(sizes: FluxSizes) -> dict[str, str]:
    """Published name → diffusers' name of every norm weight."""
    names = {}
    for n in range(sizes.num_layers):
        for stream, added in (("img", ""), ("txt", "added_")):
            for part, letter in (("query", "q"), ("key", "k")):
                names[f"double_blocks.{n}.{stream}_attn.norm.{part}_norm.scale"] = (
                    f"transformer_blocks.{n}.attn.norm_{added}{letter}.weight"
                )
    for n in range(sizes.num_single_layers):
        for part, letter in (("query", "q"), ("key", "k")):
            names[f"single_blocks.{n}.norm.{part}_norm.scale"] = (
                f"single_transformer_blocks.{n}.attn.norm_{letter}.weight"
            )
    return names


# Checkpoints


def is_bfl(names: Iterable[str]) -> bool:
    """Whether tensor names are Black Forest Labs' (else diffusers')."""
    return any("double_blocks." in name or name.endswith("img_in.weight") for name in names)


def flux_sizes(shapes: Mapping[str, Shape]) -> FluxSizes:
    """The sizes of a FLUX transformer from the shapes of its tensors, in either layout.

    Raises CheckpointError if these are no FLUX weights."""
    shapes = {name.removeprefix(BFL_PREFIX): shape for name, shape in shapes.items()}
    if is_bfl(shapes):
        names = ("img_in", "txt_in", "vector_in.in_layer", "final_layer.linear", "double_blocks.0.img_mlp.0")
        norm, double, single = "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks", "single_blocks"
        guidance = "guidance_in.in_layer.weight"
    else:
        names = (
            "x_embedder",
            "context_embedder",
            "time_text_embed.text_embedder.linear_1",
            "proj_out",
            "transformer_blocks.0.ff.net.0.proj",
        )
        norm = "transformer_blocks.0.attn.norm_q.weight"
        double, single = "transformer_blocks", "single_transformer_blocks"
        guidance = "time_text_embed.guidance_embedder.linear_1.weight"
    try:
        (hidden, channels), (_, text), (_, pooled), (out, _), (mlp, _) = (shapes[f"{name}.weight"] for name in names)
        return FluxSizes(
            in_channels=channels,
            out_channels=out,
            hidden_size=hidden,
            head_dim=shapes[norm][0],
            num_layers=_count(shapes, double),
            num_single_layers=_count(shapes, single),
            text_channels=text,
            pooled_channels=pooled,
            guidance=guidance in shapes,
            mlp_size=mlp,
        )
    except (KeyError, ValueError, IndexError):
        raise CheckpointError(
            "these are no weights of a FLUX transformer: give flux1-fill-dev.safetensors, an ACE++ file or a folder"
        ) from None


def checkpoint_shapes(sizes: FluxSizes) -> dict[str, Shape]:
    """Published name → shape of every tensor of a transformer of these sizes."""
    shapes: dict[str, Shape] = {}
    for linear in _linears(sizes):
        rows = sum(rows for _, rows in linear.targets)
        shapes[f"{linear.source}.weight"] = (rows, linear.columns)
        shapes[f"{linear.source}.bias"] = (rows,)
    return {**shapes, **dict.fromkeys(_norms(sizes), (sizes.head_dim,))}


def pieces(sizes: FluxSizes) -> dict[str, Piece]:
    """Parameter of diffusers' model → where it is in a published checkpoint."""
    found: dict[str, Piece] = {}
    for linear in _linears(sizes):
        start = 0
        for target, rows in linear.targets:
            whole = len(linear.targets) == 1
            for part in ("weight", "bias"):
                found[f"{target}.{part}"] = Piece(
                    f"{linear.source}.{part}", *((None, None) if whole else (start, start + rows)), linear.swapped
                )
            start += rows
    found.update({new: Piece(old) for old, new in _norms(sizes).items()})
    return found


def check_checkpoint(shapes: Mapping[str, Shape], sizes: FluxSizes) -> None:
    """Raise CheckpointError naming what is missing, unknown or misshapen in a published checkpoint."""
    wanted = checkpoint_shapes(sizes)
    given = {name.removeprefix(BFL_PREFIX): tuple(shape) for name, shape in shapes.items()}
    given = {name: shape for name, shape in given.items() if not is_scale(name)}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        raise CheckpointError(f"not a whole FLUX checkpoint: missing {_few(missing)}, unknown {_few(unknown)}")
    wrong = [f"{n} {given[n]} instead of {s}" for n, s in wanted.items() if given[n] != s]
    if wrong:
        raise CheckpointError(f"weights of another size: {_few(wrong)}")


def is_scale(name: str) -> bool:
    """Whether a tensor only says how 8-bit weights were scaled (ComfyUI's convention)."""
    return name.endswith((".scale_weight", ".scale_input")) or name == "scaled_fp8"


def widen(weight: Tensor, channels: int = FFT_CHANNELS) -> Tensor:
    """The input weight (D, 384) of FLUX.1-Fill for `channels` of ACE++ FFT: zeros for the change channels at 128, the
    mask's columns after them.

    Raises CheckpointError for a weight that has no 384 columns. (The original's loader puts the new columns last, so
    that mask weights meet change latents.)"""
    if weight.ndim != 2 or weight.shape[1] != LORA_CHANNELS or channels < LORA_CHANNELS:
        raise CheckpointError(f"an input weight of {tuple(weight.shape)} cannot be widened to {channels} channels")
    new = weight.new_zeros(weight.shape[0], channels - LORA_CHANNELS)
    return torch.cat([weight[:, :CHANGE_AT], new, weight[:, CHANGE_AT:]], dim=1)


# Adapters


@dataclass
class Delta:
    """What an adapter does to one parameter: adds `up @ down` (its strength folded in) or `added`, or moves it towards
    `whole`."""

    down: Tensor | None = None
    up: Tensor | None = None
    added: Tensor | None = None
    whole: Tensor | None = None

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight, computed in float32, in the weight's number type."""
        result = weight.float()
        if self.whole is not None:
            result = result + strength * (self.whole.to(result) - result)
        if self.added is not None:
            result = result + strength * self.added.to(result)
        if self.down is not None and self.up is not None:
            result = result + strength * (self.up.to(result) @ self.down.to(result))
        return result.to(weight.dtype)


@dataclass
class FluxAdapter:
    """A LoRA in diffusers' names. deltas: parameter → what is done to it. name: for messages. notes: what of the file
    was left out."""

    name: str
    deltas: dict[str, Delta] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of its pairs, 0 without any."""
        return max((delta.down.shape[0] for delta in self.deltas.values() if delta.down is not None), default=0)

    def peft_state(self) -> dict[str, Tensor]:
        """The pairs as peft reads them (`module.lora_A.weight`), strength folded in, so that alpha = rank.

        Raises CheckpointError if the adapter does more than that: merge it instead."""
        state: dict[str, Tensor] = {}
        for parameter, delta in self.deltas.items():
            module, _, part = parameter.rpartition(".")
            if part != "weight" or delta.down is None or delta.up is None or delta.added is not None:
                raise CheckpointError(f"{self.name} changes {parameter} as a whole: merge it, it cannot be attached")
            state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = delta.down, delta.up
        return state


_ENDINGS = (
    (re.compile(r"\.lora_(?:down|A)(?:\.(?!bias$)[\w-]+)*?\.weight$"), "down"),
    (re.compile(r"\.lora_(?:up|B)(?:\.(?!bias$)[\w-]+)*?\.weight$"), "up"),
    (re.compile(r"\.lora_(?:up|B)(?:\.[\w-]+)*?\.bias$"), "up_bias"),
    (re.compile(r"\.lora\.down\.weight$"), "down"),
    (re.compile(r"\.lora\.up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.diff$"), "added"),
    (re.compile(r"\.diff_b$"), "added_bias"),
)
_PREFIXES = (
    "lora_unet_",
    "lora_transformer_",
    "transformer.",
    "diffusion_model.",
    BFL_PREFIX,
    "base_model.model.",
    "model.",
)
# other families by what only they have, so that the message can say what the file is for
_FAMILIES = {
    "an SD or SDXL U-Net": re.compile(r"(down|up|input|output)_blocks?[._]|mid_block"),
    "Wan": re.compile(r"blocks[._]\d+[._](self|cross)_attn"),
}


def read_adapter(
    tensors: Mapping[str, Tensor], sizes: FluxSizes, name: str, settings: AdapterSettings | None = None
) -> FluxAdapter:
    """An adapter file's tensors, in any of the published formats, for a transformer of these sizes.

    settings: what stands beside the tensors. What is for a text encoder is left out, and the adapter's notes say so.
    Raises CheckpointError, naming the file, if it is for another model, not whole, not finite, or no LoRA."""
    settings = settings or AdapterSettings()
    check_kind(name, tensors, settings)
    linears = {linear.source: linear for linear in _linears(sizes)}
    own = {target: (rows, linear) for linear in linears.values() for target, rows in linear.targets}
    flat = {module.replace(".", "_"): module for module in (*linears, *own)}
    parameters = {
        **{k: v.source for k, v in pieces(sizes).items()},
        **{v.source: v.source for v in pieces(sizes).values()},
    }
    entries: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if is_of_text_encoder(key):
            continue
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{name} holds values that are not finite, in {key}: get the adapter again")
        module, kind = _split_key(key)
        bare = _without_prefix(module)
        found = module if module in linears or module in own else flat.get(bare.replace(".", "_"))
        if kind and found:
            entries.setdefault(found, {})[kind] = tensor
        elif not kind and _without_prefix(key) in parameters:
            whole[_without_prefix(key)] = tensor
        else:
            unknown.append(key)
    if unknown:
        family = next(
            (text for text, pattern in _FAMILIES.items() if any(pattern.search(key) for key in unknown)), None
        )
        what = f"is made for {family}" if family and not entries else f"has no place for {_few(sorted(unknown))}"
        raise CheckpointError(f"{name} {what}: give an adapter of FLUX.1-Fill or ACE++")
    adapter = FluxAdapter(name, notes=left_out(name, tensors))
    for module, parts in entries.items():
        targets, columns, swapped = (
            (linears[module].targets, linears[module].columns, linears[module].swapped)
            if module in linears
            else (((module, own[module][0]),), own[module][1].columns, False)
        )
        _add(adapter, module, parts, targets, columns, swapped, settings)
    by_source: dict[str, list[tuple[str, Piece]]] = {}
    for parameter, piece in pieces(sizes).items():
        by_source.setdefault(piece.source, []).append((parameter, piece))
    for key, tensor in whole.items():
        mine = by_source.get(key) or [(key, Piece(key))]
        for parameter, piece in mine:
            adapter.deltas.setdefault(parameter, Delta()).whole = piece.of(tensor)
    if not adapter.deltas:
        what = "is made for a text encoder" if adapter.notes else "holds no adapter"
        raise CheckpointError(f"{name} {what}: give a LoRA file of FLUX.1-Fill or ACE++")
    return adapter


def _add(
    adapter: FluxAdapter,
    module: str,
    parts: Mapping[str, Tensor],
    targets: tuple[tuple[str, int], ...],
    columns: int,
    swapped: bool,
    settings: AdapterSettings,
) -> None:
    """Put one module's entries into the adapter, split as the layer is in diffusers' model."""
    rows = sum(count for _, count in targets)
    down, up, added, bias = (parts.get(kind) for kind in ("down", "up", "added", "added_bias"))
    if (down is None) != (up is None) or (down is None and added is None and bias is None):
        raise CheckpointError(f"{adapter.name} lacks half of the pair of {module}: get the file again")
    if down is not None and up is not None:
        down, up = down.flatten(1), up.flatten(1)
        if down.shape[1] != columns or up.shape[0] != rows or down.shape[0] != up.shape[1]:
            hint = ""
            if module in ("img_in", "x_embedder"):
                hint = f" (it was made for {down.shape[1]} input channels, this model has {columns})"
            raise CheckpointError(
                f"{adapter.name}: {module} is {up.shape[0]}x{down.shape[1]} there, {rows}x{columns} in this model{hint}"
                ": use an adapter made for this model"
            )
        rank = down.shape[0]
        strength = settings.strength(module, rank, float(parts["alpha"]) if "alpha" in parts else None)
        up = up.float() * strength if strength != 1.0 else up
        if "up_bias" in parts:
            bias = parts["up_bias"].float() * strength
    if any(x is not None and x.shape[0] != rows for x in (added, bias)):
        raise CheckpointError(
            f"{adapter.name}: {module} has another number of rows than this model: use another adapter"
        )
    start = 0
    for target, count in targets:
        piece = Piece(module, *((start, start + count) if len(targets) > 1 else (None, None)), swapped)
        if down is not None or added is not None:
            delta = adapter.deltas.setdefault(f"{target}.weight", Delta())
            delta.down = down
            delta.up = None if up is None else piece.of(up).contiguous()
            delta.added = None if added is None else piece.of(added)
        if bias is not None:
            adapter.deltas.setdefault(f"{target}.bias", Delta()).added = piece.of(bias)
        start += count


def _split_key(key: str) -> tuple[str, str | None]:
    """("module", kind of entry), or the key itself and None."""
    for pattern, kind in _ENDINGS:
        match = pattern.search(key)
        if match:
            return key[: match.start()], kind
    return key, None


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return _without_prefix(name.removeprefix(prefix))
    return name


def _count(shapes: Mapping[str, Shape], stem: str) -> int:
    return 1 + max(int(m[1]) for name in shapes if (m := re.match(rf"{stem}\.(\d+)\.", name)))


def _few(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
