"""The application: routes, the answers to errors, and the gate before them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from ace import __version__
from ace.server.engine import Engine
from ace.server.front import Front
from ace.server.gate import RequestGate
from ace.server.ledger import Ledger
from ace.server.metrics import Metrics
from ace.server.refusals import answer_errors
from ace.server.routes import ROUTERS
from ace.server.service import Service
from ace.server.settings import ServerSettings


def create_app(
    engine: Engine,
    settings: ServerSettings,
    ledger: Ledger | None = None,
    *,
    more: Sequence[APIRouter] = (),
    open_paths: tuple[str, ...] = (),
    docs: bool = True,
) -> FastAPI:
    """The application of a started engine. ledger: None = one in memory. more: further routes; open_paths: those of
    them that need no key, with all below where a path ends in "/". docs: a page that describes the routes."""
    app = FastAPI(
        title="ace",
        version=__version__,
        summary="Create and edit images from instructions; OpenAI's images API, and conversations.",
        openapi_url="/openapi.json",
        docs_url="/docs" if docs else None,
        redoc_url="/redoc" if docs else None,
    )
    front = Front(Service(engine, settings, ledger or Ledger(None)), Metrics(engine))
    app.state.front = front
    for router in (*ROUTERS, *more):
        app.include_router(router)
    answer_errors(app)
    app.add_middleware(RequestGate, settings=settings, on_end=front.metrics.request_ended, open_paths=open_paths)
    return app
