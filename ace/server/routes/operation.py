"""What an operator asks: the model, health, readiness, numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from ace.server.front import TheFront
from ace.server.schema import ListReply
from ace.weights.sources import ModelFiles

router = APIRouter()


@router.get("/v1/models", tags=["models"])
async def models(front: TheFront) -> ListReply:
    """The model that answers here."""
    return ListReply(data=[_entry(front.engine.model)])


@router.get("/v1/models/{name}", tags=["models"])
async def model(front: TheFront, name: str) -> dict[str, object]:
    """The model by its name."""
    front.check_model(name)
    return _entry(front.engine.model)


@router.get("/health", tags=["operation"])
async def health(front: TheFront) -> JSONResponse:
    """Whether the process works: 503 if it should be started again."""
    alive = front.engine.alive
    return JSONResponse({"status": "ok" if alive else "broken"}, 200 if alive else 503)


@router.get("/ready", tags=["operation"])
async def ready(front: TheFront) -> JSONResponse:
    """Whether requests are taken."""
    return JSONResponse({"ready": front.engine.ready}, 200 if front.engine.ready else 503)


@router.get("/metrics", tags=["operation"])
async def prometheus(front: TheFront) -> Response:
    """Counters and times for Prometheus."""
    return Response(front.metrics.text(), media_type=front.metrics.MIME)


def _entry(found: ModelFiles) -> dict[str, object]:
    return {
        "id": found.name,
        "object": "model",
        "created": 0,
        "owned_by": "ace",
        "ace": {
            "sha256": found.sha256,
            "size": f"{found.side_px}x{found.side_px}",
            "size_step_px": found.cell_px,
            "steps": found.num_inference_steps,
        },
    }
