"""Errors → answers, as OpenAI's API has them. Not here: what the gate refuses before a request is read (`gate.py`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ace.errors import AceError, BusyError, InputError, OutputError, StoppedError
from ace.server.gate import Refused
from ace.server.moderation import ModerationError
from ace.server.service import NotFoundError, message_of

log = logging.getLogger(__name__)


def answer_errors(app: FastAPI) -> None:
    """Let an application answer every error that a route raises."""

    @app.exception_handler(AceError)
    async def on_ace_error(request: Request, error: AceError) -> Response:
        status, content, headers = error_of(error)
        if status == 500:
            log.error("request failed", exc_info=error)
        return JSONResponse(content, status, headers)

    @app.exception_handler(OSError)
    async def on_disk_error(request: Request, error: OSError) -> Response:
        if isinstance(error, FileNotFoundError):
            return JSONResponse(error_body("what you asked for is not there any more", "not_found"), 404)
        log.error("request failed", exc_info=error)
        return JSONResponse(*disk_error())

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return _refuse_fields(error.errors())

    @app.exception_handler(ValidationError)
    async def on_form_error(request: Request, error: ValidationError) -> Response:
        return _refuse_fields(error.errors(include_url=False, include_input=False, include_context=False))

    @app.exception_handler(MultiPartException)
    async def on_broken_form(request: Request, error: MultiPartException) -> Response:
        return JSONResponse(error_body("the form cannot be read: send it again", "invalid_form"), 400)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        code = error.code if isinstance(error, Refused) else None
        return JSONResponse(error_body(str(error.detail), code), error.status_code, error.headers)


def error_body(message: str, code: str | None, param: str | None = None, kind: str = "invalid_request_error") -> dict:
    """The content of an error's answer."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: AceError) -> tuple[int, dict, dict[str, str]]:
    """(status, content, headers) of an error."""
    if isinstance(error, BusyError):
        headers = {"retry-after": str(math.ceil(error.retry_after_s))}
        return 429, error_body(str(error), "busy", kind="rate_limit_error"), headers
    if isinstance(error, StoppedError) and error.cancelled:
        return 410, error_body(str(error), "cancelled"), {}
    if isinstance(error, StoppedError):
        return 503, error_body(str(error), "stopped", kind="server_error"), {"retry-after": "5"}
    if isinstance(error, OutputError):
        content, status = disk_error()
        return status, content, {}
    if isinstance(error, ModerationError):
        return 400, error_body(str(error), "moderation_blocked", kind="image_generation_user_error"), {}
    if isinstance(error, NotFoundError):
        return 404, error_body(str(error), "not_found"), {}
    if isinstance(error, InputError):
        return 400, error_body(str(error), type(error).__name__.removesuffix("Error").lower()), {}
    return 500, error_body(message_of(error), "server_error", kind="server_error"), {}


def disk_error() -> tuple[dict, int]:
    """(content, status) of an answer where the disk is full or broken: nothing that a client can mend."""
    return error_body("the server cannot write to its disk: tell its operator", "disk", kind="server_error"), 507


def _refuse_fields(errors: Sequence) -> Response:
    """The answer to fields that are missing, unknown or wrong: the first of them."""
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return JSONResponse(error_body(message[:300], first["type"], param), 400)
