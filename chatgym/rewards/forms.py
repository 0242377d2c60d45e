"""Conversations and preferences in the forms of other projects' data sets.

A message is ``{"role": ..., "content": ...}``, with a text or OpenAI's list of parts as content, or ShareGPT's
``{"from": ..., "value": ...}``. Conversations and pairs are records of the forms that docs/sft.md and docs/rewards.md
list. Columns that aren't needed are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import parsed, read_text

Messages = list[dict[str, str]]
T = TypeVar("T")

ROLES = ("system", "user", "assistant")
SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
"""Names of ShareGPT's speakers to roles."""
CONVERSATIONS = ("messages", "conversations", "conversation")
ASKED, ANSWERED = ("prompt", "instruction", "question"), ("completion", "output", "response", "answer")
"""Columns of a prompt and its answer, in the order in which they are looked for."""

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):")
_HH = {"Human": "user", "Assistant": "assistant", "System": "system"}


def read_records(path: Path, read: Callable[[Any, str], T]) -> list[T]:
    """Return what `read` makes of each record of a file, and of where it stands: JSON lines, or one JSON list.

    Args:
        path: The file.
        read: Called with a JSON value and its place, such as ``"line 2"``.

    Raises:
        InvalidValue: The file can't be read, or a line isn't JSON, or `read` refuses it; the message names the place.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(
            f"{path} can't be read ({error}); name a file of JSON lines in UTF-8, as `dataset.to_json(FILE)` writes one"
        ) from error
    found = []
    for where, one in _records(text):
        try:
            found.append(read(parsed(one) if isinstance(one, str) else one, where))
        except InvalidValue as error:
            raise InvalidValue(f"{path}, {where}: {error}") from None
        except ValueError as error:
            raise InvalidValue(f"{path}, {where} is not JSON: {getattr(error, 'msg', error)}") from None
    return found


def _records(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the text of each line, or the place and the object of each item of a JSON list."""
    if text.lstrip()[:1] == "[":
        try:
            items = parsed(text)
        except ValueError:
            items = []  # lines of lists
        if items and all(isinstance(one, dict) and not {"role", "from"} & set(one) for one in items):
            yield from ((f"record {i}", one) for i, one in enumerate(items, 1))
            return
    yield from ((f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def conversation(record: Any) -> Messages:
    """Return the messages of a record that holds a conversation.

    Raises:
        InvalidValue: It holds none in a form that is known; the message names the conversion.
    """
    if isinstance(record, list):
        return messages(record, "a conversation")
    if not isinstance(record, Mapping):
        raise InvalidValue(f"a conversation is an object with messages, not a {type(record).__name__}")
    for name in CONVERSATIONS:
        if name in record:
            return _told(record, messages(record[name], name))
    answer = next((name for name in ANSWERED if name in record), None)
    if answer is not None and (prompt := _prompt(record)):
        return [*prompt, *messages(record[answer], answer, "assistant")]
    if isinstance(record.get("text"), str) and (turns := _transcript(record["text"])):
        return turns
    raise InvalidValue(
        f'a conversation is {{"messages": [{{"role": ..., "content": ...}}, ...]}}, ShareGPT\'s conversations, or '
        f"a prompt and a completion, not an object with {_names(record)}; rename or join its columns, as by "
        "`dataset.map(...)`, and write it by `to_json(FILE)`"
    )


def preference(record: Any) -> tuple[Messages, Messages, Messages]:
    """Return the prompt, and what follows it in the better and in the worse conversation.

    Raises:
        InvalidValue: The record holds none in a form that is known; the message names the conversion.
    """
    if not isinstance(record, Mapping):
        raise InvalidValue(f"a pair is an object with prompt, chosen, rejected, not a {type(record).__name__}")
    for name in ("chosen", "rejected"):
        if name not in record:
            raise InvalidValue(
                f"it lacks {name!r}, a list of messages or a text; rename the columns of {_names(record)}, and of "
                "several rated answers choose a better and a worse one, as by `dataset.map(...)` and `to_json(FILE)`"
            )
    prompt = _prompt(record)
    sides = [messages(record[name], name, "assistant") for name in ("chosen", "rejected")]
    if prompt and all(side[: len(prompt)] == prompt for side in sides):
        sides = [side[len(prompt) :] for side in sides]
    elif not isinstance(record.get("prompt"), list) and all(side and side[0]["role"] != "assistant" for side in sides):
        prompt = []  # both are whole conversations, and the prompt repeats their beginning as a text
    return prompt, sides[0], sides[1]


def messages(value: Any, name: str, speaker: str = "") -> Messages:
    """Return messages given as a list, as one message, or as a text.

    Args:
        value: The messages. A text may be a transcript, ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``.
        name: Its name in the record.
        speaker: The role that says a text which is no transcript; none is taken when empty.

    Raises:
        InvalidValue: It holds something else, or a role that isn't known.
    """
    if isinstance(value, str):
        turns = _transcript(value, answered=speaker == "assistant")
        if turns or speaker:
            return turns or [{"role": speaker, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise InvalidValue(f"{name} is a list of messages, not a {type(value).__name__}")
    return [_message(one, name) for one in value]


def _message(given: Any, name: str) -> dict[str, str]:
    if isinstance(given, Mapping) and {"from", "value"} <= set(given):
        role, content = SHAREGPT.get(str(given["from"])), given["value"]
    elif isinstance(given, Mapping) and {"role", "content"} <= set(given):
        role, content = "system" if given["role"] == "developer" else given["role"], given["content"]
    else:
        raise InvalidValue(f'a message of {name} is {{"role": ..., "content": ...}}, not {given!r:.80}')
    if role not in ROLES:
        raise InvalidValue(
            f"the roles in {name} are {', '.join(ROLES)}, not {given.get('from', given.get('role'))!r}; write what a "
            "tool answered as a message of the user, and leave out others"
        )
    return {"role": role, "content": _text(content, name)}


def _text(content: Any, name: str) -> str:
    """Return the text of a content: a text, or a list of parts of type ``text``."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    words = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    if not parts or len(words) < len(parts) or not all(isinstance(word, str) for word in words):
        raise InvalidValue(
            f"the content of a message of {name} is a text, or a list of parts of type 'text', not {content!r:.80}; "
            "write calls of tools and pictures as text, or leave the conversation out"
        )
    return "".join(map(str, words))


def _transcript(text: str, answered: bool = False) -> Messages:
    """Return the messages of a transcript of "Human:" and "Assistant:" (Bai et al. 2022); none if it isn't one.

    A last "Assistant:" with nothing behind it is an empty answer if `answered`, else it asks for one.
    """
    before, *turns = _SPEAKER.split(text)
    if before.strip():
        return []
    said = [{"role": _HH[turns[i]], "content": turns[i + 1].strip()} for i in range(0, len(turns), 2)]
    return said[:-1] if said and not said[-1]["content"] and not answered else said


def _prompt(record: Mapping[str, Any]) -> Messages:
    """Return the messages of a record's prompt; none if it has no such column."""
    found = next((name for name in (*ASKED, "conversations", "input") if record.get(name)), None)
    if found is None:
        return []
    value, more = record[found], record.get("input")
    if found == "instruction" and isinstance(more, str) and more:  # Alpaca's
        value = f"{value}\n\n{more}"
    return _told(record, messages(value, found, "user"))


def _told(record: Mapping[str, Any], said: Messages) -> Messages:
    """Return messages after those of the record's column ``system``, unless they begin with one."""
    told = record.get("system")
    begun = not isinstance(told, str) or not told or (said and said[0]["role"] == "system")
    return said if begun else [{"role": "system", "content": str(told)}, *said]


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(record)[:8])) or "no columns"
