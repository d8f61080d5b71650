"""The metric networks with random weights of their real classes, against independent computations in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import DPTConfig, DPTForDepthEstimation, SiglipVisionConfig, SiglipVisionModel

from ace.errors import CheckpointError
from ace.evaluation.benchmarks.ice_bench import IceItem
from ace.evaluation.benchmarks.ice_metrics import Faces, IceNetworks, load_networks, network_metrics
from ace.evaluation.encoders import CLIP_FRAMING, frame
from ace.evaluation.networks.aesthetic import TOWER, at_height, load_aesthetic
from ace.evaluation.networks.controls import DEPTH, load_depth
from ace.evaluation.networks.csd import load_csd
from ace.evaluation.networks.musiq import GRID, Musiq, _hashed, load_musiq, multiscale_patches

from .random_encoders import picture


def test_the_aesthetic_score_is_a_linear_stack_on_the_normalised_embedding(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=28, patch_size=14)).eval()
    tower.save_pretrained(tmp_path / TOWER)
    widths = (24, 10, 6, 4, 3, 1)
    head = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        head[f"scoring_head.{2 * number}.weight"] = torch.randn(after, before)
        head[f"scoring_head.{2 * number}.bias"] = torch.randn(after)
    torch.save(head, tmp_path / "aesthetic_predictor_v2_5.pth")
    shown = picture(1, (96, 64))
    found = load_aesthetic(tmp_path).score(shown)
    large = shown.resize((1536, 1024), Image.Resampling.BICUBIC)
    assert at_height(shown).tobytes() == large.tobytes()
    small = np.asarray(large.resize((28, 28), Image.Resampling.BICUBIC), np.float64) / 255
    pixels = torch.from_numpy((small - 0.5) / 0.5).permute(2, 0, 1)[None]
    x = tower.double()(pixel_values=pixels).pooler_output
    x = x / x.norm()
    for number in range(5):
        x = x @ head[f"scoring_head.{2 * number}.weight"].double().T + head[f"scoring_head.{2 * number}.bias"].double()
    assert found == pytest.approx(x.item(), abs=1e-5)
    torch.save(dict(list(head.items())[2:]), tmp_path / "aesthetic_predictor_v2_5.pth")
    with pytest.raises(CheckpointError, match="does not hold linear layers"):
        load_aesthetic(tmp_path)


def musiq_in_float64(weights: dict[str, torch.Tensor], shown: torch.Tensor) -> float:
    """MUSIQ from its description, padded to full numbers of patches and masked as published."""
    w = {name: value.double() for name, value in weights.items()}

    def same(x, kernel, stride):
        out = [math.ceil(side / stride) for side in x.shape[2:]]
        pad = [max(0, (n - 1) * stride + kernel - side) for n, side in zip(out, x.shape[2:], strict=True)]
        return F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))

    def conv(x, name, stride=1):
        k = w[name]
        k = (k - k.mean((1, 2, 3), keepdim=True)) / (k.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(same(x, k.shape[-1], stride), k, stride=stride)

    def norm(x, name, eps):
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tokens, valid = [], []
    height, width = shown.shape[1:]
    for scale, longer in enumerate((224, 384, None)):
        x = shown[None].double()
        if longer:
            size = round(height * longer / max(height, width)), round(width * longer / max(height, width))
            x = F.interpolate(x, size, mode="bicubic", align_corners=False)
        rows, columns = math.ceil(x.shape[2] / 32), math.ceil(x.shape[3] / 32)
        parts = F.unfold(same(x, 32, 32), 32, stride=32)[0].T.reshape(-1, 3, 32, 32)
        line = [F.interpolate(torch.arange(10.0)[None, None], n, mode="nearest")[0, 0].long() for n in (rows, columns)]
        places = (line[0][:, None] * 10 + line[1]).flatten()
        x = F.relu(norm(conv(parts, "conv_root.weight", 2), "gn_root", 1e-6))
        x = F.max_pool2d(same(x, 3, 2), 3, 2)
        y = F.relu(norm(conv(x, "block1.conv1.weight"), "block1.gn1", 1e-4))
        y = F.relu(norm(conv(y, "block1.conv2.weight"), "block1.gn2", 1e-4))
        y = norm(conv(y, "block1.conv3.weight"), "block1.gn3", 1e-4)
        y = F.relu(y + norm(conv(x, "block1.conv_proj.weight"), "block1.gn_proj", 1e-4))
        y = linear(y.permute(0, 2, 3, 1).reshape(len(parts), -1), "embedding")
        y = y + w["transformer_encoder.posembed_input.position_emb"][0, places]
        y = y + w["transformer_encoder.scaleembed_input.scale_emb"][scale]
        full = len(y) if longer is None else math.ceil(longer / 32) ** 2
        tokens.append(F.pad(y, (0, 0, 0, full - len(y)), value=7.0))  # what padding holds must not matter
        valid.append(torch.arange(full) < len(y))
    x = torch.cat([w["transformer_encoder.cls"][0], *tokens])
    seen = torch.cat([torch.ones(1, dtype=torch.bool), *valid])
    for number in range(14):
        name = f"transformer_encoder.transformer.encoderblock_{number}"
        y = F.layer_norm(x, (384,), w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-6)
        heads = (linear(y, f"{name}.attention.{part}") for part in ("query", "key", "value"))
        q, k, v = (part.reshape(-1, 6, 64).transpose(0, 1) for part in heads)
        weight = (q @ k.transpose(1, 2) / 8).masked_fill(~(seen[:, None] & seen), -1e3).softmax(-1)
        x = x + linear((weight @ v).transpose(0, 1).reshape(-1, 384), f"{name}.attention.out")
        y = F.layer_norm(x, (384,), w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-6)
        x = x + linear(F.gelu(linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    x = F.layer_norm(
        x, (384,), w["transformer_encoder.encoder_norm.weight"], w["transformer_encoder.encoder_norm.bias"], 1e-6
    )
    return linear(x[0], "head").item()


def test_musiq_is_the_published_network(tmp_path):
    torch.manual_seed(0)
    network = Musiq().eval()
    for name, value in network.named_parameters():
        if name.endswith(("_emb", "cls")):
            torch.nn.init.normal_(value, std=0.5)
    weights = network.state_dict()
    torch.save({"params": weights}, tmp_path / "musiq_koniq_ckpt-e95806b9.pth")  # as it is published
    loaded = load_musiq(tmp_path)
    shown = torch.rand(3, 100, 150) * 2 - 1
    with torch.no_grad():
        assert float(loaded(shown)) == pytest.approx(musiq_in_float64(weights, shown), abs=2e-5)
    save_file({**weights, "more": torch.zeros(1)}, tmp_path / "musiq_koniq_ckpt-e95806b9.safetensors")
    with pytest.raises(CheckpointError, match="weights of Musiq"):
        load_musiq(tmp_path)


def test_patches_know_their_place_on_the_grid():
    for count in range(1, 60):
        nearest = F.interpolate(torch.arange(10.0)[None, None], count, mode="nearest")[0, 0]
        assert _hashed(count).tolist() == nearest.tolist()
    patches, places, scales = multiscale_patches(torch.zeros(3, 64, 128))
    assert patches.shape == (7 * 4 + 12 * 6 + 4 * 2, 3, 32, 32)
    assert places.max() < GRID * GRID and scales.bincount().tolist() == [28, 72, 8]


def test_style_features_are_those_of_the_published_layout(tmp_path):
    torch.manual_seed(0)
    width, layers, patch, out = 128, 2, 56, 12
    raw = {
        "backbone.class_embedding": torch.randn(width),
        "backbone.positional_embedding": torch.randn(17, width),
        "backbone.conv1.weight": torch.randn(width, 3, patch, patch) * 0.02,
        "last_layer_style": torch.randn(width, out),
        "last_layer_content": torch.randn(width, out),
    }
    for name in ("ln_pre", "ln_post"):
        raw |= {f"backbone.{name}.weight": torch.rand(width) + 0.5, f"backbone.{name}.bias": torch.randn(width)}
    blocks = []
    for number in range(layers):
        block = torch.nn.ModuleDict(
            {
                "attn": torch.nn.MultiheadAttention(width, width // 64),
                "ln_1": torch.nn.LayerNorm(width),
                "ln_2": torch.nn.LayerNorm(width),
                "mlp": torch.nn.ModuleDict({"c_fc": torch.nn.Linear(width, 48), "c_proj": torch.nn.Linear(48, width)}),
            }
        )
        blocks.append(block.double())
        raw |= {f"backbone.transformer.resblocks.{number}.{k}": v.float() for k, v in block.state_dict().items()}
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in raw.items()}}, tmp_path / "csd_vit_l.pth")
    shown = picture(1, (300, 256))
    found = load_csd(tmp_path).images([shown])
    w = {name: value.double() for name, value in raw.items()}
    x = F.conv2d(frame(shown, CLIP_FRAMING)[None].double(), w["backbone.conv1.weight"], stride=patch)
    x = torch.cat([w["backbone.class_embedding"][None], x[0].flatten(1).T]) + w["backbone.positional_embedding"]
    x = F.layer_norm(x, (width,), w["backbone.ln_pre.weight"], w["backbone.ln_pre.bias"])
    for block in blocks:
        y = block["ln_1"](x)
        x = x + block["attn"](y, y, y, need_weights=False)[0]
        y = block["mlp"]["c_fc"](block["ln_2"](x))
        x = x + block["mlp"]["c_proj"](y * torch.sigmoid(1.702 * y))
    x = F.layer_norm(x[0], (width,), w["backbone.ln_post.weight"], w["backbone.ln_post.bias"])
    assert torch.allclose(found[0].double(), x @ w["last_layer_style"], atol=1e-4)


def test_depth_runs_from_the_farthest_to_the_nearest_point(tmp_path):
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=384,
        patch_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    DPTForDepthEstimation(config).save_pretrained(tmp_path / DEPTH)
    found = load_depth(tmp_path)(picture(1, (120, 80)))
    assert found.shape == (80, 120)
    assert found.min() == pytest.approx(0, abs=1e-4) and found.max() == pytest.approx(255, abs=1e-3)


class OneFace:
    """Finds the left and the right half of a wide picture, the whole of any other, nothing in a gray one."""

    def find(self, image):
        if image.std() == 0:
            return []
        half = image.shape[1] // 2
        return [(0, half), (half, 2 * half)] if image.shape[1] > image.shape[0] else [(0, image.shape[1])]

    def embed(self, image, face):
        feature = image[:, face[0] : face[1]].reshape(-1, 3).mean(axis=0)
        return feature / np.linalg.norm(feature)


def test_the_best_face_counts_and_no_face_is_zero(tmp_path):
    red, blue = (Image.new("RGB", (64, 64), color) for color in ((200, 10, 0), (0, 10, 200)))
    for image in (red, blue):
        image.putpixel((0, 0), (0, 0, 0))
    red.save(tmp_path / "reference.png")
    both = Image.new("RGB", (128, 64))
    both.paste(blue, (0, 0))
    both.paste(red, (64, 0))
    item = IceItem("1", "Face Swap", "", "", tmp_path / "reference.png", None, (tmp_path / "reference.png",))
    networks = IceNetworks(faces=Faces(OneFace(), OneFace()))
    assert network_metrics(item, both, networks)["face_ref"] == pytest.approx(1, abs=1e-4)
    assert network_metrics(item, blue, networks)["face_ref"] < 0.1
    assert network_metrics(item, Image.new("RGB", (64, 64), "gray"), networks)["face_ref"] == 0


def test_controls_are_compared_with_the_source_itself(tmp_path):
    picture(1, (64, 64)).convert("L").save(tmp_path / "depth.png")
    item = IceItem("1", "Depth-guided Generation", "", "", tmp_path / "depth.png", None)
    true = np.asarray(Image.open(tmp_path / "depth.png"), dtype=np.float64)
    right = IceNetworks(depth=lambda shown: true, pose=lambda shown: true)
    wrong = IceNetworks(depth=lambda shown: 255 - true)
    assert network_metrics(item, Image.new("RGB", (32, 32)), right) == {"l1_depth": 1}
    assert network_metrics(item, Image.new("RGB", (32, 32)), wrong)["l1_depth"] < 1


def test_a_damaged_file_is_told_apart_from_one_that_is_absent(tmp_path):
    (tmp_path / "musiq_koniq_ckpt-e95806b9.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="musiq_koniq"):
        load_networks(tmp_path)
