"""Requests to an OpenAI-compatible server as JSON, and reading its answers."""

from __future__ import annotations

import functools
import ipaddress
import json
import math
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from chatgym.engines.budget import stated_tokens, tokens_used
from chatgym.engines.chat import Reply, ToolCall
from chatgym.engines.protocol import UNKNOWN_TOKEN, Completion
from chatgym.engines.spoken import text_of, without_thoughts
from chatgym.errors import InvalidValue, Unfinished
from chatgym.storage.utf8 import MARK

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message in which servers keep a model's thoughts apart."""


@dataclass(frozen=True)
class Job:
    """The request for one row.

    Attributes:
        prompt: Text of the prompt.
        most: The most new tokens.
        temperature, top_p, seed, stop: Sampling settings, see `chatgym.engines.Engine.generate`.
        logprobs: Whether to ask for log-probabilities.
        echo: Whether to ask for the prompt's own log-probabilities.
        chat: Messages and tools as JSON, in place of a prompt.
        ids: The prompt's token ids, in place of its text.
    """

    prompt: str
    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: bool = False
    stop: tuple[str, ...] = ()
    echo: bool = False
    chat: str = ""
    ids: tuple[int, ...] = ()

    @property
    def most_prompt(self) -> int:
        """The most tokens that the prompt can have, without a chat template: no token is shorter than a byte."""
        return len(self.ids) or len((self.chat or self.prompt).encode("utf-8", "replace"))

    def body(self, endpoint: str) -> dict[str, Any]:
        """Return the parameters of a request to ``"completions"`` or ``"chat"``, without model and length."""
        chat = endpoint == "chat"
        body: dict[str, Any] = {"temperature": self.temperature}
        if self.chat:
            body |= json.loads(self.chat)
        elif self.ids:
            body |= {"prompt": list(self.ids), "extra_body": {"return_token_ids": True}}
        else:
            body |= {"messages": [{"role": "user", "content": self.prompt}]} if chat else {"prompt": self.prompt}
        body |= {"seed": self.seed} if self.seed is not None else {}
        body |= {"top_p": self.top_p} if self.top_p < 1.0 else {}  # some servers refuse even the default
        body |= {"stop": list(self.stop[:4])} if self.stop else {}  # servers refuse more than four; `completion` cuts
        body |= {"logprobs": True if chat else 1} if self.logprobs else {}
        return body | ({"echo": True} if self.echo else {})


def api_key() -> str:
    """Return ``OPENAI_API_KEY`` of the environment; empty if it isn't set.

    Raises:
        InvalidValue: It holds characters that a header can't.
    """
    key = os.environ.get("OPENAI_API_KEY", "").removeprefix(MARK).strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidValue("OPENAI_API_KEY holds characters that no key has; copy it again")
    return key


@functools.cache
def checked_url(url: str) -> tuple[str, bool]:
    """Return a normalised URL, and whether it is on this machine.

    Raises:
        InvalidValue: It is malformed, or holds credentials.
    """
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018 (raises where it is none)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidValue("llm 'openai:URL#MODEL' needs a URL such as http://127.0.0.1:8000/v1 or https://host/v1")
    if "@" in parts.netloc or parts.query:
        raise InvalidValue(
            f"the URL for {parts.hostname} holds credentials or a query; set the key as OPENAI_API_KEY in the "
            "environment, where no trace, log or run folder takes it from"
        )
    try:
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        loopback = False
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}", loopback


def completion(job: Job, answer: Any) -> Completion:
    """Return the completion in an answer of either endpoint."""
    choice = answer["choices"][0]
    if "message" in choice:
        text, cut = without_thoughts(text_of(choice["message"].get("content")))
    else:
        text, cut = text_of(choice["text"]), False
    ends = [found for s in job.stop if (found := text.find(s)) >= 0]
    why = "length" if (cut or choice.get("finish_reason") == "length") and not ends else "stop"
    likely = _logprobs(choice.get("logprobs") or {}) if job.logprobs else None
    ids = choice.get("token_ids") or ()
    if not ids:
        unstated = job.most if why == "length" else 0
        count = len(likely) if likely is not None else tokens_used(answer, (0, unstated))[1]
        ids = (UNKNOWN_TOKEN,) * count
    return Completion(text[: min(ends)] if ends else text, tuple(map(int, ids)), likely, why)


def replied(job: Job, answer: Any) -> Reply:
    """Return the reply in an answer to a chat; a malformed tool call becomes a call with an empty name.

    Of a reply without words, a thought that was cut off stands in its text, as a thought.
    """
    choice = answer["choices"][0]
    message = choice["message"]
    stated = message.get("tool_calls")
    functions = [call.get("function") for call in stated if isinstance(call, dict)] if isinstance(stated, list) else []
    named = [function if isinstance(function, dict) else {} for function in functions]
    calls = [ToolCall(str(call.get("name") or ""), str(call.get("arguments") or "")) for call in named]
    text, why = text_of(message.get("content")), str(choice.get("finish_reason") or "stop")
    thought = text_of(next(filter(None, map(message.get, THOUGHTS)), None))
    if thought and not text.strip() and why == "length":
        text = f"<think>{thought}"
    return Reply(text, tuple(calls), why, *stated_tokens(answer))


def sampled(job: Job, answer: Any) -> tuple[list[int], list[float]]:
    """Return a continuation's token ids, with the end-of-text token, and their log-probabilities.

    Raises:
        Unfinished: The server doesn't report them.
    """
    choice = answer["choices"][0]
    ids, likely = choice.get("token_ids"), _logprobs(choice.get("logprobs") or {})
    if not ids or likely is None or len(likely) != len(ids):
        raise Unfinished(
            "the server doesn't state the tokens that it sampled (`return_token_ids` of /completions), so nothing can "
            "be learned from them; use `chatgym serve`, or vLLM from 0.10.2 on"
        )
    return list(map(int, ids)), list(likely)


def _logprobs(stated: Any) -> tuple[float, ...] | None:
    """Return the log-probabilities in an answer of either endpoint; None unless each token has one."""
    try:
        if stated.get("content") is not None:  # of a chat
            values = tuple(float(token["logprob"]) for token in stated["content"])
        else:
            values = tuple(map(float, stated["token_logprobs"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if any(map(math.isnan, values)) else values


def echoed(job: Job, answer: Any) -> tuple[list[int], list[float | None]]:
    """Return the characters at which the tokens of prompt and answer begin, and the tokens' log-probabilities.

    Raises:
        Unfinished: The server doesn't report them.
    """
    choice = answer["choices"][0]
    stated, text = choice.get("logprobs"), str(choice["text"])
    stated = stated if isinstance(stated, dict) else {}
    begins, values = stated.get("text_offset") or [], stated.get("token_logprobs") or []
    true = begins[:1] == [0] and begins == sorted(begins) and 0 < begins[-1] <= len(text)
    if not (true and text.startswith(job.prompt) and len(begins) == len(values)):
        raise Unfinished(
            "the server gives no log-probabilities of a prompt (`echo` with `logprobs` of /completions), so it can't "
            "score; use one that does, such as vLLM, or llm='hf:...'"
        )
    return list(map(int, begins)), [None if value is None else float(value) for value in values]
