"""Preference pairs, the training data of reward models: JSON lines, one pair each::

    {"prompt": [{"role": "user", "content": "..."}], "chosen": [...], "rejected": [...], "kind": "rude", "group": "17"}

``prompt`` (can be empty), ``chosen`` and ``rejected`` are ChatML messages: the conversation of ``prompt`` and
``chosen`` is better than that of ``prompt`` and ``rejected``. ``kind`` says what is wrong with the worse one; reports
count by it. ``group`` names the conversation that the pair is made from: whole groups are held out, so that no
conversation is in both training and test pairs. Both keys are optional.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatgym.errors import InvalidValue
from chatgym.rewards.protocol import Conversation
from chatgym.storage.paths import given

ROLES = ("system", "user", "assistant")
KEYS = ("prompt", "chosen", "rejected", "kind", "group")
HELD_OUT = 5
"""One of so many groups is held out."""


@dataclass(frozen=True)
class Pair:
    """Two conversations with the same beginning, of which one is better.

    Attributes:
        prompt: The common beginning; the agent is the ``assistant``.
        chosen, rejected: The rest of the better and of the worse conversation.
        kind: What is wrong with the worse one.
        group: The conversation that the pair is made from.
    """

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    kind: str = ""
    group: str = ""

    @property
    def better(self) -> Conversation:
        """The whole better conversation."""
        return [*self.prompt, *self.chosen]

    @property
    def worse(self) -> Conversation:
        """The whole worse conversation."""
        return [*self.prompt, *self.rejected]

    @property
    def held_out(self) -> bool:
        """Whether the pair is for testing, which depends only on its group."""
        return is_held_out(self.group)


def is_held_out(group: str) -> bool:
    """Return whether the pairs of a group are for testing."""
    return hashlib.sha256(group.encode()).digest()[0] % HELD_OUT == 0


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from a file.

    Raises:
        InvalidValue: There is no such file, or a line is no pair; the message names the line and what is wrong with it.
    """
    path = given(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InvalidValue(f"there is no {path}; `chatgym reward pairs --out {path}` makes pairs") from None
    except UnicodeDecodeError:
        raise InvalidValue(f"{path} holds no pairs: it isn't text in UTF-8") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(_pair(json.loads(line), number))
            except json.JSONDecodeError as error:
                raise InvalidValue(f"{path}, line {number} is not JSON: {error.msg}") from None
            except InvalidValue as error:
                raise InvalidValue(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise InvalidValue(f"{path} holds no pairs; write one JSON object per line: {', '.join(KEYS)}")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs to a file, atomically."""
    from chatgym.storage import atomic

    text = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    atomic.write_text(given(path), text)


def _pair(record: Any, number: int) -> Pair:
    """Return the pair in a line's JSON value, or raise `InvalidValue`."""
    if not isinstance(record, dict):
        raise InvalidValue(f"a pair is an object with {', '.join(KEYS)}, not a {type(record).__name__}")
    if extra := sorted(set(record) - set(KEYS)):
        raise InvalidValue(f"a pair has no {extra[0]!r}; it has {', '.join(KEYS)}")
    sides = {}
    for name in ("prompt", "chosen", "rejected"):
        if name not in record and name != "prompt":
            raise InvalidValue(f"it lacks {name!r}, a list of messages")
        sides[name] = check_messages(record.get(name, []), name)
    for name in ("chosen", "rejected"):
        if not any(message["role"] == "assistant" for message in sides[name]):
            raise InvalidValue(f"{name} has no message of the assistant: there is nothing to judge in it")
    if sides["chosen"] == sides["rejected"]:
        raise InvalidValue("chosen and rejected are the same; leave out ties")
    kind, group = record.get("kind", ""), record.get("group", f"line {number}")
    for name, value in (("kind", kind), ("group", group)):
        if not isinstance(value, str):
            raise InvalidValue(f"{name} is a text, not {value!r}")
    return Pair(sides["prompt"], sides["chosen"], sides["rejected"], kind, group)


def check_messages(messages: Any, name: str) -> list[dict[str, str]]:
    """Check ChatML messages, and return them.

    Raises:
        InvalidValue: One isn't ``{"role": ..., "content": ...}`` with a known role and a text.
    """
    if not isinstance(messages, list):
        raise InvalidValue(f"{name} is a list of messages, not a {type(messages).__name__}")
    for message in messages:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InvalidValue(f'a message of {name} is {{"role": ..., "content": ...}}, not {message!r:.80}')
        if message["role"] not in ROLES:
            raise InvalidValue(f"the roles in {name} are {', '.join(ROLES)}, not {message['role']!r}")
        if not isinstance(message["content"], str):
            raise InvalidValue(f"the content of a message of {name} is a text, not {message['content']!r:.80}")
    return messages


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the training pairs and the test pairs, which are held out.

    Raises:
        InvalidValue: One of them is empty, because there are too few groups.
    """
    learned, tested = [pair for pair in pairs if not pair.held_out], [pair for pair in pairs if pair.held_out]
    if not learned or not tested:
        groups = len({pair.group for pair in pairs})
        raise InvalidValue(
            f"{len(pairs)} pairs of {groups} groups are too few: one group in {HELD_OUT} is held out, by chance; have "
            "pairs of at least 20 conversations"
        )
    return learned, tested


def message(role: str, content: str) -> dict[str, str]:
    """Return a ChatML message."""
    return {"role": role, "content": content}
