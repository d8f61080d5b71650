"""What was made → what is said of it. Not here: the names on the wire (`schema.py`), HTTP (`routes/`)."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import time
from pathlib import Path

from PIL import Image

from ace.conditions.images import DECODE_ERRORS
from ace.conversation.job import Made
from ace.conversation.labels import FILE as LABELS
from ace.conversation.media import CLIP
from ace.conversation.recipe import Recipe, encode
from ace.conversation.replay import Replay
from ace.conversation.session import Session
from ace.errors import SessionError
from ace.server.activity import ENDED, Active
from ace.server.schema import (
    AceDetails,
    ActiveRequestReply,
    DriftReply,
    NodeInputReply,
    NodeReply,
    ReplayReply,
    SessionEvent,
    SessionReply,
    TokenDetails,
    Usage,
)
from ace.server.service import Accepted, Opened, Service, created_at, head_of


def details_of(made: Made, accepted: Accepted, number: int, change_mask: bool = False) -> AceDetails:
    """What our own part of a reply says of image `number` of a request."""
    request = accepted.requests[number]
    seconds = (request.ended_at or time.monotonic()) - request.asked_at
    recipe = made.recipe
    return AceDetails(
        seed=recipe.seed,
        steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        size=f"{made.image.width}x{made.image.height}",
        model=recipe.model,
        model_sha256=recipe.model_sha256,
        seconds=round(seconds, 3),
        drift=None if made.drift is None else made.drift.as_dict(),
        changes=None if made.delivered is None else made.delivered.as_dict(),
        change_mask=_png_of(made.delivered.change_mask) if change_mask and made.delivered is not None else None,
        notes=made.notes,
        moderation=accepted.checked,
    )


def _png_of(image: Image.Image) -> str:
    return base64.b64encode(encode(image, "PNG")).decode()


def usage_of(accepted: Accepted) -> Usage:
    """Tokens that a request read and made, as OpenAI counts them."""
    cost = accepted.requests[0].cost
    output = cost.target_tokens * len(accepted.requests)
    total = cost.image_tokens + cost.text_tokens
    return Usage(
        input_tokens=total,
        input_tokens_details=TokenDetails(image_tokens=cost.image_tokens, text_tokens=cost.text_tokens),
        output_tokens=output,
        total_tokens=total + output,
    )


def session_reply(opened: Opened) -> SessionReply:
    """A session with all nodes that can be read."""
    nodes, damaged = [], []
    known = opened.session.labels()
    for node_id in opened.session.shown_ids():
        try:
            reply = node_reply(opened, node_id)
        except SessionError:
            damaged.append(node_id)
            continue
        update: dict[str, object] = {"title": known.titles.get(node_id, "")}
        if known.hidden.intersection(reply.parents):
            parents = (opened.session.shown_parent(node_id), *(p for p in reply.parents[1:] if p not in known.hidden))
            update["parents"] = tuple(parent for parent in parents if parent is not None)
        nodes.append(reply.model_copy(update=update))
    head, readable = head_of(opened.session), {node.id for node in nodes}
    if head is not None and head not in readable:
        head = nodes[-1].id if nodes else None
    folder = opened.session.folder
    return SessionReply(
        id=opened.id,
        created=created_at(folder),
        name=known.name or folder.name,
        head=head,
        nodes=nodes,
        damaged=damaged,
        labels=_labels_tag(opened),
    )


def _labels_tag(opened: Opened) -> str:
    """A value that changes with every rename and deletion."""
    try:
        return str((opened.session.folder / LABELS).stat().st_mtime_ns)
    except OSError:
        return ""


def node_reply(opened: Opened, node_id: str) -> NodeReply:
    """A node of a session without its image. Raises SessionError."""
    folder = opened.session.folder
    written: list[tuple[int, int]] = []
    for name in ("node.json", "image.png"):
        with contextlib.suppress(OSError):
            stat = (folder / "nodes" / node_id / name).stat()
            written.append((stat.st_mtime_ns, stat.st_size))
    return _read_node(folder, opened.id, node_id, tuple(written))


@functools.lru_cache(maxsize=10_000)  # nodes never change, unless somebody damages them
def _read_node(folder: Path, session_id: str, node_id: str, written: tuple[tuple[int, int], ...]) -> NodeReply:
    node = Session(folder).node(node_id)
    recipe, base = node.recipe, f"/v1/sessions/{session_id}/nodes"
    try:
        width, height = node.medium.size_px(node.answer_path)
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        raise SessionError(
            f"node {node_id} is damaged ({node.answer_path.name} cannot be read): delete its folder"
        ) from None
    inputs = [
        NodeInputReply(
            node=one.node,
            image=f"{base}/{one.node}/image" if one.node else f"{base}/{node.id}/inputs/{number}",
            mask=None if one.mask_path is None else f"{base}/{node.id}/masks/{number}",
        )
        for number, one in enumerate(node.inputs)
    ]
    return NodeReply(
        id=node.id,
        parents=node.parents,
        instruction=node.instruction,
        image=f"{base}/{node.id}/image",
        medium="clip" if node.medium is CLIP else "image",
        image_size=f"{width}x{height}",
        inputs=tuple(inputs),
        seed=str(recipe.seed),
        steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        negative_prompt=recipe.negative_instruction,
        size="{}x{}".format(*recipe.size_px),
        model=recipe.model,
        model_sha256=recipe.model_sha256,
        history=len(recipe.history),
        adapters=_adapters_of(recipe),
    )


def _adapters_of(recipe: Recipe) -> tuple[str, ...]:
    try:
        return tuple(
            f"{one['name']}:{one['weight']:g}" for one in json.loads(str(recipe.settings.get("adapters") or "[]"))
        )
    except (ValueError, KeyError, TypeError):
        return ()


def drift_reply(opened: Opened, node_id: str) -> DriftReply:
    """How far a node's answer moved. Raises SessionError."""
    found, notes = opened.chat.drift(node_id), opened.chat.notes(node_id)
    if found is None:
        return DriftReply(node=node_id, text=None, drift=None, notes=notes)
    told = "changes" in opened.session.node(node_id).recipe.settings  # the notes say what was kept
    text = str(found) if found.telling and not told else None
    return DriftReply(node=node_id, text=text, drift=found.as_dict(), notes=notes)


def replay_reply(replay: Replay) -> ReplayReply:
    """What making a node again showed."""
    return ReplayReply(
        node=replay.node_id,
        same_pixels=replay.same_pixels,
        largest_difference=replay.largest_difference,
        differences=replay.differences,
    )


def session_event(service: Service, opened: Opened) -> SessionEvent:
    """How a session stands."""
    return SessionEvent(
        head=head_of(opened.session),
        num_nodes=len(opened.session.shown_ids()),
        labels=_labels_tag(opened),
        requests=[_active_reply(service, entry) for entry in opened.activity.entries()],
    )


def _active_reply(service: Service, entry: Active) -> ActiveRequestReply:
    accepted = entry.accepted
    running = accepted is not None and entry.status not in ENDED
    return ActiveRequestReply(
        id=entry.id,
        kind=entry.kind,
        prompt=entry.prompt,
        parent=entry.parent,
        n=1 if accepted is None else len(accepted.requests),
        status=accepted.status if running and accepted is not None else entry.status,
        steps_done=0 if accepted is None else accepted.steps_done,
        steps=0 if accepted is None else accepted.steps,
        eta_s=service.eta_s(accepted) if running and accepted is not None else None,
        previews=[entry.previews[number].address for number in sorted(entry.previews)] if running else [],
        message=entry.message,
        nodes=list(entry.nodes),
        replay=None if entry.replay is None else replay_reply(entry.replay),
    )
