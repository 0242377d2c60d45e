"""Where a study is kept: a database by its SQLAlchemy URL, whose password is shown to nobody."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

from chatgym.errors import InvalidValue, Unavailable

HEARTBEAT_SECONDS, GRACE_SECONDS = 5, 30
"""How often a process shows that it works on a trial, and after how long without that the trial counts as given up."""

ATTEMPTS, PAUSE_SECONDS = 4, 0.5


def hide_password(url: str) -> str:
    """Return a storage's URL without what may not be shown."""
    from sqlalchemy.engine import make_url

    return make_url(url).set(query={}).render_as_string(hide_password=True)


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Open a storage; what goes wrong there is an error without a password in it."""
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
        raise Unavailable(f"the storage {shown} can't be used ({what}); check that it runs and lets you in") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _open(url: str) -> optuna.storages.RDBStorage:
    """Open a storage, again if another process makes its tables at the same time."""
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
    """Keep Optuna from writing on the terminal: it would log each trial, and warn of what it calls experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
