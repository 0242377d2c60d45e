"""Runs the application: the socket, signals, and clients that take too long to ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatgym.engines.transformers import TransformersEngine
from chatgym.errors import Unavailable
from chatgym.serving.access import Access
from chatgym.serving.app import Service, make_app
from chatgym.serving.limits import Limits

POLL_SECONDS = 0.05


def bind(host: str, port: int) -> socket.socket:
    """Take a port, without listening yet.

    Args:
        host: Address or name of this machine.
        port: 0 for any that is free.

    Raises:
        Unavailable: It is taken, or the address isn't one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart doesn't wait for old connections
        taken.bind(address)
    except OSError as error:
        raise Unavailable(
            f"can't serve at {host}:{port}: {error.strerror or error}; choose another --port (0 for any that is free)"
        ) from None
    return taken


def make_server(
    engine: TransformersEngine,
    *,
    name: str = "",
    limits: Limits | None = None,
    access: Access | None = None,
    origins: Sequence[str] = (),
    ready: Callable[[], None] = lambda: None,
) -> Server:
    """Make a server; `run([listener])` with what `bind` returned runs it.

    At SIGTERM or SIGINT running requests finish and new ones get 503, then it returns; a second signal ends it at once.

    Args:
        engine: The model.
        name: What clients call the model, see `make_app`.
        limits: Bounds of what may be asked.
        access: Who may ask; all when None.
        origins: Origins whose pages may ask from a browser, see `make_app`.
        ready: Called when it serves.
    """
    limits = limits or Limits()
    app = make_app(engine, name=name, limits=limits, access=access, origins=origins)
    config = uvicorn.Config(
        app, http=_patient(limits.patience), loop="asyncio", ws="none", lifespan="on", log_level="warning",
        access_log=False, server_header=False, timeout_keep_alive=int(max(limits.patience, 1)),
    )  # fmt: skip
    return Server(config, app.state.service, ready)


class Server(uvicorn.Server):
    """uvicorn's server, but that a signal lets running requests finish before the port is closed."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, exit at the second."""
        scheduler = self._service.scheduler
        if scheduler.draining:
            self.config.timeout_graceful_shutdown = 0
            self.should_exit = True
        scheduler.drain()
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            while not self._service.scheduler.idle:
                await asyncio.sleep(POLL_SECONDS)
            self.should_exit = True

        self._draining = self._draining or self._loop.create_task(drain())


def _patient(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, but that a connection is closed whose request's head doesn't come within a time."""

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the clock while no request is being answered: from its first byte on, not from each new one."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Patient
