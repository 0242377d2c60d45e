"""Check a scenario's compiled functions: the part of `check_scenario` about the course and end of conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from chatgym.dynamics.room import ChatRoom, kernels
from chatgym.scenarios import UNCLEAR_ACT, Scenario
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import expert, fixed, hold, mixed_policy, random_policy, raw, room_of

SHORT = 6
"""Most turns of those conversations that are to be truncated: before anybody loses patience."""
SCRIPT = 12
"""Turns for which conversations are played again."""


def _filled(findings: Findings, scenario: Scenario) -> None:
    """Check that `embed` and `mask` fill their arrays, and that no reading function changes the belief."""
    room, loops = room_of(scenario, 500), kernels(scenario)
    hold(room, random_policy(7))
    room.begin(room.turns > 5)
    belief = room.belief.copy()
    for name, filled, values in (
        ("embed", loops.embed, (np.zeros((500, scenario.embedding_size), np.float32), np.float32(0.5))),
        ("mask", loops.mask, (np.zeros((500, len(scenario.agent_acts)), bool), True)),
    ):
        empty, other = values[0], np.full_like(values[0], values[1])
        filled(room.belief, empty)
        filled(room.belief, other)
        findings.expect(
            np.array_equal(empty, other, equal_nan=True),
            f"`{name}` leaves places of `out` as they were before. Fill all of it: it isn't cleared for you.",
        )
    room.discrete()
    room.expert_acts()
    findings.expect(
        belief.tobytes() == room.belief.tobytes(),
        "one of `index`, `embed`, `mask`, `expert` changes the belief that it reads. Only `respond`, `note` and `hear` "
        "write into it.",
    )


def _keyed(findings: Findings, scenario: Scenario) -> None:
    """Check that a conversation is a function of its key and its acts."""
    size, acts = 64, mixed_policy(scenario, 8)
    leader = room_of(scenario, size)
    leader.begin()
    keys, script = leader.keys.copy(), []
    for _ in range(SCRIPT):
        script.append(acts(leader))
        leader.step(script[-1], leader.outcomes == 0)
    rows, alone = np.arange(size), [0, 5, 40]
    used = room_of(scenario, size, root=77)
    hold(used, random_policy(9))
    first = _course(ChatRoom(scenario, size), keys, script, rows)
    findings.expect(
        _course(ChatRoom(scenario, size), keys, script, rows) == first,
        "the same keys and acts give other conversations the second time. Draw by `chatgym.dynamics.rng.draw` only.",
    )
    findings.expect(
        _course(used, keys, script, rows) == first,
        "a conversation depends on the one before it in its row. Let `start` fill every field of `hidden`, `belief` "
        "and `said`.",
    )
    turned = rows[::-1]
    findings.expect(
        _course(ChatRoom(scenario, size), keys, script, turned) == [turn[::-1] for turn in first]
        and all(
            _course(ChatRoom(scenario, 1), keys, script, rows[i : i + 1]) == [turn[i : i + 1] for turn in first]
            for i in alone
        ),
        "a conversation depends on those beside it, or on its place among them. Let it follow from its key, its acts "
        "and its own records only.",
    )
    other = _course(ChatRoom(scenario, size), keys + np.uint64(1), script, rows)
    findings.expect(
        other != first,
        "other keys give the same conversations. Draw goals and answers by `chatgym.dynamics.rng.draw`.",
    )


def _course(room: ChatRoom, keys: Any, script: list[Any], rows: Any) -> list[list[Any]]:
    """Take T acts, int64[B] each, in `rows`, int[N], of `keys`, uint64[B]; return the states by turn and row."""
    room.begin(keys=keys[rows])
    course = []
    for acts in script:
        room.step(acts[rows], room.outcomes == 0)
        records = (raw(part).tolist() for part in (room.hidden, room.belief, room.said))
        terms = [row.tobytes() for row in room.terms]  # NaN is the same as itself
        course.append(list(zip(*records, room.outcomes.tolist(), terms, strict=True)))
    return course


def _reached(findings: Findings, scenario: Scenario) -> None:
    """Check that conversations are truncated at `max_turns`, and that every declared outcome occurs."""
    seen: set[int] = set()
    overlong = False
    policies = [fixed([act]) for act in range(len(scenario.agent_acts))]
    policies += [expert, random_policy(1), mixed_policy(scenario, 2), mixed_policy(scenario, 3)]
    for policy in policies:
        for most in (SHORT, scenario.max_turns):
            room = room_of(scenario, 500, max_turns=min(most, scenario.max_turns))
            held = hold(room, policy)
            seen |= set(held.outcomes.tolist())
            overlong |= bool((held.turns > room.max_turns).any() or (held.outcomes == 0).any())
    findings.expect(
        not overlong,
        "conversations go on after `max_turns`. Where `last` is true and nothing else ended it, `respond` returns the "
        "last outcome, 'truncated'.",
    )
    never = [name for i, name in enumerate(scenario.outcomes) if i and i not in seen]
    findings.expect(
        not never,
        f"no conversation ever ends as {', '.join(never)}, by random acts, the expert, or one act all the time. "
        "Let it, or drop the outcome.",
    )


def _cut_off(findings: Findings, scenario: Scenario) -> None:
    """Check that the turn at which a conversation is truncated is a turn like any other."""
    cut, going = (room_of(scenario, 500, max_turns=SHORT + more) for more in (0, 1))
    policy = mixed_policy(scenario, 10)
    for room in (cut, going):
        room.begin()
    for _ in range(SHORT):
        acts = policy(going)
        for room in (cut, going):
            room.step(acts, room.outcomes == 0)
    rows = cut.truncations
    terms = [name for i, name in enumerate(scenario.reward_terms) if (cut.terms != going.terms)[rows, i].any()]
    findings.expect(
        not terms,
        f"at truncation the reward terms {', '.join(terms)} aren't what they are if the conversation goes on. Leave "
        "them as they are: a learner adds the value of the state after it.",
    )
    findings.expect(
        raw(cut.said[rows]).tolist() == raw(going.said[rows]).tolist(),
        "at truncation the partner says something else than if the conversation goes on. Let `last` decide the "
        "outcome only.",
    )


def _unclear(findings: Findings, scenario: Scenario) -> None:
    """Check the partner's answer to words that NLU didn't understand."""
    room = room_of(scenario, 1000)
    room.begin()
    acts = np.full(room.size, UNCLEAR_ACT)
    answers: set[str] = set()
    over = 0
    for _ in range(2):
        going = room.outcomes == 0
        room.step(acts, going)
        over += int((going & (room.outcomes > 0)).sum())
        meanings = [scenario.partner_meaning(record) for record in room.said[going & (room.outcomes == 0)]]
        answers |= {"/".join((meaning.act, *meaning.slots)) for meaning in meanings}
    findings.expect(
        len(answers) == 1 and answers <= set(scenario.user_acts) and over < room.size / 2,
        f"to words that weren't understood (UNCLEAR_ACT) the partner says {', '.join(sorted(answers)) or 'nothing'}, "
        f"and {over} of {room.size} conversations end by two of them. Let it ask what was meant, by one act without "
        "values, and lose patience.",
    )


def _heard(findings: Findings, scenario: Scenario) -> None:
    """Check that `note` and `hear` change the belief as `respond` does at error rate 0."""
    room = room_of(scenario, 60, error_rate=0.0)
    room.begin()
    apart: set[str] = set()
    for turn in range(1, 6):
        going, before, acts = room.outcomes == 0, room.belief.copy(), expert(room)
        room.step(acts, going)
        for i in np.flatnonzero(going & (room.outcomes == 0)):
            scenario.note(before[i], int(acts[i]), turn)
            scenario.hear(before[i], room.said[i])
            apart |= {
                name
                for name in scenario.belief.names or ()
                if before[name][i].tobytes() != room.belief[name][i].tobytes()
            }
    findings.expect(
        not apart,
        f"`note` and `hear` leave other beliefs than `respond` does at error rate 0, in field "
        f"{', '.join(sorted(apart))}. All of them take in the same utterance: let them share a function.",
    )


DYNAMICS: Mapping[str, Callable[[Findings, Scenario], None]] = {
    "filling arrays": _filled,
    "playing conversations again": _keyed,
    "coming to an end": _reached,
    "cutting conversations off": _cut_off,
    "playing acts that weren't understood": _unclear,
    "noting and hearing": _heard,
}
"""The checks, by what they do."""
