"""The published models of ACE++ by name. Imports nothing heavy.

`ace-plus-portrait`, `-subject` and `-local` are LoRAs on FLUX.1-Fill-dev, `ace-plus-fft` is a whole transformer.

Not here: their files (`plus/sources.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BASE_VARIABLE = "FLUX_FILL_PATH"
BASE_HUB_ID = "black-forest-labs/FLUX.1-Fill-dev"


@dataclass(frozen=True)
class PlusModel:
    """A published model of ACE++. variable: the environment variable that may name its file; source: where it is
    otherwise; channels: input channels of its transformer; repainting_scale: its default."""

    name: str
    description: str
    variable: str
    source: str
    channels: int
    repainting_scale: float

    @property
    def is_lora(self) -> bool:
        """Whether it is an adapter of FLUX.1-Fill-dev."""
        return self.channels == 384


_WEIGHTS = "hf://ali-vilab/ACE_Plus@"
PLUS_MODELS: dict[str, PlusModel] = {
    model.name: model
    for model in (
        PlusModel(
            "ace-plus-portrait",
            "ACE++ LoRA on FLUX.1-Fill-dev: keeps a person's face",
            "PORTRAIT_MODEL_PATH",
            f"{_WEIGHTS}portrait/comfyui_portrait_lora64.safetensors",
            384,
            1.0,
        ),
        PlusModel(
            "ace-plus-subject",
            "ACE++ LoRA on FLUX.1-Fill-dev: keeps a thing or a logo",
            "SUBJECT_MODEL_PATH",
            f"{_WEIGHTS}subject/comfyui_subject_lora16.safetensors",
            384,
            1.0,
        ),
        PlusModel(
            "ace-plus-local",
            "ACE++ LoRA on FLUX.1-Fill-dev: redraws inside a mask, keeps its structure",
            "LOCAL_MODEL_PATH",
            f"{_WEIGHTS}local_editing/comfyui_local_lora16.safetensors",
            384,
            0.5,
        ),
        PlusModel(
            "ace-plus-fft",
            "ACE++ fully fine-tuned: references, editing and control in one model",
            "ACE_PLUS_FFT_MODEL",
            f"{_WEIGHTS}ace_plus_fft.safetensors",
            448,
            1.0,
        ),
    )
}


def is_plus(name: str | None) -> bool:
    """Whether a model's name, or the folder it is, is one of ACE++. Reads at most a small JSON file."""
    if name is None:
        return False
    if name in PLUS_MODELS:
        return True
    index = Path(name).expanduser() / "model_index.json"
    if not index.is_file():
        return False
    try:
        return json.loads(index.read_text(encoding="utf-8")).get("_class_name") in (
            "ACEPlusPipeline",
            "FluxFillPipeline",
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
