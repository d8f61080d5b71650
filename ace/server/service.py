"""What the server does with a request once it is understood: accept it, tell how it stands, keep results and sessions.

Everything that blocks is here and is called in worker threads; routes wait for it. What a request makes is kept by the
thread that ends it, whether its client still listens or not. Results are given out by ids that cannot be guessed,
sessions lie in a folder per client, and no name from outside ever becomes part of a path unchecked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ace.conversation.chat import ChatSession
from ace.conversation.chat import keep as keep_node
from ace.conversation.credentials import Signer, sign
from ace.conversation.job import Job, Made, variants
from ace.conversation.media import IMAGE
from ace.conversation.message import Message
from ace.conversation.replay import Replay, compare_with_node
from ace.conversation.session import ArchiveLimits, Node, Session
from ace.errors import AceError, BusyError, InputError, OutputError, SessionError, StoppedError
from ace.files import reason_of
from ace.server.activity import ENDED, Active, Activities, Activity
from ace.server.engine import Engine, EngineRequest, OnPreview
from ace.server.keys import Quota
from ace.server.ledger import Ledger
from ace.server.moderation import Checked, Moderation
from ace.server.settings import ServerSettings
from ace.server.shelf import Shelf

log = logging.getLogger(__name__)

_URL_LIFE_S = 3600.0
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
Keep = Callable[[list[Made]], Any]  # what is done with the images of a request, by the thread that ends it
OnEnd = Callable[[str, str | None], None]  # told its status and, if it failed, why


class NotFoundError(InputError):
    """Nothing of this client's has this id."""


@dataclass(frozen=True)
class Previews:
    """How many previews of each image are wanted, and who is told beside the session's activity. moderated: whether
    they and the results are looked at before they are shown."""

    count: int = 0
    on_preview: OnPreview | None = None
    moderated: bool = True


@dataclass(eq=False)
class Accepted:
    """A request that was taken on. requests: one per image; result: what `keep` made of them, or the error. checked:
    whether its results are looked at, see `moderation.py`."""

    id: str
    client: str
    requests: tuple[EngineRequest, ...] = ()
    result: Future[Any] = field(default_factory=Future)
    checked: Checked = "not checked"

    def __post_init__(self) -> None:
        self.result.set_running_or_notify_cancel()  # `Service.cancel` alone cancels it

    @property
    def status(self) -> str:
        """Waiting or running."""
        return "waiting" if all(one.status == "waiting" for one in self.requests) else "running"

    @property
    def steps_done(self) -> int:
        """Denoising steps of all its images."""
        return sum(one.steps_done for one in self.requests)

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return sum(one.cost.num_steps for one in self.requests)


@dataclass(frozen=True)
class Opened:
    """A session of a client, with the model that answers in it and what is going on there."""

    id: str
    chat: ChatSession
    activity: Activity

    @property
    def session(self) -> Session:
        """Its folder."""
        return self.chat.session


class Service:
    """One model for many clients."""

    def __init__(self, engine: Engine, settings: ServerSettings, ledger: Ledger) -> None:
        self.engine, self.settings, self.ledger = engine, settings, ledger
        self.quota = Quota(settings.images_per_minute)
        self.moderation = Moderation(settings.max_unsafe)
        self.shelf = Shelf(settings.adapters_folder)
        self._activities = Activities()
        self._lock = threading.Lock()
        self._accepted: dict[tuple[str, str], Accepted] = {}
        self._held = 0
        self._kept: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._kept_bytes = 0

    # Requests

    def accept(
        self,
        request_id: str,
        client: str,
        jobs: Sequence[Job],
        kind: str,
        *,
        keep: Keep = list,
        session: str | None = None,
        previews: Previews = Previews(),
        on_end: OnEnd = lambda status, message: None,
    ) -> Accepted:
        """Take on a request; from now on it is answered or failed explicitly.

        jobs: the variants of one, which share their images. kind, session: for its record. The results are looked at
        before they are kept, as `Previews.moderated` says. Raises BusyError, ConfigError, StoppedError, OutputError
        where the disk is full or, for an id in use, InputError."""
        held, most = jobs[0].held_bytes(), self.settings.max_held_bytes
        self._check_held(held)
        moderation = self.moderation if previews.moderated and self.moderation.works else None
        accepted = Accepted(request_id, client, checked="not checked" if moderation is None else "checked")
        on_preview = previews.on_preview if moderation is None else moderation.only_allowed(previews.on_preview)
        with self._lock:
            if (client, request_id) in self._accepted:
                raise InputError(f"the request id {request_id} is in use: choose another")
            if self._held + held > most:
                raise BusyError("the server holds too many large images: try again later", 5.0)
            self.quota.spend(client, len(jobs))
            self._accepted[client, request_id] = accepted
            self._held += held
        try:
            self.ledger.accept(request_id, client, _about(jobs, kind, session))
            requests = self.engine.submit(jobs, client, num_previews=previews.count, on_preview=on_preview)
        except BaseException as error:  # whatever it is, what was taken for this request is free again
            try:
                with contextlib.suppress(OutputError):  # the ledger may be what failed
                    self.ledger.end(request_id, client, "failed", message_of(error), 0)
            finally:
                with self._lock:
                    del self._accepted[client, request_id]
                    self._held -= held
                    self.quota.give_back(client, len(jobs))
            raise
        accepted.requests = tuple(requests)
        unfinished = set(requests)

        def ended(request: EngineRequest) -> None:
            with self._lock:
                unfinished.discard(request)
                rest = list(unfinished)
            if request.result.exception() is not None:
                self.engine.cancel(rest)  # the first that fails takes the others along
            if not rest:
                self._end(accepted, held, keep, on_end)

        for request in requests:
            request.result.add_done_callback(lambda _, request=request: ended(request))
        return accepted

    def _check_held(self, held: int) -> None:
        if held > self.settings.max_held_bytes // 4:
            raise InputError("the images of this request are too large together: send smaller ones")

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Within, a function that makes room for so many bytes of images, before they are opened; the room is free
        again at the end. The function raises InputError for too many, BusyError if there is no room now."""
        taken = 0

        def hold(num_bytes: int) -> None:
            nonlocal taken
            self._check_held(num_bytes)
            with self._lock:
                if self._held + num_bytes > self.settings.max_held_bytes:
                    raise BusyError("the server holds too many large images: try again later", 5.0)
                self._held += num_bytes
            taken += num_bytes

        try:
            yield hold
        finally:
            with self._lock:
                self._held -= taken

    def _end(self, accepted: Accepted, held: int, keep: Keep, on_end: OnEnd) -> None:
        """Store the results, record how the request ended, and notify those who wait for it."""
        value: Any = None
        errors = [error for one in accepted.requests if (error := one.result.exception()) is not None]
        # the error that came first: the others were cancelled because of it
        error = next((one for one in errors if not (isinstance(one, StoppedError) and one.cancelled)), None)
        error = error or (errors[0] if errors else None)
        if error is None:
            try:
                made = [one.result.result() for one in accepted.requests]
                if accepted.checked == "checked":
                    self.moderation.check([one.medium.still(one.content) for one in made])
                value = keep(made)
            except (AceError, OSError, RuntimeError, ValueError) as failure:
                error = failure
        if error is not None and not isinstance(error, AceError):
            log.error("request %s failed", accepted.id, exc_info=error)
            error = AceError("the model failed: try fewer or smaller images")
        cancelled = isinstance(error, StoppedError) and error.cancelled
        status = "done" if error is None else "cancelled" if cancelled else "failed"
        message = None if error is None else message_of(error)
        try:
            self.ledger.end(accepted.id, accepted.client, status, message, accepted.steps_done)
        except OutputError as failure:
            log.error("the end of request %s is not in the ledger: %s", accepted.id, failure)
        try:
            on_end(status, message)
        finally:
            with self._lock:  # only now, so that whoever asks finds it running or ended and nothing between
                del self._accepted[accepted.client, accepted.id]
                self._held -= held
            if error is None:
                accepted.result.set_result(value)
            else:
                accepted.result.set_exception(error)

    def running(self, request_id: str, client: str) -> Accepted | None:
        """A client's request that is waiting or running."""
        with self._lock:
            return self._accepted.get((client, request_id))

    def cancel(self, accepted: Accepted) -> None:
        """Stop working on a request."""
        self.engine.cancel(accepted.requests)

    def eta_s(self, accepted: Accepted) -> float | None:
        """Seconds until the last image of a request is done."""
        times = [self.engine.eta_s(one) for one in accepted.requests if not one.result.done()]
        known = [seconds for seconds in times if seconds is not None]
        return max(known, default=0.0) if len(known) == len(times) else None

    # In sessions

    def turn(
        self,
        request_id: str,
        client: str,
        opened: Opened,
        message: Message,
        parent: str | None,
        n: int,
        previews: Previews = Previews(),
    ) -> Accepted:
        """Take on the next round of a session; its result is a list of (`Made`, `Node`). Raises as `accept` and
        `open_message`."""
        jobs = variants(opened.chat.open(message, parent), n, self.settings.max_images)
        entry = Active(request_id, "turn", jobs[0].instruction, parent)
        return self._make_nodes(request_id, client, opened, jobs, entry, previews)

    def again(
        self,
        request_id: str,
        client: str,
        opened: Opened,
        node_id: str,
        seed: Any,
        n: int,
        previews: Previews = Previews(),
    ) -> Accepted:
        """Take on the request of a node with other seeds. Otherwise as `turn`."""
        job = self._with_adapters(opened.chat.job_again(node_id, seed), opened, node_id)
        jobs = variants(job, n, self.settings.max_images)
        parents = jobs[0].parents
        entry = Active(request_id, "again", jobs[0].instruction, parents[0] if parents else None)
        return self._make_nodes(request_id, client, opened, jobs, entry, previews)

    def replay(
        self, request_id: str, client: str, opened: Opened, node_id: str, previews: Previews = Previews()
    ) -> Accepted:
        """Make a node again to compare it; the result is a `Replay`. Raises as `accept`, and SessionError."""
        job = self._with_adapters(opened.chat.reopened(node_id), opened, node_id)
        entry = Active(request_id, "replay", job.instruction, node_id)

        def compare(made: list[Made]) -> Replay:
            entry.replay = compare_with_node(opened.session, node_id, made[0])
            return entry.replay

        return self._accept_active(request_id, client, opened, [job], entry, compare, previews)

    def _with_adapters(self, job: Job, opened: Opened, node_id: str) -> Job:
        """A node's job with the adapters that it was made with. Raises InputError naming those that are not here."""
        recorded = str(opened.session.node(node_id).recipe.settings.get("adapters", ""))
        family = self.engine.family
        return (
            self.shelf.again(job, recorded, family.describe()["adapters"]) if family.traits.switches_adapters else job
        )

    def _make_nodes(
        self, request_id: str, client: str, opened: Opened, jobs: Sequence[Job], entry: Active, previews: Previews
    ) -> Accepted:
        session = opened.session
        if len(session.node_ids()) + len(jobs) > self.settings.max_session_nodes:
            raise SessionError(f"this session has {self.settings.max_session_nodes} nodes: begin a new one")
        num_moves = opened.activity.num_moves

        def keep_nodes(made: list[Made]) -> list[tuple[Made, Node]]:
            kept = [(one, keep_node(session, one)) for one in made]
            entry.nodes = tuple(node.id for _, node in kept)
            if opened.activity.num_moves == num_moves:  # whoever went elsewhere meanwhile stays there
                session.set_head(entry.nodes[0])
            return kept

        return self._accept_active(request_id, client, opened, jobs, entry, keep_nodes, previews)

    def _accept_active(
        self,
        request_id: str,
        client: str,
        opened: Opened,
        jobs: Sequence[Job],
        entry: Active,
        keep: Keep,
        previews: Previews,
    ) -> Accepted:
        """Accept a request that everybody who looks at the session can follow."""

        def on_end(status: str, message: str | None) -> None:
            entry.status, entry.message = status, message
            opened.activity.changed()

        def on_preview(number: int, preview: int, image: Image.Image) -> None:
            opened.activity.preview(entry, number, image)
            if previews.on_preview is not None:
                previews.on_preview(number, preview, image)

        opened.activity.add(entry)
        try:
            entry.accepted = self.accept(
                request_id,
                client,
                jobs,
                entry.kind,
                keep=keep,
                session=opened.id,
                previews=replace(previews, on_preview=on_preview),
                on_end=on_end,
            )
        except AceError:
            opened.activity.withdraw(entry)
            raise
        opened.activity.changed()
        return entry.accepted

    # Results by address

    def keep(self, data: bytes, mime: str) -> str:
        """Keep a result for an hour, or until newer ones need the room; its token."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._kept[token] = (time.monotonic() + _URL_LIFE_S, mime, data)
            self._kept_bytes += len(data)
            while self._kept and (
                self._kept_bytes > self.settings.kept_bytes or next(iter(self._kept.values()))[0] < time.monotonic()
            ):
                self._kept_bytes -= len(self._kept.popitem(last=False)[1][2])
        return token

    def kept(self, token: str) -> tuple[str, bytes]:
        """(MIME type, bytes) of a kept result. Raises NotFoundError."""
        with self._lock:
            found = self._kept.get(token)
        if found is None or found[0] < time.monotonic():
            raise NotFoundError("this image is not kept any more: ask for b64_json")
        return found[1], found[2]

    # Sessions

    def create_session(self, client: str) -> str:
        """Begin a session; its id. Raises BusyError if the client has too many, SessionError without a data folder."""
        folder = self._sessions_of(client)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"no session can be made ({reason_of(error)}): check the disk") from None
        if sum(1 for _ in folder.iterdir()) >= self.settings.max_sessions:
            raise BusyError(f"you have {self.settings.max_sessions} sessions: delete one first", 60.0)
        session_id = secrets.token_hex(16)
        Session.create(folder / session_id)
        return session_id

    def session_ids(self, client: str) -> list[tuple[str, int]]:
        """(id, time of creation) of a client's sessions, oldest first; those that were opened for everybody come
        first."""
        found = [(name, created_at(folder)) for name, folder in self.settings.opened_sessions]
        if self.settings.data_folder is None:
            return found
        folder = self._sessions_of(client)
        own = [e for e in folder.iterdir() if self._is_session(e)] if folder.is_dir() else []
        dated = []
        for entry in own:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                dated.append((entry.name, created_at(entry)))
        return found + sorted(dated, key=lambda entry: (entry[1], entry[0]))

    def open_session(self, client: str, session_id: str) -> Opened:
        """A client's own session, or one that was opened for everybody. Raises NotFoundError or SessionError."""
        folder = dict(self.settings.opened_sessions).get(session_id) or self._folder_of(client, session_id)
        session = Session.open(folder)
        session.max_pixels = self.settings.max_held_bytes // 16  # of a round with those before it, 4 bytes each
        return Opened(session_id, ChatSession(session, self.engine.family), self._activities.of(folder))

    def delete_session(self, client: str, session_id: str) -> None:
        """Delete a session with everything in it. Raises NotFoundError."""
        folder = self._folder_of(client, session_id)
        gone = folder.with_name(f".gone.{secrets.token_hex(6)}")
        try:
            folder.rename(gone)
        except FileNotFoundError:  # somebody else was faster
            raise NotFoundError("you have no session with this id") from None
        shutil.rmtree(gone, ignore_errors=True)

    def delete_nodes(self, opened: Opened, node_ids: Sequence[str]) -> None:
        """Delete nodes; their files stay while something is made in the session. Raises SessionError."""
        busy = any(entry.status not in ENDED for entry in opened.activity.entries())
        for node_id in node_ids:
            opened.session.delete_node(node_id, keep_files=busy)
        opened.activity.moved()

    def add_archive(self, session: Session, data: bytes) -> dict[str, str]:
        """Add the nodes of an exported session; old number → new number. Raises SessionError or OutputError.

        Unpacked it may be no larger than an upload, so that a small file cannot fill the disk."""
        limits = ArchiveLimits(
            num_bytes=self.settings.max_upload_bytes,
            num_nodes=self.settings.max_session_nodes - len(session.node_ids()),
            num_pixels=self.settings.max_pixels,
            num_pixels_per_node=self.settings.max_held_bytes // 16,
            timeout_s=self.settings.decode_timeout_s,
        )
        return session.add_archive(io.BytesIO(data), limits=limits)

    def _sessions_of(self, client: str) -> Path:
        if self.settings.data_folder is None:
            raise SessionError("this server keeps no sessions: start it with --data FOLDER")
        return self.settings.data_folder / "sessions" / hashlib.sha256(client.encode()).hexdigest()[:32]

    def _folder_of(self, client: str, session_id: str) -> Path:
        folder = self._sessions_of(client) / session_id if _SESSION_ID.fullmatch(session_id) else None
        if folder is None or not self._is_session(folder):
            raise NotFoundError("you have no session with this id")
        return folder

    @staticmethod
    def _is_session(folder: Path) -> bool:
        return (
            bool(_SESSION_ID.fullmatch(folder.name)) and not folder.is_symlink() and (folder / "session.json").is_file()
        )


def head_of(session: Session) -> str | None:
    """The head of a session; the newest node if it cannot be read."""
    try:
        return session.head()
    except SessionError:
        names = session.node_ids()
        return names[-1] if names else None


def created_at(folder: Path) -> int:
    """When a session was made, in seconds since 1970."""
    return int((folder / "session.json").stat().st_mtime)


def encode_result(made: Made, output_format: str, metadata: bool = True, signer: Signer | None = None) -> bytes:
    """The bytes of a result, with its recipe and content credentials inside unless there is to be no metadata; of a
    clip the image that stands for it, since the clip itself is fetched from its node or from /v1/videos."""
    file_format = output_format.upper()
    if made.medium is not IMAGE:
        return IMAGE.encode(made.image, file_format)
    data = made.medium.encode(made.content, file_format, made.recipe if metadata else None)
    if signer is None or not metadata:
        return data
    return sign(data, file_format, made.recipe, made.job.origins, signer)


def message_of(error: BaseException) -> str:
    """What a client is told of an error: nothing about the inside of the server."""
    if isinstance(error, InputError | StoppedError | BusyError) or type(error) is AceError:
        return str(error)
    return "the server could not make this image"


def _about(jobs: Sequence[Job], kind: str, session: str | None) -> Mapping[str, Any]:
    """What the record of a request says beside its end; no prompt and no file name."""
    settings = jobs[0].settings
    about = {"kind": kind, "session": session, "seed": str(settings.seed), "n": len(jobs)}
    return {name: value for name, value in about.items() if value is not None}
