"""The ledger: which requests were accepted, whose they are and how they ended, also after the server was killed.

One SQLite file. A request that was accepted and has no end when the file is opened again was lost by a restart, and its
id says so from then on. The file is locked while a server uses it, so that two servers never share one.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

from ace.errors import ConfigError

_KEPT = 100_000  # newest requests that are remembered


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
                " (id TEXT, client TEXT, status TEXT, asked REAL, ended REAL, message TEXT, PRIMARY KEY (id, client))"
            )
            self._database.execute(
                "UPDATE requests SET status = 'lost', message = 'lost by restart' WHERE ended IS NULL"
            )
        except sqlite3.OperationalError:
            raise ConfigError("another server uses this data folder: name another one with --data") from None
        except sqlite3.DatabaseError:
            raise ConfigError(
                "requests.sqlite in the data folder is damaged: delete it or name another folder"
            ) from None

    def accept(self, request_id: str, client: str) -> None:
        """A request was accepted; this is on the disk when it returns."""
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, 'accepted', ?, NULL, NULL)",
                (request_id, client, time.time()),
            )
            self._database.execute(
                "DELETE FROM requests WHERE rowid <= (SELECT MAX(rowid) FROM requests) - ?", (_KEPT,)
            )

    def withdraw(self, request_id: str, client: str) -> None:
        """It was not accepted after all."""
        with self._lock:
            self._database.execute("DELETE FROM requests WHERE id = ? AND client = ?", (request_id, client))

    def end(self, request_id: str, client: str, status: str, message: str | None = None) -> None:
        """A request ended: "done", "failed" or "cancelled"."""
        with self._lock:
            self._database.execute(
                "UPDATE requests SET status = ?, message = ?, ended = ? WHERE id = ? AND client = ?",
                (status, message, time.time(), request_id, client),
            )

    def look_up(self, request_id: str, client: str) -> tuple[str, str | None] | None:
        """(status, message) of a client's own request; None = there is none."""
        with self._lock:
            row = self._database.execute(
                "SELECT status, message FROM requests WHERE id = ? AND client = ?", (request_id, client)
            ).fetchone()
        return None if row is None else (row[0], row[1])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
