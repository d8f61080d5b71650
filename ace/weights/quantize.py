"""A model folder with 8-bit transformer weights, made by torchao and diffusers, and what that costs in accuracy.

"int8" keeps whole numbers with one scale per row, "fp8" 8-bit floats likewise; products are computed in bfloat16. The
blocks' linear layers are converted; the first and last layers, norms and modulations stay. The result is a folder like
any other: `--model` takes it, and torchao (extra `quant`) must be there to load it. Not exact: the measured error is
reported and written down beside the weights.

Not here: the text encoder in 8 bits (`--memory 8bit`), FLUX (`plus/weights.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import TorchAoConfig

from ace.diffusion import sample_noise, seeded_generator
from ace.errors import ConfigError, MissingDependencyError, OutputError
from ace.extras import install_command
from ace.files import hash_model
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACETransformer
from ace.weights.sources import ModelFiles

KINDS = ("int8", "fp8")
REPORT = "quantization.json"
EXACT_LAYERS = ["patch_embed", "time_embed", "time_modulation", "text_embed", "final"]


@dataclass(frozen=True)
class QuantizationReport:
    """What became of a transformer. bytes_before, bytes_after: of its files. relative_error: of one prediction on noise
    against the float32 weights, root mean square over root mean square; bfloat16_error: the same without 8 bits."""

    kind: str
    bytes_before: int
    bytes_after: int
    relative_error: float
    bfloat16_error: float

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.bytes_before / 1e6:.0f} MB to {self.bytes_after / 1e6:.0f} MB; a prediction differs "
            f"by {self.relative_error:.2%} (bfloat16 alone: {self.bfloat16_error:.2%})"
        )


def quantize_folder(
    model: ModelFiles, destination: Path, kind: str, progress: Callable[[str], None] = lambda _: None
) -> QuantizationReport:
    """Write a copy of a model whose transformer has 8-bit weights. The other parts are linked, not copied, where the
    disk can.

    Raises ConfigError, OutputError or MissingDependencyError, and leaves nothing behind."""
    if kind not in KINDS:
        raise ConfigError(f"weights {kind!r}: use {' or '.join(KINDS)}")
    if destination.exists():
        raise OutputError(f"{destination.name} exists already: name a new folder, or remove it first")
    config = _config(kind)
    source = model.folder / "transformer"
    if "quantization_config" in json.loads((source / "config.json").read_text(encoding="utf-8")):
        raise ConfigError(f"the weights of {model.name} have 8 bits already: start from the original")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"{destination.name} cannot be written ({error.strerror}): name another folder") from None
    try:
        for path in sorted(model.folder.rglob("*")):
            if path.is_file() and source not in path.parents and path.name != "manifest.json":
                target = work / path.relative_to(model.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
        progress("8-bit weights")
        quantized = _load(source, torch.bfloat16, config)
        quantized.save_pretrained(work / "transformer")
        progress("measuring the error")
        report = QuantizationReport(
            kind=kind,
            bytes_before=_weight_bytes(source),
            bytes_after=_weight_bytes(work / "transformer"),
            relative_error=_error(quantized, source),
            bfloat16_error=_error(_load(source, torch.bfloat16), source),
        )
        made_from = {"model": model.name, "sha256": hash_model(source)}
        (work / REPORT).write_text(json.dumps({**asdict(report), "made_from": made_from}, indent=1) + "\n")
        work.chmod(0o755)
        os.replace(work, destination)
    except OSError as error:
        raise OutputError(f"{destination.name} cannot be written ({error.strerror}): make room on the disk") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _config(kind: str) -> TorchAoConfig:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # type: ignore[import]
    except ImportError:
        raise MissingDependencyError(f"8-bit weights need torchao: {install_command('quant')}") from None
    wanted = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    return TorchAoConfig(wanted, modules_to_not_convert=EXACT_LAYERS)


def _load(folder: Path, dtype: torch.dtype, config: TorchAoConfig | None = None) -> ACETransformer:
    more = {} if config is None else {"quantization_config": config}
    return ACETransformer.from_pretrained(folder, dtype=dtype, local_files_only=True, **more).eval()


@torch.no_grad()
def _error(transformer: ACETransformer, source: Path) -> float:
    """Relative root mean square difference of one prediction on noise from the float32 weights'."""
    exact = _load(source, torch.float32)
    ours = _prediction(transformer).float()
    theirs = _prediction(exact)
    return ((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()).item()


def _prediction(transformer: ACETransformer) -> torch.Tensor:
    """Of a small picture with one input picture and a text of noise, halfway to noise."""
    sizes = transformer.sizes
    side = 8 * sizes.patch_size
    generator = seeded_generator(0)
    texts = torch.randn(2, 12, sizes.text_channels, generator=generator).to(transformer.dtype)
    image = sample_noise((sizes.latent_channels, side, side), generator)
    frames = RequestFrames(
        size=(side, side),
        texts=(texts[0], texts[1]),
        target_mask=None,
        images=(image.to(transformer.dtype),),
        image_masks=(None,),
        source=image.to(transformer.dtype),
    )
    layout = make_layout([frames], sizes.patch_size, sizes.head_dim)
    patches = condition_patches(frames, sizes.patch_size, sizes.latent_channels if sizes.source_on_channels else 0)
    noisy = sample_noise((sizes.latent_channels, side, side), generator)
    tokens = pack_latents([noisy], (patches,), sizes.patch_size).to(transformer.dtype)
    return transformer(tokens, torch.tensor([500]), layout, texts=texts.flatten(0, 1))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
