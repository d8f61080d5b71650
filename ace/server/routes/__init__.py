"""The routes, a file for each kind: images as in OpenAI's API, clips, sessions, requests, and what an operator asks.

Each file has one `router`; what it needs comes as a `Front` (`ace/server/front.py`).
"""

from fastapi import APIRouter

from ace.server.routes import images, operation, requests, sessions, videos

ROUTERS: tuple[APIRouter, ...] = (
    images.router,
    videos.router,
    requests.router,
    sessions.router,
    operation.router,
)
