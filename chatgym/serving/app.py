"""The application: its endpoints, and how a request goes through them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from chatgym.engines.transformers import TransformersEngine
from chatgym.errors import Corrupted, InvalidValue
from chatgym.serving.access import Access
from chatgym.serving.answers import Answer
from chatgym.serving.limits import Limits
from chatgym.serving.metrics import Metrics
from chatgym.serving.refusal import Refusal, invalid
from chatgym.serving.requests import Plan, Reader
from chatgym.serving.scheduler import Scheduler, Ticket

FAILED = Refusal(500, "the model failed at this request; the server's log says why", code="model_failed")


class Gone(Exception):
    """The client went away."""


class Service:
    """A model, and what stands between it and clients."""

    def __init__(self, engine: TransformersEngine, name: str, limits: Limits, access: Access) -> None:
        self.engine, self.name, self.limits, self.access = engine, name, limits, access
        self.metrics = Metrics()
        self.scheduler = Scheduler(engine, limits, self.metrics)
        self.reader = Reader(engine, name, limits)
        self.started = int(time.time())
        self._reading = ThreadPoolExecutor(1, "reader")

    async def answer(self, request: Request, read: Callable[[bytes], Plan]) -> Response:
        """Answer a request for continuations."""
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(self._reading, read, await self._body(request))
        event = asyncio.Event()

        def changed() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        ticket = Ticket(plan.requests, changed, plan.scored, plan.alternatives or 0, plan.stream)
        if not ticket.done:  # an echo alone needs no model
            self.scheduler.submit(ticket)
        answer = Answer(self.engine, self.name, plan, ticket)
        if plan.stream:
            return StreamingResponse(self._stream(request, ticket, event, answer), media_type="text/event-stream")
        try:
            while not ticket.done:
                await _news(request, event)
        except Gone:
            return Response(status_code=499)  # as nginx counts it; nobody reads it
        finally:
            self.scheduler.cancel(ticket)
        if ticket.failed:
            raise FAILED
        return JSONResponse(answer.whole())

    async def take_adapter(self, request: Request) -> Response:
        """Exchange the model's LoRA adapter, as vLLM's server does when it is let."""
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(self._reading, self.reader.adapter, await self._body(request))
        try:
            await asyncio.wrap_future(self.scheduler.change(lambda: self.engine.exchange_adapter(folder)))
        except Corrupted as error:
            raise invalid(str(error), "lora_path") from None
        return JSONResponse({"status": "ok", "model": self.name})

    async def _stream(
        self, request: Request, ticket: Ticket, event: asyncio.Event, answer: Answer
    ) -> AsyncIterator[bytes]:
        done = False
        try:
            while not done:
                done = ticket.done  # looked at before the news, so that none after it is missed
                if ticket.failed:
                    yield b"data: " + JSONResponse(FAILED.body()).body + b"\n\n"
                    return
                for piece in answer.news():
                    yield piece
                if not done:
                    await _news(request, event)
        except Gone:
            return
        finally:
            self.scheduler.cancel(ticket)

    async def _body(self, request: Request) -> bytes:
        """Read a request's body.

        Raises:
            Refusal: 413 if it is too large, 408 if it doesn't come.
        """
        most = self.limits.max_body
        too_large = Refusal(
            413, f"the request is larger than the {most} bytes that this server allows", code="request_too_large",
            headers={"Connection": "close"},
        )  # fmt: skip
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > most:
            raise too_large
        body = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                if len(body) > most:
                    raise too_large

        try:
            await asyncio.wait_for(read(), self.limits.patience)
        except asyncio.TimeoutError:
            raise Refusal(
                408, f"the request didn't come within {self.limits.patience:g} s", code="timeout",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        return bytes(body)


async def _news(request: Request, event: asyncio.Event) -> None:
    """Wait until there is news, or raise `Gone`."""
    waiting = asyncio.ensure_future(event.wait())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Gone
    finally:
        waiting.cancel()
        gone.cancel()
    event.clear()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(
    engine: TransformersEngine, *, name: str = "", limits: Limits | None = None, access: Access | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:  # fmt: skip
    """Make the application; its `state.service` is the `Service`.

    Args:
        engine: The model.
        name: What clients call it; its identity without the revision when empty.
        limits: Bounds of what may be asked.
        access: Who may ask; all when None.
        origins: Origins whose pages may ask from a browser (CORS), such as ``"https://example.org"``; ``"*"``: all.

    Raises:
        InvalidValue: An origin that is none.
    """
    name = name or engine.identity.partition("@")[0]
    service = Service(engine, name, limits or Limits(), access or Access())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.close)

    def authorised(request: Request) -> None:
        if not service.access.allows(request.headers.get("authorization", "")):
            raise Refusal(
                401, "a bearer token is needed: Authorization: Bearer TOKEN", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    for route in _routes(service):
        path, method, endpoint, guarded = route
        app.add_api_route(
            path, endpoint, methods=[method], dependencies=[Depends(authorised)] if guarded else [], response_model=None
        )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    if origins:
        check_origins(origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(Counted, metrics=service.metrics, paths=[route[0] for route in _routes(service)])
    return app


def check_origins(origins: Sequence[str]) -> None:
    """Check origins as browsers state them.

    Raises:
        InvalidValue: One has a path, or no scheme.
    """
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise InvalidValue(
                f"origin {origin!r} is none: write scheme, host and port as a browser does, without a path, such as "
                "https://example.org or http://localhost:3000; '*' allows every page"
            )


def _routes(service: Service) -> list[tuple[str, str, Callable[..., Any], bool]]:
    """Return path, method, endpoint and whether a token is needed."""
    model = {"id": service.name, "object": "model", "created": service.started, "owned_by": "chatgym"}

    async def completions(request: Request) -> Response:
        return await service.answer(request, service.reader.completion)

    async def chat(request: Request) -> Response:
        return await service.answer(request, service.reader.chat)

    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one(name: str) -> Response:
        if name != service.name:
            raise Refusal(404, f"there is no model {name!r} here; this server has {service.name!r}", param="model",
                          code="model_not_found")  # fmt: skip
        return JSONResponse(model)

    async def health() -> Response:
        draining = service.scheduler.draining
        state = {"status": "draining" if draining else "ok", "model": service.name, "identity": service.engine.identity}
        return JSONResponse(state, 503 if draining else 200)

    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return [
        ("/v1/completions", "POST", completions, True),
        ("/v1/chat/completions", "POST", chat, True),
        ("/v1/load_lora_adapter", "POST", service.take_adapter, True),
        ("/v1/models", "GET", models, True),
        ("/v1/models/{name:path}", "GET", one, True),
        ("/metrics", "GET", metrics, True),
        ("/health", "GET", health, False),
    ]


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}", code="no_such_endpoint"
    )
    return JSONResponse(refusal.body(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(FAILED.body(), 500)


class Counted:
    """Counts requests and their time around the application."""

    def __init__(self, app: Any, metrics: Metrics, paths: list[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, set(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = "500", time.monotonic()

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)
