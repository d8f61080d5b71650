"""Published ACE models → a pipeline folder of ours (`ace convert SRC DST`).

A source is a hub id or a folder in the published layout:

    models/dit/*.pth  models/vae/vae.bin  models/text_encoder/t5-v1_1-xxl/  models/tokenizer/t5-v1_1-xxl/

Everything is checked before the long work: which model, which files, every name and shape, room on the disk. Weights
are read strictly, key by key, pickles by `ace/model/unpickle.py`; what is written is safetensors with a manifest of
hashes. The work is done beside the destination and moved there when it is whole. The indicators of the image names
are computed here, once, and saved with the transformer. The text encoder is converted tensor by tensor, never held in
memory.

Not here: key names (`ace/model/convert.py`); the hub (`hub.py`); loading what was converted (`sources.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from ace.diffusion import ACEDDIMScheduler
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError, OutputError
from ace.inference.pipeline import ACEPipeline
from ace.model.config import PRESETS, ACEConfig
from ace.model.convert import from_pixart, from_published, unused_keys, vae_from_published
from ace.model.sizes import GB, LIBRARIES, free_memory
from ace.model.text import encode_indicators
from ace.model.text_on_disk import TextEncoderOnDisk, load_streamed
from ace.model.transformer import ACETransformer
from ace.model.unpickle import FLOATS, as_dtype, inspect_pickle, read_pickle, write_weights
from ace.weights.hub import HUB_IDS, fetch

MANIFEST = "manifest.json"
TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight
DECODER = ("decoder.", "lm_head.")  # of a whole T5
TEXT_DTYPE = "bfloat16"  # as the original runs it
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True)
class PublishedModel:
    """A released model and how it is meant to be run.

    budget: cells of one picture; vae: arguments of `AutoencoderKL`."""

    name: str
    hub_id: str
    config: ACEConfig
    budget: int
    num_inference_steps: int
    vae: Mapping[str, Any] = dataclasses.field(default_factory=lambda: VAE_CONFIG)


PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel("ace-0.6b-512", HUB_IDS["ace-0.6b-512"], PRESETS["0.6b-512"], 1024, 20),
        PublishedModel("ace-0.6b-1024", HUB_IDS["ace-0.6b-1024"], PRESETS["0.6b-1024"], 4096, 50),
    )
}

Progress = Callable[[str], None]  # told what is being done
Value = TypeVar("Value")


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a published model on this machine. text_encoder: weight shards, in order."""

    dit: Path
    vae: Path
    text_config: Path
    text_encoder: tuple[Path, ...]
    tokenizer: Path

    @property
    def weights(self) -> tuple[Path, ...]:
        """Every file with weights."""
        return (self.dit, self.vae, *self.text_encoder)


def convert_folder(
    source: str | Path,
    destination: Path,
    *,
    model: PublishedModel | None = None,
    dtype: str = "float32",
    progress: Progress = lambda _: None,
) -> Path:
    """Convert a published model, from a hub id or a folder, into `destination`, which must not exist yet.

    model: which one it is; None = by the hub id, or by the name of its transformer file. dtype: of the transformer
    and the autoencoder ("float32", "bfloat16", "float16"); the text encoder is bfloat16. Returns the destination.
    Raises ModelNotFoundError, ConfigError, OutputError or CheckpointError, naming the file, and leaves nothing
    behind."""
    if dtype not in FLOATS:
        raise ConfigError(f"dtype {dtype!r}: use {', '.join(FLOATS)}")
    destination = Path(destination)
    if destination.exists():
        raise OutputError(f"{destination.name} exists already: name a new folder, or remove it first")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = fetch(str(source))
        model = model or next(m for m in PUBLISHED.values() if m.hub_id == str(source))
    files = find_files(folder)
    model = model or _model_of(files.dit)
    progress("checking")
    text_config = _check_weights(files, model)
    _check_room(files, destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"{destination.name} cannot be written ({error.strerror}): name another folder") from None
    try:
        _convert(files, text_config, work, model, dtype, progress)
        progress("hashing")
        _write_manifest(files, work, model)
        work.chmod(0o755)
        os.replace(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return destination


def find_files(folder: Path) -> PublishedFiles:
    """The published layout in a folder. Raises ModelNotFoundError naming what is not there."""
    root = folder / "models"
    if not root.is_dir():
        if (folder / "model_index.json").is_file():
            raise ModelNotFoundError(f"{folder.name} is a converted model already: use it as it is, with --model")
        raise ModelNotFoundError(f"{folder.name} holds no published model (it has no folder `models`)")
    text = _only(root / "text_encoder", "*", "text encoder", want_folder=True)
    config = text / "config.json"
    if not config.is_file():
        raise ModelNotFoundError(f"{folder.name} lacks models/text_encoder/{text.name}/config.json: copy it again")
    return PublishedFiles(
        dit=_only(root / "dit", "*", "transformer", suffixes=(*PICKLES, ".safetensors")),
        vae=_only(root / "vae", "*", "autoencoder", suffixes=(*PICKLES, ".safetensors")),
        text_config=config,
        text_encoder=_shards(text),
        tokenizer=_only(root / "tokenizer", "*", "tokenizer", want_folder=True),
    )


def check_manifest(folder: Path) -> None:
    """Compare a converted model with its manifest. Raises CheckpointError naming the first file that differs."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{folder.name} has no readable {MANIFEST}: convert the model again") from None
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != recorded["bytes"] or _sha256(path) != recorded["sha256"]:
            raise CheckpointError(f"{name} of {folder.name} is not what was converted: convert the model again")


def _check_weights(files: PublishedFiles, model: PublishedModel) -> T5Config:
    """Everything that names and shapes can tell, before the long work: tensors without contents go through the same
    conversion."""
    _in(files.dit, lambda: from_published(from_pixart(_shapes(files.dit)), model.config))
    with torch.device("meta"):
        vae = AutoencoderKL(**model.vae)
    _in(files.vae, lambda: vae_from_published(_shapes(files.vae), vae))
    try:
        config = T5Config.from_pretrained(files.text_config)
    except (OSError, ValueError, TypeError):
        raise CheckpointError("the text encoder's config.json cannot be read: copy it again") from None
    if config.d_model != model.config.text_channels:
        raise CheckpointError(
            f"the text encoder's states have {config.d_model} channels, {model.name} needs "
            f"{model.config.text_channels}: use the one it was published with"
        )
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in T5EncoderModel(config).state_dict().items()}
    found: set[str] = set()
    for shard in files.text_encoder:
        state = _encoder_part(_shapes(shard))
        wrong = [name for name, value in state.items() if expected.get(name) != tuple(value.shape)]
        if wrong:
            raise CheckpointError(f"{shard.name} does not fit the text encoder's config.json: {', '.join(wrong[:4])}")
        found |= state.keys()
    missing = sorted(expected.keys() - found - {TIED})
    if missing:
        raise CheckpointError(f"the text encoder lacks {', '.join(missing[:4])}: copy all of its files again")
    return config


def _convert(
    files: PublishedFiles, text_config: T5Config, work: Path, model: PublishedModel, dtype: str, progress: Progress
) -> None:
    progress("text encoder")
    tokenizer = _copy_tokenizer(files.tokenizer, work / "tokenizer")
    _convert_text_encoder(files.text_encoder, text_config, work / "text_encoder")
    cpu = torch.device("cpu")
    on_disk = TextEncoderOnDisk(lambda: load_streamed(work / "text_encoder", cpu, FLOATS[TEXT_DTYPE]), cpu, keep=True)

    progress("transformer")
    with torch.device("meta"):
        transformer = ACETransformer(**dataclasses.asdict(model.config))
    weights = from_published(from_pixart(_read(files.dit, work, dtype)), model.config)
    indicators = encode_indicators(tokenizer, on_disk).to(FLOATS[dtype])
    transformer.load_state_dict({**weights, "indicator_states": indicators}, strict=True, assign=True)
    transformer.save_pretrained(work / "transformer")

    progress("autoencoder")
    with torch.device("meta"):
        vae = AutoencoderKL(**model.vae)
    vae.load_state_dict(vae_from_published(_read(files.vae, work, dtype), vae), strict=True, assign=True)
    vae.save_pretrained(work / "vae")

    scheduler = ACEDDIMScheduler()
    scheduler.save_pretrained(work / "scheduler")
    steps = model.num_inference_steps
    with torch.device("meta"):
        text_encoder = T5EncoderModel(text_config)  # only its name is written
    pipeline = ACEPipeline(
        transformer, vae, text_encoder, tokenizer, scheduler, budget=model.budget, num_inference_steps=steps
    )
    pipeline.save_config(work)  # model_index.json


def _convert_text_encoder(shards: Sequence[Path], config: T5Config, target: Path) -> None:
    """Tensor by tensor."""
    target.mkdir()
    written: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with _as_safetensors(shard, target, TEXT_DTYPE, DECODER) as path, safe_open(path, framework="pt") as file:
            names = _encoder_part({name: name for name in file.keys()})  # noqa: SIM118
            layout = {new: (tuple(file.get_slice(old).get_shape()), FLOATS[TEXT_DTYPE]) for new, old in names.items()}
            total += write_weights(
                target / name, layout, lambda new, file=file, names=names: file.get_tensor(names[new])
            )
        written.update(dict.fromkeys(layout, name))
    index = {"metadata": {"total_size": total}, "weight_map": written}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    config.architectures, config.dtype = ["T5EncoderModel"], FLOATS[TEXT_DTYPE]
    config.save_pretrained(target)


def _encoder_part(state: Mapping[str, Value]) -> dict[str, Value]:
    """Without the decoder of a whole T5; the embeddings, which may stand under either of two names or both, once."""
    kept = {name: value for name, value in state.items() if not name.startswith(DECODER)}
    if TIED in kept:
        kept.setdefault("shared.weight", kept[TIED])
        del kept[TIED]
    return kept


def _copy_tokenizer(source: Path, target: Path) -> PreTrainedTokenizerBase:
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    try:
        return AutoTokenizer.from_pretrained(target, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise CheckpointError(f"the tokenizer cannot be loaded ({reason}): copy its folder again") from None


def _shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights without their contents."""
    if path.suffix != ".safetensors":
        shapes = inspect_pickle(path)
    else:
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            raise CheckpointError(f"{path.name}: it is damaged or cut off: get the file again") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _in(path: Path, check: Callable[[], object]) -> None:
    """Run a check of a file's contents; its error names the file."""
    try:
        check()
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None


def _read(path: Path, work: Path, dtype: str) -> dict[str, Tensor]:
    """The tensors of a file of weights, floating point ones as `dtype`."""
    with _as_safetensors(path, work, dtype) as safe, safe_open(safe, framework="pt") as file:
        return {name: as_dtype(file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _as_safetensors(path: Path, work: Path, dtype: str, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """The file itself, or a copy of a pickle's tensors that is removed afterwards."""
    if path.suffix == ".safetensors":
        yield path
        return
    with tempfile.TemporaryDirectory(dir=work) as own:
        safe = Path(own) / "weights.safetensors"
        read_pickle(path, safe, dtype, without)
        yield safe


def _shards(folder: Path) -> tuple[Path, ...]:
    """The weight files of a Hugging Face folder, safetensors before pickles, every one that its index names."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise CheckpointError(f"{index.name} cannot be read: copy the text encoder again") from None
            missing = [name for name in names if not (folder / name).is_file() or Path(name).name != name]
            if missing:
                raise ModelNotFoundError(f"the text encoder lacks {', '.join(map(str, missing))}: copy it again")
            return tuple(folder / name for name in names)
        if (folder / whole).is_file():
            return (folder / whole,)
    raise ModelNotFoundError(f"models/text_encoder/{folder.name} holds no weights: copy it again")


def _only(folder: Path, pattern: str, what: str, *, suffixes: tuple[str, ...] = (), want_folder: bool = False) -> Path:
    found = sorted(p for p in folder.glob(pattern) if (p.is_dir() if want_folder else p.suffix in suffixes))
    if len(found) != 1:
        have = "nothing" if not found else ", ".join(p.name for p in found)
        raise ModelNotFoundError(f"models/{folder.name} must hold one {what}, found {have}: copy the model again")
    return found[0]


def _model_of(dit: Path) -> PublishedModel:
    for size in ("1024", "512"):
        if size in dit.stem:
            return PUBLISHED[f"ace-0.6b-{size}"]
    raise ConfigError(f"{dit.name} does not say which model it is: name it with --model {' or '.join(PUBLISHED)}")


def _check_room(files: PublishedFiles, destination: Path) -> None:
    memory = LIBRARIES + 3 * max(files.dit.stat().st_size, files.vae.stat().st_size)  # read, renamed, written
    if free_memory() < memory:
        raise OutputError(
            f"{memory / GB:.1f} GB of memory are needed, {free_memory() / GB:.1f} GB are free: close other programs"
        )
    needed = int(1.2 * sum(path.stat().st_size for path in files.weights))
    existing = next(parent for parent in (destination.absolute(), *destination.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{needed / 1e9:.1f} GB are needed on the disk, {free / 1e9:.1f} GB are free: make room first"
        )


def _write_manifest(files: PublishedFiles, work: Path, model: PublishedModel) -> None:
    def entry(path: Path) -> dict[str, object]:
        return {"sha256": _sha256(path), "bytes": path.stat().st_size}

    made = sorted(path for path in work.rglob("*") if path.is_file())
    manifest = {
        "format": 1,
        "model": model.name,
        "left_out": sorted(unused_keys(model.config)),  # weights that the published code loads and never applies
        "sources": {path.name: entry(path) for path in files.weights},
        "files": {path.relative_to(work).as_posix(): entry(path) for path in made},
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
