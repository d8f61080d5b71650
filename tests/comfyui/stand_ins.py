"""ComfyUI's own nodes as far as the example workflows use them, small: what they take and give is checked, nothing is
loaded."""

from __future__ import annotations

import torch


class Vae:
    """8 px per cell, 16 channels, deterministic."""

    def encode(self, pixels):
        assert pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.shape[1] % 8 == pixels.shape[2] % 8 == 0
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return cells.repeat(1, 6, 1, 1)[:, :16]

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8).movedim(1, -1).clamp(0, 1)


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"
    PICTURES: dict[str, torch.Tensor] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": (["reference.png"], {"image_upload": True})}}

    def load(self, image):
        picture = self.PICTURES[image]
        return picture, torch.zeros(picture.shape[:3])


class LoadImageMask:
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": (["mask.png"],), "channel": (["alpha", "red"],)}}

    def load(self, image, channel):
        return (LoadImage.PICTURES[image][..., ["red"].index(channel)],)


class LoraLoaderModelOnly:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "lora_name": ([],), "strength_model": ("FLOAT", {"default": 1.0})}}

    def load(self, model, lora_name, strength_model):
        assert strength_model == 1.0
        return ({**model, "lora": lora_name},)


class DualCLIPLoader:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip_name1": ([],), "clip_name2": ([],), "type": (["flux"],), "device": (["default"],)}}

    def load(self, clip_name1, clip_name2, type, device):
        assert type == "flux"
        return ("clip",)


class VAELoader:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae_name": ([],)}}

    def load(self, vae_name):
        return (Vae(),)


class CLIPTextEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"multiline": True}), "clip": ("CLIP",)}}

    def encode(self, text, clip):
        return ([[torch.zeros(1, 4, 8), {"text": text}]],)


class FluxGuidance:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "guidance": ("FLOAT", {"default": 3.5})}}

    def append(self, conditioning, guidance):
        return ([[entry[0], {**entry[1], "guidance": guidance}] for entry in conditioning],)


class KSampler:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    SEEN: list[dict] = []

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", {"default": 0, "control_after_generate": True}),
                "steps": ("INT", {"default": 20}),
                "cfg": ("FLOAT", {"default": 8.0}),
                "sampler_name": (["euler"],),
                "scheduler": (["simple"],),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0}),
            }
        }

    def sample(self, **inputs):
        self.SEEN.append(inputs)
        samples = inputs["latent_image"]["samples"]
        generator = torch.Generator().manual_seed(inputs["seed"])
        return ({"samples": torch.rand(samples.shape, generator=generator)},)


class VAEDecode:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples, vae):
        return (vae.decode(samples["samples"]),)


class SaveImage:
    RETURN_TYPES = ()
    FUNCTION = "save"
    SAVED: list[torch.Tensor] = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images, filename_prefix):
        self.SAVED.append(images)
        return ()


NODES = {
    cls.__name__: cls
    for cls in (
        LoadImage, LoadImageMask, LoraLoaderModelOnly, DualCLIPLoader, VAELoader, CLIPTextEncode, FluxGuidance,
        KSampler, VAEDecode, SaveImage,
    )
}  # fmt: skip
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


def run_workflow(workflow: dict, nodes: dict[str, type]) -> None:
    """Execute a workflow as the editor saved it, through the node protocol: inputs from links, then widgets in the
    order of INPUT_TYPES; the kinds at both ends of a link must agree."""
    links = {link[0]: link for link in workflow["links"]}
    by_id = {node["id"]: node for node in workflow["nodes"]}
    results: dict[int, tuple] = {}

    def result_of(number: int) -> tuple:
        if number not in results:
            node = by_id[number]
            cls = nodes[node["type"]]
            declared = cls.INPUT_TYPES()
            kinds = {**declared["required"], **declared.get("optional", {})}
            values = {}
            for entry in node["inputs"]:
                _, source, slot, *_rest, kind = links[entry["link"]]
                assert kind == kinds[entry["name"]][0] == nodes[by_id[source]["type"]].RETURN_TYPES[slot]
                values[entry["name"]] = result_of(source)[slot]
            widgets = list(node["widgets_values"])
            for name, kind in kinds.items():
                options = kind[1] if len(kind) > 1 else {}
                if (
                    name in values
                    or options.get("forceInput")
                    or not (isinstance(kind[0], list) or kind[0] in _WIDGETS)
                ):
                    continue
                values[name] = widgets.pop(0)
                if isinstance(kind[0], list) and kind[0] and node["type"].startswith("ACE"):
                    assert values[name] in kind[0], f"{node['type']}.{name} = {values[name]!r}"
                if options.get("control_after_generate") or options.get("image_upload"):
                    widgets.pop(0)
            assert not widgets, f"{node['type']} has widgets that nothing asks for: {widgets}"
            missing = set(declared["required"]) - set(values)
            assert not missing, f"{node['type']} lacks {missing}"
            results[number] = getattr(cls(), cls.FUNCTION)(**values)
            assert len(results[number]) == len(cls.RETURN_TYPES)
        return results[number]

    for node in workflow["nodes"]:
        if not node["outputs"]:
            result_of(node["id"])
