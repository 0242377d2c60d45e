"""Continuous batching: a thread that owns the model; new requests join between two decode steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from chatgym.engines.batch import Alternatives, Batch, Request, Row
from chatgym.engines.transformers import TransformersEngine
from chatgym.serving.limits import Limits
from chatgym.serving.metrics import Metrics
from chatgym.serving.refusal import Refusal

READ_AT_ONCE = 4096
"""Tokens of prompts read between two steps, at least one prompt: those under way don't wait longer than that."""

log = logging.getLogger("chatgym.serving")


@dataclass(eq=False)
class Ticket:
    """A request's place in the queue and in the batch. The scheduler's thread writes it, others only read.

    Attributes:
        requests: What is to be continued.
        scored: Sequences of tokens to be scored before.
        alternatives: How many of the likeliest tokens a score names.
        changed: Called in the scheduler's thread when there is news: with `every` after each token, else at the end.
        every: See `changed`.
        rows: Of the requests that have joined, in order.
        reports: Of the sequences scored.
        failed: Whether the model failed.
        cancelled: Nobody waits for it any more.
        taken: How many requests have left the queue.
        since: When it came; 0 once it has its first token.
    """

    requests: Sequence[Request]
    changed: Callable[[], None]
    scored: Sequence[tuple[int, ...]] = ()
    alternatives: int = 0
    every: bool = False
    rows: list[Row] = field(default_factory=list)
    reports: list[list[Alternatives]] = field(default_factory=list)
    failed: bool = False
    cancelled: bool = False
    taken: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        """Whether there will be no more news."""
        said = len(self.rows) == len(self.requests) and all(row.finish_reason for row in self.rows)
        return self.failed or (said and len(self.reports) == len(self.scored))


class Scheduler:
    """The queue, and the thread that works it off."""

    def __init__(self, engine: TransformersEngine, limits: Limits, metrics: Metrics) -> None:
        self._engine, self._limits, self._metrics = engine, limits, metrics
        self._batch = Batch(engine)
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []  # with rows in the batch; the thread's own
        self._wake = threading.Condition()
        self._changes: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._closed = self.draining = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.rows.set_function(lambda: len(self._batch.rows))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, whatever it is at."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        with self._wake:
            return not (self._waiting or self._active or self._changes)

    def drain(self) -> None:
        """Accept nothing more: what isn't in the queue when this returns is refused."""
        with self._wake:  # reentrant: a signal may come while this thread holds it
            self.draining = True

    def submit(self, ticket: Ticket) -> None:
        """Put a request into the queue.

        Raises:
            Refusal: 503 while draining, 429 when the queue is full.
        """
        with self._wake:
            self._refuse_while_draining()
            if len(self._waiting) >= self._limits.queue:
                raise Refusal(
                    429, f"{self._limits.queue} requests wait already; ask again after the time in Retry-After",
                    code="queue_full", headers={"Retry-After": "1"},
                )  # fmt: skip
            self._waiting.append(ticket)
            self._wake.notify()

    def change(self, what: Callable[[], None]) -> Future[None]:
        """Have the thread change the model once all rows that are in the batch have ended; others join afterwards.

        Raises:
            Refusal: 503 while draining.
        """
        done: Future[None] = Future()
        with self._wake:
            self._refuse_while_draining()
            self._changes.append((what, done))
            self._wake.notify()
        return done

    def _refuse_while_draining(self) -> None:
        """Refuse while draining; call it with the lock held, in the step that puts something into the queue."""
        if self.draining:
            raise Refusal(
                503, "the server is shutting down; ask again once it is back", code="draining",
                headers={"Retry-After": "1", "Connection": "close"},
            )  # fmt: skip

    def cancel(self, ticket: Ticket) -> None:
        """Drop a request that nobody waits for any more; its rows leave before the next step."""
        with self._wake:
            if ticket.done or ticket.cancelled:
                return
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._metrics.cancelled.inc()
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._active or self._changes or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
            try:
                self._leave()
                if self._changes:
                    self._change()
                else:
                    self._admit()
                self._step()
            except Exception:  # such as no memory for that many rows: those that were in it are told, the others go on
                log.exception("the model failed; %d requests with it", len(self._active))
                self._batch = Batch(self._engine)
                with self._wake:
                    self._waiting = deque(ticket for ticket in self._waiting if ticket not in self._active)
                for ticket in self._active:
                    ticket.failed = True
                    ticket.changed()
                self._active = []

    def _leave(self) -> None:
        gone = [ticket for ticket in self._active if ticket.cancelled]
        if gone:
            self._batch.leave([row for ticket in gone for row in ticket.rows])
            self._active = [ticket for ticket in self._active if not ticket.cancelled]

    def _change(self) -> None:
        if self._batch.rows:
            return
        what, done = self._changes[0]
        try:
            what()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        with self._wake:  # only now: while it is under way the scheduler isn't idle
            self._changes.popleft()

    def _admit(self) -> None:
        """Let those who wait join, first come, first served, while there is room."""
        if not self._batch.joinable:
            return
        joining, scoring = self._choose(self._limits.rows - len(self._batch.rows))
        for ticket in scoring:
            ticket.reports += self._engine.score_tokens(ticket.scored, ticket.alternatives)
            if ticket.done:
                self._active.remove(ticket)
                ticket.changed()
        rows = self._batch.join([request for _, request in joining])
        for (ticket, _), row in zip(joining, rows, strict=True):
            ticket.rows.append(row)

    def _choose(self, room: int) -> tuple[list[tuple[Ticket, Request]], list[Ticket]]:
        """Take requests for `room` rows from the queue, and tickets that are to be scored."""
        joining: list[tuple[Ticket, Request]] = []
        scoring: list[Ticket] = []
        budget, last = READ_AT_ONCE, None
        with self._wake:
            while self._waiting and budget > 0:
                ticket = self._waiting[0]
                if ticket not in self._active:
                    self._active.append(ticket)
                    if ticket.scored:
                        scoring.append(ticket)
                        budget -= self._count(ticket.scored)
                while ticket.taken < len(ticket.requests) and budget > 0 and len(joining) < room:
                    request = ticket.requests[ticket.taken]
                    if request.prompt != last:  # one that several rows continue is read once
                        budget -= self._count([request.prompt])
                        last = request.prompt
                    joining.append((ticket, request))
                    ticket.taken += 1
                if ticket.taken < len(ticket.requests):
                    break
                self._waiting.popleft()
        return joining, scoring

    def _step(self) -> None:
        rows = len(self._batch.rows)
        if not rows:
            return
        self._batch.step()
        self._metrics.steps.inc()
        self._metrics.said.inc(rows)
        going = []
        for ticket in self._active:
            if ticket.since and ticket.rows:
                self._metrics.first.observe(time.monotonic() - ticket.since)
                ticket.since = 0.0
            done = ticket.done
            if not done:
                going.append(ticket)
            if done or ticket.every:
                ticket.changed()
        self._active = going

    def _count(self, sequences: Sequence[tuple[int, ...]]) -> int:
        tokens = sum(map(len, sequences))
        self._metrics.read.inc(tokens)
        return tokens
