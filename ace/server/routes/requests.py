"""How a request stands, by its id, and cancelling it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ace.server.front import Front, TheFront
from ace.server.schema import RequestReply
from ace.server.service import Accepted, NotFoundError

router = APIRouter(prefix="/v1/requests/{request_id}", tags=["requests"])


@router.get("")
async def request_status(front: TheFront, request: Request, request_id: str) -> RequestReply:
    """How a request stands, and what became of it, also after a restart."""
    client = request.state.client
    accepted = front.service.running(request_id, client)
    if accepted is not None and accepted.tickets:
        return _progress_of(front, accepted)
    found = await front.in_worker(front.service.ledger.look_up, request_id, client)
    if found is None:
        raise NotFoundError("you have no request with this id")
    status = "waiting" if found[0] == "accepted" else found[0]  # on its way into the line
    return RequestReply(id=request_id, status=status, message=found[1])


@router.delete("", status_code=202)
async def cancel_request(front: TheFront, request: Request, request_id: str) -> RequestReply:
    """Stop working on a request; whoever waits for it is told."""
    accepted = front.service.running(request_id, request.state.client)
    if accepted is None:
        raise NotFoundError("you have no running request with this id")
    front.service.cancel(accepted)
    return RequestReply(id=request_id, status="cancelled")


def _progress_of(front: Front, accepted: Accepted) -> RequestReply:
    tickets = accepted.tickets
    return RequestReply(
        id=accepted.id,
        status="waiting" if all(ticket.status == "waiting" for ticket in tickets) else "running",
        steps_done=sum(ticket.steps_done for ticket in tickets),
        steps=sum(ticket.cost.num_steps for ticket in tickets),
        eta_s=front.service.eta_s(accepted),
    )
