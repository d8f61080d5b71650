"""The model as tools for agents, over the Model Context Protocol: generate, edit, history.

Every result is a node of one session, so that an agent goes on from any earlier one by its name. Images come in as
nodes, as data: addresses, or as files of the one folder that the operator named; nothing else of the disk is read, and
nothing is written outside the session. An argument that a tool does not have is refused.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import from_thread, to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import ConfigDict, Field

from ace import __version__
from ace.conditions.rules import MAX_PIXELS, Detail, ImageRules, MaskMeans
from ace.conversation.chat import ChatSession
from ace.conversation.job import Progress, Settings
from ace.conversation.message import Message, Picture
from ace.conversation.seeds import read_seed
from ace.conversation.session import Node
from ace.errors import AceError, ImageError, InputError
from ace.server.images import Upload, fetch, open_mask, open_picture
from ace.server.settings import ServerSettings

_NODE = re.compile(r"[0-9]{4,9}")
_INSTRUCTIONS = """Create and edit images from instructions. Every result is a node with a name such as 0001; `edit`
goes on from the latest one or from the `image` it is given, with the conversation so far. Outside a mask no pixel
changes."""

Instruction = Annotated[str, Field(description="What to create or change, in plain words.", max_length=4000)]
Size = Annotated[str | None, Field(description="WIDTHxHEIGHT in px; leave out for the model's own.")]
Seed = Annotated[int | None, Field(description="Seed of the noise; the same seed gives the same image.", ge=-1)]
Steps = Annotated[int | None, Field(description="Denoising steps; leave out for the model's own.", ge=1, le=200)]
Avoid = Annotated[str, Field(description="What the image should not be.", max_length=4000)]
ImageName = Annotated[
    str | None,
    Field(description="A node such as 0001, a data: address, or a file name in the pictures folder."),
]


MaskMeansName = Annotated[
    MaskMeans, Field(description="What of the mask may change: auto decides from the file, else what to take it for.")
]
FocusName = Annotated[
    str,
    Field(
        description="off, auto or a share: below it, the part around the mask is worked on at the model's full size.",
        max_length=20,
    ),
]
DetailName = Annotated[
    Detail,
    Field(description="full: the image's own size and all that did not change; model: the model's picture as it is."),
]
Feather = Annotated[
    int | None, Field(description="Width in px of a blend inside the mask's edge; leave out for none.", ge=0, le=100)
]


class _Tools:
    """The tools of one session. One request at a time: the session's lock sees to it."""

    def __init__(self, chat: ChatSession, pictures_folder: Path | None, max_pixels: int) -> None:
        self.chat, self.folder = chat, pictures_folder
        self.limits = ServerSettings(max_pixels=max_pixels)

    async def make(self, open_message, context: Context) -> list[Image | str]:
        """Answer a message, with progress; a client that gives up stops it before the next step."""
        stop = threading.Event()

        def run() -> Node:
            message, start = open_message()
            for event in self.chat.ask(message, start, previews=False, cancelled=stop.is_set):
                if isinstance(event, Progress):
                    from_thread.run(context.report_progress, event.step, event.total)
                else:
                    return event
            raise ToolError("cancelled")

        try:
            node = await to_thread.run_sync(run, abandon_on_cancel=True)
        except AceError as error:
            raise ToolError(str(error)) from None
        finally:
            stop.set()
        described = self.describe(node)
        drift = await to_thread.run_sync(self.chat.drift, node.id)
        if drift is not None and drift.telling and "changes" not in node.recipe.settings:
            described["drift"] = str(drift)
        if notes := await to_thread.run_sync(self.chat.notes, node.id):
            described["notes"] = notes
        return [Image(data=node.answer_path.read_bytes(), format="png"), json.dumps(described)]

    def describe(self, node: Node) -> dict[str, object]:
        recipe = node.recipe
        return {
            "node": node.id,
            "parents": node.parents,
            "instruction": node.instruction,
            "seed": recipe.seed,
            "steps": recipe.num_inference_steps,
            "size": "{}x{}".format(*recipe.size_px),
            "model": recipe.model,
        }

    def settings(
        self, size: str | None, seed: int | None, steps: int | None, avoid: str, images: ImageRules | None = None
    ) -> Settings:
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size or "")
        if size is not None and match is None:
            raise InputError(f"size {size[:20]!r}: write it as WIDTHxHEIGHT, for example 64x64")
        chosen = None if match is None else (int(match[1]), int(match[2]))
        return Settings(read_seed(seed), steps, negative_instruction=avoid, size=chosen, images=images or ImageRules())

    def picture(self, name: str) -> Picture:
        """An image by its node, data: address or file name."""
        return self.chat.answer(name) if _NODE.fullmatch(name) else self.opened(name)

    def opened(self, name: str) -> Picture:
        """An image by its data: address or file name."""
        return open_picture(self.upload(name), self.limits.max_pixels)

    def upload(self, name: str) -> Upload:
        if name.startswith("data:"):
            return fetch(name, (), self.limits.max_upload_bytes)
        if self.folder is None:
            raise ImageError("no folder of images was opened: pass a node or a data: address")
        folder = Path(os.path.realpath(self.folder))
        path = Path(os.path.realpath(folder / name))
        if not path.is_relative_to(folder) or not path.is_file():
            raise ImageError(f"{name[:100]!r} is no file in the pictures folder: check its name")
        if path.stat().st_size > self.limits.max_upload_bytes:
            raise ImageError(f"{name[:100]!r} is too large: at most {self.limits.max_upload_bytes / 1e6:g} MB")
        return Upload(path.read_bytes(), path.name)


def create_tools(chat: ChatSession, pictures_folder: Path | None = None, max_pixels: int = MAX_PIXELS) -> MCPServer:
    """An MCP server over a session; `run` it. pictures_folder: from where files may be read, None = none; max_pixels:
    of one image."""
    tools = _Tools(chat, pictures_folder, max_pixels)

    async def generate(
        context: Context,
        instruction: Instruction,
        size: Size = None,
        seed: Seed = None,
        steps: Steps = None,
        avoid: Avoid = "",
    ) -> list[Image | str]:
        """Create an image from words. Returns the image and its node."""
        return await tools.make(
            lambda: (Message(instruction, tools.settings(size, seed, steps, avoid)), None),
            context,
        )

    async def edit(
        context: Context,
        instruction: Instruction,
        image: ImageName = None,
        references: Annotated[list[str], Field(description="Further images, named like `image`.", max_length=8)] = [],  # noqa: B006
        mask: Annotated[
            str | None,
            Field(description="What may change: a data: address or file; transparent (or else white) = change."),
        ] = None,
        size: Size = None,
        seed: Seed = None,
        steps: Steps = None,
        avoid: Avoid = "",
        mask_means: MaskMeansName = "auto",
        focus: FocusName = "auto",
        detail: DetailName = "full",
        feather: Feather = None,
    ) -> list[Image | str]:
        """Edit an image; without `image` the latest node, with everything said before it.

        In the instruction {image} is the image, {image1}, {image2}, … the references. Returns the image, its node and
        how far it drifted where it should not have changed, or what was kept of it."""

        def open_message() -> tuple[Message, str | None]:
            start = image if image is not None and _NODE.fullmatch(image) else None
            if image is None:
                latest = tools.chat.session.latest()
                if latest is None:
                    raise InputError("there is nothing to edit yet: give an image, or generate one")
                start = latest.id
            images = ImageRules(
                mask_means=mask_means,
                max_pixels=tools.limits.max_pixels,
                focus=focus,
                detail=detail,
                feather_px=feather,
            )
            message = Message(
                instruction,
                tools.settings(size, seed, steps, avoid, images),
                photo=None if image is None or start is not None else tools.opened(image),
                references=tuple(tools.picture(name) for name in references),
                mask=None if mask is None else open_mask(tools.upload(mask), tools.limits.max_pixels),
            )
            return message, start

        return await tools.make(open_message, context)

    async def history() -> str:
        """Every node so far with its parents, instruction, seed and settings, oldest first, as JSON."""
        nodes = await to_thread.run_sync(tools.chat.session.nodes)
        return json.dumps([tools.describe(node) for node in nodes])

    return MCPServer(
        "ace",
        instructions=_INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
        tools=[_strict(function) for function in (generate, edit, history)],
    )


def _strict(function: Callable[..., Any]) -> Tool:
    """A tool that refuses arguments it does not have, which the SDK's own would leave out in silence."""
    tool = Tool.from_function(function, structured_output=False)
    known = tool.fn_metadata.arg_model
    arguments = type(known.__name__, (known,), {"model_config": ConfigDict(extra="forbid"), "__module__": __name__})
    tool.fn_metadata.arg_model = arguments
    tool.parameters = arguments.model_json_schema(by_alias=True)
    return tool


def run_tools(chat: ChatSession, pictures_folder: Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
    """Serve the tools over standard input and output until the client closes them."""
    anyio.run(create_tools(chat, pictures_folder, max_pixels).run_stdio_async)
