"""What was made → what is said of it. Not here: the names on the wire (`schema.py`), HTTP (`routes/`)."""

from __future__ import annotations

import time

from ace.conversation.edit import Made
from ace.conversation.session import Node
from ace.server.schema import AceDetails, NodeReply, TokenDetails, Usage
from ace.server.service import Accepted


def details_of(made: Made, accepted: Accepted, number: int) -> AceDetails:
    """What our own part of a reply says of picture `number` of a request."""
    ticket = accepted.tickets[number]
    seconds = (ticket.ended_at or time.monotonic()) - ticket.asked_at
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
        notes=made.notes,
    )


def usage_of(accepted: Accepted) -> Usage:
    """Tokens that a request read and made, as OpenAI counts them."""
    cost = accepted.tickets[0].cost
    output = cost.num_target_tokens * len(accepted.tickets)
    total = cost.image_tokens + cost.text_tokens
    return Usage(
        input_tokens=total,
        input_tokens_details=TokenDetails(image_tokens=cost.image_tokens, text_tokens=cost.text_tokens),
        output_tokens=output,
        total_tokens=total + output,
    )


def node_reply(session_id: str, node: Node) -> NodeReply:
    """A node of a session without its picture."""
    return NodeReply(
        id=node.id,
        parents=node.parents,
        instruction=node.instruction,
        image=f"/v1/sessions/{session_id}/nodes/{node.id}/image",
        seed=node.recipe.seed,
        steps=node.recipe.num_inference_steps,
        size="{}x{}".format(*node.recipe.size_px),
    )
