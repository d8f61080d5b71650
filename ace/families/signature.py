"""What a diffusers pipeline can be asked, read from its source: importing diffusers and torch takes seconds."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ace.errors import ModelNotFoundError

_SEVERAL_IMAGES = {"PIL.Image.Image", "list[PIL.Image.Image]"}  # no arrays and tensors, so a list is no batch
_KNOWN_SEVERAL = frozenset({"QwenImageEditPlusPipeline"})  # which says so in words only
_OTHER_KINDS = {  # parameters of pipelines that are no image editors -> what those do
    "num_frames": "makes videos",
    "frames": "makes videos",
    "segment_frame_length": "makes videos",
    "control_image": "needs a control image",
    "controlnet_conditioning_scale": "needs a control image",
}


@dataclass(frozen=True)
class Signature:
    """The call of a pipeline class. defaults: of its parameters, where they are numbers, words or None; `...` where
    there is none or another. several_images, without_image: what its `image` may be."""

    class_name: str
    defaults: dict[str, object]
    several_images: bool
    without_image: bool

    def __contains__(self, name: str) -> bool:
        return name in self.defaults

    def number(self, name: str) -> float | None:
        """The default of a parameter that is a number; None for any other."""
        value = self.defaults.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@lru_cache(maxsize=8)
def read_signature(class_name: str) -> Signature:
    """The call of one of diffusers' pipelines that edit images. Raises ModelNotFoundError for any other class."""
    call = _find_call(class_name)
    arguments = [*call.args.posonlyargs, *call.args.args, *call.args.kwonlyargs]
    defaults: dict[str, object] = {argument.arg: ... for argument in arguments}
    positional = arguments[: len(arguments) - len(call.args.kwonlyargs)]
    given = [
        *zip(positional[len(positional) - len(call.args.defaults) :], call.args.defaults, strict=True),
        *zip(call.args.kwonlyargs, call.args.kw_defaults, strict=True),
    ]
    for argument, value in given:
        if isinstance(value, ast.Constant):
            defaults[argument.arg] = value.value
    for name, what in _OTHER_KINDS.items():
        if name in defaults:
            raise ModelNotFoundError(f"a {class_name} {what}: name a pipeline of diffusers that edits images")
    for name in ("prompt", "image"):
        if name not in defaults:
            raise ModelNotFoundError(f"a {class_name} takes no {name}: name a pipeline of diffusers that edits images")
    if "callback_on_step_end" not in defaults:
        raise ModelNotFoundError(f"a {class_name} cannot be stopped between steps: name another pipeline of diffusers")
    annotation = next(argument.annotation for argument in arguments if argument.arg == "image")
    kinds = set() if annotation is None else {kind.strip() for kind in ast.unparse(annotation).split("|")}
    return Signature(
        class_name,
        defaults,
        several_images=kinds - {"None"} == _SEVERAL_IMAGES or class_name in _KNOWN_SEVERAL,
        without_image="None" in kinds and "mask_image" not in defaults and "Edit" not in class_name,
    )


def _find_call(class_name: str) -> ast.FunctionDef:
    """The definition of a pipeline class's `__call__` in the installed diffusers."""
    spec = find_spec("diffusers")
    folder = Path(str(spec.origin)).parent / "pipelines" if spec is not None else Path()
    for file in sorted(folder.rglob("pipeline_*.py")) if class_name.isidentifier() else ():
        text = file.read_text(encoding="utf-8")
        if f"class {class_name}(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and member.name == "__call__":
                        return member
    raise ModelNotFoundError(
        f"the installed diffusers has no pipeline {class_name[:80]!r}: update it, or name another model"
    )
