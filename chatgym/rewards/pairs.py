"""Preference pairs, the training data of reward models: JSON lines, one pair each::

    {"prompt": [{"role": "user", "content": "..."}], "chosen": [...], "rejected": [...], "kind": "rude", "group": "17"}

``prompt`` (can be empty), ``chosen`` and ``rejected`` are ChatML messages: the conversation of ``prompt`` and
``chosen`` is better than that of ``prompt`` and ``rejected``. ``kind`` says what is wrong with the worse one; reports
count by it. ``group`` names the conversation that the pair is made from: whole groups are held out, so that no
conversation is in both training and test pairs. Both keys are optional, and other projects' columns of these names are
passed over if they hold something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatgym.errors import InvalidValue
from chatgym.rewards import forms
from chatgym.rewards.protocol import Conversation
from chatgym.storage.paths import given

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
        InvalidValue: The file can't be read, or a line is no pair; the message names the line and what is wrong.
    """
    path = given(path)
    if not path.exists():
        raise InvalidValue(f"there is no {path}; `chatgym reward pairs --out {path}` makes pairs")
    pairs = forms.read_records(path, _pair)
    if not pairs:
        raise InvalidValue(f"{path} holds no pairs; write one JSON object per line: {', '.join(KEYS)}")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs to a file, atomically."""
    from chatgym.storage import atomic

    text = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    atomic.write_text(given(path), text)


def _pair(record: Any, where: str) -> Pair:
    """Return the pair in a record, which stands at `where`, or raise `InvalidValue`."""
    prompt, chosen, rejected = forms.preference(record)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not any(message["role"] == "assistant" for message in side):
            raise InvalidValue(f"{name} has no message of the assistant: there is nothing to judge in it")
    if chosen == rejected:
        raise InvalidValue(
            "chosen and rejected are the same; leave out ties, as by "
            '`dataset.filter(lambda one: one["chosen"] != one["rejected"])`'
        )
    named = [record[name] for name in ("group", "prompt_id") if isinstance(record.get(name), str | int)]
    kind = record.get("kind")
    return Pair(prompt, chosen, rejected, kind if isinstance(kind, str) else "", str(named[0] if named else where))


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
