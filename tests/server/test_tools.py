"""The MCP tools, through the SDK's own client."""

from __future__ import annotations

import base64
import json
import sys

import anyio
import pytest
from mcp import Client, StdioServerParameters

from ace.conversation.chat import ChatSession
from ace.conversation.session import Session
from ace.server.tools import create_tools
from tests.server.running import opened, picture, png, random_family


@pytest.fixture
def chat(tmp_path) -> ChatSession:
    return ChatSession(Session.create(tmp_path / "talk"), random_family(num_inference_steps=2))


def run(function) -> None:
    anyio.run(function)


def parts(result):
    """(picture, description) of a tool's result."""
    assert not result.is_error, result.content
    image, text = result.content
    return opened(base64.b64decode(image.data)), json.loads(text.text)


def message(result) -> str:
    assert result.is_error
    return result.content[0].text


def test_an_agent_generates_edits_and_reads_the_history(chat):
    async def talk() -> None:
        async with Client(create_tools(chat)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"generate", "edit", "history"}
            steps = []

            async def progress(done: float, total: float | None, text: str | None) -> None:
                steps.append((done, total))

            arguments = {"instruction": "a red apple", "seed": 1}
            first, made = parts(await client.call_tool("generate", arguments, progress_callback=progress))
            assert first.size == (64, 64) and made["node"] == "0001" and made["seed"] == 1
            assert steps[-1] == (2, 2)
            _, second = parts(await client.call_tool("edit", {"instruction": "make it blue"}))
            assert second["parents"] == ["0001"]
            _, branch = parts(await client.call_tool("edit", {"instruction": "add a hat", "image": "0001"}))
            assert branch["parents"] == ["0001"]
            address = "data:image/png;base64," + base64.b64encode(png(picture())).decode()
            own, fresh = parts(await client.call_tool("edit", {"instruction": "a hat", "image": address}))
            assert fresh["parents"] == [] and own.size == (64, 64)
            nodes = json.loads((await client.call_tool("history", {})).content[0].text)
            assert [node["node"] for node in nodes] == ["0001", "0002", "0003", "0004"]

    run(talk)


def test_an_agent_reads_only_the_folder_that_was_opened_and_is_told_what_is_wrong(chat, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "photo.png").write_bytes(png(picture()))
    (tmp_path / "private.png").write_bytes(png(picture()))
    (folder / "link.png").symlink_to(tmp_path / "private.png")

    async def talk() -> None:
        async with Client(create_tools(chat, folder)) as client:
            parts(await client.call_tool("edit", {"instruction": "a hat", "image": "photo.png"}))
            for name in ("../private.png", "link.png", str(tmp_path / "private.png"), "nothing.png", "."):
                result = await client.call_tool("edit", {"instruction": "a hat", "image": name})
                assert "no file in the pictures folder" in message(result)
            assert "WIDTHxHEIGHT" in message(await client.call_tool("generate", {"instruction": "a", "size": "big"}))
        async with Client(create_tools(chat)) as client:
            result = await client.call_tool("edit", {"instruction": "a hat", "image": "photo.png"})
            assert "no folder of images" in message(result)

    run(talk)


def test_an_argument_that_a_tool_does_not_have_is_refused(chat):
    async def talk() -> None:
        async with Client(create_tools(chat)) as client:
            parts(await client.call_tool("generate", {"instruction": "a red apple"}))
            result = await client.call_tool("edit", {"instruction": "make it blue", "images": ["nope.png"]})
            assert "images" in message(result)
            (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "edit"]
            assert tool.input_schema["additionalProperties"] is False

    run(talk)
    assert len(chat.session.nodes()) == 1


def test_an_agent_is_told_how_far_a_masked_edit_drifted(chat):
    async def talk() -> None:
        mask = picture().convert("L").point(lambda _: 0)
        mask.paste(255, (0, 0, 30, 30))
        address = "data:image/png;base64," + base64.b64encode(png(mask)).decode()
        async with Client(create_tools(chat)) as client:
            parts(await client.call_tool("generate", {"instruction": "a red apple"}))
            _, made = parts(await client.call_tool("edit", {"instruction": "add a hat", "mask": address}))
            assert "every pixel is the same" in made["drift"]

    run(talk)


def test_references_follow_the_image_that_is_edited(chat):
    async def talk() -> None:
        address = "data:image/png;base64," + base64.b64encode(png(picture())).decode()
        async with Client(create_tools(chat)) as client:
            parts(await client.call_tool("generate", {"instruction": "a red apple"}))
            arguments = {"instruction": "put {image1} into {image}", "references": [address]}
            parts(await client.call_tool("edit", arguments))

    run(talk)
    assert [one.node for one in chat.session.node("0002").inputs] == ["0001", None]


@pytest.mark.slow
def test_ace_mcp_talks_over_standard_input_and_output(tmp_path):
    command = ["-m", "ace", "mcp", "--session", str(tmp_path / "talk"), "--device", "cpu"]

    async def talk() -> None:
        async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
            image, made = parts(await client.call_tool("generate", {"instruction": "a red apple", "steps": 1}))
            assert image.size == (64, 64) and made["model"] == "ace-tiny"

    run(talk)
    assert len(Session.open(tmp_path / "talk").nodes()) == 1
