"""What the server does with a request once it is understood: accept it, tell how it stands, keep results and sessions.

Everything that blocks is here and is called in worker threads; `app.py` waits for it. Results are given out by ids that
cannot be guessed, sessions lie in a folder per client, and no name from outside ever becomes part of a path unchecked.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.conversation.chat import ChatSession, Message
from ace.conversation.edit import Job, Made
from ace.conversation.recipe import encode
from ace.conversation.session import ArchiveLimits, Node, Session
from ace.errors import BusyError, InputError, SessionError, StoppedError
from ace.server.engine import Engine, OnPreview, Ticket
from ace.server.jobs import held_bytes
from ace.server.keys import Quota
from ace.server.ledger import Ledger
from ace.server.settings import ServerSettings

_URL_LIFE_S = 3600.0
_SESSION_ID = re.compile(r"[0-9a-f]{32}")


class NotFoundError(InputError):
    """Nothing of this client's has this id."""


@dataclass(frozen=True)
class Accepted:
    """A request that was taken on. tickets: one per picture."""

    id: str
    client: str
    tickets: tuple[Ticket, ...]

    @property
    def eta_tickets(self) -> tuple[Ticket, ...]:
        """Those that are not done."""
        return tuple(ticket for ticket in self.tickets if not ticket.result.done())


class Service:
    """One model for many clients."""

    def __init__(self, engine: Engine, settings: ServerSettings, ledger: Ledger) -> None:
        self.engine, self.settings, self.ledger = engine, settings, ledger
        self.quota = Quota(settings.pictures_per_minute)
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
        num_previews: int = 0,
        on_preview: OnPreview | None = None,
    ) -> Accepted:
        """Take on a request; from now on it is answered or failed explicitly.

        jobs: the variants of one, which share their pictures. Raises BusyError, ConfigError, StoppedError or, for an id
        in use, InputError."""
        held, most = held_bytes(jobs[0]), self.settings.max_held_bytes
        if held > most // 4:
            raise InputError("the pictures of this request are too large together: send smaller ones")
        with self._lock:
            if (client, request_id) in self._accepted:
                raise InputError(f"the request id {request_id} is in use: choose another")
            if self._held + held > most:
                raise BusyError("the server holds too many large pictures: try again later", 5.0)
            self.quota.spend(client, len(jobs))
            self._accepted[client, request_id] = Accepted(request_id, client, ())
            self._held += held
        self.ledger.accept(request_id, client)
        try:
            tickets = self.engine.submit(jobs, client, num_previews=num_previews, on_preview=on_preview)
        except (BusyError, InputError, StoppedError):
            self.ledger.withdraw(request_id, client)
            with self._lock:
                del self._accepted[client, request_id]
                self._held -= held
                self.quota.give_back(client, len(jobs))
            raise
        accepted = Accepted(request_id, client, tuple(tickets))
        with self._lock:
            self._accepted[client, request_id] = accepted
        unfinished = set(tickets)

        def ended(ticket: Ticket) -> None:
            with self._lock:
                unfinished.discard(ticket)
                if unfinished:
                    return
            errors = [error for ticket in tickets if (error := ticket.result.exception()) is not None]
            status = "failed" if errors else "done"
            if any(ticket.status == "cancelled" for ticket in tickets):
                status = "cancelled"
            try:
                self.ledger.end(request_id, client, status, _message_of(errors[0]) if errors else None)
            finally:
                with self._lock:  # only now, so that whoever asks finds it running or ended and nothing between
                    del self._accepted[client, request_id]
                    self._held -= held

        for ticket in tickets:
            ticket.result.add_done_callback(lambda _, ticket=ticket: ended(ticket))
        return accepted

    def running(self, request_id: str, client: str) -> Accepted | None:
        """A client's request that is waiting or running."""
        with self._lock:
            return self._accepted.get((client, request_id))

    def cancel(self, accepted: Accepted) -> None:
        """Stop working on a request."""
        self.engine.cancel(accepted.tickets)

    def eta_s(self, accepted: Accepted) -> float | None:
        """Seconds until the last picture of a request is done."""
        times = [self.engine.eta_s(ticket) for ticket in accepted.eta_tickets]
        known = [seconds for seconds in times if seconds is not None]
        return max(known, default=0.0) if len(known) == len(times) else None

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
            raise NotFoundError("this picture is not kept any more: ask for b64_json")
        return found[1], found[2]

    # Sessions

    def create_session(self, client: str) -> str:
        """Begin a session; its id. Raises BusyError if the client has too many, SessionError without a data folder."""
        folder = self._sessions_of(client)
        folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= self.settings.max_sessions:
            raise BusyError(f"you have {self.settings.max_sessions} sessions: delete one first", 60.0)
        session_id = secrets.token_hex(16)
        Session.create(folder / session_id)
        return session_id

    def session_ids(self, client: str) -> list[tuple[str, int]]:
        """(id, time of creation) of a client's sessions, oldest first."""
        folder = self._sessions_of(client)
        if not folder.is_dir():
            return []
        found = [(e.name, int((e / "session.json").stat().st_mtime)) for e in folder.iterdir() if self._is_session(e)]
        return sorted(found, key=lambda entry: (entry[1], entry[0]))

    def session(self, client: str, session_id: str) -> Session:
        """A client's own session. Raises NotFoundError."""
        return Session.open(self._folder_of(client, session_id))

    def delete_session(self, client: str, session_id: str) -> None:
        """Delete a session with everything in it. Raises NotFoundError."""
        folder = self._folder_of(client, session_id)
        gone = folder.with_name(f".gone.{secrets.token_hex(6)}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def add_archive(self, session: Session, data: bytes) -> dict[str, str]:
        """Add the nodes of an exported session; old number → new number. Raises SessionError or OutputError.

        Unpacked it may be no larger than an upload, so that a small file cannot fill the disk."""
        limits = ArchiveLimits(
            num_bytes=self.settings.max_upload_bytes,
            num_nodes=self.settings.max_session_nodes - len(session.node_ids()),
            num_pixels=self.settings.max_pixels,
        )
        return session.add_archive(io.BytesIO(data), limits=limits)

    def open_turn(self, session: Session, message: Message, parent: str | None) -> Job:
        """The job of a session's next round. Raises as `ChatSession.open`."""
        if len(session.node_ids()) >= self.settings.max_session_nodes:
            raise SessionError(f"this session has {self.settings.max_session_nodes} nodes: begin a new one")
        return ChatSession(session, self.engine.pipeline, self.engine.model).open(message, parent)

    def add_node(self, session: Session, made: Made) -> Node:
        """Keep a finished round. Raises SessionError or OutputError."""
        return session.add_node(
            made.job.unit.current,
            made.image,
            made.recipe,
            parents=made.job.parents,
            latents=made.latents,
            source=made.job.source,
        )

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


def encode_result(made: Made, output_format: str, metadata: bool = True) -> bytes:
    """The bytes of a result, with its recipe inside unless there is to be no metadata."""
    return encode(made.image, output_format.upper(), made.recipe if metadata else None)


def _message_of(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError | StoppedError) else "the server could not make this picture"
