"""Train a LoRA of a VACE model on clips: `ace train` with kind = "vace" (arXiv 2503.07598; flow matching as Wan 2.1).

Each example is a line of `clips.jsonl` (`ace data world --video` writes one): a clip, the masks of what is made anew,
an instruction. The model sees the clip with that part hidden and learns to paint it. What step n draws, the example,
its noise and its time, is decided by the seed and n alone, so that a killed run resumes from its last checkpoint and
ends with the same weights to the bit.

One process. Not here: the transformer's own weights, which stay as they are.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ace.diffusion import seeded_generator
from ace.errors import DataError, OutputError
from ace.model.devices import find_device
from ace.training.config import VideoRecipe
from ace.video.clips import open_clip
from ace.video.pipeline import MAX_TEXT_TOKENS, VideoPipeline
from ace.video.prepare import fit, repainted, working_size

ADAPTER = "trained"
WEIGHTS = "pytorch_lora_weights.safetensors"
_CHECKPOINT = "checkpoint.pt"
_LOG = "losses.jsonl"
_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
_KEPT = 64  # encoded examples in memory


@dataclass(frozen=True)
class ClipExample:
    """A line of a list. video, mask: files; instruction: what the whole clip shows."""

    video: Path
    mask: Path
    instruction: str


def read_list(path: Path) -> list[ClipExample]:
    """The examples of a `clips.jsonl`, or of a folder that holds one. Raises DataError, naming the line."""
    file = path / "clips.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{file.name} cannot be read: name a folder of `ace data world --video`, or its list") from None
    examples = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            names = [str(row["video"]), str(row["mask"])]
            paths = [(file.parent / name).resolve() for name in names]
            if not all(one.is_relative_to(file.parent.resolve()) for one in paths):
                raise ValueError
            examples.append(ClipExample(paths[0], paths[1], str(row["instruction"])))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"line {number} of {file.name} names no video, mask and instruction beside it") from None
    if not examples:
        raise DataError(f"{file.name} is empty: write clips with `ace data world --video`")
    return examples


def train_video(
    recipe: VideoRecipe, folder: Path, quiet: bool = False, on_warning: Callable[[str], None] = lambda line: None
) -> list[float]:
    """Train into a folder, from its checkpoint if there is one; the losses of the steps made now.

    Leaves `pytorch_lora_weights.safetensors`, which `ace video --lora` takes. Raises DataError or CheckpointError."""
    examples = read_list(Path(recipe.clips))
    torch.manual_seed(recipe.seed)  # of the adapter's first weights
    pipeline = VideoPipeline.from_pretrained(recipe.init, device=find_device("auto"))
    transformer: Any = pipeline.parts.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=_LAYERS), ADAPTER)
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    weights = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
    done = _resume(folder, transformer, optimizer)
    encoded: OrderedDict[int, tuple[Tensor, Tensor, Tensor]] = OrderedDict()
    losses = []
    for step in range(done, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step])
        number = int(rng.integers(len(examples)))
        if number not in encoded:
            encoded[number] = _encode(pipeline, examples[number], recipe)
            if len(encoded) > _KEPT:
                encoded.popitem(last=False)
        loss = _loss(transformer, *encoded[number], float(rng.random()), int(rng.integers(2**31)), recipe.shift)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not quiet and (step + 1) % max(1, recipe.steps // 20) == 0:
            on_warning(f"step {step + 1} of {recipe.steps}: loss {np.mean(losses[-20:]):.4f}")
        if (step + 1) % recipe.save_steps == 0 or step + 1 == recipe.steps:
            _save(folder, transformer, optimizer, step + 1, losses)
    write_adapter(folder, transformer)
    return losses


def _encode(pipeline: VideoPipeline, example: ClipExample, recipe: VideoRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """(latents of the whole clip, conditioning, text)."""
    file, masks = open_clip(example.video), open_clip(example.mask)
    if masks.num_frames != file.num_frames or masks.size != file.size:
        raise DataError(f"{example.mask.name} has another size or length than {example.video.name}: write both again")
    count, width, height = working_size(file.size, min(file.num_frames, recipe.frames), recipe.area_px, recipe.frames)
    frames = np.stack(list(file.take(range(count))))
    shown = np.stack([mask.max(axis=2) for mask in masks.take(range(count))])
    whole = fit(repainted(frames, np.zeros_like(shown)), (width, height))
    hidden = fit(repainted(frames, (shown > 127).astype(np.uint8) * 255), (width, height))
    with torch.no_grad():
        clip = torch.from_numpy(whole.model_frames()).permute(3, 0, 1, 2)[None]
        text, _ = pipeline.parts.encode_prompt(
            example.instruction, None, False, max_sequence_length=MAX_TEXT_TOKENS, device=pipeline.device
        )
        return pipeline.encode(clip), pipeline.conditioning(hidden), text


def _loss(
    transformer: Any, latents: Tensor, conditioning: Tensor, text: Tensor, share: float, seed: int, shift: float
) -> Tensor:
    """Of the velocity at one time (flow matching): mean squared error against noise minus latents."""
    sigma = shift * share / (1 + (shift - 1) * share)
    noise = torch.randn(latents.shape, generator=seeded_generator(seed)).to(latents.device)
    predicted = transformer(
        hidden_states=(1 - sigma) * latents + sigma * noise,
        timestep=torch.tensor([1000 * sigma], device=latents.device),
        encoder_hidden_states=text,
        control_hidden_states=conditioning,
        return_dict=False,
    )[0]
    return functional.mse_loss(predicted.float(), noise - latents)


def _save(folder: Path, transformer: Any, optimizer: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    """Write a checkpoint whole or not at all."""
    adapter = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    state = {
        "step": step,
        "adapter": {name: value.detach().cpu() for name, value in adapter.items()},
        "optimizer": optimizer.state_dict(),
    }
    part = folder / f".{_CHECKPOINT}.part"
    try:
        torch.save(state, part)
        os.replace(part, folder / _CHECKPOINT)
        first = step - len(losses)
        rows = [json.dumps({"step": first + n + 1, "loss": loss}) for n, loss in enumerate(losses)]
        (folder / _LOG).write_text("\n".join(rows) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the checkpoint cannot be written ({error.strerror}): check the disk") from None


def _resume(folder: Path, transformer: Any, optimizer: torch.optim.Optimizer) -> int:
    """Steps that are done."""
    path = folder / _CHECKPOINT
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(transformer, state["adapter"], adapter_name=ADAPTER)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path.name} in {folder.name} cannot be read ({error}): remove it to start over") from None


def write_adapter(folder: Path, transformer: Any) -> None:
    """The adapter in diffusers' layout, whole or not at all."""
    state = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    tensors = {f"transformer.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    part = folder / f".{WEIGHTS}.part"
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / WEIGHTS)
