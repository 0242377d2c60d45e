"""Check that a scenario has words for everything: the part of `check_scenario` about sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chatgym.scenarios import TONES, Meaning, Scenario, fill
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import Turns, mixed_policy, room_of

LOOKED_AT = 1500
"""Utterances of each role whose words are looked up."""
ROWS, TURNS = 50, 8
"""Conversations, and turns of each, in which what was heard is looked at."""


def check_words(findings: Findings, scenario: Scenario, turns: Turns) -> None:
    """Check sentences, descriptions and NLU data against recorded turns."""
    chosen = np.random.default_rng(4).choice(turns.acts.size, min(LOOKED_AT, turns.acts.size), replace=False)
    said = np.concatenate([turns.opening[:300], turns.said.ravel()[chosen]])
    before, acts = turns.before.ravel()[chosen], turns.acts.ravel()[chosen]
    with findings.trying("describing goals and beliefs in words"):
        _descriptions(findings, scenario, turns.hidden.ravel()[chosen[:300]], before[:300])
    path = scenario.folder / "sentences.json"
    if not findings.expect(path.is_file(), f"there is no {path}. Write it: nobody can talk without sentences."):
        return
    with findings.trying("reading sentences.json"):
        _nlu_data(findings, scenario)
    with findings.trying("wording what the partner says"):
        _partner(findings, scenario, said)
    with findings.trying("wording what was heard"):
        _heard(findings, scenario)
    with findings.trying("wording what the agent says"):
        _agent(findings, scenario, acts, before)
    with findings.trying("parsing what was understood"):
        _parsed(findings, scenario, said)


def _descriptions(findings: Findings, scenario: Scenario, hidden: Any, beliefs: Any) -> None:
    """Check the texts for people: instructions, and descriptions of `hidden` and `beliefs`, records[N]."""
    rules = scenario.instructions()
    findings.expect(
        isinstance(rules, str) and rules.strip(),
        "instructions() is empty. Say all that an agent has to know before it begins: a language model reads it.",
    )
    for name, describe, records in (
        ("describe_goal", scenario.describe_goal, hidden), ("describe_belief", scenario.describe_belief, beliefs)
    ):  # fmt: skip
        texts = [describe(record) for record in records]
        findings.expect(
            all(isinstance(text, str) and text.strip() for text in texts) and len(set(texts)) > 1,
            f"{name}() gives {len(set(texts))} text for {len(texts)} records, or an empty one. Describe what is in "
            "them: people read it beside a conversation.",
        )


def _nlu_data(findings: Findings, scenario: Scenario) -> None:
    """Check that sentences.json has the parts and paraphrases that NLU learns from."""
    sentences = scenario.sentences
    lacking = [key for key in ("partner", "agent", "situations", "nlu", "vocabulary") if key not in sentences]
    if not findings.expect(not lacking, f"sentences.json lacks {', '.join(lacking)}. See docs/plugins.md."):
        return
    nlu: Mapping[str, Any] = sentences["nlu"]
    for role in ("partner", "agent"):
        untaught = sorted(part for part in sentences[role] if not nlu.get(role, {}).get(part))
        findings.expect(
            not untaught,
            f"NLU has no paraphrases of the {role}'s {', '.join(untaught)}. Write some under nlu/{role}.",
        )
        acts = scenario.user_acts if role == "partner" else scenario.agent_acts
        strange = sorted(part for part in sentences[role] if part.partition("/")[0] not in acts)
        findings.expect(
            not strange,
            f"the {role}'s sentences have parts of no act: {', '.join(strange)}. A part is an act's name, or "
            "act/something.",
        )
    findings.expect(
        nlu.get("out_of_domain"),
        "sentences.json has nothing under nlu/out_of_domain. Write texts that mean none of the acts: else everything "
        "is understood as one.",
    )
    situations = sorted(set(sentences["partner"]) - set(sentences["situations"]))
    findings.expect(
        not situations, f"no situation is given for {', '.join(situations)}. A language model is prompted with it."
    )


def _heard(findings: Findings, scenario: Scenario) -> None:
    """Check that all that was said is heard without errors, and that with errors there are words for what is heard."""
    if scenario.heard_meaning is None:
        return
    changed, lacking = set(), set()
    for error_rate in (0.0, 0.5):
        room, policy = room_of(scenario, ROWS, error_rate=error_rate), mixed_policy(scenario, 15)
        room.begin()
        for _ in range(TURNS):
            going = room.outcomes == 0
            for row in np.flatnonzero(going).tolist():
                said, heard = room.said[row], scenario.heard_meaning(room.said[row], room.belief[row])
                if error_rate == 0 and heard != scenario.partner_meaning(said):
                    changed.add(heard.act)
                lacking |= {*heard.parts, *heard.unsure} - scenario.sentences["partner"].keys()
            room.step(policy(room), going)
    findings.expect(
        not changed,
        f"heard_meaning() differs from partner_meaning() where nothing is misheard: {', '.join(sorted(changed))}. Take "
        "from the belief only the act and the values that were just heard.",
    )
    findings.expect(not lacking, f"heard_meaning() has parts without sentences: {', '.join(sorted(lacking))}.")


def _partner(findings: Findings, scenario: Scenario, said: Any) -> None:
    """Check that every utterance in `said`, records[N], has sentences without open slots."""
    names = scenario.said.names or ()
    sentences = scenario.sentences["partner"]
    lacking, unfilled, unlike = set(), set(), set()
    for record in said:
        meaning = scenario.partner_meaning(record)
        if meaning != scenario.partner_meaning(dict(zip(names, record.item(), strict=True))):
            unlike.add(meaning.act)
        for part in meaning.parts:
            if meaning.tone not in TONES or not (sentences.get(part, {}).get(meaning.tone) or _calm(sentences, part)):
                lacking.add(f"{part} ({meaning.tone})")
            else:
                unfilled |= _unfilled(part, sentences[part].get(meaning.tone) or _calm(sentences, part), meaning)
    findings.expect(
        not lacking,
        f"the partner has no words for {', '.join(sorted(lacking))}. Write sentences, at least calm ones.",
    )
    findings.expect(not unfilled, _left_open("partner", unfilled))
    findings.expect(
        not unlike,
        f"partner_meaning() means something else where it is given a dict: {', '.join(sorted(unlike))}. "
        "Read fields as said['act'].",
    )


def _calm(sentences: Mapping[str, Any], part: str) -> Any:
    """Return the calm sentences of a part."""
    return sentences.get(part, {}).get("calm")


def _agent(findings: Findings, scenario: Scenario, acts: Any, beliefs: Any) -> None:
    """Check that `acts`, int64[N], at `beliefs`, records[N], have sentences without open slots."""
    sentences = scenario.sentences["agent"]
    lacking, unfilled, other = set(), set(), set()
    for act, belief in zip(acts.tolist(), beliefs, strict=True):
        if not 0 <= act < len(scenario.agent_acts):
            continue
        meaning = scenario.agent_meaning(act, belief)
        if meaning.act != scenario.agent_acts[act]:
            other.add(f"{scenario.agent_acts[act]} as {meaning.act}")
        for part in meaning.parts:
            if not sentences.get(part):
                lacking.add(part)
                continue
            unfilled |= _unfilled(part, sentences[part], meaning)
    findings.expect(
        not lacking, f"the agent has no words for {', '.join(sorted(lacking))}. Write sentences for it under agent."
    )
    findings.expect(not unfilled, _left_open("agent", unfilled))
    findings.expect(not other, f"agent_meaning() gives acts as others: {', '.join(sorted(other))}. Keep its name.")


def _unfilled(part: str, templates: list[str], meaning: Meaning) -> set[str]:
    """Return the templates of a part in which a slot stays open."""
    return {f"{part}: {text!r}" for text in templates if "{" in fill(text, meaning.slots)}


def _left_open(role: str, unfilled: set[str]) -> str:
    """Return the message about open slots."""
    few = ", ".join(sorted(unfilled)[:3])
    return f"a slot stays open in the {role}'s words of {few}. Name it in the meaning's `slots`, or leave it out."


def _parsed(findings: Findings, scenario: Scenario, said: Any) -> None:
    """Check that the first sentences of what is meant by `said`, records[N], mean the same after find_slots and parse.

    Of a meaning of several parts, parse gets the first one, and the values of all.
    """
    sentences, changed, seen = scenario.sentences["partner"], set(), set()
    for record in said:
        meaning = scenario.partner_meaning(record)
        part, content = meaning.parts[0], (meaning.parts, *meaning.slots.items())
        if content in seen or not all(_calm(sentences, each) for each in meaning.parts):
            continue
        seen.add(content)
        text = " ".join(fill(_calm(sentences, each)[0], meaning.slots) for each in meaning.parts)
        parsed = np.zeros(1, scenario.said)[0]
        scenario.parse(meaning.act, part, scenario.find_slots(text)[0], parsed)
        again = scenario.partner_meaning(parsed)
        kept = (again.act, dict(again.slots)) == (meaning.act, dict(meaning.slots))
        named = len(meaning.parts) == 1 and "/" in part  # as a problem is in state_problem/refund
        if not kept or (named and again.parts != meaning.parts):
            changed.add(f"{part} {dict(meaning.slots)} to {again.parts[0]} {dict(again.slots)}")
    findings.expect(
        not changed,
        f"what is said, found by find_slots() and written by parse() means something else: "
        f"{', '.join(sorted(changed)[:3])}. parse() is the inverse of partner_meaning(): let it write the act, what "
        "the part names, and every value of `slots`.",
    )
