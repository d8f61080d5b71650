"""A session is an open folder: a tree of edits, each a node with its request, its pictures and its recipe.

    session.json                what this folder is, and its format version
    nodes/0001/node.json        parents, recipe, which file is what, their hashes
    nodes/0001/image.png        the answer, with its recipe inside; named by its medium (`media.py`)
    nodes/0001/input0.png …     the request's pictures (unless a picture is the answer of another node: then a
    reference) nodes/0001/mask0.png …      their masks
    nodes/0001/latents.safetensors   optional: of the answer, for the next round to go on from
    head.json                        optional: the node that was looked at last
    labels.json                      optional: names that people gave, and what they deleted (`labels.py`)

A node is written beside the others under a hidden name and becomes visible by one rename, so a session that is killed
at any moment stays readable, and two writers never mix; names that begin with a dot are leftovers and may be deleted.
There is no index: the folders are the truth. Every edit may start from any node, which makes branches. `write_archive`
puts all nodes into one ZIP file in the same layout, `add_archive` adds those of such a file under new numbers.

Not here: running a model, choosing what a round means (`ace/conversation/chat.py`).
"""

from __future__ import annotations

import lzma
import os
import re
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ace.conditions.images import DECODE_ERRORS, MAX_PIXELS, OpenedImage, normalise_image
from ace.conditions.opener import TIMEOUT_S, OpenLimits, open_files
from ace.conditions.rules import MOST_PIXELS
from ace.conditions.units import MAX_IMAGES, ConditionUnit, Turn
from ace.conversation import labels, media
from ace.conversation.labels import Labels, clean_title
from ace.conversation.media import IMAGE, Medium, medium_of
from ace.conversation.recipe import FormatVersion, Recipe, Sha256, encode
from ace.errors import InputError, OutputError, SessionError
from ace.files import hash_file, reason_of, sync_folder, write_atomically

FORMAT_VERSION = 1
_MAX_JSON_BYTES = 2_000_000
_MAX_LATENTS_BYTES = 256 * 2**20
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError),
    *(zlib.error, lzma.LZMAError, struct.error, IndexError),
)
_NODE_ID = re.compile(r"[0-9]{4,9}")
_ARCHIVED = re.compile(r"nodes/([0-9]{4,9})/([a-z0-9]+\.[a-z0-9]+)")


def _is_kept(name: str) -> bool:
    """Whether a node keeps files of this kind."""
    return name.endswith((".safetensors", *(Path(medium.node_file).suffix for medium in media.MEDIA)))


def _check_kept(name: str) -> str:
    if not _is_kept(name):
        raise ValueError("no kind of file that a node keeps")
    return name


NodeId = Annotated[str, Field(pattern=r"^[0-9]{4,9}$")]
_MOST_FILES = 3 + 2 * MAX_IMAGES  # of a node

PlainFile = Annotated[str, Field(pattern=r"^[a-z0-9]+\.[a-z0-9]+$"), AfterValidator(_check_kept)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _SessionFile(_Entry):
    kind: Literal["ace-session"] = "ace-session"
    format_version: int = FORMAT_VERSION


class _StoredFile(_Entry):
    """A file of this node."""

    file: PlainFile
    sha256: Sha256


class _AnswerOf(_Entry):
    """The answer of another node, which this node does not repeat."""

    node: NodeId


class _NodeFile(_Entry):
    format_version: Literal[1] = FORMAT_VERSION
    id: NodeId
    parents: tuple[NodeId, ...]
    image: _StoredFile
    images: Annotated[tuple[_StoredFile | _AnswerOf, ...], Field(max_length=MAX_IMAGES)]
    masks: Annotated[tuple[_StoredFile | None, ...], Field(max_length=MAX_IMAGES)]
    latents: _StoredFile | None
    recipe: Recipe


class _Head(_Entry):
    """The node that was looked at last; None = before a new conversation."""

    node: NodeId | None


@dataclass(frozen=True)
class ArchiveLimits:
    """What is taken of an archive: bytes when unpacked, nodes, pixels of each picture and of all pictures of a node;
    and how long the pictures of a node may take to be looked over."""

    num_bytes: int = 4 * 2**30
    num_nodes: int = 100_000
    num_pixels: int = MAX_PIXELS
    num_pixels_per_node: int = MAX_PIXELS * 6
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class NodeInput:
    """A picture of a node's request. path: its file, which is the answer's file of `node` if it is one; mask_path: of
    its mask, or None."""

    path: Path
    node: str | None
    mask_path: Path | None


@dataclass(frozen=True)
class Node:
    """One edit of a session.

    id: "0001", …; parents: the nodes it was made from, the one whose conversation it continues first; recipe: what
    made it (instruction, seed, parameters, model, hashes); folder: where its files are; has_latents: whether they were
    kept; inputs: the pictures of its request, in order; medium: what the answer is."""

    id: str
    parents: tuple[str, ...]
    recipe: Recipe
    folder: Path
    has_latents: bool
    inputs: tuple[NodeInput, ...] = ()
    medium: Medium = IMAGE

    @property
    def instruction(self) -> str:
        """What was asked."""
        return self.recipe.instruction

    @property
    def answer_path(self) -> Path:
        """The answer's file."""
        return self.folder / self.medium.node_file


class Session:
    """An open session folder. Make one with `create`, `open` or `open_or_create`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.max_pixels = 10**9  # of a round with those before it, which are all opened together
        self._answers: dict[str, OpenedImage] = {}  # one object per answer, so that identity means "continues from"

    @classmethod
    def create(cls, folder: str | Path) -> Session:
        """Start a session in a new or empty folder.

        Raises SessionError if there is one already or the folder holds other things, OutputError if it cannot be
        made."""
        folder = Path(folder)
        if (folder / "session.json").exists():
            raise SessionError(f"{folder.name} is a session already: open it instead")
        try:
            folder.mkdir(exist_ok=True)
            # a creation that was killed may have left the empty nodes folder and a hidden part
            strangers = [
                entry.name
                for entry in folder.iterdir()
                if entry.name != "nodes" and not entry.name.startswith(".session.json.")
            ]
            if strangers or ((folder / "nodes").exists() and any((folder / "nodes").iterdir())):
                raise SessionError(f"{folder.name} holds other files: name a new or empty folder for the session")
            (folder / "nodes").mkdir(exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"the session {folder.name} cannot be made ({reason}): choose another place") from None
        write_atomically(folder / "session.json", (_SessionFile().model_dump_json(indent=1) + "\n").encode())
        return cls(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Session:
        """Open a session. Raises SessionError if there is none, or one of another format version."""
        folder = Path(folder)
        if not folder.is_dir():
            raise SessionError(f"there is no session folder {folder.name}: check the path")
        path = folder / "session.json"
        if not path.exists() and not path.is_symlink():
            raise SessionError(f"{folder.name} is not a session (it has no session.json): check the path")
        text = _read_small(path, folder.name)
        _check_version(text, f"the session {folder.name}", "make a new session")
        try:
            _SessionFile.model_validate_json(text)
        except ValidationError:
            raise SessionError(f"session.json of {folder.name} is damaged: make a new session") from None
        if (folder / "nodes").is_symlink() or not (folder / "nodes").is_dir():
            raise SessionError(f"the session {folder.name} has lost its nodes folder: make a new session")
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: str | Path) -> Session:
        """Open the session, or start one if the folder does not exist or is empty. Raises as `open` and `create`."""
        if (Path(folder) / "session.json").exists():
            return cls.open(folder)
        return cls.create(folder)

    # Reading

    def node_ids(self) -> tuple[str, ...]:
        """The names of all nodes, oldest first, whether they can be read or not."""
        try:
            names = [entry.name for entry in (self.folder / "nodes").iterdir() if _NODE_ID.fullmatch(entry.name)]
        except OSError as error:
            raise SessionError(f"the session {self.folder.name} cannot be read ({reason_of(error)})") from None
        return tuple(sorted(names, key=lambda name: (int(name), name)))

    def shown_ids(self) -> tuple[str, ...]:
        """The names of the nodes that nobody deleted, oldest first. Raises SessionError."""
        hidden = self.labels().hidden
        return tuple(name for name in self.node_ids() if name not in hidden)

    def labels(self) -> Labels:
        """What people call it and its nodes, and what they deleted. Raises SessionError."""
        return Labels.read(self.folder)

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, oldest first. Raises SessionError for one that is damaged."""
        return tuple(self.node(node_id) for node_id in self.node_ids())

    def latest(self) -> Node | None:
        """The newest node, None if there is none yet. Raises SessionError if it is damaged."""
        names = self.shown_ids()
        return self.node(names[-1]) if names else None

    def node(self, node_id: str) -> Node:
        """One node. Raises SessionError if it does not exist or is damaged."""
        entry, folder = self._entry(node_id), self._folder_of(node_id)
        inputs = tuple(
            NodeInput(
                self._folder_of(image.node) / self._entry(image.node).image.file
                if isinstance(image, _AnswerOf)
                else folder / image.file,
                image.node if isinstance(image, _AnswerOf) else None,
                None if mask is None else folder / mask.file,
            )
            for image, mask in zip(entry.images, entry.masks, strict=True)
        )
        medium = medium_of(entry.image.file)
        return Node(entry.id, entry.parents, entry.recipe, folder, entry.latents is not None, inputs, medium)

    def answer(self, node_id: str) -> OpenedImage:
        """The answer of a node with its alpha and ICC profile, or the image that stands for it: the same object every
        time.

        Its `image` is the very object that `history` gives, so a next round that starts from it continues the
        conversation. Raises SessionError."""
        if node_id not in self._answers:
            self._answers[node_id] = self._picture(node_id, self._entry(node_id).image)
        return self._answers[node_id]

    def latents(self, node_id: str) -> np.ndarray | None:
        """The latents that were kept with a node, None if none were. Raises SessionError."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        stored = self._entry(node_id).latents
        if stored is None:
            return None
        path = self._checked(node_id, stored)
        try:
            if path.stat().st_size > _MAX_LATENTS_BYTES:
                raise KeyError
            latents = load(path.read_bytes())["latents"]
        except (SafetensorError, KeyError, OSError, ValueError, TypeError):
            raise self._damaged(node_id, "its latents cannot be read") from None
        if not _are_latents(latents):
            raise self._damaged(node_id, "its latents are no finite numbers")
        return latents

    def source(self, node_id: str) -> OpenedImage | None:
        """The picture that a node edited, with its alpha and ICC profile: its request's first one, else the answer
        before it. Raises SessionError."""
        entry = self._entry(node_id)
        if not entry.images:
            return self.answer(entry.parents[0]) if entry.parents else None
        first = entry.images[0]
        return self.answer(first.node) if isinstance(first, _AnswerOf) else self._picture(node_id, first)

    def unit(self, node_id: str) -> ConditionUnit:
        """The request of a node with its images and masks. Raises SessionError."""
        return self._unit(self._entry(node_id))

    def chain(self, node_id: str, most: int | None = None) -> tuple[Node, ...]:
        """The nodes of the conversation that ends with this one, along first parents, oldest first. most: only the last
        so many.

        Raises SessionError."""
        found: dict[str, Node] = {}
        following: str | None = node_id
        while following is not None and (most is None or len(found) < most):
            if following in found:
                raise self._damaged(following, "it is its own ancestor")
            found[following] = node = self.node(following)
            following = node.parents[0] if node.parents else None
        return tuple(reversed(found.values()))

    def history(self, node_id: str, *, model_sha256: str | None = None, most: int | None = None) -> tuple[Turn, ...]:
        """The rounds of `chain` as turns, oldest first.

        Where a round's first picture is an earlier answer, it is that very object. model_sha256: the model that will go
        on; turns that it made come with the latents that were kept. Raises SessionError, also for more pixels than
        `max_pixels`, before any picture is decoded."""
        turns: list[Turn] = []
        nodes = self.chain(node_id, most)
        self._check_pixels(nodes)
        for node in nodes:
            latents = self.latents(node.id) if node.recipe.model_sha256 == model_sha256 else None
            turns.append(Turn(self._unit(self._entry(node.id)), self.answer(node.id).image, latents))
        return tuple(turns)

    def _check_pixels(self, nodes: Sequence[Node]) -> None:
        """Raise SessionError for rounds whose pictures are too large to be opened together, by their headers."""
        paths = {
            path for node in nodes for one in node.inputs for path in (one.path, one.mask_path) if path is not None
        }
        pixels = 0
        for path in sorted(paths | {node.answer_path for node in nodes}):
            try:
                width, height = medium_of(path).size_px(path)
                pixels += width * height
            except (*DECODE_ERRORS, InputError, Image.DecompressionBombError):
                continue  # what is wrong with it is said when it is opened
        if pixels > self.max_pixels:
            raise SessionError(
                f"the images of {len(nodes)} rounds have {pixels / 1e6:.0f} million pixels together, at most "
                f"{self.max_pixels / 1e6:.0f} are opened: let the model see fewer rounds, or begin anew from one image"
            )

    def head(self) -> str | None:
        """The node where `set_head` left off; the newest if it never did. Raises SessionError if that is damaged."""
        path = self.folder / "head.json"
        names = self.shown_ids()
        if path.exists() or path.is_symlink():
            try:
                node_id = _Head.model_validate_json(_read_small(path, self.folder.name)).node
            except ValidationError:
                raise SessionError(f"head.json of {self.folder.name} is damaged: delete it") from None
            if node_id is None or node_id in names:
                return node_id
        return names[-1] if names else None

    # Writing

    def set_head(self, node_id: str | None) -> None:
        """Remember which node is looked at; None = before a new conversation. Undo is a step to the parent.

        Raises SessionError for a node that does not exist."""
        if node_id is not None:
            self._entry(node_id)
        write_atomically(self.folder / "head.json", (_Head(node=node_id).model_dump_json() + "\n").encode())

    def rename(self, name: str) -> None:
        """Call the session by a name, "" = its folder's. Raises SessionError."""
        self.labels().model_copy(update={"name": clean_title(name)}).write(self.folder)

    def rename_node(self, node_id: str, title: str) -> None:
        """Call a node by a title, "" = none. Raises SessionError."""
        self._folder_of(node_id)
        self.labels().titled(node_id, clean_title(title)).write(self.folder)

    def delete_node(self, node_id: str, *, keep_files: bool = False) -> None:
        """Delete a node. What was made from it stays whole: as long as there is any, the node is hidden and keeps its
        files; they go with the last of these. Its number is never used again. Whoever was there goes to its parent.

        keep_files: remove none now, as while a request that may need them runs. Raises SessionError."""
        self._folder_of(node_id)
        known = self.labels()
        was_head = self.head() == node_id
        known = known.titled(node_id, "").model_copy(update={"hidden": known.hidden | {node_id}})
        known.write(self.folder)
        if was_head:
            self.set_head(self.shown_parent(node_id))
        if not keep_files:
            self._prune(known)

    def shown_parent(self, node_id: str) -> str | None:
        """The nearest node on the way to the beginning that nobody deleted, None if there is none."""
        hidden = self.labels().hidden
        chain: tuple[str, ...] = ()
        try:
            chain = self._entry(node_id).parents
            while chain and chain[0] in hidden:
                chain = self._entry(chain[0]).parents
        except SessionError:
            return None  # a damaged one, which may be why it is deleted
        return chain[0] if chain else None

    def _prune(self, known: Labels) -> None:
        """Remove the files of hidden nodes that nothing refers to."""
        names = self.node_ids()
        needs: dict[str, set[str]] = {}
        for name in names:
            try:
                entry = self._entry(name)
                needs[name] = {*entry.parents, *(one.node for one in entry.images if isinstance(one, _AnswerOf))}
            except SessionError:
                needs[name] = set()
        while gone := [
            name for name in known.hidden & needs.keys() if not any(name in need for need in needs.values())
        ]:
            for name in gone:
                known = known.model_copy(
                    update={"hidden": known.hidden - {name}, "last": max(known.last, int(names[-1]))}
                )
                known.write(self.folder)  # first the number, so that a kill between the two uses none again
                del needs[name]
                self._answers.pop(name, None)
                leftover = self.folder / "nodes" / f".gone.{secrets.token_hex(6)}"
                os.rename(self.folder / "nodes" / name, leftover)
                shutil.rmtree(leftover, ignore_errors=True)

    def add_node(
        self,
        unit: ConditionUnit,
        answer: Any,
        recipe: Recipe,
        *,
        parents: tuple[str, ...] = (),
        latents: np.ndarray | None = None,
        source: OpenedImage | None = None,
        medium: Medium = IMAGE,
    ) -> Node:
        """Keep a finished round.

        unit: the request; a picture of it that is the answer of an existing node (the same object, or for parents the
        same pixels) is kept as a reference. answer: of the medium; an image is RGB or RGBA, an ICC profile in `info`.
        parents: existing nodes, the one whose conversation goes on first; none = a new conversation. latents: float
        array of any shape, for later. source: the request's first picture as it was opened, so that its alpha and ICC
        profile are kept too.
        Raises SessionError for an unknown parent or a recipe of another instruction, OutputError if it cannot be
        written; the session is unchanged then."""
        for parent in parents:
            self._entry(parent)
        if recipe.instruction != unit.instruction:
            raise SessionError("the recipe's instruction is not the request's: pass the recipe of this round")
        if latents is not None and latents.dtype.kind != "f":
            raise SessionError(f"latents of type {latents.dtype} cannot be kept: pass a floating-point array")
        nodes = self.folder / "nodes"
        part = nodes / f".new.{secrets.token_hex(6)}"
        try:
            part.mkdir()
            try:
                node_id = self._write_node(part, unit, answer, recipe, parents, latents, source, medium)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            sync_folder(nodes)
        except OSError as error:
            raise self._not_written(error) from None
        if medium is IMAGE:  # others may lose something on their way to the file, which is what the next round sees
            self._answers[node_id] = normalise_image(medium.still(answer), max_pixels=MOST_PIXELS)
        return self.node(node_id)

    def _write_node(
        self,
        part: Path,
        unit: ConditionUnit,
        answer: Any,
        recipe: Recipe,
        parents: tuple[str, ...],
        latents: np.ndarray | None,
        opened: OpenedImage | None,
        medium: Medium,
    ) -> str:
        """Fill the hidden folder, then give it the next free number. Returns the number."""

        def store(name: str, data: bytes) -> _StoredFile:
            with open(part / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _StoredFile(file=name, sha256=hash_file(part / name))

        images: list[_StoredFile | _AnswerOf] = []
        for number, image in enumerate(unit.images):
            source = self._node_of(image, parents)
            whole = _whole(opened) if opened is not None and opened.image is image else image
            images.append(
                store(f"input{number}.png", encode(whole, "PNG")) if source is None else _AnswerOf(node=source)
            )
        masks = [
            None if mask is None else store(f"mask{number}.png", encode(mask.convert("L"), "PNG"))
            for number, mask in enumerate(unit.masks)
        ]
        stored_latents = None
        if latents is not None:
            from safetensors.numpy import save

            stored_latents = store("latents.safetensors", save({"latents": np.ascontiguousarray(latents)}))
        stored_answer = store(medium.node_file, medium.encode(answer, medium.node_format, recipe))
        return self._place(
            part,
            lambda node_id: _NodeFile(
                id=node_id,
                parents=parents,
                image=stored_answer,
                images=tuple(images),
                masks=tuple(masks),
                latents=stored_latents,
                recipe=recipe,
            ),
        )

    def _place(self, part: Path, describe: Callable[[str], _NodeFile]) -> str:
        """Give a hidden folder, complete but for its node.json, the next free number. Returns the number."""
        names = self.node_ids()
        number = max(int(names[-1]) if names else 0, self.labels().last) + 1
        while True:
            entry = describe(f"{number:04d}")
            write_atomically(part / "node.json", (entry.model_dump_json(indent=1) + "\n").encode())
            sync_folder(part)
            try:
                os.rename(part, self.folder / "nodes" / entry.id)
            except OSError:
                if not (self.folder / "nodes" / entry.id).exists():
                    raise
                number += 1  # another process took this number meanwhile
            else:
                return entry.id

    # One file

    def write_archive(self, stream: BinaryIO) -> None:
        """Write all nodes into one ZIP file, uncompressed, as they lie in the folder.

        Raises SessionError for a damaged node."""
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("session.json", _SessionFile().model_dump_json(indent=1) + "\n")
            known = self.labels()
            if known.titles or known.hidden:
                archive.writestr(labels.FILE, known.model_dump_json(indent=1) + "\n")
            for node_id in self.node_ids():
                entry = self._entry(node_id)
                for stored in _files_of(entry):
                    self._copy_into(archive, self._checked(node_id, stored), f"nodes/{node_id}/{stored.file}")
                self._copy_into(archive, self._folder_of(node_id) / "node.json", f"nodes/{node_id}/node.json")

    def _copy_into(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        try:
            archive.write(path, name)
        except FileNotFoundError:
            raise SessionError(f"the session {self.folder.name} was changed meanwhile: ask again") from None

    def add_archive(
        self, stream: BinaryIO, *, name: str = "the file", limits: ArchiveLimits | None = None
    ) -> dict[str, str]:
        """Add the nodes of a file that `write_archive` wrote, under the next free numbers.

        Everything is checked before the first node appears: names, sizes, hashes, pictures, parents; nothing is
        unpacked to a place that the file names. Returns old number → new number. Raises SessionError."""
        staging = self.folder / f".import.{secrets.token_hex(6)}"
        try:
            staging.mkdir()
            entries = _unpack(stream, staging, name, limits or ArchiveLimits())
            numbers: dict[str, str] = {}
            for node_id, entry in entries.items():

                def renumbered(new_id: str, entry: _NodeFile = entry) -> _NodeFile:
                    images = tuple(
                        _AnswerOf(node=numbers[i.node]) if isinstance(i, _AnswerOf) else i for i in entry.images
                    )
                    parents = tuple(numbers[parent] for parent in entry.parents)
                    return entry.model_copy(update={"id": new_id, "parents": parents, "images": images})

                part = self.folder / "nodes" / f".new.{secrets.token_hex(6)}"
                os.rename(staging / node_id, part)
                numbers[node_id] = self._place(part, renumbered)
            sync_folder(self.folder / "nodes")
            self._add_labels(Labels.read(staging), numbers)
        except OSError as error:
            raise self._not_written(error) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return numbers

    def _not_written(self, error: OSError) -> InputError:
        if not self.folder.is_dir():
            return SessionError(f"the session {self.folder.name} was deleted meanwhile: make a new one")
        return OutputError(f"the session {self.folder.name} cannot be written ({reason_of(error)}): check the disk")

    def _add_labels(self, new: Labels, numbers: dict[str, str]) -> None:
        """Take over what an archive says of its nodes."""
        if not (new.titles or new.hidden):
            return
        known = self.labels()
        titles = {numbers[old]: clean_title(title) for old, title in new.titles.items() if old in numbers}
        hidden = {numbers[old] for old in new.hidden if old in numbers}
        known.model_copy(update={"titles": known.titles | titles, "hidden": known.hidden | hidden}).write(self.folder)

    # The folder

    def _node_of(self, image: Image.Image, parents: tuple[str, ...]) -> str | None:
        """The node whose answer a picture is: the same object, or the same pixels as a parent's answer."""
        for node_id, answer in self._answers.items():
            if answer.image is image:
                return node_id
        for parent in parents:
            answer = self.answer(parent).image
            if answer.size == image.size and answer.tobytes() == image.convert("RGB").tobytes():
                return parent
        return None

    def _unit(self, entry: _NodeFile) -> ConditionUnit:
        images = tuple(
            self.answer(stored.node).image if isinstance(stored, _AnswerOf) else self._picture(entry.id, stored).image
            for stored in entry.images
        )
        masks = tuple(
            None if stored is None else self._picture(entry.id, stored).image.convert("L") for stored in entry.masks
        )
        try:
            return ConditionUnit(entry.recipe.instruction, images, masks)
        except InputError as error:
            raise self._damaged(entry.id, str(error).split(":")[0]) from None

    def _picture(self, node_id: str, stored: _StoredFile) -> OpenedImage:
        path = self._checked(node_id, stored)
        try:
            return medium_of(path).open(path, MOST_PIXELS)
        except InputError as error:
            raise self._damaged(node_id, str(error).split(":")[0]) from None

    def _checked(self, node_id: str, stored: _StoredFile) -> Path:
        """A file of a node, after checking that it is one, lies in the folder and has not changed."""
        path = self._folder_of(node_id) / stored.file
        if path.is_symlink() or not path.is_file():
            raise self._damaged(node_id, f"{stored.file} is missing or not a file")
        if hash_file(path) != stored.sha256:
            raise self._damaged(node_id, f"{stored.file} is not the one that was written")
        return path

    def _folder_of(self, node_id: str) -> Path:
        if not _NODE_ID.fullmatch(node_id):
            raise SessionError(f"{node_id[:40]!r} is no node name: use one such as 0001")
        folder = self.folder / "nodes" / node_id
        if not folder.exists() and not folder.is_symlink():
            names = self.node_ids()
            there = f"there are {names[0]} to {names[-1]}" if names else "it has none yet"
            raise SessionError(f"the session {self.folder.name} has no node {node_id}: {there}")
        if folder.is_symlink() or not folder.is_dir():
            raise self._damaged(node_id, "it is not a folder of its own")
        return folder

    def _entry(self, node_id: str) -> _NodeFile:
        path = self._folder_of(node_id) / "node.json"
        if not path.exists():
            raise self._damaged(node_id, "node.json is missing")
        text = _read_small(path, f"node {node_id}")
        _check_version(text, f"node {node_id}", "continue from another node with --from")
        try:
            entry = _NodeFile.model_validate_json(text)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])[:80] or "as a whole"
            raise self._damaged(node_id, f"node.json, {place}") from None
        if entry.id != node_id or not _is_answer(entry.image) or len(entry.masks) != len(entry.images):
            raise self._damaged(node_id, "node.json does not fit its folder")
        return entry

    @staticmethod
    def _damaged(node_id: str, what: str) -> SessionError:
        return SessionError(
            f"node {node_id} is damaged ({what}): continue from another with --from, or delete its folder"
        )


def _whole(opened: OpenedImage) -> Image.Image:
    """An opened picture with its alpha and ICC profile again, as one picture."""
    whole = opened.stored.copy()
    if opened.alpha is not None:
        whole.putalpha(opened.alpha)
    if opened.icc_profile is not None:
        whole.info["icc_profile"] = opened.icc_profile
    return whole


def _is_answer(stored: _StoredFile) -> bool:
    return stored.file == medium_of(stored.file).node_file


def _files_of(entry: _NodeFile) -> list[_StoredFile]:
    """The files of a node beside its node.json."""
    files = [entry.image, entry.latents, *entry.images, *entry.masks]
    return [file for file in files if isinstance(file, _StoredFile)]


def _unpack(stream: BinaryIO, staging: Path, name: str, limits: ArchiveLimits) -> dict[str, _NodeFile]:
    """Write the nodes of an archive into `staging`, a folder each, and check them; oldest first.

    Raises SessionError for anything that `write_archive` would not have written."""

    def refused(what: str) -> SessionError:
        return SessionError(f"{name} is no session that can be added ({what}): export it again")

    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > 2 + limits.num_nodes * _MOST_FILES:
                raise refused(f"it holds {len(members)} files")
            if sum(member.file_size for member in members) > limits.num_bytes:  # no more is ever read of each
                raise refused(f"it unpacks to more than {limits.num_bytes / 1e6:g} MB")
            if "session.json" not in archive.namelist():
                raise refused("it has no session.json")
            if archive.getinfo("session.json").file_size > _MAX_JSON_BYTES:
                raise refused("session.json is far too large")
            _check_version(archive.read("session.json"), f"the session in {name}", "export it again")
            found: dict[str, dict[str, zipfile.ZipInfo]] = {}
            for member in members:
                if member.filename == "session.json":
                    continue
                if member.filename == labels.FILE and member.file_size <= _MAX_JSON_BYTES:
                    (staging / labels.FILE).write_bytes(archive.read(member))
                    Labels.read(staging)
                    continue
                match = _ARCHIVED.fullmatch(member.filename)
                if match is None or not (match[2] == "node.json" or _is_kept(match[2])):
                    raise refused(f"it holds {member.filename[:60]!r}")
                if member.flag_bits & 1 or match[2] in found.get(match[1], {}):
                    raise refused(f"it holds {member.filename[:60]!r}")
                found.setdefault(match[1], {})[match[2]] = member
            if len(found) > limits.num_nodes:
                raise refused(f"it has {len(found)} nodes, there is room for {limits.num_nodes}")
            entries: dict[str, _NodeFile] = {}
            for node_id in sorted(found, key=lambda node_id: (int(node_id), node_id)):
                folder = staging / node_id
                entries[node_id] = _unpack_node(archive, node_id, found[node_id], folder, entries, refused)
                _check_files(entries[node_id], folder, limits, refused)
    except _ZIP_ERRORS:
        raise refused("it is not a ZIP file, or damaged") from None
    except OSError as error:
        if error.errno is not None:  # of the disk; a decompressor's has no number
            raise
        raise refused("it is not a ZIP file, or damaged") from None
    return entries


def _unpack_node(
    archive: zipfile.ZipFile,
    node_id: str,
    members: dict[str, zipfile.ZipInfo],
    folder: Path,
    earlier: dict[str, _NodeFile],
    refused: Callable[[str], SessionError],
) -> _NodeFile:
    """Write one node of an archive, whose files are as its node.json says. Raises SessionError."""
    description = members.pop("node.json", None)
    if description is None or description.file_size > _MAX_JSON_BYTES:
        raise refused(f"node {node_id} has no node.json")
    text = archive.read(description)
    _check_version(text, f"node {node_id}", "export it again")
    try:
        entry = _NodeFile.model_validate_json(text)
    except ValidationError:
        raise refused(f"node {node_id} is damaged") from None
    answers = [image.node for image in entry.images if isinstance(image, _AnswerOf)]
    if (
        entry.id != node_id
        or not _is_answer(entry.image)
        or len(entry.masks) != len(entry.images)
        or not {*entry.parents, *answers} <= earlier.keys()
        or {file.file for file in _files_of(entry)} != members.keys()
    ):
        raise refused(f"node {node_id} does not fit its files")
    folder.mkdir()
    for stored in _files_of(entry):
        if stored.file.endswith(".safetensors") and members[stored.file].file_size > _MAX_LATENTS_BYTES:
            raise refused(f"{stored.file} of node {node_id} is far too large")
        with archive.open(members[stored.file]) as packed, open(folder / stored.file, "xb") as file:
            shutil.copyfileobj(packed, file)
            file.flush()
            os.fsync(file.fileno())
        if hash_file(folder / stored.file) != stored.sha256:
            raise refused(f"{stored.file} of node {node_id} is not the one that was written")
    return entry


def _check_files(entry: _NodeFile, folder: Path, limits: ArchiveLimits, refused: Callable[[str], SessionError]) -> None:
    """See that the pictures and latents of a node can be read and are not too large. Raises SessionError."""

    def count(pixels: int) -> None:
        if pixels > limits.num_pixels_per_node:
            raise refused(f"the images of node {entry.id} have {pixels / 1e6:.0f} million pixels together")

    names = [stored.file for stored in _files_of(entry) if not stored.file.endswith(".safetensors")]
    pictures = [name for name in names if medium_of(name) is IMAGE]
    files = [((folder / file).read_bytes(), f"{file} of node {entry.id}") for file in pictures]
    try:
        open_files(files, OpenLimits(limits.num_pixels, limits.timeout_s), count, decode=False)
        for name in names:
            if name not in pictures:
                medium_of(name).open(folder / name, limits.num_pixels)
    except SessionError:
        raise
    except InputError as error:
        raise refused(str(error).split(":")[0]) from None
    if entry.latents is not None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            sound = _are_latents(load((folder / entry.latents.file).read_bytes())["latents"])
        except (SafetensorError, KeyError, ValueError, TypeError):
            sound = False
        if not sound:
            raise refused(f"the latents of node {entry.id} are no finite numbers")


def _are_latents(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and 1 <= array.ndim <= 4 and array.size > 0 and bool(np.isfinite(array).all())


def _read_small(path: Path, what: str) -> bytes:
    """A settings file that is a plain file and not absurdly large. Raises SessionError."""
    if path.is_symlink() or not path.is_file():
        raise SessionError(f"{path.name} of {what} is not a plain file: restore it or make a new session")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise SessionError(f"{path.name} of {what} is far too large: restore it or make a new session")
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SessionError(f"{path.name} of {what} cannot be read ({reason}): check its access rights") from None


def _check_version(text: bytes, what: str, otherwise: str) -> None:
    try:
        version = FormatVersion.model_validate_json(text).format_version
    except ValidationError:
        raise SessionError(f"{what} is damaged (its description cannot be read): {otherwise}") from None
    if version != FORMAT_VERSION:
        raise SessionError(f"{what} has format {version}, this ace reads {FORMAT_VERSION}: update it, or {otherwise}")
