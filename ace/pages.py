"""HTML pages from templates: reports, galleries, review and study pages. Imports: errors.

Every page has the templates' one style sheet and loads nothing from elsewhere: the images of a report are inside it.
Whatever is put into it is shown as text, never as markup. Not here: what a page says (the room that writes it).
"""

from __future__ import annotations

import base64
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from ace.errors import MissingDependencyError
from ace.extras import install_command

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """A page from `ace/templates/<template>.html`. Raises MissingDependencyError without Jinja2."""
    return _environment().get_template(f"{template}.html").render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise MissingDependencyError(f"pages need Jinja2: {install_command('train')} ([data] and [eval] too)") from None
    return Environment(
        loader=PackageLoader("ace"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def image_url(image: Image.Image | bytes, side_px: int = 0, kind: str = "PNG") -> str:
    """An image as the address of itself, for `src`.

    image: decoded, or the bytes of a file; side_px: scaled down to fit, 0 = as it is; kind: "PNG" or "WEBP" (lossy)."""
    if isinstance(image, bytes):
        with Image.open(BytesIO(image)) as opened:
            image = opened.convert("RGB")
    shown = image.convert("RGB")
    if side_px:
        shown.thumbnail((side_px, side_px))
    stream = BytesIO()
    shown.save(stream, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def file_url(png: bytes) -> str:
    """A PNG file, unchanged, as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
