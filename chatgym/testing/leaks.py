"""Check that beliefs contain only what was said: the part of `check_scenario` about leaks of hidden state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import Meaning, Scenario
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import mixed_policy, raw, room_of

AT_FIRST = 20_000
"""Conversations whose first belief is compared with what is hidden."""
EXPECTED = 20.0
"""How often two values have to be expected together before their number says something."""
DEVIATIONS = 7.0
"""How far from chance is a leak: of a million true independences none would be so far off."""

Columns = Iterator[tuple[str, npt.NDArray[np.int64]]]


def check_leaks(findings: Findings, scenario: Scenario) -> None:
    """Check by experiment that the belief is independent of the partner's hidden record, given what it said."""
    for name, takes in (("index", 1), ("embed", 2), ("mask", 2), ("expert", 1)):
        function = getattr(scenario, name)
        count = len(inspect.signature(getattr(function, "py_func", function)).parameters)
        findings.expect(
            count == takes,
            f"`{name}` takes {count} arguments, not {takes}. What an agent sees is a function of its belief alone.",
        )
    _at_first(findings, scenario)
    _later(findings, scenario)


def _later(findings: Findings, scenario: Scenario) -> None:
    """Exchange the hidden records between rows: where the partner then says the same, the belief must be the same.

    The key stays, so the error channel makes the same errors; any difference comes from `hidden`.
    """
    room, policy = room_of(scenario, 1000), mixed_policy(scenario, 5)
    other = ChatRoom(scenario, room.size)
    generator = np.random.default_rng(6)
    meaning_of = _numbered(scenario)
    leaking: set[str] = set()
    room.begin()
    for _ in range(10):
        acts = policy(room)
        other.load(room.dump())
        other.hidden[:] = other.hidden[generator.permutation(room.size)]
        other.step(acts)
        room.step(acts)
        same = meaning_of(room.said) == meaning_of(other.said)
        same &= room.outcomes == other.outcomes
        for name in scenario.belief.names or ():
            if room.belief[name][same].tobytes() != other.belief[name][same].tobytes():
                leaking.add(name)
        room.begin(room.terminations | room.truncations)
    findings.expect(
        not leaking,
        f"`respond` lets the belief know what nobody said: with another `hidden`, but the same answer, there is "
        f"something else in belief field {_names(leaking)}. Fill `belief` from `said`, its own past and draws of the "
        "key only.",
    )


def _at_first(findings: Findings, scenario: Scenario) -> None:
    """Check that among conversations with the same first words the belief is independent of `hidden`."""
    room = room_of(scenario, AT_FIRST, root=2**40)
    room.begin()
    leaking: set[tuple[str, str]] = set()
    numbers, counts = np.unique(meanings := _numbered(scenario)(room.said), return_counts=True)
    for number in numbers[counts.argsort()[::-1][:4]]:
        rows = meanings == number
        if rows.sum() < 500:
            continue
        beliefs, goals = list(_columns(room.belief[rows])), list(_columns(room.hidden[rows]))
        for what, believed in beliefs:
            leaking |= {(what, goal) for goal, hidden in goals if _dependence(believed, hidden) > DEVIATIONS}
    findings.expect(
        not leaking,
        "`start` lets the belief know what nobody said: where the first words are the same, "
        + ", ".join(sorted(f"belief field '{a}' goes with hidden '{b}'" for a, b in leaking)[:5])
        + ". Fill `belief` from `said`, and give every draw a purpose number of its own.",
    )


def _numbered(scenario: Scenario) -> Callable[[Any], npt.NDArray[np.int64]]:
    """Return a function from utterances, records[N], to the numbers of their meanings, int64[N]."""
    of_record: dict[bytes, int] = {}
    of_meaning: dict[Any, int] = {}

    def number(record: bytes) -> int:
        """Return the number of a record's meaning."""
        if record not in of_record:
            meaning: Meaning = scenario.partner_meaning(np.frombuffer(record, scenario.said)[0])
            content = (meaning.act, meaning.parts, tuple(sorted(meaning.slots.items())), meaning.tone)
            of_record[record] = of_meaning.setdefault(content, len(of_meaning))
        return of_record[record]

    return lambda said: np.array([number(record) for record in raw(said).tolist()])


def _columns(records: Any) -> Columns:
    """Yield each field of records[N] as classes, int64[N]: small numbers unchanged, large ones bit by bit."""
    for name in records.dtype.names:
        values = np.ascontiguousarray(records[name]).reshape(len(records), -1)
        for k in range(values.shape[1]):
            column, label = values[:, k], name if values.shape[1] == 1 else f"{name}[{k}]"
            distinct, classes = np.unique(column, return_inverse=True)
            if 2 <= len(distinct) <= 32:
                yield label, classes
            elif len(distinct) > 32 and column.dtype.kind in "iu":
                for bit in range(8 * column.dtype.itemsize):
                    yield label, (column >> column.dtype.type(bit) & column.dtype.type(1)).astype(np.int64)
            elif len(distinct) > 32:
                yield label, np.searchsorted(np.quantile(column, np.arange(1, 8) / 8), column)


def _dependence(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Return the largest deviation from independence of values a and b, both int64[N], in standard deviations."""
    n, wide = len(a), int(b.max()) + 1
    table = np.bincount(a * wide + b, minlength=(int(a.max()) + 1) * wide).reshape(-1, wide)
    p, q = table.sum(1, keepdims=True) / n, table.sum(0, keepdims=True) / n
    expected = n * p * q
    deviation = np.sqrt(expected * (1 - p) * (1 - q))
    counts = (expected >= EXPECTED) & (deviation > 0)
    return float((np.abs(table - expected)[counts] / deviation[counts]).max(initial=0.0))


def _names(names: set[str]) -> str:
    """Return names in quotes, sorted."""
    return ", ".join(f"'{name}'" for name in sorted(names))
