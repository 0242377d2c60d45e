"""What clients get: rows of the batch in the forms of OpenAI's API, whole or piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from chatgym.engines.batch import Alternatives, Row
from chatgym.engines.transformers import TransformersEngine
from chatgym.serving.requests import Plan
from chatgym.serving.scheduler import Ticket
from chatgym.serving.tools import MARK, split

DONE = b"data: [DONE]\n\n"
INCOMPLETE = "�"
"""What a tokenizer writes for the first bytes of a character."""


class Answer:
    """The answer to one request."""

    def __init__(self, engine: TransformersEngine, name: str, plan: Plan, ticket: Ticket) -> None:
        self._engine, self._plan, self._ticket = engine, plan, ticket
        kind = "chat.completion" if plan.chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if plan.chat else "cmpl-") + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": engine.identity,
        }
        self._sent = [0] * len(plan.requests)  # characters of each row
        self._told = [0] * len(plan.requests)  # tokens of each row
        self._begun = False

    def whole(self) -> dict[str, Any]:
        """Return the JSON of the whole answer."""
        rows: Sequence[Row | None] = self._ticket.rows or [None] * (len(self._plan.prompts) * self._plan.n)
        return self._head | {"choices": [self._choice(i, row) for i, row in enumerate(rows)], "usage": self._usage()}

    def news(self) -> Iterator[bytes]:
        """Yield the events of a stream that are new, the last ones once the ticket is done."""
        done = self._ticket.done
        if not self._begun:
            yield from self._begin()
        for index, row in enumerate(list(self._ticket.rows)):
            if (piece := self._piece(index, row)) is not None:
                yield self._event([piece])
        if done:
            if self._plan.usage:
                yield self._event([], {"usage": self._usage()})
            yield DONE

    def _begin(self) -> Iterator[bytes]:
        self._begun = True
        if self._plan.chat:
            self._head["object"] = "chat.completion.chunk"
            for index in range(len(self._plan.requests)):
                first = {"role": "assistant", "content": "", "refusal": None}
                yield self._event([{"index": index, "delta": first, "logprobs": None, "finish_reason": None}])
        for index in range(len(self._plan.prompts) * self._plan.n if self._plan.echoed else 0):
            shown = self._choice(index, None)
            yield self._event([shown | {"finish_reason": None if self._plan.requests else "length"}])

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._plan.usage else {}  # only the last event has it, as OpenAI's
        return b"data: " + json.dumps(self._head | {"choices": choices} | usage | (more or {})).encode() + b"\n\n"

    def _choice(self, index: int, row: Row | None) -> dict[str, Any]:
        """Return choice `index`: the echo of its prompt, and what `row` says."""
        said = self._engine.text(row.tokens, row.request.stop) if row else ""
        tokens = row.tokens if row else []
        why = row.finish_reason if row else "length"
        if self._plan.chat:
            logprobs = self._chat_logprobs(tokens, row.alternatives if row else [])
            words, calls = self._split(said)
            message = {"role": "assistant", "content": None if calls and not words else words, "refusal": None}
            return {
                "index": index, "message": message | ({"tool_calls": calls} if calls else {}), "logprobs": logprobs,
                "finish_reason": self._why(why, calls),
            }  # fmt: skip
        prompt = index // self._plan.n
        echo = self._plan.echoed[prompt] if self._plan.echoed else ""
        found = self._logprobs(tokens, row.alternatives if row else [], self._begins(tokens, echo, len(said)))
        if found is not None and self._plan.scored:
            ids = self._plan.prompts[prompt]
            begins = self._engine.spelling.begins(ids, echo)
            before = self._logprobs(ids, [None, *self._ticket.reports[prompt]], begins) or {}
            found = {name: before[name] + found[name] for name in found}
        return {
            "index": index, "text": echo + said, "logprobs": found, "finish_reason": why, "token_ids": list(tokens),
        }  # fmt: skip

    def _piece(self, index: int, row: Row) -> dict[str, Any] | None:
        """Return what row `index` said since, if it makes a whole number of characters that no stop string cuts."""
        why = row.finish_reason  # read first: once it is set, the tokens are all there
        tokens = list(row.tokens)
        if len(tokens) == self._told[index]:
            return None
        text, calls = self._split(self._engine.text(tokens, row.request.stop))
        if why is None:
            text = text.rstrip(INCOMPLETE)
            text = text[
                : len(text) - _held(text, (*row.request.stop, *([MARK] if self._plan.calling.functions else [])))
            ]
            if len(text) <= self._sent[index]:
                return None
        new, since = text[self._sent[index] :], self._told[index]
        self._sent[index], self._told[index] = max(len(text), self._sent[index]), len(tokens)
        reports = row.alternatives[since : len(tokens)]
        if self._plan.chat:
            logprobs = self._chat_logprobs(tokens[since:], reports)
            delta: dict[str, Any] = {"content": new}
            if why and calls:  # whole: nobody can use half of one
                delta |= {"tool_calls": [{"index": i} | call for i, call in enumerate(calls)]}
            return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": self._why(why, calls)}
        echo = self._plan.echoed[index // self._plan.n] if self._plan.echoed else ""
        begins = self._begins(tokens, echo, len(text) if why else None)[since:]
        return {
            "index": index, "text": new, "logprobs": self._logprobs(tokens[since:], reports, begins),
            "finish_reason": why, "token_ids": tokens[since:],
        }  # fmt: skip

    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Return what a row says as words and calls; only words where it may call nothing."""
        return split(text) if self._plan.calling.functions else (text, [])

    def _why(self, why: str | None, calls: Sequence[Any]) -> str | None:
        return self._plan.calling.finish_reason if why == "stop" and calls else why

    def _begins(self, tokens: Sequence[int], echo: str, length: int | None) -> list[int]:
        """Return where a row's tokens begin after the echo; at most at `length` characters, where its text was cut."""
        if self._plan.alternatives is None:
            return []
        found = self._engine.spelling.begins(tokens)
        return [len(echo) + (begin if length is None else min(begin, length)) for begin in found]

    def _logprobs(
        self, tokens: Sequence[int], reports: Sequence[Alternatives | None], begins: list[int]
    ) -> dict[str, list[Any]] | None:
        """Write log-probabilities in the form of completions; the tokens begin at the characters `begins`."""
        if self._plan.alternatives is None:
            return None
        return {
            "tokens": [self._word(token, "bytes:") for token in tokens],
            "token_logprobs": [one.logprob if one else None for one in reports],
            "top_logprobs": [self._named(one.likeliest) if one else None for one in reports],
            "text_offset": begins,
        }

    def _named(self, likeliest: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Return log-probabilities by the tokens' texts; a second token of one text gets vLLM's name, its id."""
        named: dict[str, float] = {}
        for token, value in likeliest:
            word = self._word(token, "bytes:")
            named[f"token_id:{token}" if word in named else word] = value
        return named

    def _chat_logprobs(self, tokens: Sequence[int], reports: Sequence[Alternatives]) -> dict[str, Any] | None:
        if self._plan.alternatives is None:
            return None
        content = [
            self._worded(token, one.logprob) | {"top_logprobs": [self._worded(t, value) for t, value in one.likeliest]}
            for token, one in zip(tokens, reports, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _worded(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._word(token), "logprob": logprob, "bytes": list(self._engine.spelling[token])}

    def _word(self, token: int, before: str = "") -> str:
        """Return a token's text; of a part of a character OpenAI's form, its bytes as ``\\xf0`` after `before`."""
        spelled = self._engine.spelling[token]
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return before + "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in spelled)

    def _usage(self) -> dict[str, int]:
        read = sum(map(len, self._plan.prompts))
        said = sum(len(row.tokens) for row in self._ticket.rows)
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def _held(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may turn out to begin a stop string."""
    return max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
