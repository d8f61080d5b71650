"""Select by clicking: a place in a picture → the mask of the thing that is there, by Segment Anything 2.

Where its weights or what runs them are missing, the page offers no such tool, and says how to get it. One picture is
looked at at a time; its features are kept, so that the second click on it is fast.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image
from starlette.datastructures import UploadFile

from ace.conditions.images import open_image
from ace.errors import AceError, ConfigError
from ace.server.front import Front, TheFront


class Selector:
    """The segmenter, loaded when it is first needed."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._segmenter: Any = None

    def missing(self) -> str | None:
        """Why nothing can be selected here, None = it can."""
        try:
            from ace.extract.weights import find_weights, is_there

            for name in ("sam2-encoder", "sam2-decoder"):
                if not is_there(name):
                    find_weights(name)  # says what is missing
            import cv2  # noqa: F401
            import onnxruntime  # noqa: F401
        except AceError as error:
            return str(error)
        except ModuleNotFoundError as error:
            from ace.extras import install_command

            return f"{error.name} is missing: {install_command('data')}"
        return None

    def select(self, picture: Image.Image, x: float, y: float) -> Image.Image:
        """The mask ("L", 255 = the thing) of what lies at (x, y), in shares of the picture. Raises ConfigError."""
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ConfigError(f"the place {x:g}, {y:g} is not in the picture: use 0 to 1")
        with self._one_at_a_time:
            if self._segmenter is None:
                from ace.extract.objects import Segmenter

                self._segmenter = Segmenter(num_threads=1)
            found = self._segmenter.mask_at(np.array(picture), [(x * picture.width, y * picture.height)])
        return Image.fromarray(found.mask.astype(np.uint8) * 255)


def select_router(selector: Selector) -> APIRouter:
    """The routes of one studio's selector."""
    router = APIRouter(prefix="/select", include_in_schema=False)

    @router.get("")
    async def available(front: TheFront) -> dict[str, Any]:
        """Whether it works here, and what is missing."""
        missing = await front.in_worker(selector.missing)
        return {"available": missing is None, "missing": missing}

    @router.post("")
    async def select(front: TheFront, request: Request) -> Response:
        """The mask of what lies at a place, PNG. Fields: x, y (shares of the picture); file: image."""
        async with request.form(max_files=1, max_fields=4) as form:
            upload = form.get("image")
            data = await upload.read() if isinstance(upload, UploadFile) else b""
            place = str(form.get("x")), str(form.get("y"))
        return Response(await front.in_worker(_select, front, selector, data, place), media_type="image/png")

    return router


def _select(front: Front, selector: Selector, data: bytes, place: tuple[str, str]) -> bytes:
    try:
        x, y = float(place[0]), float(place[1])
    except ValueError:
        raise ConfigError("x and y: shares of the picture, 0 to 1") from None
    opened = open_image(io.BytesIO(data), max_pixels=front.settings.max_pixels, name="the picture")
    stream = io.BytesIO()
    selector.select(opened.image, x, y).save(stream, "PNG")
    return stream.getvalue()
