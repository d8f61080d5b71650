"""The ComfyUI nodes against what the published nodes put out."""

import pytest
import torch

from ace.comfyui.nodes import AcePlusConditioning, AcePlusFFTProcessor, AcePlusLoraConditioning, AcePlusLoraProcessor


class ToyVae:
    """The autoencoder of the recording: averages of 8 x 8 px and functions of them."""

    def encode(self, pixels):
        z = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([z, 2 * z, z - 0.5, z**2, z + 1, z.mean(1, keepdim=True)], dim=1)


@pytest.mark.parity("prep_comfy")
def test_processor_nodes_lay_out_the_recorded_canvas(case):
    args = dict(case.meta["args"])
    inputs = {
        "reference_image": case.tensors.get("in.reference"),
        "edit_image": case.tensors.get("in.edit"),
        "edit_mask": case.tensors.get("in.mask"),
    }
    is_fft = "FFT" in case.meta["node"]
    node = AcePlusFFTProcessor() if is_fft else AcePlusLoraProcessor()
    *pictures, mask, out_h, out_w, cut = node.preprocess(**args, **inputs)
    names = ("out.uc_image", "out.c_image") if is_fft else ("out.image",)
    for ours, name in zip(pictures, names, strict=True):
        torch.testing.assert_close(ours, case.tensors[name], atol=1e-5, rtol=0)
    assert torch.equal(mask, case.tensors["out.mask"])
    assert (out_h, out_w) == (case.meta["out_h"], case.meta["out_w"])
    # The published nodes disagree among themselves here. Ours cuts where the mask says that the target begins, and
    # leaves out 30 px more of a new picture.
    begins = round(mask.shape[-1] * (1 - target_share(inputs, mask, args)))
    assert cut == begins + (30 if inputs["edit_image"] is None else 0)


def target_share(inputs, mask, args):
    """How much of the canvas's width the target has, from where the mask begins in a reference generation, or from the
    sizes that went in."""
    if not args["use_reference"]:
        return 1.0
    height, width = inputs["reference_image"].shape[1:3]
    if inputs["edit_image"] is None:
        target_height, target_width = args["height"], args["width"]
    else:
        target_height, target_width = inputs["edit_image"].shape[1:3]
    rate = args.get("keep_pixels_rate")  # of a reference that keeps its pixels; without one it is aligned
    if rate is None:
        panel = int(width * target_height / height)
    else:  # one that is lower than its share of the height stays as large as it is
        panel = int(width * int(target_height * rate) / height) if height >= rate * target_height else width
    return target_width / (target_width + panel)


@pytest.mark.parity("comfy_cond")
def test_conditioning_nodes_put_in_the_recorded_tensors(case):
    pixels, mask = case.tensors["in.pixels"], case.tensors["in.mask"]
    positive, negative = [[torch.zeros(1, 2, 3), {"pooled_output": 1}]], [[torch.ones(1, 2, 3), {}]]
    pictures = (pixels, case.tensors["in.cpixels"]) if case.meta["fft"] else (pixels,)
    node = AcePlusConditioning() if case.meta["fft"] else AcePlusLoraConditioning()
    outputs = node.encode(positive, negative, ToyVae(), *pictures, mask, noise_mask=case.meta["noise_mask"])
    first, second, latent = outputs
    for entry in (*first, *second):
        for name in ("concat_latent_image", "concat_mask"):
            torch.testing.assert_close(entry[1][name], case.tensors[f"out.{name}"], atol=1e-6, rtol=0)
    assert first[0][1]["pooled_output"] == 1 and "concat_mask" not in positive[0][1]
    torch.testing.assert_close(latent["samples"], case.tensors["out.samples"], atol=1e-6, rtol=0)
    assert ("noise_mask" in latent) == ("out.noise_mask" in case.tensors) == case.meta["noise_mask"]
    if case.meta["noise_mask"]:
        torch.testing.assert_close(latent["noise_mask"], case.tensors["out.noise_mask"], atol=1e-6, rtol=0)
