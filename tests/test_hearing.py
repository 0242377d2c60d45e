"""What agents would believe if they heard everything right, and why their conversations failed."""

import numpy as np
import pytest
from chatgym_agents.scripted import Expert, Random

from chatgym.dynamics.hearing import CAUSES, Hearing, Listener, facts, led_astray
from chatgym.dynamics.room import ChatRoom
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.evaluation.rollouts import converse
from chatgym.scenarios import ABOUT, UNCLEAR_ACT, find_scenario
from chatgym.scenarios.customer_service import policy as cs
from chatgym.testing.rollouts import random_policy, raw, room_of

SCENARIOS = ["customer_service", "education", "social"]


def held(room, policy):
    """Hold a conversation in each row, and yield the hearing after each turn."""
    room.begin()
    hearing, going = Hearing(room), np.ones(room.size, bool)
    yield hearing, going.copy()
    while going.any():
        acts = policy(room)
        room.step(acts, going)
        hearing.step(acts, going)
        going &= room.outcomes == 0
        yield hearing, going.copy()


@pytest.mark.parametrize("name", SCENARIOS)
def test_openings_are_those_of_the_same_conversations_and_change_nothing(name):
    scenario = find_scenario(name)
    noisy, clear = room_of(scenario, 300, error_rate=0.9), room_of(scenario, 300, error_rate=0.0)
    noisy.begin()
    clear.begin()
    before = noisy.dump()
    assert noisy.openings(error_rate=0.0).tobytes() == clear.belief.tobytes() != noisy.belief.tobytes()
    assert noisy.openings(error_rate=0.9).tobytes() == noisy.belief.tobytes()
    assert all(np.array_equal(array, before[field]) for field, array in noisy.dump().items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_clear_belief_is_the_belief_of_the_same_conversation_without_the_error_channel(name):
    scenario = find_scenario(name)
    noisy, clear = room_of(scenario, 500, error_rate=0.3), room_of(scenario, 500, error_rate=0.0)
    clear.begin()
    same, policy, compared = np.ones(500, bool), random_policy(3), 0  # which conversations are the same so far
    script = []

    def both(room):
        script.append(policy(room))
        return script[-1]

    for hearing, going in held(noisy, both):
        if script:
            clear.step(script[-1], clear.outcomes == 0)
        same &= going & (raw(noisy.said) == raw(clear.said)) & (clear.outcomes == 0)
        assert raw(hearing.clear[same]).tolist() == raw(clear.belief[same]).tolist()
        compared += int(same.sum())
    assert compared > 800
    assert (raw(hearing.believed) != raw(hearing.believed_clear)).any()


def test_facts_are_the_fields_that_are_said_and_believed():
    assert {name: facts(find_scenario(name)) for name in SCENARIOS} == {
        "customer_service": ("reference", "date", "amount", "topic", "proof"),
        "education": ("num", "den", "goal"),
        "social": ("problem", "feeling", "cause"),
    }


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("error_rate", [0.0, 0.3])
def test_every_failure_has_one_cause_and_nothing_is_garbled_without_errors(name, error_rate):
    task = Task(name, {"error_rate": error_rate})
    result = evaluate(Random(task.find_scenario()), task, conversations=1000, references=False)
    assert sum(result.failures.values()) == (result.outcomes != result.success).sum() > 500
    assert ((result.causes == "") == (result.outcomes == result.success)).all()
    assert (result.failures["garbled"] > 0) == (error_rate > 0)
    left = np.isin(result.outcomes, [*task.find_scenario().leaving, "truncated"])
    assert ((result.causes == "patience") == left).all()
    assert result.to_json()["failures"].keys() == CAUSES.keys()


def test_an_evaluation_that_does_not_look_into_causes_holds_the_same_conversations():
    agent = Expert(find_scenario("customer_service"))
    with_causes, without = (
        evaluate(agent, conversations=4200, references=False, causes=looked_into) for looked_into in (True, False)
    )
    assert without.returns.tolist() == with_causes.returns.tolist()
    assert without.outcomes.tolist() == with_causes.outcomes.tolist()
    assert without.causes is None
    assert without.failures == without.to_json()["failures"] == {}


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_conversation_has_the_same_cause_alone_as_among_others(name):
    task = Task(name, {"error_rate": 0.3})
    agent = Expert(task.find_scenario())
    result, env = evaluate(agent, task, conversations=120, references=False), task.make_env(agent.requires)
    goals = [converse(agent, env, result.seed + number)["turns"][-1] for number in range(120)]
    assert [goal.get("failure", "") for goal in goals] == result.causes.tolist()
    assert {goal.get("failure") for goal in goals} >= {None, "patience", "garbled"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_agent_that_ends_every_conversation_at_once_has_itself_to_blame(name):
    room = room_of(find_scenario(name), 500, error_rate=0.5)
    for hearing, _ in held(room, lambda room: np.full(room.size, END[name])):
        causes = hearing.causes().tolist()
    assert set(causes) == {"policy"}
    assert room.belief["ended"].all()
    assert not hearing.believed["ended"].any()  # what it believed when it took its last act


END = {"customer_service": cs.ESCALATE, "education": 15, "social": 15}


def believed(**values):
    """Return a belief, a clear belief and a customer, records[1], of a refund that is granted."""
    room = ChatRoom(find_scenario("customer_service"), 1, error_rate=0.1)
    room.begin(keys=np.array([1], np.uint64))
    for record in (room.hidden, room.belief):
        record["topic"], record["reference"], record["date"], record["amount"], record["proof"] = 0, 123456, 5, 40, 1
    room.belief["sure"], room.belief["offered"], room.belief["accepted"] = 2, cs.REFUND, 1
    clear = room.belief.copy()
    for field, value in values.items():
        room.belief[field] = value
    return room.scenario, room.belief, clear, room.hidden


def cause(scenario, belief, clear, hidden, outcome="wrong_resolution", act=cs.CLOSE):
    outcomes = np.array([scenario.outcomes.index(outcome)])
    return Listener(scenario).causes(outcomes, np.array([act]), belief, clear, hidden, np.array([0]))[0]


def test_a_customers_case_is_garbled_where_what_was_misheard_decides():
    assert cause(*believed()) == "policy"
    assert cause(*believed(reference=654321)) == "garbled"
    assert cause(*believed(date=6)) == "policy"  # misheard, and the policy is the same
    assert cause(*believed(date=40, offered=cs.CREDIT)) == "garbled"  # right for what was heard
    assert cause(*believed(date=40)) == "policy"  # wrong for that, too
    assert cause(*believed(accepted=0), outcome="abandoned") == "garbled"  # it was accepted, and the agent didn't hear
    assert cause(*believed(date=40, amount=400, accepted=0, offered=-1), outcome="hung_up") == "patience"
    assert cause(*believed(reference=654321), outcome="resolved") == ""
    scenario, belief, clear, hidden = believed(reference=654321)
    clear["reference"] = 111111  # the customer itself said it wrongly
    assert cause(scenario, belief, clear, hidden) == "policy"


def test_an_act_is_led_astray_that_is_best_for_what_was_heard_and_not_for_what_was_said():
    scenario, belief, clear, _ = believed(date=20, amount=400, accepted=0, offered=-1)  # a credit; said was a refund
    clear["accepted"], clear["offered"] = 0, -1
    room = ChatRoom(scenario, 1)
    acts = (cs.OFFER_CREDIT, cs.OFFER_REFUND, cs.OFFER_CREDIT + ABOUT, UNCLEAR_ACT)
    assert [bool(led_astray(room, np.array([act]), belief, clear)[0]) for act in acts] == [True, False, True, False]
    assert not led_astray(room, np.array([cs.OFFER_CREDIT]), belief, belief)[0]
    assert not led_astray(room, np.array([cs.OFFER_CREDIT]), clear, clear)[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_account_tells_what_was_garbled(name):
    for error_rate in (0.0, 0.5):
        env = Task(name, {"error_rate": error_rate}).make_env(Expert.requires)
        turns = [turn for seed in range(20) for turn in converse(Expert(env.scenario), env, seed)["turns"]]
        heard = [turn for turn in turns if turn["role"] == env.scenario.partner_role]
        assert all((turn["heard_act"] != turn["act"]) <= turn["garbled"] for turn in heard)
        assert ("heard_right" in turns[0]) <= turns[0]["garbled"]
        share = np.mean([turn["garbled"] for turn in heard])
        assert share == 0.0 if error_rate == 0.0 else 0.4 < share < 0.8
        own = [turn for turn in turns if turn["role"] == env.scenario.agent_role]
        assert all(turn["act"] == turn["expert_act"] for turn in own)


def test_the_account_goes_with_a_snapshot_and_a_fork():
    env = Task("customer_service", {"error_rate": 0.4}).make_env(Expert.requires)
    env.reset(seed=3)
    for act in (1, 2, 6):
        env.step(act)
    before, snapshot = env.transcript(), env.snapshot()
    assert env.fork().transcript() == before
    env.step(3)
    env.restore(snapshot)
    assert env.transcript() == before
