"""How a request stands, by its id, cancelling it, and the newest ones."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ace.server.front import Front, TheFront
from ace.server.ledger import RequestRecord
from ace.server.schema import ListReply, RequestReply
from ace.server.service import Accepted, NotFoundError

router = APIRouter(prefix="/v1/requests", tags=["requests"])


@router.get("")
async def list_requests(front: TheFront, request: Request) -> ListReply:
    """Your requests, also those that failed or were cancelled, the newest first."""
    found = await front.in_worker(front.service.ledger.newest, request.state.client)
    return ListReply(data=[_reply_of(front, request.state.client, record).model_dump() for record in found])


@router.get("/{request_id}")
async def request_status(front: TheFront, request: Request, request_id: str) -> RequestReply:
    """How a request stands, and what became of it, also after a restart."""
    found = await front.in_worker(front.service.ledger.look_up, request_id, request.state.client)
    if found is None:
        raise NotFoundError("you have no request with this id")
    return _reply_of(front, request.state.client, found)


@router.delete("/{request_id}", status_code=202)
async def cancel_request(front: TheFront, request: Request, request_id: str) -> RequestReply:
    """Stop working on a request; whoever waits for it is told."""
    accepted = front.service.running(request_id, request.state.client)
    if accepted is None:
        raise NotFoundError("you have no running request with this id")
    front.service.cancel(accepted)
    return RequestReply(id=request_id, status="cancelled")


def _reply_of(front: Front, client: str, record: RequestRecord) -> RequestReply:
    accepted = front.service.running(record.id, client)
    status = "waiting" if record.status == "accepted" else record.status  # on its way into the queue
    progress = {} if accepted is None or not accepted.requests else _progress_of(front, accepted)
    told = {"status": status, "message": record.message, **record.about, **progress}
    return RequestReply(id=record.id, created=int(record.asked), **told)


def _progress_of(front: Front, accepted: Accepted) -> dict[str, object]:
    return {
        "status": accepted.status,
        "steps_done": accepted.steps_done,
        "steps": accepted.steps,
        "eta_s": front.service.eta_s(accepted),
    }
