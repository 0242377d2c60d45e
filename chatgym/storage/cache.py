"""A cache of texts in a SQLite file, which several processes can read and write at once."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chatgym.errors import Corrupted, Unavailable
from chatgym.storage import model_store

BUSY_SECONDS = 30.0
"""How long an access waits for another process's."""

_LEFT_ALONE: list[object] = []
"""Connections that a forked child inherited: SQLite forbids using them, even closing, so they are kept."""

_T = TypeVar("_T")


def default_path() -> Path:
    """Return the default file of the cache."""
    return model_store.cache_root() / "words.sqlite"


class Cache:
    """Text values by text key, in one file.

    Several threads and processes can use it, forked ones included: each process has its own connection.

    Args:
        path: The file; it is created, with its folder, if it doesn't exist.

    Raises:
        Corrupted: The file is no SQLite database, or damaged.
        Unavailable: The file can't be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._guarded(lambda connection: None)

    def get(self, key: str) -> str | None:
        """Return the value of a key, or None."""
        row = self._guarded(
            lambda connection: connection.execute("SELECT value FROM words WHERE key = ?", (key,)).fetchone()
        )
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Store a value, replacing the key's earlier one."""
        self._guarded(lambda connection: connection.execute("INSERT OR REPLACE INTO words VALUES (?, ?)", (key, value)))

    def add(self, key: str, value: str) -> str:
        """Store a value unless the key has one; returns the stored value."""

        def insert(connection: sqlite3.Connection) -> str:
            connection.execute("INSERT OR IGNORE INTO words VALUES (?, ?)", (key, value))
            return str(connection.execute("SELECT value FROM words WHERE key = ?", (key,)).fetchone()[0])

        return self._guarded(insert)

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        self._leave_parent()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _leave_parent(self) -> None:
        """In a forked child, drop the parent's connection, and its lock, which may be held."""
        if self._pid != os.getpid():
            _LEFT_ALONE.append(self._connection)
            self._lock, self._connection, self._pid = threading.Lock(), None, os.getpid()

    def _guarded(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return `action(connection)`, with SQLite's errors turned into ours."""
        self._leave_parent()
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = self._open()
                return action(self._connection)
        except (sqlite3.OperationalError, OSError) as error:
            raise Unavailable(
                f"the cache {str(self.path)!r} can't be used ({error}); check the rights and the space there, "
                "or set CHATGYM_CACHE to another folder"
            ) from error
        except sqlite3.DatabaseError as error:
            raise Corrupted(
                f"the cache {str(self.path)!r} is damaged ({error}); delete the file: its words are made again"
            ) from error

    def _open(self) -> sqlite3.Connection:
        """Open the file in WAL mode, and create the table."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS words (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            )
        except BaseException:
            connection.close()
            raise
        return connection


def _patiently(action: Callable[[], object]) -> None:
    """Repeat `action` while the database is locked: changing the journal mode ignores the connection's timeout."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
