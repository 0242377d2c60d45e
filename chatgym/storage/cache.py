"""A cache of texts in a SQLite file, which several processes can read and write at once."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chatgym.errors import Corrupted, Unavailable
from chatgym.storage import model_store
from chatgym.storage.utf8 import valid

BUSY_SECONDS = 30.0
"""How long an access waits for another process's."""

_LEFT_ALONE: list[object] = []
"""Connections that a forked child inherited: SQLite forbids using them, even closing, so they are kept."""

_READ = "SELECT 1 FROM words LIMIT 1"
_TABLE = "CREATE TABLE IF NOT EXISTS words (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"

_HELD: dict[str, dict[str, str]] = {}
"""File to the values that couldn't be stored there."""

_T = TypeVar("_T")


def default_path() -> Path | None:
    """Return the default file of the cache; None if the user has no home, and CHATGYM_CACHE isn't set."""
    try:
        return model_store.cache_root() / "words.sqlite"
    except Unavailable:
        return None


class Cache:
    """Text values by text key, in one file.

    Several threads and processes can use it, forked ones included: each process has its own connection.

    Args:
        path: The file; it is created, with its folder, if it doesn't exist. None: there is no place for one.
        lasting: Whether values must be stored in the file. Else it is read if it is there, and values that can't be
            stored are held in memory until the process ends, with one warning.

    Raises:
        Corrupted: The file is no SQLite database, or damaged.
        Unavailable: The file can't be opened or written, and values must last.
    """

    def __init__(self, path: Path | None, *, lasting: bool = True) -> None:
        self.path, self.lasting = path, lasting
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._guarded(lambda connection: None)

    def get(self, key: str) -> str | None:
        """Return the value of a key, or None."""
        key = valid(key)
        if not self.lasting and (held := self._memory().get(key)) is not None:
            return held
        row = self._guarded(
            lambda connection: connection.execute("SELECT value FROM words WHERE key = ?", (key,)).fetchone()
        )
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Store a value, replacing the key's earlier one."""
        key, value = valid(key), valid(value)
        if self._insert("REPLACE", key, value):
            self._memory().pop(key, None)
        else:
            self._memory()[key] = value

    def add(self, key: str, value: str) -> str:
        """Store a value unless the key has one; returns the stored value."""
        key, value = valid(key), valid(value)
        if not self._insert("IGNORE", key, value):
            self._memory().setdefault(key, value)
        return str(self.get(key))

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        self._leave_parent()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _insert(self, conflict: str, key: str, value: str) -> bool:
        """Store a value in the file; `conflict` is what happens to an earlier one. Returns False if it isn't lasting.

        Raises:
            Unavailable: It can't be stored, and must last.
        """
        try:
            self._guarded(lambda opened: opened.execute(f"INSERT OR {conflict} INTO words VALUES (?, ?)", (key, value)))
        except Unavailable as error:
            if self.lasting:
                raise
            _warn_once(repr(str(self.path)) if self.path else "a home folder: there is none", str(error.__cause__))
            return False
        return True

    def _memory(self) -> dict[str, str]:
        """Return the values that are held in memory, by key."""
        return _HELD.setdefault(str(self.path), {})

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
        """Open the file to read and write, or else, unless values must last, to read."""
        try:
            return self._open_to_write()
        except (sqlite3.OperationalError, OSError):
            if self.lasting:
                raise
            return self._open_to_read()

    def _open_to_read(self) -> sqlite3.Connection:
        """Open the file to read; an empty database in its place if there is none that can be read."""
        # In a folder that can't be written to, a file in WAL mode can only be read as if nothing else wrote to it.
        uri = self.path.absolute().as_uri() if self.path else "file:"
        for mode in ("mode=ro", "immutable=1"):
            with contextlib.suppress(sqlite3.OperationalError):
                return _connect(f"{uri}?{mode}", _READ)
        return _connect(":memory:", _TABLE, "PRAGMA query_only = ON")

    def _open_to_write(self) -> sqlite3.Connection:
        """Open the file in WAL mode, and create the table."""
        if self.path is None:
            raise OSError("there is no home folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(os.path.abspath(self.path), "PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", _TABLE)


def _connect(database: str, *statements: str) -> sqlite3.Connection:
    """Open a database, by its path or URI, and execute statements."""
    connection = sqlite3.connect(
        database, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        for statement in statements:
            _patiently(connection, statement)
    except BaseException:
        connection.close()
        raise
    return connection


@functools.cache
def _warn_once(path: str, reason: str) -> None:
    """Warn, once for a file and a reason, that values are held in memory."""
    warnings.warn(
        f"new words can't be kept in {path} ({reason}); they are held in memory until this process ends. To keep "
        "them, make the file writable, or copy its folder to one that is and set CHATGYM_CACHE to that",
        stacklevel=2,
    )


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Repeat a statement while the database is locked: changing the journal mode ignores the connection's timeout."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(statement).fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
