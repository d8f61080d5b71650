"""What people call a session and its nodes, and what they have deleted: `labels.json` beside the nodes.

A node that others were made from is hidden, and its files stay for those; one that nothing refers to goes. Numbers are
never used again. Nodes themselves are never rewritten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ace.errors import SessionError
from ace.files import write_atomically

FILE = "labels.json"
MAX_TITLE = 200
_MAX_BYTES = 20_000_000

Title = Annotated[str, Field(max_length=MAX_TITLE)]
Id = Annotated[str, Field(pattern=r"^[0-9]{4,9}$")]


class Labels(BaseModel):
    """name: of the session, "" = its folder's. titles: of nodes, by id. hidden: nodes that were deleted, but are
    needed by others. last: the highest number that was ever used and may be gone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Title = ""
    titles: dict[Id, Title] = Field(default_factory=dict)
    hidden: frozenset[Id] = frozenset()
    last: Annotated[int, Field(ge=0, le=999_999_999)] = 0

    @classmethod
    def read(cls, folder: Path) -> Labels:
        """Of a session's folder. Raises SessionError if the file is damaged."""
        path = folder / FILE
        if not path.exists() and not path.is_symlink():
            return cls()
        try:
            if path.is_symlink() or path.stat().st_size > _MAX_BYTES:
                raise ValueError
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError, ValidationError):
            raise SessionError(f"{FILE} of {folder.name} is damaged: delete it") from None

    def write(self, folder: Path) -> None:
        """Keep them. Raises OutputError."""
        write_atomically(folder / FILE, (self.model_dump_json(indent=1) + "\n").encode())

    def titled(self, node_id: str, title: str) -> Labels:
        """With another title of a node, "" = none."""
        titles = {key: value for key, value in self.titles.items() if key != node_id}
        return self.model_copy(update={"titles": titles | ({node_id: title} if title else {})})


def clean_title(text: str) -> str:
    """A title on one line, without control characters. Raises SessionError if it is too long."""
    title = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(title) > MAX_TITLE:
        raise SessionError(f"a name of {len(title)} characters: use at most {MAX_TITLE}")
    return title
