"""Reading text in pictures: PP-OCRv6 (PaddleOCR, Apache-2.0), English and Chinese, from the package rapidocr.

The weights are inside the package, so nothing is fetched.
"""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass

import numpy as np

from ace.errors import MissingDependencyError
from ace.extras import install_command


@dataclass(frozen=True)
class Line:
    """A line of text. corners: (4, 2) x, y in px, clockwise from the top left. score: 0 … 1."""

    text: str
    corners: np.ndarray
    score: float


class TextReader:
    """OCR. Raises MissingDependencyError without rapidocr."""

    name = "PP-OCRv6"

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise MissingDependencyError(f"reading text needs rapidocr: {install_command('data')}") from error
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        self._read = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, image: np.ndarray, min_score: float = 0.5) -> list[Line]:
        """The lines of image (H, W, 3) uint8, from top to bottom."""
        found = self._read(image[..., ::-1])
        if found.boxes is None or found.txts is None or found.scores is None:
            return []
        lines = [
            Line(text, np.asarray(corners, np.float32), float(score))
            for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)
            if score >= min_score and text.strip() and not _is_whole(corners, image)
        ]
        return sorted(lines, key=lambda line: (float(line.corners[:, 1].min()), float(line.corners[:, 0].min())))

    def read_line(self, image: np.ndarray, min_score: float = 0.5) -> str:
        """What image (H, W, 3) uint8 says if all of it is one line of text; "" if that is not believed."""
        found = self._read(image[..., ::-1], use_det=False, use_cls=False, use_rec=True)
        if not found.txts or not found.scores or found.scores[0] < min_score:
            return ""
        return found.txts[0].strip()


def _is_whole(corners: np.ndarray, image: np.ndarray) -> bool:
    """Whether a box is the whole picture, which rapidocr reads as one line if it has found none."""
    size = np.ptp(np.asarray(corners), axis=0)
    return bool(size[0] >= image.shape[1] - 1 and size[1] >= image.shape[0] - 1)


def same_text(first: str, second: str) -> bool:
    """Whether two readings are the same: without spaces, width variants and case."""
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
