"""To be cut off is no outcome of the conversation: it costs nothing, the expert ends before it, and info names it."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

import chatgym
from chatgym.dynamics.room import ChatRoom
from chatgym.envs.replay import record
from chatgym.errors import InvalidValue
from chatgym.evaluation.references import references
from chatgym.scenarios import find_scenario
from chatgym.testing.rollouts import expert, hold, room_of

SCENARIOS = ("customer_service", "education", "social")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_turn_of_truncation_is_paid_like_any_other(name):
    scenario = find_scenario(name)
    cut, going = (room_of(scenario, 300, max_turns=turns) for turns in (4, 5))
    acts = np.random.default_rng(1).integers(0, len(scenario.agent_acts), (4, 300))
    for room in (cut, going):
        room.begin()
        for each in acts:
            room.step(each, room.outcomes == 0)
    assert cut.truncations.any()
    assert np.array_equal(cut.rewards[cut.truncations], going.rewards[cut.truncations])


@pytest.mark.parametrize(
    ("name", "turns", "truncated", "successful"),
    [("social", 8, 0.0, 0.35), ("social", 12, 0.0, 0.8), ("education", 8, 0.5, 0.45), ("education", 12, 0.35, 0.6),
     ("customer_service", 8, 0.33, 0.53), ("customer_service", 12, 0.06, 0.8)],
)  # fmt: skip
def test_the_expert_ends_before_the_last_turn_is_over(name, turns, truncated, successful):
    scenario = find_scenario(name)
    held = hold(room_of(scenario, 2000, max_turns=turns), expert)
    assert held.share(len(scenario.outcomes) - 1) <= truncated
    assert held.share(scenario.outcomes.index(scenario.success)) > successful


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_belief_tells_how_many_turns_there_are(name):
    room = ChatRoom(find_scenario(name), 2, max_turns=7)
    room.begin()
    assert (room.belief["max_turns"] == 7).all()
    other = ChatRoom(room.scenario, 2, max_turns=9)
    other.load(room.dump())
    assert (other.belief["max_turns"] == 9).all()


def last(env):
    """Play to the end; return the outcome, the turns and what the belief was told of them."""
    env.reset(seed=1)
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(0)
        over = terminated or truncated
    room = env.unwrapped.room
    return info.get("outcome"), int(room.turns[0]), int(room.belief["max_turns"][0])


def test_gymnasiums_time_limit_limits_the_turns(tmp_path):
    arguments = {"scenario": "customer_service", "llm": "template"}
    assert last(gym.make("ChatEnv-v0", max_episode_steps=4, **arguments)) == ("truncated", 4, 4)
    assert last(gym.make("ChatEnv-v0", max_episode_steps=9, max_turns=4, **arguments)) == ("truncated", 4, 4)
    env = TimeLimit(gym.make("ChatEnv-v0", **arguments), 3)
    for each in (env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert last(each) == ("truncated", 3, 3)
    env = TimeLimit(gym.make("ChatEnv-v0", **arguments), 3)
    record(env, lambda *_: 0, tmp_path / "t.jsonl", keys=[1, 2])
    assert chatgym.replay(tmp_path / "t.jsonl").turns == 6


def test_a_time_limit_counts_only_for_what_it_wraps():
    env = gym.make("ChatEnv-v0", max_turns=5, llm="template").unwrapped
    for turns, wrapped in ((3, TimeLimit(env, 3)), (4, TimeLimit(env, 4)), (5, TimeLimit(env, 9)), (5, env)):
        assert last(wrapped) == ("truncated", turns, turns)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_max_episode_steps_limits_the_turns_of_vector_environments(mode):
    envs = gym.make_vec("ChatEnv-v0", 2, mode, max_episode_steps=3, scenario="customer_service", llm="template")
    envs.reset(seed=0)
    for turn in (1, 2, 3):
        *_, truncated, infos = envs.step(np.zeros(2, np.int64))
        assert truncated.all() == (turn == 3)
    assert infos["outcome"].tolist() == ["truncated"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"max_episode_steps": 0}, "like max_turns, is an integer of at least 1, not 0"),
     ({"max_episode_steps": 5, "action": "token"}, "would count tokens .* max_turns instead")],
)  # fmt: skip
def test_steps_that_are_no_turns_are_refused_with_the_remedy(arguments, words):
    with pytest.raises(InvalidValue, match=words):
        gym.make_vec("ChatEnv-v0", 2, **arguments)
    if "action" in arguments:
        with pytest.raises(InvalidValue, match=words):
            gym.make("ChatEnv-v0", llm="template", **arguments).reset()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_shipped_references_are_of_this_simulator(name):
    from chatgym.envs.task import Task
    from chatgym.evaluation.references import _stored

    assert _stored(Task(name)) == references(Task(name))
