"""How a server words its refusals, and which fields of a request it wants to be without."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatgym.storage.utf8 import parsed

OPTIONAL = {
    "seed": "the same request may get another answer",
    "top_p": "the server's own value holds",
    "temperature": "the server's own value holds",
    "logprobs": "there are no log-probabilities",
    "stop": "texts are cut here instead",
    "tool_choice": "the model may answer without a call",
}
"""Fields that a request can do without, to what that means. If a refusal names several, the first is left out."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""The names of the length: OpenAI's reasoning models have the second one."""
SPEAKS_OF_FIELDS = (200, 400, 403, 404, 405, 413, 422, 500, 501)
"""Statuses whose reason may name a field that the server doesn't take."""
OF_FIELDS = (200, 400, 422)
"""Those of them that mostly are about fields; of the others, the reason has to say that it doesn't know the field."""

_REASON = (
    "message", "error", "detail", "errors", "msg", "reason", "description", "error_description", "error_message",
    "error_msg", "status_msg", "base_resp", "title",
)  # fmt: skip
"""Keys under which servers tell the reason."""
_MORE = ("details", "metadata", "raw")
"""Keys under which gateways tell what they were told themselves."""
_UNKNOWN = re.compile(
    r"(?:not|un)[ -]?(?:supported|permitted|allowed|recognized|recognised|known|expected)|extra|additional|unexpected|"
    r"invalid (?:field|parameter|argument)|(?:does ?n[o']t|do not) (?:support|accept|take)|cannot find|not available|"
    r"no \w+ found that support", re.I,
)  # fmt: skip
_SECRET = re.compile(r"(?i:(?<=bearer )(?=\S*\d)\S{8,}|(?<=api_key=)[^&\s]+)|\bsk-[\w*-]{6,}|\b(?:hf|gsk)_\w{16,}")

_STOP = re.compile(  # which is an English word, too
    r"[`'\":.>] ?stop\b|\b(?:parameter|argument|field|support|accept|for)s? stop\b|\bstop_sequences?\b|"
    r"\bstop (?:is|are|parameter|argument|field|must|sequences?)\b"
)


class ServerError(Exception):
    """A server's refusal.

    Attributes:
        status: HTTP status; of an error inside an answer the one that it states, or 200.
        after: Seconds that the server asks to wait, or None.
        reason: The server's own words.
        code: Its word for programs; empty if there is none.
        fields: Fields of the request that it says it is about.
    """

    def __init__(self, status: int, told: Any, after: float | None = None) -> None:
        super().__init__(_words(told) or "no reason given")
        self.status, self.reason, self.after = status, str(self), after
        inner = told.get("error") if isinstance(told, Mapping) else None
        stated = inner if isinstance(inner, Mapping) else told if isinstance(told, Mapping) else {}
        self.code = str(stated.get("code") or stated.get("type") or "")
        self.fields = tuple(_fields(told))

    @property
    def temporary(self) -> bool:
        """Whether the same request may be answered later."""
        if self.code == "insufficient_quota":
            return False
        return self.status in (408, 409, 429) or self.status > 499


def refusal(status: int, text: str, after: float | None = None) -> ServerError:
    """Return the error in the body of a response with this status, which asks to wait so many seconds."""
    try:
        told = told_in(text)
    except ValueError:
        title = re.search(r"<title>(.*?)</title>", text, re.I | re.S)
        told = re.sub(r"<[^<>]*>", " ", title[1] if title else text)
    return ServerError(status, told, after)


def told_in(text: str) -> Any:
    """Return the JSON of a response; of an event stream that of the first event.

    Raises:
        ValueError: It is no JSON.
    """
    event = re.match(r"\s*(?:event:.*\n\s*)?data:(.*)", text)
    return parsed(event[1] if event else text)


def error_within(answer: Any) -> ServerError | None:
    """Return the error in an answer with status 200, of the whole or of its first choice; None if there is none."""
    told = answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if isinstance(answer, Mapping) and answer.get("choices"):
        first = answer["choices"][0] if isinstance(answer["choices"], list) else None
        first = first if isinstance(first, Mapping) else {}
        told = first.get("error") or answer.get("error")
        if not told and first.get("finish_reason") == "error":
            told = 'finish_reason is "error"'
        if not told:
            return None
        told = {"error": told}
    if not isinstance(told, Mapping) or not any(told.get(name) for name in _REASON):
        return None
    error = ServerError(200, told)
    for holder in (told.get("error"), told):
        for name in ("code", "status", "status_code", "http_status"):
            stated = str(holder.get(name) if isinstance(holder, Mapping) else "")
            if re.fullmatch(r"[45]\d\d", stated):
                error.status = int(stated)
                return error
    return error


@dataclass(frozen=True)
class Dialect:
    """Which fields a server takes at one endpoint.

    Attributes:
        limit: Its name of the length, one of `LIMITS`.
        without: Fields that are left out, to the server's reason.
    """

    limit: str = LIMITS[0]
    without: Mapping[str, str] = field(default_factory=dict)

    def speak(self, body: Mapping[str, Any], most: int) -> dict[str, Any]:
        """Return a request's fields in this dialect, with its length: at most `most` new tokens."""
        return {name: value for name, value in body.items() if name not in self.without} | {self.limit: most}

    def after(self, error: ServerError, body: Mapping[str, Any], needed: Container[str]) -> Dialect | None:
        """Return a dialect without the field that a refusal names, or None if it names none that can be left out.

        Args:
            error: The refusal.
            body: The fields that were sent.
            needed: Fields among `OPTIONAL` that this request can't do without.
        """
        unknown = _UNKNOWN.search(f"{error.reason} {error.code}") is not None
        if error.status not in SPEAKS_OF_FIELDS or (error.status not in OF_FIELDS and not unknown):
            return None
        named, (old, new) = _named(error, body), LIMITS
        if old in body and (new in error.reason or (old in named and unknown)):
            return replace(self, limit=new)
        for name in OPTIONAL:
            if name in named and name not in needed:
                return replace(self, without={**self.without, name: error.reason})
        return None


def redacted(text: str, key: str) -> str:
    """Return a server's words on one line, shortened, without the key, which some servers repeat in part."""
    if key:
        text = re.sub(re.escape(key[:8]) + r"\S*" if len(key) > 8 else rf"(?<!\w){re.escape(key)}(?!\w)", "***", text)
    return " ".join(_SECRET.sub("***", text).split())[:300]


def _named(error: ServerError, body: Mapping[str, Any]) -> set[str]:
    """Return the fields of a request that a refusal is about: those that it states, else those in its words."""
    if stated := set(error.fields) & set(body):
        return stated
    loose = {name: name if name in LIMITS else name.replace("_", "[_ -]?") for name in body}
    words = {name: _STOP if name == "stop" else rf"(?i:\b{loose[name]}\b)" for name in body}
    return {name for name, pattern in words.items() if re.search(pattern, error.reason)}


def _words(told: Any) -> str:
    """Return the reason in the JSON of an error: OpenAI's, FastAPI's list of details, a text, or other forms."""
    if isinstance(told, str):
        with contextlib.suppress(ValueError):
            return _words(parsed(told)) if told.lstrip().startswith(("{", "[")) else told.strip()
        return told.strip()
    if isinstance(told, list):
        return "; ".join(filter(None, map(_words, told)))
    if not isinstance(told, Mapping):
        return "" if told is None else json.dumps(told)
    for name in _REASON:
        if words := _words(told.get(name)):
            where = told.get("loc")
            place = ".".join(map(str, where)) if isinstance(where, list) else ""
            more = [one for name in _MORE if (one := _words(told.get(name))) and one not in words]
            return ": ".join(filter(None, (place, words, *more)))
    for name in _MORE:
        if words := _words(told.get(name)):
            return words
    return json.dumps(told, ensure_ascii=False) if told else ""


def _fields(told: Any) -> Iterable[str]:
    """Yield the names of fields that an error states: OpenAI's ``param``, the places of FastAPI's details."""
    if isinstance(told, list):
        for one in told:
            yield from _fields(one)
    elif isinstance(told, Mapping):
        for name in ("param", "parameter", "field"):
            if isinstance(told.get(name), str):
                yield told[name].rpartition(".")[2]
        if isinstance(told.get("loc"), list):
            yield from (name for name in told["loc"] if isinstance(name, str))
        for name in ("error", "detail", "errors", "message", "details"):
            yield from _fields(told.get(name))
