"""Writes the example workflows of `comfyui/ace_allround/example_workflows`, in the format of ComfyUI's editor.

Run it after a node's inputs changed: `python comfyui/build_workflows.py`. With `--check` it only compares.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ace.comfyui import NODE_CLASS_MAPPINGS

FOLDER = Path(__file__).parent / "ace_allround" / "example_workflows"
FILL, FFT = "flux1-fill-dev.safetensors", "ace_plus_fft.safetensors"
Output = tuple[int, str]  # a node's number and the name of one of its outputs
LORAS = {
    "portrait": "comfyui_portrait_lora64.safetensors",
    "subject": "comfyui_subject_lora16.safetensors",
    "local": "comfyui_local_lora16.safetensors",
}
# ComfyUI's own nodes -> their outputs; as with ours, an output is called as its kind
COMFY_OUTPUTS: dict[str, tuple[str, ...]] = {
    "LoadImage": ("IMAGE", "MASK"),
    "LoadImageMask": ("MASK",),
    "LoraLoaderModelOnly": ("MODEL",),
    "DualCLIPLoader": ("CLIP",),
    "VAELoader": ("VAE",),
    "CLIPTextEncode": ("CONDITIONING",),
    "FluxGuidance": ("CONDITIONING",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
}


def outputs_of(kind: str) -> list[tuple[str, str]]:
    """The outputs of a node, as (name, kind)."""
    if kind in COMFY_OUTPUTS:
        return [(name, name) for name in COMFY_OUTPUTS[kind]]
    node = NODE_CLASS_MAPPINGS[kind]
    return list(zip(getattr(node, "RETURN_NAMES", node.RETURN_TYPES), node.RETURN_TYPES, strict=True))


@dataclass(frozen=True)
class Use:
    """One published use. model: "fft" or the name of a LoRA; task: of the processor; budget: its max_seq_length."""

    model: str
    task: str
    prompt: str
    reference: bool
    edit: bool
    budget: int = 3072


KEEP_FACE = "Keep the face. The same woman as a police officer, smiling."
USES = {
    "FFT_workflow_no_preprocess": Use(
        "fft", "no_preprocess", "{image} a tiger cub on a rock, sharp, in colour", reference=False, edit=True
    ),
    "FFT_workflow_controlpreprocess": Use(
        "fft", "depth_repainting", "{image} a robot of white carbon in soft daylight", reference=False, edit=True
    ),
    "FFT_workflow_reference_generation": Use("fft", "repainting", KEEP_FACE, reference=True, edit=False),
    "FFT_workflow_referenceediting_generation": Use(
        "fft", "repainting", "Put the item on the table.", reference=True, edit=True
    ),
    "LoRA_workflow_portrait_generation": Use("portrait", "repainting", KEEP_FACE, reference=True, edit=False),
    "LoRA_workflow_portrait_editing": Use(
        "portrait", "repainting", "The man looks into the camera and smiles.", reference=True, edit=True
    ),
    "LoRA_workflow_subject_generation": Use(
        "subject",
        "repainting",
        "The logo, printed in white on a black mug, on a cafe table.",
        reference=True,
        edit=False,
    ),
    "LoRA_workflow_subject_editing": Use(
        "subject", "repainting", "The woman wears this skirt.", reference=True, edit=True
    ),
    "LoRA_workflow_local_editing": Use(
        "local",
        "contour_repainting",
        "Redraw the masked part of {image} from its outline: one white owl.",
        reference=False,
        edit=True,
    ),
}


@dataclass
class Graph:
    """A workflow under construction."""

    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)

    def add(self, kind: str, widgets: list, column: int, row: int, **inputs: Output) -> int:
        """Put a node; inputs: name = (node, output name). Returns its number."""
        number = len(self.nodes) + 1
        entries = []
        for name, (source, output) in inputs.items():
            slot = [called for called, _ in outputs_of(self.nodes[source - 1]["type"])].index(output)
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
                "outputs": [{"name": name, "type": of, "links": []} for name, of in outputs_of(kind)],
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


def build(use: Use) -> str:
    """A use's workflow: models, words and pictures → canvas → sampler → answer."""
    graph = Graph()
    network, clip, vae = _models(graph, use)
    pictures = _pictures(graph, use)
    processor, pixels = _processor(graph, use, pictures)
    positive = graph.add("CLIPTextEncode", [use.prompt], 1, 1, clip=clip)
    guided = graph.add("FluxGuidance", [50.0], 2, 1, conditioning=(positive, "CONDITIONING"))
    negative = graph.add("CLIPTextEncode", [""], 1, 2, clip=clip)
    conditioning = graph.add(
        "ACEPlusConditioning" if use.model == "fft" else "ACEPlusLoraConditioning",
        [True],
        3,
        2,
        positive=(guided, "CONDITIONING"),
        negative=(negative, "CONDITIONING"),
        vae=vae,
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
    decoded = graph.add("VAEDecode", [], 5, 1, samples=(sampled, "LATENT"), vae=vae)
    ends = {name: (processor, name) for name in ("OUT_H", "OUT_W", "SLICE_W")}
    kept = {name: output for name, output in pictures.items() if name.startswith("edit_")}
    finished = graph.add("ACEPlusFinish", [], 6, 1, canvas=(decoded, "IMAGE"), **ends, **kept)
    graph.add("SaveImage", ["ace_plus"], 7, 1, images=(finished, "IMAGE"))
    return graph.as_json()


def _models(graph: Graph, use: Use) -> tuple[Output, Output, Output]:
    """MODEL, CLIP and VAE."""
    network = (graph.add("ACEPlusLoader", [FFT if use.model == "fft" else FILL, "default"], 0, 0), "MODEL")
    if use.model != "fft":
        network = (graph.add("LoraLoaderModelOnly", [LORAS[use.model], 1.0], 1, 0, model=network), "MODEL")
    clip = graph.add("DualCLIPLoader", ["clip_l.safetensors", "t5xxl_fp16.safetensors", "flux", "default"], 0, 1)
    return network, (clip, "CLIP"), (graph.add("VAELoader", ["ae.safetensors"], 0, 2), "VAE")


def _pictures(graph: Graph, use: Use) -> dict[str, Output]:
    """The pictures that a processor takes, by the names of its inputs."""
    pictures: dict[str, Output] = {}
    if use.reference:
        pictures["reference_image"] = (graph.add("LoadImage", ["reference.png", "image"], 1, 3), "IMAGE")
    if use.edit:
        pictures["edit_image"] = (graph.add("LoadImage", ["edit.png", "image"], 1, 4), "IMAGE")
        pictures["edit_mask"] = (graph.add("LoadImageMask", ["mask.png", "red"], 1, 5), "MASK")
    return pictures


def _processor(graph: Graph, use: Use, pictures: dict[str, Output]) -> tuple[int, dict[str, Output]]:
    """The processor, and its pictures by the names of the conditioning's inputs."""
    asked = [use.reference, 1024, 1024, use.task]
    if use.model == "fft":
        node = graph.add("ACEPlusFFTProcessor", [*asked, 0.8, use.budget], 2, 3, **pictures)
        return node, {"ucpixels": (node, "UC_IMAGE"), "cpixels": (node, "C_IMAGE")}
    node = graph.add("ACEPlusLoraProcessor", [*asked, use.budget], 2, 3, **pictures)
    return node, {"pixels": (node, "IMAGE")}


def workflows() -> dict[str, str]:
    """File name → contents."""
    return {f"ACE_Plus_{name}.json": build(use) for name, use in USES.items()}


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
