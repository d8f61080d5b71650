"""Writes the example workflows of `comfyui/ace_allround/example_workflows`, in the format of ComfyUI's editor.

Run it after a node's inputs changed: `python comfyui/build_workflows.py`. With `--check` it only compares.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "ace_allround" / "example_workflows"
FILL, FFT = "flux1-fill-dev.safetensors", "ace_plus_fft.safetensors"
LORAS = {
    "portrait": "comfyui_portrait_lora64.safetensors",
    "subject": "comfyui_subject_lora16.safetensors",
    "local": "comfyui_local_lora16.safetensors",
}
# node type -> its outputs, as (name, kind)
OUTPUTS = {
    "LoadImage": (("IMAGE", "IMAGE"), ("MASK", "MASK")),
    "LoadImageMask": (("MASK", "MASK"),),
    "ACEPlusLoader": (("MODEL", "MODEL"),),
    "LoraLoaderModelOnly": (("MODEL", "MODEL"),),
    "DualCLIPLoader": (("CLIP", "CLIP"),),
    "VAELoader": (("VAE", "VAE"),),
    "CLIPTextEncode": (("CONDITIONING", "CONDITIONING"),),
    "FluxGuidance": (("CONDITIONING", "CONDITIONING"),),
    "ACEPlusFFTProcessor": (
        ("UC_IMAGE", "IMAGE"),
        ("C_IMAGE", "IMAGE"),
        ("MASK", "MASK"),
        ("OUT_H", "INT"),
        ("OUT_W", "INT"),
        ("SLICE_W", "INT"),
    ),
    "ACEPlusLoraProcessor": (
        ("IMAGE", "IMAGE"),
        ("MASK", "MASK"),
        ("OUT_H", "INT"),
        ("OUT_W", "INT"),
        ("SLICE_W", "INT"),
    ),
    "ACEPlusConditioning": (("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")),
    "ACEPlusLoraConditioning": (("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")),
    "KSampler": (("LATENT", "LATENT"),),
    "VAEDecode": (("IMAGE", "IMAGE"),),
    "ACEPlusFinish": (("IMAGE", "IMAGE"),),
    "SaveImage": (),
}


@dataclass
class Graph:
    """A workflow under construction."""

    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)

    def add(self, kind: str, widgets: list, column: int, row: int, **inputs: tuple[int, str]) -> int:
        """Put a node; inputs: name = (node, output name). Returns its number."""
        number = len(self.nodes) + 1
        entries = []
        for name, (source, output) in inputs.items():
            names = [output_name for output_name, _ in OUTPUTS[self.nodes[source - 1]["type"]]]
            slot = names.index(output)
            origin = self.nodes[source - 1]["outputs"][slot]
            link = len(self.links) + 1
            self.links.append([link, source, slot, number, len(entries), origin["type"]])
            origin["links"].append(link)
            entries.append({"name": name, "type": origin["type"], "link": link})
        self.nodes.append(
            {
                "id": number,
                "type": kind,
                "pos": [40 + 360 * column, 60 + 260 * row],
                "size": [320, 200],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": entries,
                "outputs": [{"name": name, "type": of, "links": []} for name, of in OUTPUTS[kind]],
                "properties": {"Node name for S&R": kind},
                "widgets_values": widgets,
            }
        )
        return number

    def as_json(self) -> str:
        """As ComfyUI's editor saves it."""
        whole = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        return json.dumps(whole, indent=1) + "\n"


def build(model: str, task: str, prompt: str, *, reference: bool, edit: bool, budget: int = 3072) -> str:
    """One workflow. model: "fft" or the name of a LoRA."""
    is_fft = model == "fft"
    graph = Graph()
    unet = graph.add("ACEPlusLoader", [FFT if is_fft else FILL, "default"], 0, 0)
    network = (unet, "MODEL")
    if not is_fft:
        network = (graph.add("LoraLoaderModelOnly", [LORAS[model], 1.0], 1, 0, model=network), "MODEL")
    clip = graph.add("DualCLIPLoader", ["clip_l.safetensors", "t5xxl_fp16.safetensors", "flux", "default"], 0, 1)
    vae = graph.add("VAELoader", ["ae.safetensors"], 0, 2)
    positive = graph.add("CLIPTextEncode", [prompt], 1, 1, clip=(clip, "CLIP"))
    guided = graph.add("FluxGuidance", [50.0], 2, 1, conditioning=(positive, "CONDITIONING"))
    negative = graph.add("CLIPTextEncode", [""], 1, 2, clip=(clip, "CLIP"))
    pictures: dict[str, tuple[int, str]] = {}
    if reference:
        pictures["reference_image"] = (graph.add("LoadImage", ["reference.png", "image"], 1, 3), "IMAGE")
    if edit:
        pictures["edit_image"] = (graph.add("LoadImage", ["edit.png", "image"], 1, 4), "IMAGE")
        pictures["edit_mask"] = (graph.add("LoadImageMask", ["mask.png", "red"], 1, 5), "MASK")
    if is_fft:
        processor = graph.add("ACEPlusFFTProcessor", [reference, 1024, 1024, task, 0.8, budget], 2, 3, **pictures)
        pixels = {"ucpixels": (processor, "UC_IMAGE"), "cpixels": (processor, "C_IMAGE")}
    else:
        processor = graph.add("ACEPlusLoraProcessor", [reference, 1024, 1024, task, budget], 2, 3, **pictures)
        pixels = {"pixels": (processor, "IMAGE")}
    conditioning = graph.add(
        "ACEPlusConditioning" if is_fft else "ACEPlusLoraConditioning",
        [True],
        3,
        2,
        positive=(guided, "CONDITIONING"),
        negative=(negative, "CONDITIONING"),
        vae=(vae, "VAE"),
        **pixels,
        mask=(processor, "MASK"),
    )
    sampled = graph.add(
        "KSampler",
        [42, "fixed", 28, 1.0, "euler", "simple", 1.0],
        4,
        1,
        model=network,
        positive=(conditioning, "positive"),
        negative=(conditioning, "negative"),
        latent_image=(conditioning, "latent"),
    )
    decoded = graph.add("VAEDecode", [], 5, 1, samples=(sampled, "LATENT"), vae=(vae, "VAE"))
    ends = {name: (processor, name) for name in ("OUT_H", "OUT_W", "SLICE_W")}
    kept = {name: pictures[name] for name in ("edit_image", "edit_mask") if name in pictures}
    finished = graph.add("ACEPlusFinish", [], 6, 1, canvas=(decoded, "IMAGE"), **ends, **kept)
    graph.add("SaveImage", ["ace_plus"], 7, 1, images=(finished, "IMAGE"))
    return graph.as_json()


def workflows() -> dict[str, str]:
    """File name → contents."""
    made = {
        "FFT_workflow_no_preprocess": build(
            "fft", "no_preprocess", "{image} a tiger cub on a rock, sharp, in colour", reference=False, edit=True
        ),
        "FFT_workflow_controlpreprocess": build(
            "fft", "depth_repainting", "{image} a robot of white carbon in soft daylight", reference=False, edit=True
        ),
        "FFT_workflow_reference_generation": build(
            "fft",
            "repainting",
            "Keep the face. The same woman as a police officer, smiling.",
            reference=True,
            edit=False,
        ),
        "FFT_workflow_referenceediting_generation": build(
            "fft", "repainting", "Put the item on the table.", reference=True, edit=True
        ),
        "LoRA_workflow_portrait_generation": build(
            "portrait",
            "repainting",
            "Keep the face. The same woman as a police officer, smiling.",
            reference=True,
            edit=False,
        ),
        "LoRA_workflow_portrait_editing": build(
            "portrait", "repainting", "The man looks into the camera and smiles.", reference=True, edit=True
        ),
        "LoRA_workflow_subject_generation": build(
            "subject",
            "repainting",
            "The logo, printed in white on a black mug, on a cafe table.",
            reference=True,
            edit=False,
        ),
        "LoRA_workflow_subject_editing": build(
            "subject", "repainting", "The woman wears this skirt.", reference=True, edit=True
        ),
        "LoRA_workflow_local_editing": build(
            "local",
            "contour_repainting",
            "Redraw the masked part of {image} from its outline: one white owl.",
            reference=False,
            edit=True,
        ),
    }
    return {f"ACE_Plus_{name}.json": text for name, text in made.items()}


def main() -> int:
    """Write or, with --check, compare."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, text in workflows().items():
        path = FOLDER / name
        if "--check" in sys.argv:
            stale += [] if path.is_file() and path.read_text(encoding="utf-8") == text else [name]
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stdout.write(f"not as build_workflows.py makes them: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
