"""The audit: real partners contradict themselves nowhere, and each contradiction is found where it is planted."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import chatgym
from chatgym import plugins
from chatgym.cli.app import app
from chatgym.cli.audit import SEED
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import Unavailable
from chatgym.evaluation.audit import AUDIT_SEED, Audit, judge, misheard
from chatgym.evaluation.audit_policies import AGENTS, ending_acts
from chatgym.scenarios import Meaning, Scenario
from chatgym.scenarios.contradictions import Exchange, Finding, never_ends, repeats
from chatgym.scenarios.customer_service import SCENARIO as CUSTOMER_SERVICE
from chatgym.scenarios.customer_service import policy as cs
from chatgym.scenarios.education import SCENARIO as EDUCATION
from chatgym.scenarios.education import policy as ed
from chatgym.scenarios.social import SCENARIO as SOCIAL
from chatgym.scenarios.social import policy as so
from chatgym.words.nlu import Understanding, nlu_of

SCENARIOS = (CUSTOMER_SERVICE, EDUCATION, SOCIAL)


@pytest.mark.parametrize("error_rate", [0.1, 0.4])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_built_in_partners_never_contradict_themselves(scenario: Scenario, error_rate: float) -> None:
    audit = Audit(scenario, error_rate=error_rate)
    for agent in AGENTS:
        audit.audit_acts(agent, 150, seed=AUDIT_SEED + int(1000 * error_rate))
    assert audit.findings == []
    assert audit.conversations == dict.fromkeys(AGENTS, 150)
    assert audit.turns > 5000
    assert audit.rate("denies").high < 0.004


def test_the_agents_do_what_they_are_for() -> None:
    closing = ending_acts(CUSTOMER_SERVICE)
    assert [CUSTOMER_SERVICE.agent_acts[i] for i in closing.nonzero()[0]] == ["escalate", "close"]
    acts = {
        agent: [[exchange.act for exchange in conversation[1:]] for conversation in _held("customer_service", agent)]
        for agent in AGENTS
    }
    assert all(len(set(taken)) == 1 for taken in acts["repeating"])
    assert len({taken[0] for taken in acts["repeating"]}) > 8
    assert max(len(taken) for taken in acts["hasty"]) <= 3
    assert not any(closing[act] for taken in acts["clinging"] for act in taken)
    assert len({tuple(taken) for taken in acts["perturbed"]}) > 150
    senseless = [exchange for conversation in _held("customer_service", "senseless") for exchange in conversation[1:]]
    assert any(exchange.act == cs.CHECK and not exchange.belief["accepted"] for exchange in senseless)


@functools.cache
def _held(name: str, agent: str) -> list[list[Exchange]]:
    scenario = next(one for one in SCENARIOS if one.name == name)
    return list(
        Audit(scenario).record(
            ChatVectorEnv(200, scenario=scenario, observation="discrete", llm="template"), agent, AUDIT_SEED
        )
    )


def _planted(
    scenario: Scenario, where: Callable[[Exchange, Exchange], bool], change: Callable[..., dict[str, Any]]
) -> list[Finding]:
    """Change the first exchange (given it and the one before) that is like that, and judge the conversation."""
    for agent in ("perturbed", "clinging", "random"):
        for conversation in _held(scenario.name, agent):
            for before, exchange in itertools.pairwise(conversation):
                if where(exchange, before):
                    changed = list(conversation)
                    fields = change(exchange, before)
                    for name in ("said", "before", "after"):
                        fields[name] = {**getattr(exchange, name), **fields.get(name, {})}
                    changed[exchange.turn] = dataclasses.replace(exchange, **fields)
                    assert list(judge(conversation)) == []
                    return [finding for finding in judge(changed) if finding.turn == exchange.turn]
    raise AssertionError("there is no such exchange")


def _act(act: int) -> Callable[[Exchange, Exchange], bool]:
    return lambda exchange, _: exchange.said["act"] == act


CS, ED, SO = CUSTOMER_SERVICE, EDUCATION, SOCIAL
PLANTED: dict[str, tuple[Scenario, str, Callable[..., bool], Callable[..., dict[str, Any]]]] = {
    "a date that isn't the customer's": (
        CS, "denies", lambda e, b: e.said["act"] == cs.INFORM and e.said["about"] == cs.DATE,
        lambda e, b: {"said": {"date": e.said["date"] + 1}},
    ),
    "a topic that isn't the customer's": (
        CS, "denies", _act(cs.STATE_PROBLEM), lambda e, b: {"said": {"topic": (e.said["topic"] + 1) % 6}},
    ),
    "a yes to a wrong value": (CS, "denies", _act(cs.CORRECT), lambda e, b: {"said": {"act": cs.AFFIRM, "slots": 0}}),
    "a refusal of what was accepted": (
        CS, "denies", lambda e, b: e.act == cs.CHECK and e.said["act"] == cs.THANK,
        lambda e, b: {"said": {"act": cs.REJECT}},
    ),
    "anger in a good mood": (CS, "denies", lambda e, b: e.after["mood"] > 7, lambda e, b: {"said": {"tone": 2}}),
    "a complaint in a good mood": (
        CS, "denies", lambda e, b: e.before["mood"] > 7, lambda e, b: {"said": {"act": cs.COMPLAIN}},
    ),
    "another goal": (CS, "denies", lambda e, b: e.turn == 2, lambda e, b: {"after": {"topic": 5 - e.after["topic"]}}),
    "a value that wasn't asked for": (
        CS, "unasked", lambda e, b: e.act == cs.ASK_DATE and e.said["act"] == cs.INFORM,
        lambda e, b: {"said": {"about": cs.REFERENCE, "slots": 2, "reference": e.after["reference"]}},
    ),
    "thanks for an offer": (CS, "unasked", _act(cs.REJECT), lambda e, b: {"said": {"act": cs.THANK}}),
    "a second complaint": (
        CS, "repeats", lambda e, b: b.said["act"] == cs.COMPLAIN and e.act in (cs.ASK_TOPIC, cs.ASK_DATE),
        lambda e, b: {"said": {**b.said, "tone": e.said["tone"]}},
    ),
    "a question that was answered": (
        CS, "denies", lambda e, b: b.act == cs.EXPLAIN and b.said["act"] == cs.THANK and e.act == cs.CHECK,
        lambda e, b: {"said": {"act": cs.ASK_MORE}, "before": {"question": 1}},
    ),
    "hanging up in a fair mood": (
        CS, "early", lambda e, b: e.outcome == "hung_up", lambda e, b: {"after": {"mood": 2}},
    ),
    "a goodbye in the middle": (
        CS, "early", lambda e, b: e.act == cs.EXPLAIN and not e.outcome, lambda e, b: {"said": {"act": cs.BYE}},
    ),
    "staying at the end of the mood": (CS, "stays", lambda e, b: e.outcome == "hung_up", lambda e, b: {"outcome": ""}),
    "patience without end": (
        CS, "stays", lambda e, b: e.turn > e.before["patience"] and e.act == cs.ASK_TOPIC and b.after["mood"] > 3,
        lambda e, b: {"after": {"mood": e.before["mood"]}},
    ),
    "staying after a goodbye": (CS, "stays", lambda e, b: e.act == cs.CLOSE, lambda e, b: {"outcome": ""}),
    "another lesson": (
        ED, "denies", _act(ed.STATE_GOAL), lambda e, b: {"said": {"goal": 1 + e.said["goal"] % 5}},
    ),
    "the answer to another question": (
        ED, "denies", lambda e, b: e.said["act"] == ed.ANSWER and not e.said["about"],
        lambda e, b: {"said": {"num": e.said["num"] + 1000 * e.said["den"]}},
    ),
    "another answer when it is checked": (
        ED, "denies", lambda e, b: e.said["act"] == ed.ANSWER and e.said["about"] == 1,
        lambda e, b: {"said": {"num": e.said["num"] + 1}},
    ),
    "fine, though bored": (
        ED, "denies", lambda e, b: e.act == ed.ASK_FEELING and e.said["act"] == ed.BORED,
        lambda e, b: {"said": {"act": ed.FINE}},
    ),
    "bored, though it isn't": (
        ED, "unasked", lambda e, b: max(e.before["boredom"], e.before["frustration"]) < 6 and e.act == ed.EXPLAIN
        and e.said["act"] == ed.UNDERSTOOD, lambda e, b: {"said": {"act": ed.BORED}},
    ),
    "frustrated, though it isn't": (
        ED, "denies", lambda e, b: e.act == ed.ASK_FEELING and e.before["frustration"] < 6,
        lambda e, b: {"said": {"act": ed.FRUSTRATED}},
    ),
    "a yes to another plan": (
        ED, "unasked", lambda e, b: e.act == ed.PLAN and e.said["act"] == ed.STATE_GOAL,
        lambda e, b: {"said": {"act": ed.AGREE}},
    ),
    "an answer without a question": (
        ED, "unasked", lambda e, b: e.act == ed.PRAISE, lambda e, b: {"said": {"act": ed.ANSWER, "num": 1, "den": 2}},
    ),
    "leaving a bearable lesson": (
        ED, "early", lambda e, b: e.outcome == "gave_up", lambda e, b: {"after": {"boredom": 8, "frustration": 8}},
    ),
    "staying in an unbearable lesson": (ED, "stays", lambda e, b: e.outcome == "gave_up", lambda e, b: {"outcome": ""}),
    "a lesson that never bores": (
        ED, "stays", lambda e, b: e.turn > e.before["patience"] and e.act == ed.ASK_GOAL and not e.outcome,
        lambda e, b: {"after": {"boredom": e.before["boredom"]}},
    ),
    "a lesson learned by nobody": (
        ED, "denies", lambda e, b: e.outcome == "little_learned", lambda e, b: {"outcome": "learned"},
    ),
    "another feeling": (
        SO, "denies", _act(so.STATE_FEELING), lambda e, b: {"said": {"feeling": (e.said["feeling"] + 1) % 4}},
    ),
    "a yes to a wrong cause": (
        SO, "denies", _act(so.CORRECT), lambda e, b: {"said": {"act": so.AFFIRM, "about": -1, "slots": 0}},
    ),
    "no relief, though it is there": (
        SO, "denies", _act(so.FEEL_BETTER), lambda e, b: {"said": {"act": so.STATE_FEELING}},
    ),
    "advice for who wants to be heard": (
        SO, "denies", _act(so.WANT_LISTENING), lambda e, b: {"said": {"act": so.WANT_ADVICE}},
    ),
    "comfort by what hurts": (
        SO, "denies", lambda e, b: e.act == so.PICTURE and e.said["act"] == so.AFFIRM,
        lambda e, b: {"before": {"likes_pictures": 0}},
    ),
    "silence about what it told": (
        SO, "unasked", lambda e, b: e.act == so.ASK_FEELING and e.before["told"] & 2,
        lambda e, b: {"said": {"act": so.DEFLECT}},
    ),
    "another fact than was asked for": (
        SO, "unasked", lambda e, b: e.act == so.ASK_CAUSE and e.said["act"] == so.STATE_CAUSE,
        lambda e, b: {"said": {"act": so.STATE_PROBLEM, "about": 0, "slots": 1, "problem": e.after["problem"]}},
    ),
    "leaving at some rapport": (SO, "early", lambda e, b: e.outcome == "left", lambda e, b: {"after": {"rapport": 1}}),
    "staying without rapport": (SO, "stays", lambda e, b: e.outcome == "left", lambda e, b: {"outcome": ""}),
    "patience for questions without end": (
        SO, "stays", lambda e, b: e.turn > e.before["patience"] and e.act == so.CHECK and e.before["rapport"] > 2,
        lambda e, b: {"after": {"rapport": e.before["rapport"]}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_contradiction_is_found(what: str) -> None:
    scenario, kind, where, change = PLANTED[what]
    assert kind in {finding.kind for finding in _planted(scenario, where, change)}


def test_a_conversation_that_goes_on_past_its_last_turn_is_found() -> None:
    conversation = next(one for one in _held("social", "clinging") if one[-1].outcome == "truncated")
    assert list(never_ends(conversation, 20)) == []
    endless = [*conversation[:-1], dataclasses.replace(conversation[-1], outcome="")]
    assert [finding.kind for finding in never_ends(endless, 20)] == ["stays"]
    assert "stays" in {finding.kind for finding in judge(endless)}


def test_a_repetition_is_found_without_the_scenario_s_help_unless_it_was_asked_for() -> None:
    def where(exchange: Exchange) -> bool:
        return exchange.said["act"] == cs.INFORM and exchange.act == cs.ASK_DATE

    conversation, at = next(
        (one, exchange.turn) for one in _held("customer_service", "random") for exchange in one[:-2] if where(exchange)
    )
    pair = conversation[at : at + 2]
    for act, found in ((cs.ASK_DATE, []), (cs.ASK_PROOF, ["repeats"])):
        again = dataclasses.replace(pair[1], act=act, said={**pair[0].said, "tone": 2})
        assert [finding.kind for finding in repeats([pair[0], again])] == found
    yes = {**pair[0].said, "act": cs.AFFIRM, "slots": 0, "about": cs.DATE}
    assert list(repeats([dataclasses.replace(one, said=yes) for one in pair])) == []


def test_the_checks_decide_nothing_about_a_conversation_s_course() -> None:
    for scenario in SCENARIOS:
        assert scenario.audit is not None
        assert dataclasses.replace(scenario, audit=None).digest == scenario.digest


# -- Words -------------------------------------------------------------------------------------------------------------


def test_wording_that_misses_its_act_or_a_value_is_found() -> None:
    meaning = Meaning("inform", ("inform/date", "inform/amount"), {"date": "3 days ago", "amount": "40 euros"})
    slots = {"date": 3, "amount": 40}

    def heard(act: str, values: dict[str, Any]) -> str:
        return misheard(CUSTOMER_SERVICE, meaning, Understanding(act, f"{act}/date", values, 0.9))

    assert heard("inform", slots) == ""
    assert heard("correct", slots) == "heard as correct/date (0.90)"
    assert heard("unclear", slots) == "not understood (0.90)"
    assert heard("inform", {"date": 3}) == "amount heard as nothing"
    assert heard("inform", {**slots, "date": 30}) == "date heard as 30"
    corrected = Meaning("correct", ("correct/topic", "state_problem/refund"))
    assert misheard(SOCIAL, corrected, Understanding("state_problem", "state_problem/refund", {}, 0.9)) == ""


def test_a_sentence_of_another_act_is_misheard_and_counted() -> None:
    scenario = dataclasses.replace(SOCIAL)
    nlu = nlu_of(scenario)
    try:
        nlu.understand(["hello"])
    except Unavailable as error:
        pytest.skip(str(error))
    right, wrong = Audit(scenario), Audit(scenario)
    right.audit_words("hasty", 20)
    tones = scenario.sentences["partner"]["greet"]
    scenario.sentences["partner"]["greet"] = {tone: ["Goodbye, that was all."] for tone in tones}  # learnt by no head
    wrong.audit_words("hasty", 20)
    greetings = [found for found in wrong.findings if found.finding.what.startswith("'Goodbye")]
    assert len(greetings) > 3
    assert {found.finding.kind for found in greetings} == {"wording"}
    assert wrong.simple.missed.total() - right.simple.missed.total() == len(greetings)
    assert wrong.simple.utterances == right.simple.utterances > 20
    assert wrong.simple.rate.low > right.simple.rate.value
    assert wrong.contradictions() == 0
    assert wrong.to_json()["wording"]["simple"]["missed"][0]["text"] == "Goodbye, that was all."


# -- Traces and the command --------------------------------------------------------------------------------------------


def grudge(conversation: list[Exchange]) -> Iterator[Finding]:
    """Find something in every second conversation."""
    if conversation[0].after["reference"] % 2:
        yield Finding(1, "unasked", "bears a grudge")


def test_the_traces_behind_findings_replay(tmp_path: Path) -> None:
    audit = Audit(dataclasses.replace(CUSTOMER_SERVICE, audit=grudge), error_rate=0.2)
    audit.audit_acts("perturbed", 60)
    audit.audit_acts("senseless", 10)
    assert 20 < len(audit.of_kind("unasked")) < 50
    assert audit.contradictions("perturbed") + audit.contradictions("senseless") == audit.contradictions()
    assert audit.rate("unasked").value == audit.contradictions() / 70
    (kind, path), *others = audit.write_traces(tmp_path).items()
    assert (kind, others) == ("unasked", [])
    replayed = chatgym.replay(path)
    assert replayed.conversations == 20
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [int(line["key"], 16) for line in lines if line["type"] == "start"]
    assert keys == [found.key for found in audit.findings[:20]]
    envs = ChatVectorEnv(60, scenario=CUSTOMER_SERVICE, error_rate=0.2, observation="discrete", llm="template")
    conversations = list(audit.record(envs, "perturbed", AUDIT_SEED))
    held = {key: conversations[row] for row, key in enumerate(envs.room.keys.tolist())}
    acts = [exchange.act for key in keys for exchange in held[key][1:]]
    assert [line["action"] for line in lines if line["type"] == "turn"] == acts


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `chatgym audit` in an empty folder, where two more scenarios are known."""
    monkeypatch.chdir(tmp_path)
    known = plugins.load()
    changed = plugins.Registry(plugins={**known.plugins, "odd": "odd 1.0"})
    for kind in plugins.KINDS:
        for name, source in getattr(known, kind).sources.items():
            changed._add(kind, name, getattr(known, kind)[name], source)
    for name, audit in (("grudging", grudge), ("unchecked", None)):
        changed._add("scenarios", name, dataclasses.replace(CUSTOMER_SERVICE, name=name, audit=audit), "odd")
    monkeypatch.setattr(plugins, "load", lambda: changed)
    few = ("--conversations", "20", "--worded", "0")
    return lambda *args: CliRunner().invoke(app, [args[0], *few, *args[1:]], prog_name="chatgym")


def test_the_command_counts_and_writes(command: Callable[..., Any]) -> None:
    said = command("audit", "customer_service", "--strict")
    assert said.exit_code == 0
    assert "0 of 140 conversations   0.000 %   0.000 to 2.671 %" in said.stdout
    report = json.loads(Path("audits/customer_service/audit.json").read_text())
    assert report["conversations"] == dict.fromkeys(AGENTS, 20)
    assert report["scenario"]["sha256"] == CUSTOMER_SERVICE.digest
    assert (report["seed"], report["interrupted"], report["findings"]) == (SEED, False, [])
    assert SEED == AUDIT_SEED
    assert [path.name for path in Path("audits/customer_service").iterdir()] == ["audit.json"]


def test_contradictions_are_listed_and_fail_a_strict_audit(command: Callable[..., Any]) -> None:
    said = command("audit", "grudging")
    assert said.exit_code == 0
    assert "bears a grudge" in said.stdout
    assert command("audit", "grudging", "--strict").exit_code == 2  # there is an audit already
    assert command("audit", "grudging", "--strict", "--overwrite").exit_code == 1
    report = json.loads(command("audit", "grudging", "--json", "--out", "there").stdout)
    assert report["kinds"]["unasked"]["found"] == len(report["findings"]) > 40
    assert report == json.loads(Path("there/audit.json").read_text())
    assert chatgym.replay("there/unasked.jsonl").conversations == 20


def test_an_audit_without_the_scenario_s_own_checks_says_so(command: Callable[..., Any]) -> None:
    assert "no checks of its own" in command("audit", "unchecked").stdout
    assert "no checks of its own" not in command("audit", "customer_service").stdout


def test_an_interrupted_audit_keeps_what_was_found(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = 0

    def impatient(conversation: list[Exchange]) -> Iterator[Finding]:
        nonlocal judged
        judged += 1
        if judged == 31:
            raise KeyboardInterrupt
        yield from grudge(conversation)

    plugins.load()._add("scenarios", "impatient", dataclasses.replace(CUSTOMER_SERVICE, audit=impatient), "odd")
    said = command("audit", "impatient", "--out", "there")
    assert said.exit_code == 130
    assert "Interrupted" in said.stdout
    report = json.loads(Path("there/audit.json").read_text())
    assert report["interrupted"]
    assert sum(report["conversations"].values()) == 31
    assert report["kinds"]["unasked"]["found"] > 5
    assert chatgym.replay("there/unasked.jsonl").conversations == report["kinds"]["unasked"]["found"]


def test_an_unknown_scenario_or_model_is_one_line(command: Callable[..., Any]) -> None:
    for args, named in (
        (("chess",), "unknown scenario 'chess'"),
        (("social", "--llm", "gpt", "--worded", "1"), "'template'"),
    ):
        said = command("audit", *args)
        assert said.exit_code == 2
        assert named in said.stderr
