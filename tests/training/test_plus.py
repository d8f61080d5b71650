"""Training ACE++ on small FLUX models of the real classes: by LoRA and as a whole, from the published list."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ace.plus.layouts import FLUX_FILL, pieces
from ace.plus.load import load_plus
from ace.plus.pipeline import ACEPlusPipeline
from ace.plus.sources import find_plus
from ace.plus.weights import load_adapter
from ace.training.adapters_plus import PLUS_TARGETS
from ace.training.config import DataSource, Lora, PlusRecipe, TrainingStage
from ace.training.plan import FLUX_PARAMETERS
from ace.training.plus import start_plus, train_plus
from ace.training.previews import preview_samples, save_sheet
from ace.training.previews_plus import plus_requests
from ace.training.sources import Mixture, open_records
from tests.random_flux import SMALL, random_plus


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    random_plus(SMALL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows of ACE++'s list: a local edit, a reference alone, both."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, colour, size in (("a", "red", (48, 32)), ("b", "blue", (48, 32)), ("r", "green", (24, 40))):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(folder / "m.png")
    rows = (
        "a.png#;#m.png#;##;#b.png#;#make it blue#;#local_editing",
        "#;##;#r.png#;#b.png#;#the same thing in blue#;#subject",
        "a.png#;#m.png#;#r.png#;#b.png#;#put it there#;#portrait",
    )
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def recipe(base: Path, pairs: Path, **settings: object) -> PlusRecipe:
    stage = TrainingStage("only", lr=1e-2, steps=3, batch_size=2)
    return PlusRecipe(
        (stage,),
        init=str(base),
        data=(DataSource("pairs", "csv", str(pairs)),),
        num_workers=0,
        mixed_precision="no",
        tracker="none",
        ema_decay=0.0,
        max_sequence=64,
        max_text_tokens=16,
        **settings,  # type: ignore[arg-type]
    )


def drawn(pipeline: ACEPlusPipeline, run: Path, wanted: PlusRecipe, folder: Path) -> tuple[bytes, bytes]:
    """The run's only preview, and the same sheet by a loaded pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    mixture = Mixture(
        wanted.data, [open_records(s, wanted.size_px, wanted.stages[0]) for s in wanted.data], wanted.stages[0], 0
    )
    samples = preview_samples(mixture, 3)
    answers = pipeline(requests=plus_requests(samples)).images
    (preview,) = (run / "previews").iterdir()
    return Image.open(preview).tobytes(), Image.open(save_sheet(samples, answers, folder / "again.png")).tobytes()


def test_a_preview_of_a_lora_is_what_inference_draws_and_changes_nothing(tmp_path: Path, base: Path, pairs: Path):
    settings = {"lora": Lora(rank=2, alpha=3.0), "num_inference_steps": 2, "guidance_scale": 20.0}
    train_plus(recipe(base, pairs, **settings), tmp_path / "blind", quiet=True)
    wanted = recipe(base, pairs, preview_steps=3, **settings)
    train_plus(dataclasses.replace(wanted, preview_steps=1), tmp_path / "often", quiet=True)
    assert (tmp_path / "often" / "log.jsonl").read_bytes() == (tmp_path / "blind" / "log.jsonl").read_bytes()
    train_plus(wanted, tmp_path / "run", quiet=True)
    adapter = str(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    pipeline = load_plus(find_plus(str(base), [(adapter, 1.0)]), device="cpu", max_seq_length=wanted.max_sequence)
    pipeline.register_to_config(max_text_tokens=16, num_inference_steps=2, guidance_scale=20.0)
    preview, again = drawn(pipeline, tmp_path / "run", wanted, tmp_path)
    assert preview == again
    assert "data:image/png;base64," in (tmp_path / "run" / "report.html").read_text()


def test_a_preview_of_a_whole_model_is_what_inference_draws(tmp_path: Path, base: Path, pairs: Path):
    wanted = recipe(base, pairs, in_channels=448, preview_steps=3, num_inference_steps=2)
    train_plus(wanted, tmp_path / "run", quiet=True)
    pipeline = load_plus(find_plus(str(tmp_path / "run" / "model")), device="cpu")
    preview, again = drawn(pipeline, tmp_path / "run", wanted, tmp_path)
    assert preview == again, "the saved model also has the recipe's steps, guidance and size of canvas"


def test_a_lora_of_ace_plus_is_what_inference_loads_in_both_formats(tmp_path: Path, base: Path, pairs: Path):
    trained = train_plus(recipe(base, pairs, lora=Lora(rank=2, alpha=3.0)), tmp_path, quiet=True).transformer
    layers = {n.rpartition(".lora_A")[0] for n, _ in trained.named_parameters() if ".lora_A" in n}
    assert layers and all(re.fullmatch(PLUS_TARGETS, layer) for layer in layers)
    files = [tmp_path / "adapter" / name for name in ("adapter_model.safetensors", "comfyui.safetensors")]
    adapters = [load_adapter(file, SMALL) for file in files]
    assert adapters[0].deltas.keys() == adapters[1].deltas.keys()
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight" in load_file(files[1])
    changed = 0
    for name, delta in adapters[0].deltas.items():
        layer = trained.get_submodule(name.removesuffix(".weight"))
        zero = torch.zeros(layer.base_layer.weight.shape)
        ours, theirs = (d.apply(zero, 1.0) for d in (delta, adapters[1].deltas[name]))
        assert torch.allclose(ours, theirs, atol=1e-7)
        assert torch.allclose(ours, layer.get_delta_weight("default"), atol=1e-7), "as strong as it was trained"
        changed += bool(ours.abs().max() > 0)
    assert changed > 10
    for file in files:  # goes on from either, with another alpha
        start = Lora(rank=2, alpha=1.0, start=str(file))
        again = start_plus(recipe(base, pairs, lora=start)).transformer
        for name in adapters[0].deltas:
            was, now = (model.get_submodule(name.removesuffix(".weight")) for model in (trained, again))
            assert torch.allclose(was.get_delta_weight("default"), now.get_delta_weight("default"), atol=1e-7)


def test_full_training_widens_the_model_and_the_result_loads(tmp_path: Path, base: Path, pairs: Path):
    train_plus(recipe(base, pairs, in_channels=448, cache=str(tmp_path / "cache")), tmp_path / "run", quiet=True)
    pipeline = load_plus(find_plus(str(tmp_path / "run" / "model")), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.has_change_channels
    picture = pipeline("a thing", Image.new("RGB", (32, 32), "red"), num_inference_steps=1).images[0]
    assert picture.size == (32, 32)
    weight = pipeline.transformer.x_embedder.weight
    assert weight[:, 128:192].abs().max() > 0, "the new columns were trained"


def test_the_published_list_matches_the_published_layers_and_the_size_is_flux():
    names = {name.removesuffix(".weight") for name in pieces(FLUX_FILL) if name.endswith(".weight")}
    matched = {name for name in names if re.fullmatch(PLUS_TARGETS, name)}
    published = {pieces(FLUX_FILL)[f"{name}.weight"].source.removesuffix(".weight") for name in matched}
    parts = ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    per_double = {f"{stream}_{part}" for stream in ("img", "txt") for part in parts}
    wanted = {f"double_blocks.{n}.{part}" for n in range(19) for part in per_double}
    wanted |= {f"single_blocks.{n}.{part}" for n in range(38) for part in ("linear1", "linear2", "modulation.lin")}
    assert published == wanted
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(**{**FLUX_FILL.config(), "in_channels": 64})
    assert sum(p.numel() for p in model.parameters()) == FLUX_PARAMETERS
