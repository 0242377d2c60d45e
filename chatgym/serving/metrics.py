"""What the server counts, in Prometheus's form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counters of one server; names and meanings stand in docs/serving.md."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "chatgym_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "chatgym_request_seconds", "From a request's first byte to its answer's last.", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "chatgym_first_token_seconds", "From a request's arrival in the queue to its first token.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("chatgym_waiting_requests", "Requests in the queue.", registry=registry)
        self.rows = Gauge("chatgym_rows", "Continuations being computed.", registry=registry)
        self.steps = Counter("chatgym_steps", "Decode steps.", registry=registry)
        self.read = Counter("chatgym_prompt_tokens", "Tokens of prompts that were read.", registry=registry)
        self.said = Counter("chatgym_generated_tokens", "Tokens sampled.", registry=registry)
        self.cancelled = Counter(
            "chatgym_cancelled_requests", "Requests whose client went away before the answer.", registry=registry
        )

    def text(self) -> bytes:
        """Return them as Prometheus reads them."""
        return generate_latest(self.registry)
