"""COMFYUI GRAPH → PICTURE. Imports: conditions, inference, plus, weights, conversation, families, video.

In: what ComfyUI's nodes hand over (IMAGE and MASK tensors, CONDITIONING, VAE). Out: the same kinds. ComfyUI finds the
two tables through the folder `comfyui/ace_allround`, which imports this room and does nothing else.
"""

from ace.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
