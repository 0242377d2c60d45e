"""Open the database of a study by its SQLAlchemy URL, and keep its password out of every message."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

from chatgym.errors import InvalidValue, Unavailable

HEARTBEAT_SECONDS, GRACE_SECONDS = 5, 30
"""Seconds between the heartbeats of a running trial, and without one after which the trial counts as failed."""

ATTEMPTS, PAUSE_SECONDS = 4, 0.5


def hide_password(url: str) -> str:
    """Return a storage's URL without its password and query."""
    from sqlalchemy.engine import make_url

    return make_url(url).set(query={}).render_as_string(hide_password=True)


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Open a storage for the block; its errors become `Unavailable`, without the password."""
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        shown = hide_password(url)
    except ArgumentError:
        raise InvalidValue("the storage is a SQLAlchemy URL, such as postgresql+psycopg://user@host/database") from None
    storage = None
    try:
        storage = _open(url)
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        what = type(error.__cause__ or error).__name__
        remedy = "check that the server runs and that you have access"
        raise Unavailable(f"the storage {shown} can't be used ({what}); {remedy}") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _open(url: str) -> optuna.storages.RDBStorage:
    """Open a storage; try again if another process creates its tables at the same time."""
    from sqlalchemy.exc import SQLAlchemyError

    waits: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=waits, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
        except ImportError as error:
            what = f"{hide_password(url)} needs the driver {error.name}"
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
