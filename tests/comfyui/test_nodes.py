"""The ComfyUI pack through ComfyUI's node protocol: example workflows, the dropped folder, loaders, chat."""

import ast
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ace.comfyui
from ace.comfyui.nodes import ACEChat, AcePlusFFTProcessor, ACEPlusFinish, ACEPlusLoader, AcePlusLoraProcessor
from ace.comfyui.pictures import from_picture
from ace.comfyui.processors import CONTROL_OF
from ace.errors import ConfigError, ImageError, MaskError
from ace.plus import controls
from tests.comfyui import stand_ins
from tests.random_models import TINY_LIKE, random_pipeline

ROOT = Path(__file__).parents[2]
PACK = ROOT / "comfyui" / "ace_allround"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))


def picture(width, height, seed=0):
    return from_picture(
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))
    )


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's modules as far as the loader asks them; files are those of the test."""
    loaded = []
    folders = types.ModuleType("folder_paths")
    folders.get_filename_list = lambda kind: ["ace_plus_fft.safetensors", "flux1-fill-dev.safetensors"]  # type: ignore[attr-defined]
    folders.get_full_path = lambda kind, name: str(tmp_path / name) if (tmp_path / name).exists() else None  # type: ignore[attr-defined]
    sd = types.ModuleType("comfy.sd")

    def load_diffusion_model(path, model_options):
        loaded.append((Path(path).name, model_options))
        return {"file": Path(path).name}

    sd.load_diffusion_model = load_diffusion_model  # type: ignore[attr-defined]
    package = types.ModuleType("comfy")
    package.sd = sd  # type: ignore[attr-defined]
    for name, module in (("folder_paths", folders), ("comfy", package), ("comfy.sd", sd)):
        monkeypatch.setitem(sys.modules, name, module)
    return loaded


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Small checkpoints of both kinds, in the published layout."""
    from tests.random_flux import SMALL, SMALL_FFT, published_state, random_plus

    for sizes, name in ((SMALL, "flux1-fill-dev.safetensors"), (SMALL_FFT, "ace_plus_fft.safetensors")):
        save_file(published_state(random_plus(sizes).transformer), tmp_path / name)
    return tmp_path


def test_the_nodes_follow_comfyuis_protocol(comfy):
    assert set(ace.comfyui.NODE_DISPLAY_NAME_MAPPINGS) == set(ace.comfyui.NODE_CLASS_MAPPINGS)
    for name, cls in ace.comfyui.NODE_CLASS_MAPPINGS.items():
        inputs = cls.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional", "hidden"}, name
        accepted = getattr(cls, cls.FUNCTION).__code__.co_varnames
        assert set(inputs["required"]) | set(inputs.get("optional", {})) <= set(accepted), name
        assert all(isinstance(kind, str) for kind in cls.RETURN_TYPES) and cls.CATEGORY
        assert len(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)) == len(cls.RETURN_TYPES)


def test_there_is_a_workflow_for_each_published_use():
    names = [path.stem for path in WORKFLOWS]
    assert sum("_FFT_" in name for name in names) == 4
    assert sum("_LoRA_" in name for name in names) == 5


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_every_example_workflow_runs_and_ends_with_the_right_picture(path, comfy, checkpoints, monkeypatch):
    from ace.extract import exact

    # depth and contour need fetched weights; their place in the graph is what is tested here
    monkeypatch.setattr("ace.extract.draw_signal", lambda name, image: exact.canny(image))
    edit, mask = picture(160, 96), torch.zeros(1, 96, 160, 3)
    mask[:, 20:70, 30:120] = 1
    monkeypatch.setattr(
        stand_ins.LoadImage, "PICTURES", {"reference.png": picture(64, 80, 1), "edit.png": edit, "mask.png": mask}
    )
    monkeypatch.setattr(stand_ins.KSampler, "SEEN", [])
    monkeypatch.setattr(stand_ins.SaveImage, "SAVED", [])
    workflow = json.loads(path.read_text(encoding="utf-8"))
    stand_ins.run_workflow(workflow, {**stand_ins.NODES, **ace.comfyui.NODE_CLASS_MAPPINGS})
    (sampled,), (saved,) = stand_ins.KSampler.SEEN, stand_ins.SaveImage.SAVED
    is_fft, edits = "_FFT_" in path.stem, any(node["type"] == "LoadImageMask" for node in workflow["nodes"])
    options = sampled["positive"][0][1]
    assert options["concat_latent_image"].shape[1] == (32 if is_fft else 16)  # 16 noise more, 64 mask: 112 or 96 in all
    assert options["concat_mask"].shape[-2:] == tuple(8 * side for side in options["concat_latent_image"].shape[-2:])
    assert options["guidance"] == 50.0 and sampled["cfg"] == 1.0 and sampled["steps"] == 28
    assert sampled["model"].get("lora", "").startswith("" if is_fft else "comfyui_")
    if edits:
        assert saved.shape == edit.shape
        outside = mask[0, ..., 0] == 0
        assert torch.equal(saved[0][outside], edit[0][outside])
        assert not torch.equal(saved[0][~outside], edit[0][~outside])
    else:
        assert saved.shape == (1, 1024, 1024, 3)


def test_the_workflow_files_are_as_their_builder_makes_them():
    done = subprocess.run(
        [sys.executable, ROOT / "comfyui" / "build_workflows.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_dropped_folder_hands_out_the_nodes_and_says_what_is_missing_without_the_package(monkeypatch):
    def drop():
        spec = importlib.util.spec_from_file_location("ace_allround", PACK / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    assert drop().NODE_CLASS_MAPPINGS is ace.comfyui.NODE_CLASS_MAPPINGS
    code = f"import importlib.util as u; s = u.spec_from_file_location('x', {str(PACK / '__init__.py')!r});"
    code += "s.loader.exec_module(u.module_from_spec(s))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install ace-allround" in done.stderr


def test_the_pack_imports_only_what_comfyui_has_and_the_package():
    allowed = {
        "ace",
        "torch",
        "numpy",
        "PIL",
        "safetensors",
        "comfy",
        "packaging",
        "dataclasses",
        "folder_paths",
        "importlib",
        "pathlib",
        "typing",
        "__future__",
    }
    for file in (ROOT / "ace" / "comfyui").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("default", {}),
        ("fp8_e4m3fn", {"dtype": torch.float8_e4m3fn}),
        ("fp8_e4m3fn_fast", {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True}),
        ("fp8_e5m2", {"dtype": torch.float8_e5m2}),
    ],
)
def test_the_loader_hands_the_file_and_its_number_type_to_comfyui(kind, options, comfy, checkpoints):
    (model,) = ACEPlusLoader().load("ace_plus_fft.safetensors", kind)
    assert model == {"file": "ace_plus_fft.safetensors"} and comfy == [("ace_plus_fft.safetensors", options)]


def test_the_loader_refuses_what_is_no_model_of_ace_plus(comfy, checkpoints):
    with pytest.raises(ConfigError, match=r"gone\.safetensors is not in"):
        ACEPlusLoader().load("gone.safetensors")
    from dataclasses import replace

    from diffusers import FluxTransformer2DModel

    from tests.random_flux import SMALL, published_state

    plain = FluxTransformer2DModel(**replace(SMALL, in_channels=64).config())
    save_file(published_state(plain), checkpoints / "flux1-dev.safetensors")
    with pytest.raises(ConfigError, match=r"flux1-dev\.safetensors has 64 input channels"):
        ACEPlusLoader().load("flux1-dev.safetensors")
    assert comfy == []


def test_an_edited_picture_is_cut_out_where_it_lies():
    edit = torch.zeros(1, 96, 160, 3)
    edit[:, :, 80:] = 1  # an edge in the middle
    node = AcePlusLoraProcessor()
    mask = torch.zeros(1, 96, 160)
    mask[:, :8, :8] = 1
    canvas, _, out_h, out_w, cut = node.preprocess(
        True, 256, 256, "no_preprocess", 1024, reference_image=picture(61, 96, 3), edit_image=edit, edit_mask=mask
    )
    (answer,) = ACEPlusFinish().finish(canvas, out_h, out_w, cut)
    assert answer.shape == edit.shape
    step = (answer[0, 50, :, 0] > 0.5).nonzero()[0]
    assert abs(int(step) - 80) <= 1


def test_a_reference_narrower_than_a_cell_leaves_the_answer_the_edited_pictures_size():
    node = AcePlusFFTProcessor()
    canvas, _, _, out_h, out_w, cut = node.preprocess(reference_image=picture(40, 150), edit_image=picture(130, 60))
    assert (out_h, out_w) == (60, 130)
    assert 0 < cut < 16 < canvas.shape[2]


def test_wrong_connections_are_named():
    with pytest.raises(ImageError, match="use_reference is on"):
        AcePlusLoraProcessor().preprocess(edit_image=picture(64, 64))
    with pytest.raises(ConfigError, match="SLICE_W"):
        ACEPlusFinish().finish(picture(64, 64), 64, 64, 64)
    with pytest.raises(MaskError, match="connect image"):
        ACEChat().answer(None, "x", mask=torch.ones(1, 8, 8))


def test_chat_goes_on_from_its_history():
    pipeline = random_pipeline(TINY_LIKE, num_inference_steps=2)
    node = ACEChat()
    first, history = node.answer(pipeline, "a red apple", seed=1)
    assert first.shape[-1] == 3 and len(history) == 1
    second, longer = node.answer(pipeline, "make it green", seed=2, history=history)
    other, _ = node.answer(pipeline, "make it green", seed=2)
    assert len(longer) == 2 and longer[0] is history[0]
    assert not torch.equal(second, other)
    photo = picture(32, 32)
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    edited, _ = node.answer(pipeline, "a hat", image=photo, mask=mask)
    torch.testing.assert_close(edited[:, 16:], photo[:, 16:], atol=1e-6, rtol=0)


def test_chat_answers_at_the_pictures_size_or_at_the_models():
    pipeline, photo = random_pipeline(TINY_LIKE, num_inference_steps=1), picture(300, 200)
    full, history = ACEChat().answer(pipeline, "make it night", image=photo)
    assert full.shape == photo.shape
    assert history[0].answer.size == (300, 200)
    model, _ = ACEChat().answer(pipeline, "make it night", image=photo, detail="model")
    assert model.shape[1] < 200


def test_controls_are_named_as_the_command_line_names_them():
    assert set(CONTROL_OF.values()) <= set(controls.CONTROLS)
