"""What a run asks of accelerate: one device, or many as accelerate is configured (DDP, FSDP2, DeepSpeed ZeRO-1 and 2).

accelerate shards on GPUs only, though the code behind it works on CPUs as well; here it is switched on there too, so
that what runs on GPUs can be tried, and is tested, without one.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

from ace.errors import ConfigError
from ace.training.config import TrainingRecipe


def start_accelerator(recipe: TrainingRecipe, folder: Path) -> Accelerator:
    """The accelerator of a run that keeps its trackers in `folder`.

    Raises ConfigError for a way of sharing the work that the loop does not know."""
    AcceleratorState._reset_state()  # no public way to another precision than an earlier run's in this process
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=not torch.cuda.is_available(),
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_dir=str(folder),
    )
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        _share_on_cpus(recipe)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, recipe)
    return accelerator


def _share_on_cpus(recipe: TrainingRecipe) -> None:
    """Switch on what accelerate would on GPUs."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _set_type(DistributedType.FSDP)
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)
    elif os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision(recipe.mixed_precision)
        plugin.select(_from_accelerator_state=True)
        _set_type(DistributedType.DEEPSPEED)
        AcceleratorState._shared_state["deepspeed_plugins"] = plugin


def _set_type(kind: DistributedType) -> None:
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = kind


def _configure_deepspeed(accelerator: Accelerator, recipe: TrainingRecipe) -> None:
    """DeepSpeed wants to know what the loop decides batch by batch: pieces are of any size, each a step of its own."""
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None
    if plugin.zero_stage not in (1, 2):
        raise ConfigError(f"DeepSpeed: ZeRO stage {plugin.zero_stage} is not supported, use 1 or 2, or FSDP2 for more")
    accelerator.gradient_accumulation_steps = 1
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.clip_norm,
    }


def piece(accelerator: Accelerator, module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a piece of a global batch: gradients are shared among the processes with the last one."""
    accelerator.sync_gradients = last  # DeepSpeed takes its step with the last piece
    return nullcontext() if last else accelerator.no_sync(module)


def clip(accelerator: Accelerator, trained: list[nn.Parameter], most: float) -> float:
    """Clip the gradients' norm (0 = not) and return what it was; DeepSpeed has clipped already."""
    norm = accelerator.clip_grad_norm_(trained, most or math.inf)
    if norm is None:
        return 0.0
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def agreed(accelerator: Accelerator, wish: bool) -> bool:
    """What the main process wishes, on all of them: their clocks differ."""
    if accelerator.num_processes == 1:
        return wish
    flag = torch.tensor(int(wish and accelerator.is_main_process), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())
