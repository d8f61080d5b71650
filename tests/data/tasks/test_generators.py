"""The generators behind some tasks, run with pipelines of their published classes whose small weights are random.

What they draw is noise; that they are found in a user's folders, asked for the right thing, and that what they draw is
checked, is real. InstantID and AnyText bring their own pipeline file, which stands here in a few lines of the same
call."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ace.data.recipe import read_recipe
from ace.data.run import build
from ace.data.sample import EditSample
from ace.data.shards import read_shards
from ace.data.tasks import Rejected, Source, Tools, background, check, face, style, text_add
from ace.data.tasks.common import pixels
from ace.data.tasks.generators import FACE_COLORS, IP_ADAPTER_STRENGTH, Generators, draw_face
from ace.errors import ConfigError, MissingDependencyError
from ace.extract.faces import Face
from tests.extract.photographs import needs, photograph

WIDTH = 16  # of every attention
FACES = ("mtcnn-p", "mtcnn-r", "mtcnn-o")
INSTANT_ID_CODE = """
import torch
from diffusers import StableDiffusionXLControlNetPipeline

class StableDiffusionXLInstantIDPipeline(StableDiffusionXLControlNetPipeline):
    def load_ip_adapter_instantid(self, file):
        self.resampler = torch.load(file, weights_only=True)

    def __call__(self, prompt, image, image_embeds, ip_adapter_scale, **rest):
        assert image_embeds.shape == (4,) and image.getbbox() is not None and self.resampler
        return super().__call__(prompt, image=image, **rest)
"""
ANY_TEXT_CODE = """
from diffusers import StableDiffusionPipeline

class AnyTextPipeline(StableDiffusionPipeline):
    def __call__(self, prompt, mode, draw_pos, ori_image, **rest):
        assert mode == "edit" and draw_pos.size == ori_image.size and prompt.count('"') == 2
        return super().__call__(prompt, **rest)
"""


def parts(channels: int = 4, **more) -> dict:
    """What every Stable Diffusion pipeline is made of, small."""
    torch.manual_seed(0)
    letters = {f"{letter}</w>": number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, **{"cross_attention_dim": WIDTH, **more},
    )  # fmt: skip
    return {
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text_encoder": CLIPTextModel(text_config()),
        "tokenizer": CLIPTokenizer({**letters, "<|startoftext|>": 26, "<|endoftext|>": 27}, [], model_max_length=77),
        "unet": unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }  # fmt: skip


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=28,
        bos_token_id=26, eos_token_id=27, pad_token_id=27, projection_dim=WIDTH,
    )  # fmt: skip


def without_safety() -> dict:
    return {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False}


def cat(caption: str = "") -> Source:
    return Source(Image.fromarray(photograph("chelsea", 96)), "cat", caption)


def test_an_instruction_editor_makes_the_styled_side(tmp_path):
    StableDiffusionInstructPix2PixPipeline(**parts(8), **without_safety()).save_pretrained(tmp_path / "editor")
    tools = Tools(generators=Generators(editor=tmp_path / "editor", device="cpu", steps=1, side_px=64))
    sample = style.make(cat(), Random(0), tools)
    assert isinstance(sample, EditSample) and sample.provenance["made_by"] == "instruction editor"
    assert check(sample, tools) is None


def test_an_ip_adapter_at_its_strength_makes_the_content_related_side(tmp_path):
    StableDiffusionPipeline(**parts(), **without_safety()).save_pretrained(tmp_path / "base")
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, image_size=16,
            patch_size=8, projection_dim=WIDTH,
        )
    )  # fmt: skip
    encoder.save_pretrained(tmp_path / "adapter" / "models" / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "adapter" / "models" / "image_encoder"
    )
    save_file(adapter_weights(), tmp_path / "adapter" / "models" / "ip-adapter_sd15.safetensors")
    generators = Generators(base=tmp_path / "base", ip_adapter=tmp_path / "adapter", device="cpu", steps=1, side_px=64)
    sample = background.make(cat("a cat"), Random(0), Tools(generators=generators))
    assert isinstance(sample, EditSample) and sample.provenance["made_by"] == "IP-Adapter"
    assert "a cat" in sample.request.current.instruction and check(sample, Tools()) is None
    scales = [p.scale for p in generators._adapted.unet.attn_processors.values() if hasattr(p, "scale")]
    assert scales and all(scale == [IP_ADAPTER_STRENGTH] for scale in scales)
    again = generators.similar(pixels(sample.request.current.images[0]), "a dog", 3)
    other = generators.similar(255 - pixels(sample.request.current.images[0]), "a dog", 3)
    assert (again != other).any(), "the picture decides nothing"


def adapter_weights() -> dict[str, torch.Tensor]:
    """An IP-Adapter for the UNet of `parts`, under the published names."""
    dice = torch.Generator().manual_seed(0)
    shapes = {
        "image_proj.proj.weight": (4 * WIDTH, WIDTH),
        "image_proj.proj.bias": (4 * WIDTH,),
        "image_proj.norm.weight": (WIDTH,),
        "image_proj.norm.bias": (WIDTH,),
    }
    for number in range(1, 8, 2):  # the cross attentions; the last one is one more than this UNet has
        shapes |= {
            f"ip_adapter.{number}.to_k_ip.weight": (16, WIDTH),
            f"ip_adapter.{number}.to_v_ip.weight": (16, WIDTH),
        }
    return {name: torch.randn(shape, generator=dice) for name, shape in shapes.items()}


@pytest.fixture
def portraits(tmp_path) -> Generators:
    """InstantID's folders."""
    small = parts(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=48 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )  # fmt: skip
    steering = ControlNetModel.from_unet(small["unet"], conditioning_embedding_out_channels=(8, 8, 8, 8))
    StableDiffusionXLControlNetPipeline(
        **small, controlnet=steering, text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer_2=small["tokenizer"], add_watermarker=False,
    ).save_pretrained(tmp_path / "xl")  # fmt: skip
    folder = tmp_path / "instantid"
    steering.save_pretrained(folder / "ControlNetModel")
    torch.save({"image_proj": {}}, folder / "ip-adapter.bin")
    (folder / "pipeline.py").write_text(INSTANT_ID_CODE, encoding="utf-8")
    return Generators(portrait=folder, portrait_base=tmp_path / "xl", device="cpu", steps=1, side_px=64)


class Identity:
    """A face embedder whose every face is one person's: the weights that know persons are not free."""

    def embed(self, image: np.ndarray, face: Face) -> np.ndarray:
        return np.array((1, 0, 0, 0), np.float32)


@needs(*FACES)
def test_instantid_is_steered_by_the_face_and_a_picture_without_one_is_rejected(portraits, tmp_path):
    tools = Tools(generators=portraits, face_embedder=tmp_path / "arcface.onnx")
    tools.__dict__["embedder"] = Identity()
    source = Source(Image.fromarray(photograph("astronaut", 256)), "astronaut", "an astronaut in a garden")
    made = face.make(source, Random(1), tools)  # these dice ask for another picture of the person
    assert made == Rejected("not one face in the generated picture", "0")


def test_a_face_is_shown_to_instantid_as_five_points_of_their_colours():
    points = np.array(((30, 30), (60, 30), (45, 45), (35, 60), (55, 60)), np.float32)
    drawn = draw_face(Face((20, 20, 70, 75), points, 1.0), 90, 90)
    assert [tuple(drawn[int(y), int(x)]) for x, y in points] == list(FACE_COLORS)
    assert drawn[38, 38].any() and not drawn[:15].any()


def test_what_a_text_editor_writes_has_to_be_read(tmp_path):
    StableDiffusionPipeline(**parts(), **without_safety()).save_pretrained(tmp_path / "anytext")
    (tmp_path / "anytext" / "pipeline.py").write_text(ANY_TEXT_CODE, encoding="utf-8")
    tools = Tools(generators=Generators(writer=tmp_path / "anytext", device="cpu", steps=1, side_px=64))
    made = text_add.make(replace(cat(), image=Image.fromarray(photograph("coffee", 128))), Random(0), tools)
    assert made == Rejected("no text could be written that OCR reads")


def test_generators_say_what_is_missing_and_where_it_is_to_be_had(tmp_path):
    with pytest.raises(MissingDependencyError, match="hf download timbrooks/instruct-pix2pix"):
        Generators(editor=tmp_path / "nowhere")
    with pytest.raises(MissingDependencyError, match="IP-Adapter"):
        Generators(base=tmp_path)
    with pytest.raises(MissingDependencyError, match="SDXL"):
        Generators(portrait=tmp_path)
    with pytest.raises(MissingDependencyError, match=r"lacks pipeline\.py"):
        Generators(writer=tmp_path)
    (tmp_path / "pipeline.py").touch()
    with pytest.raises(MissingDependencyError, match="face_embedder"):
        Tools(generators=Generators(portrait=tmp_path, portrait_base=tmp_path))


def test_a_recipe_names_its_models_and_stops_before_work_where_one_is_missing(tmp_path):
    StableDiffusionInstructPix2PixPipeline(**parts(8), **without_safety()).save_pretrained(tmp_path / "editor")
    (tmp_path / "photos").mkdir()
    Image.fromarray(photograph("chelsea", 96)).save(tmp_path / "photos" / "cat.png")
    text = (
        f"[source]\npath = 'photos'\n[synthesize]\ntasks = ['{style.TASK}']\n"
        "[models]\ndevice = 'cpu'\nsteps = 1\nside_px = 64\neditor = "
    )
    (tmp_path / "recipe.toml").write_text(f"{text}'editor'\n", encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    build(recipe, tmp_path / "set")
    (sample,) = read_shards(tmp_path / "set")
    assert sample.provenance["made_by"] == "instruction editor"
    (tmp_path / "recipe.toml").write_text(f"{text}'elsewhere'\n", encoding="utf-8")
    with pytest.raises(MissingDependencyError, match="hf download"):
        build(read_recipe(tmp_path / "recipe.toml"), tmp_path / "other")
    assert not (tmp_path / "other" / "work" / "read").exists()
    (tmp_path / "recipe.toml").write_text(text.replace("editor =", "lama = 'none.onnx'\n"), encoding="utf-8")
    with pytest.raises(ConfigError, match="lama"):
        build(read_recipe(tmp_path / "recipe.toml"), tmp_path / "other")
