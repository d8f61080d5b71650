"""The ledger: which requests were made, whose they are and how they ended, also after the server was killed.

One SQLite file. A request that was accepted and has no end when the file is opened again was lost by a restart, and its
id says so from then on. Refused, failed and cancelled requests stay as well, with the reason; no prompt is kept. The
file is locked while a server uses it, so that two servers never share one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace.errors import ConfigError, OutputError

_KEPT = 100_000  # newest requests that are remembered


@dataclass(frozen=True)
class RequestRecord:
    """A request. status: accepted, done, failed, cancelled or lost; asked: seconds since 1970; about: what was asked,
    see `RequestReply`."""

    id: str
    status: str
    asked: float
    message: str | None
    about: dict[str, Any]


class Ledger:
    """What became of each request. folder: where its file is; None = in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"the data folder cannot be made ({error.strerror}): name another") from None
        path = ":memory:" if folder is None else str(folder / "requests.sqlite")
        try:
            self._database = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS requests"
                " (id TEXT, client TEXT, status TEXT, asked REAL, ended REAL, message TEXT, about TEXT,"
                " PRIMARY KEY (id, client))"
            )
            columns = {row[1] for row in self._database.execute("PRAGMA table_info(requests)")}
            if "about" not in columns:  # a file of ace 0.1
                self._database.execute("ALTER TABLE requests ADD COLUMN about TEXT")
            self._database.execute(
                "UPDATE requests SET status = 'lost', message = 'lost by restart' WHERE ended IS NULL"
            )
        except sqlite3.OperationalError:
            raise ConfigError("another server uses this data folder: name another one with --data") from None
        except sqlite3.DatabaseError:
            raise ConfigError(
                "requests.sqlite in the data folder is damaged: delete it or name another folder"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, one thread writes. Raises OutputError where it cannot; the next one may be able to."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise OutputError(f"the ledger of requests cannot be written ({error}): check the disk") from None

    def accept(self, request_id: str, client: str, about: Mapping[str, Any]) -> None:
        """A request was accepted; this is on the disk when it returns. Raises OutputError."""
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, 'accepted', ?, NULL, NULL, ?)",
                (request_id, client, time.time(), json.dumps(dict(about))),
            )
            self._database.execute(
                "DELETE FROM requests WHERE rowid <= (SELECT MAX(rowid) FROM requests) - ?", (_KEPT,)
            )

    def end(
        self, request_id: str, client: str, status: str, message: str | None = None, steps_done: int | None = None
    ) -> None:
        """A request ended: "done", "failed" or "cancelled", after so many steps. Raises OutputError."""
        with self._writing():
            self._database.execute(
                "UPDATE requests SET status = ?, message = ?, ended = ?,"
                " about = json_set(COALESCE(about, '{}'), '$.steps_done', ?) WHERE id = ? AND client = ?",
                (status, message, time.time(), steps_done, request_id, client),
            )

    def look_up(self, request_id: str, client: str) -> RequestRecord | None:
        """A client's own request; None = there is none."""
        found = self._read("id = ? AND client = ?", (request_id, client), 1)
        return found[0] if found else None

    def newest(self, client: str, most: int = 100) -> list[RequestRecord]:
        """A client's requests, the newest first."""
        return self._read("client = ?", (client,), most)

    def _read(self, where: str, values: tuple[str, ...], most: int) -> list[RequestRecord]:
        with self._writing():
            rows = self._database.execute(
                f"SELECT id, status, asked, message, about FROM requests WHERE {where} ORDER BY rowid DESC LIMIT ?",
                (*values, most),
            ).fetchall()
        return [RequestRecord(*row[:4], json.loads(row[4] or "{}")) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
