"""Models for ComfyUI's graphs: `ACEPlusLoader` (FLUX, through ComfyUI's own loader) and `ACEModelLoader` (ACE).

ComfyUI itself (`folder_paths`, `comfy.sd`) is imported when the loader runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ace.comfyui.pictures import CATEGORY
from ace.errors import ConfigError, MissingDependencyError

WEIGHT_TYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


class ACEPlusLoader:
    """FLUX.1-Fill-dev or ACE++ FFT (16 or 8 bits), checked before it is loaded."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        import folder_paths  # type: ignore[import]

        names = folder_paths.get_filename_list("diffusion_models")
        return {"required": {"unet_name": (names,), "weight_dtype": (list(WEIGHT_TYPES), {"default": "default"})}}

    def load(self, unet_name: str, weight_dtype: str = "default") -> tuple[Any]:
        """MODEL. Raises ConfigError, naming the file, for a transformer that is neither."""
        import comfy.sd  # type: ignore[import]
        import folder_paths  # type: ignore[import]

        from ace.plus.weights import check_transformer, read_weight_files

        if weight_dtype not in WEIGHT_TYPES:
            raise ConfigError(f"weight_dtype {weight_dtype!r}: use {', '.join(WEIGHT_TYPES)}")
        path = folder_paths.get_full_path("diffusion_models", unet_name)
        if path is None:
            raise ConfigError(f"{unet_name} is not in ComfyUI's models/diffusion_models: put it there")
        sizes = check_transformer(read_weight_files(Path(path)))
        if sizes.in_channels not in (384, 448):
            raise ConfigError(
                f"{unet_name} has {sizes.in_channels} input channels: "
                "ACE++ needs FLUX.1-Fill-dev (384) or ACE++ FFT (448)"
            )
        options: dict[str, Any] = {}
        if weight_dtype == "fp8_e5m2":
            options["dtype"] = torch.float8_e5m2
        elif weight_dtype != "default":
            options["dtype"] = torch.float8_e4m3fn
            if weight_dtype == "fp8_e4m3fn_fast":
                options["fp8_optimizations"] = True
        return (comfy.sd.load_diffusion_model(path, model_options=options),)


class ACEModelLoader:
    """An ACE model by name or folder, outside ComfyUI's own model management."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("ACE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": ("STRING", {"default": "ace-tiny"}),
                "device": (["auto", "cpu", "cuda", "mps"], {"default": "auto"}),
            }
        }

    def load(self, model: str = "ace-tiny", device: str = "auto") -> tuple[Any]:
        """ACE_MODEL. Raises ModelNotFoundError, and MissingDependencyError without what the core needs."""
        check_core()
        from ace.weights.sources import find_model, load_pipeline

        pipeline = load_pipeline(find_model(model), device=device)
        pipeline.set_progress_bar_config(disable=True)
        return (pipeline,)


def check_core() -> None:
    """Raise MissingDependencyError, naming them, for packages of the core that are missing or too old: the nodes of
    ACE++ do without, so that installing them changes nothing of ComfyUI's own."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        known = metadata.requires("ace-allround") or ()
    except metadata.PackageNotFoundError:  # not installed but run from its source
        return
    wrong = []
    for text in known:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            if not needed.specifier.contains(metadata.version(needed.name), prereleases=True):
                wrong.append(f"{needed.name} {needed.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(needed.name)
    if wrong:
        raise MissingDependencyError(f"this node needs {', '.join(wrong)}: run `python -m pip install ace-allround`")
