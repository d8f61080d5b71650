"""A model folder with adapters worked into its weights: one model, no adapter files, no time lost per step.

W' = W + strength · alpha / rank · B · A, added in float32 and stored in the number type that the model was stored in.
Imports torch. Not here: ACE++ models, whose adapters are merged whenever they are loaded (`ace/plus`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ace.adapter_files import read_header
from ace.errors import ConfigError, OutputError
from ace.model.lora import attach, read_adapter
from ace.model.transformer import ACETransformer
from ace.weights.adapters import AdapterChoice, find_adapter
from ace.weights.sources import ModelFiles

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def fuse(model: ModelFiles, adapters: Sequence[AdapterChoice], folder: Path) -> None:
    """Write a copy of a model with these adapters in its weights.

    Raises ConfigError without adapters or for 8-bit weights, CheckpointError for an adapter that does not fit,
    OutputError if the folder is there already or cannot be written."""
    if not adapters:
        raise ConfigError("nothing to fuse: name adapters with --lora")
    if folder.exists():
        raise OutputError(f"{folder.name} is there already: choose another folder")
    files = sorted((model.folder / "transformer").glob("*.safetensors"))
    kinds = {entry["dtype"] for file in files for name, entry in read_header(file).items() if name != "__metadata__"}
    if not kinds <= _TYPES.keys():
        raise ConfigError(f"{model.name} has 8-bit weights, which nothing can be added to: fuse, then `ace quantize`")
    stored = max((_TYPES[kind] for kind in kinds), key=lambda kind: kind.itemsize, default=torch.float32)
    transformer = ACETransformer.from_pretrained(model.folder / "transformer", torch_dtype=torch.float32)
    attach(transformer, [(read_adapter(find_adapter(one.path), transformer), one.weight) for one in adapters])
    transformer.fuse_lora()
    transformer.unload_lora()
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model.folder, part, ignore=lambda at, names: names if Path(at).name == "transformer" else [])
        transformer.to(stored).save_pretrained(part / "transformer")
        part.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder.name} cannot be written ({(error.strerror or str(error)).lower()})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
