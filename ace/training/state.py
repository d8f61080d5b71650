"""The state of a run in files that cannot hide code: safetensors, and pickles that torch reads as tensors only.

model.safetensors: all weights. average.safetensors: their averages, in the order of the trained parameters.
optimizer.pt: the optimiser's state; rng_<process>.pt: random states; both are read by `torch.load(weights_only=True)`.
Sharded runs (FSDP2) write whole weights and states too, gathered in the main process's memory, so that any number of
processes can resume from them. DeepSpeed reads its own files by unpickling: they are first searched for anything but
DeepSpeed's own records.

Files of version 0.1 (`optimizer.bin`, `custom_checkpoint_0.pkl`, `random_states_<process>.pkl`) are read the same safe
way. Not here: folders, manifests, which checkpoint is taken (`checkpoint.py`).
"""

from __future__ import annotations

import pickle
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from ace.errors import CheckpointError
from ace.training.average import Average

MODEL, AVERAGE, OPTIMIZER, RNG = "model.safetensors", "average.safetensors", "optimizer.pt", "rng_{}.pt"
DEEPSPEED = "pytorch_model"  # the folder of DeepSpeed's own files
_DEEPSPEED_RECORDS = {  # what DeepSpeed pickles beside tensors
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


class HoldsCode(CheckpointError):
    """A file of a checkpoint that is no record of tensors; it was not executed."""


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint keeps. module, optimizer: as accelerate prepared them; average: of the trained parameters."""

    module: nn.Module
    optimizer: Any
    average: Average


def write_state(accelerator: Accelerator, state: TrainingState, folder: Path) -> None:
    """Write the state into a folder. Called by all processes."""
    is_main = accelerator.is_main_process
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        state.module.save_checkpoint(str(folder), DEEPSPEED)
    elif accelerator.is_fsdp2:
        weights, told = _whole(state)
        if is_main:
            save_file({name: value.contiguous() for name, value in weights.items()}, folder / MODEL)
            torch.save(told, folder / OPTIMIZER)
    elif is_main:
        save_model(accelerator.unwrap_model(state.module), str(folder / MODEL))
        torch.save(state.optimizer.state_dict(), folder / OPTIMIZER)
    averages = state.average.whole()
    if is_main:
        values = {f"{number:06d}": value.contiguous() for number, value in enumerate(averages)}
        save_file(values, folder / AVERAGE, {"updates": str(state.average.updates)})
    torch.save(_random_states(), folder / RNG.format(accelerator.process_index))


def read_state(accelerator: Accelerator, state: TrainingState, folder: Path) -> None:
    """Go on from the state in a folder. Called by all processes.

    Raises HoldsCode before anything is loaded if a file may run code, CheckpointError if the state does not fit."""
    found, error = None, None
    try:
        found = _read(accelerator, folder)
    except CheckpointError as caught:
        error = caught
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as caught:
        error = CheckpointError(_of_another(folder, caught))
    errors = [error] if accelerator.num_processes == 1 else gather_object([error])
    for error in filter(None, errors):  # of any process: none goes on alone
        raise error
    assert found is not None
    try:
        _restore(accelerator, state, folder, found)
    except (KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise CheckpointError(_of_another(folder, error)) from error


@dataclass(frozen=True)
class _Found:
    """What the files of a checkpoint say to this process."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    averages: list[torch.Tensor]
    updates: int
    rng: dict[str, Any]


def _read(accelerator: Accelerator, folder: Path) -> _Found:
    """Read every file, as tensors only."""
    averages, updates = _read_averages(folder)
    rank = accelerator.process_index
    rng = _first(folder, RNG.format(rank), f"random_states_{rank}.pkl")
    weights, told = {}, {}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        for file in sorted((folder / DEEPSPEED).glob("*.pt")):
            _check_deepspeed(file)
    elif accelerator.is_main_process or not accelerator.is_fsdp2:  # what is sharded, the main process hands out
        if not (folder / MODEL).exists():
            raise CheckpointError(
                f"{folder.name} has no {MODEL}: it was written by a sharded run of an earlier version"
            )
        weights = load_file(folder / MODEL)
        told = tensors_only(_first(folder, OPTIMIZER, "optimizer.bin") or folder / OPTIMIZER)
    return _Found(weights, told, averages, updates, tensors_only(rng) if rng else {})


def _restore(accelerator: Accelerator, state: TrainingState, folder: Path, found: _Found) -> None:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        state.module.load_checkpoint(str(folder), DEEPSPEED)
    elif accelerator.is_fsdp2:
        _set_whole(state, found.weights, found.optimizer)
    else:
        module = accelerator.unwrap_model(state.module)
        try:
            load_model(module, str(folder / MODEL))
        except RuntimeError:  # version 0.1 kept the wrapper's names of a run on several processes
            weights = load_file(folder / MODEL)
            module.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
        state.optimizer.load_state_dict(found.optimizer)
    state.average.restore(found.averages, found.updates)
    _set_random_states(found.rng)


def _of_another(folder: Path, error: Exception) -> str:
    return f"checkpoint {folder.name} is of another recipe or version: {' '.join(str(error).split())[:200]}"


def _whole(state: TrainingState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and optimiser state of a sharded run, whole, on the main process's CPU."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(state.module, _inner(state.optimizer), options=options)  # type: ignore[return-value]


def _set_whole(state: TrainingState, weights: dict[str, Any], told: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_state_dict(
        state.module, _inner(state.optimizer), model_state_dict=weights, optim_state_dict=told, options=options
    )


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser that accelerate wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def _read_averages(folder: Path) -> tuple[list[torch.Tensor], int]:
    if (folder / AVERAGE).exists():
        with safe_open(folder / AVERAGE, "pt") as file:
            names = sorted(file.keys())
            updates = (file.metadata() or {}).get("updates", "")
            if not updates.isdecimal():
                raise CheckpointError(f"{folder.name}/{AVERAGE} does not say of how many steps it is")
            return [file.get_tensor(name) for name in names], int(updates)
    told = tensors_only(folder / "custom_checkpoint_0.pkl")
    return list(told["values"]), int(told["updates"])


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def tensors_only(file: Path) -> Any:
    """What torch wrote into a file: tensors, numbers, texts and containers of them. Raises HoldsCode for more."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write
            return load(file, map_location="cpu", weights_only=True)  # accelerate's, which knows numpy's random states
    except pickle.UnpicklingError:
        raise HoldsCode(f"{file.name} holds more than tensors and could run code") from None


def _check_deepspeed(file: Path) -> None:
    """Raise HoldsCode if a file of DeepSpeed's names anything to call but its own records."""
    strange = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - _DEEPSPEED_RECORDS)
    if strange:
        raise HoldsCode(f"{file.name} names {strange[0]}, which is no record of DeepSpeed's")


def _random_states() -> dict[str, Any]:
    """The generators of this process, as numbers and tensors; what is drawn for a sample has generators of its own."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    """Go on from these generators; a checkpoint begun on another kind of machine has not all of them."""
    if "python" in states:
        random.setstate(states["python"])
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(states["torch"])
    elif "random_state" in states:  # version 0.1
        random.setstate(states["random_state"])
        np.random.set_state(states["numpy_random_seed"])
        torch.set_rng_state(states["torch_manual_seed"])
    cuda = states.get("cuda") or states.get("torch_cuda_manual_seed")
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
