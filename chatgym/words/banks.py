"""Banks of wordings, and those that ship with a scenario.

A scenario's ``banks.json`` holds the wordings of the default model for every bank that its partner can ask for, so that
a user's machine needs no model to speak them. ``chatgym scenarios NAME --fill-banks`` writes it: the model generates
lines, the wording guard checks them, and the wordings in ``dropped.json``, which were read and rejected, are left out.
``key`` is a digest of everything that the wordings are made with (`chatgym.words.nlg.Speaker.digest`); a speaker with
another digest does not use the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from chatgym.errors import Corrupted
from chatgym.scenarios import Scenario
from chatgym.storage.utf8 import read_json

FILE, DROPPED = "banks.json", "dropped.json"


@dataclass(frozen=True)
class Bank:
    """Wordings of one part in one tone, perhaps after one act of the agent's; ``{name}`` where a value belongs.

    Attributes:
        accepted: What the guard let pass, in the order of sampling.
        rejected: (text, reason) of the others; empty for a bank that ships.
        sampled: How many lines the model generated for it, if `rejected` does not tell.
    """

    accepted: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    sampled: int = 0

    @property
    def candidates(self) -> int:
        """How many lines the model generated for it."""
        return self.sampled or len(self.accepted) + len(self.rejected)

    def to_json(self) -> str:
        """Write it as the cache keeps it."""
        return json.dumps({"accepted": self.accepted, "rejected": self.rejected}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Bank:
        """Read what `to_json` wrote."""
        found = json.loads(text)
        return cls(tuple(found["accepted"]), tuple((text, why) for text, why in found["rejected"]))


@dataclass(frozen=True)
class Shipped:
    """The content of a ``banks.json``.

    Attributes:
        engine: Identity of the engine that generated the wordings.
        key: `Speaker.digest` of the speaker that made them.
        banks: Name to bank.
    """

    engine: str
    key: str
    banks: Mapping[str, Bank]


@functools.cache
def shipped(scenario: Scenario) -> Shipped | None:
    """Read the banks that ship with a scenario; None if there are none.

    Raises:
        Corrupted: The file is not as `chatgym.words.shipping.write` writes it.
    """
    path = scenario.folder / FILE
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        banks = {
            name: Bank(tuple(map(str, bank["wordings"])), sampled=int(bank["candidates"]))
            for name, bank in found["banks"].items()
        }
        return Shipped(str(found["engine"]), str(found["key"]), banks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); {_remedy(scenario)}") from error


def dropped(scenario: Scenario) -> dict[str, list[str]]:
    """Return the wordings that were read and rejected, by the name of their bank.

    Raises:
        Corrupted: The file cannot be read.
    """
    path = scenario.folder / DROPPED
    try:
        found = read_json(path) if path.is_file() else {}
        return {name: list(map(str, wordings)) for name, wordings in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); restore it, or delete it to drop nothing") from error


def _remedy(scenario: Scenario) -> str:
    return f"`chatgym scenarios {scenario.name} --fill-banks` makes it anew"
