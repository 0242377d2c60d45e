"""Open the database of a study by its SQLAlchemy URL, and keep its password out of every message."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna

from chatgym.errors import InvalidValue, Unavailable
from chatgym.storage.paths import given

HEARTBEAT_SECONDS, GRACE_SECONDS = 5, 30
"""Seconds between the heartbeats of a running trial, and without one after which the trial counts as failed."""

ATTEMPTS, PAUSE_SECONDS = 4, 0.5
WAIT_SECONDS = 60
"""How long an access to SQLite waits for another process's."""


def hide_password(url: str) -> str:
    """Return a storage's URL without its password and query.

    Raises:
        InvalidValue: It is no URL, or a password with special characters can't be told from the rest.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        read = make_url(url)
        if "@" in (read.host or "") or ("@" in (read.database or "") and read.get_backend_name() != "sqlite"):
            raise ValueError
    except (ArgumentError, ValueError):  # `int` shows what it can't read, which may be of the password
        raise InvalidValue(
            "the storage is a SQLAlchemy URL, such as postgresql+psycopg://user@host/database; write @ as %40 and / "
            "as %2F in its user and password"
        ) from None
    return read.set(query={}).render_as_string(hide_password=True)


@contextlib.contextmanager
def open_storage(where: str | Path) -> Iterator[optuna.storages.RDBStorage]:
    """Open a storage, by its URL or as a SQLite file, for the block.

    Its errors become `Unavailable`, without the password.
    """
    from sqlalchemy.exc import SQLAlchemyError

    shown = str(where) if isinstance(where, Path) else hide_password(where)
    storage = None
    try:
        storage = _open(where, shown)
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        what = type(error.__cause__ or error).__name__
        remedy = "check that the server runs and that you have access"
        raise Unavailable(f"the storage {shown} can't be used ({what}); {remedy}") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _engine(where: str | Path) -> tuple[str, dict[str, Any]]:
    """Return a storage's URL, and the further arguments of SQLAlchemy's ``create_engine``."""
    from sqlalchemy.engine import make_url

    if isinstance(where, Path):  # given to SQLite itself: in a URL, some characters of a path mean something else
        open_file = functools.partial(sqlite3.connect, where, timeout=WAIT_SECONDS, check_same_thread=False)
        return f"sqlite:///{where.name}", {"creator": open_file}
    url = make_url(where)
    if url.get_backend_name() != "sqlite":
        return where, {"pool_pre_ping": True}
    if url.database and url.database.startswith("~"):
        where = url.set(database=str(given(url.database))).render_as_string(hide_password=False)
    return where, {"connect_args": {"timeout": WAIT_SECONDS}}


def _open(where: str | Path, shown: str) -> optuna.storages.RDBStorage:
    """Open a storage; try again if another process creates its tables at the same time."""
    from sqlalchemy.exc import SQLAlchemyError

    url, settings = _engine(where)
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=settings, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
        except ImportError as error:
            what = f"{shown} needs the driver {error.name}"
            raise Unavailable(f"the storage {what}; `pip install 'chatgym[postgres]'` brings PostgreSQL's") from None
        except SQLAlchemyError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    raise AssertionError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna for the block: its log of each trial, and warnings of experimental features."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
