"""Preference pairs from people's ratings of open-domain chats: ``chatgym reward pairs --from chitchat``.

The chats are those of the package chitchat-dataset (MIT licence), between two people each. One of them rated how
interesting, upbeat and witty the chat was, from 1 to 10. The form was preset to 5, 5, 5, so such ratings are left out.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

from chatgym.errors import Unavailable
from chatgym.rewards.pairs import Pair, is_held_out, message

QUALITIES = ("interesting", "upbeat", "witty")
UNTOUCHED = 5
DIFFERENCE = 3
"""Least difference between the ratings of a pair, in points of 30; smaller ones are ties."""
MESSAGES = 4
"""Least messages of a chat: two of each person."""


def pairs_of(most: int | None = None, *, seed: int = 0) -> list[Pair]:
    """Return pairs of chats that were rated differently; a chat is in one pair at most.

    The person who answers first is the agent. Chats are paired at random within each side of the split
    (`chatgym.rewards.pairs.split`), so no chat is in both training and test pairs.

    Args:
        most: The most pairs; None for all.
        seed: Seed of the pairing.

    Raises:
        Unavailable: The package chitchat-dataset isn't installed.
    """
    try:
        from chitchat_dataset import Dataset
    except ImportError as error:
        raise Unavailable("the chats are in a package of their own: pip install 'chatgym[chitchat]'") from error
    return pair(Dataset(), seed=seed)[:most]


def pair(chats: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> list[Pair]:
    """Return pairs of chats, given by name in the package's form, see `pairs_of`."""
    rated = []
    for name, chat in chats.items():
        rating, said = _rating(chat.get("ratings")), _messages(chat)
        if rating is not None and len(said) >= MESSAGES:
            rated.append((f"chitchat/{name}", rating, said))
    rated.sort(key=lambda one: _place(one[0], seed))
    pairs = []
    for side in (False, True):
        here = [one for one in rated if is_held_out(one[0]) is side]
        for first, second in itertools.zip_longest(here[::2], here[1::2]):
            if second is not None and abs(first[1] - second[1]) >= DIFFERENCE:
                better, worse = (first, second) if first[1] > second[1] else (second, first)
                pairs.append(Pair([], better[2], worse[2], "rating", better[0]))
    return sorted(pairs, key=lambda one: _place(one.group, seed))  # both sides mixed, in any first part


def _place(name: str, seed: int) -> bytes:
    """Return the key that orders chats at random."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _rating(ratings: Any) -> int | None:
    """Return the sum of a chat's ratings, or None if there are none, or all are as preset."""
    try:
        values = [int(ratings[quality]) for quality in QUALITIES]
    except (TypeError, KeyError, ValueError):
        return None
    return None if all(value == UNTOUCHED for value in values) else sum(values)


def _messages(chat: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a chat of two people as alternating messages; an empty list if there aren't two."""
    lines = [(line["sender"], line["text"].strip()) for lines in chat["messages"] for line in lines]
    lines = [(sender, text) for sender, text in lines if text]
    if len({sender for sender, _ in lines}) != 2:
        return []
    begins = lines[0][0]
    return [
        message("user" if sender == begins else "assistant", "\n".join(text for _, text in said))
        for sender, said in itertools.groupby(lines, key=lambda line: line[0])
    ]
