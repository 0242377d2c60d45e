"""What arrives in the instant in which the server begins to drain."""

import threading

import pytest
import torch
from test_serving import WAIT, folder  # noqa: F401

from chatgym.engines.batch import Request
from chatgym.engines.transformers import TransformersEngine
from chatgym.serving.limits import Limits
from chatgym.serving.metrics import Metrics
from chatgym.serving.refusal import Refusal
from chatgym.serving.scheduler import Scheduler, Ticket


class Watched:
    """A lock that tells when another thread comes to it."""

    def __init__(self, lock):
        self._lock, self.reached, self.owner = lock, threading.Event(), threading.current_thread()

    def __enter__(self):
        if threading.current_thread() is not self.owner:
            self.reached.set()
        return self._lock.__enter__()

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._lock, name)


@pytest.mark.parametrize("what", ["change", "submit"])
def test_nothing_enters_the_queue_once_draining_has_begun(folder, what):  # noqa: F811
    scheduler = Scheduler(TransformersEngine(folder, identity="tiny", dtype=torch.float32), Limits(), Metrics())
    lock = scheduler._wake = Watched(scheduler._wake)
    given = Ticket([Request((1,), 2)], lambda: None) if what == "submit" else lambda: None
    outcome = []

    def send():
        try:
            outcome.append(getattr(scheduler, what)(given))
        except Refusal as refusal:
            outcome.append(refusal.status)

    sending = threading.Thread(target=send)
    with lock:  # the other thread stands at the lock when draining begins: it may have looked before
        sending.start()
        assert lock.reached.wait(WAIT)
        scheduler.drain()
        assert scheduler.idle
    sending.join(WAIT)
    assert outcome == [503]
    assert scheduler.idle, "it was accepted after the server had found that nothing was left to do"
