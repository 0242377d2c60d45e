"""Snapshot, restore, fork, deepcopy and pickle of both environments are exact, in the middle of a conversation."""

import copy
import dataclasses
import pickle
import threading
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgym.engines import Completion
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.interfaces import ACTIONS
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.rewards import default
from chatgym.scenarios import find_scenario

OBSERVATIONS = ("embedding", "discrete", "text", "token", "belief")
SCENARIOS = ("customer_service", "education", "social")

VERBS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}


class Chatty:
    """An engine that says a text drawn from its seed; it can be pickled."""

    identity = "chatty@1"

    def generate(self, prompts, *, seeds=None, **sampling):
        words = ("I have a problem", "it is 482913", "thank you", "no", "yes please")
        return [Completion(words[seed % len(words)], (), None, "stop") for seed in seeds or [0] * len(prompts)]

    def score(self, prompts, continuations):
        return [[0.0] for _ in prompts]

    def close(self):
        pass


class Locked(Chatty):
    """An engine that can't be pickled."""

    def __init__(self):
        self.lock = threading.Lock()


def draw_action(envs: Any, generator: np.random.Generator, scenario: Any, rows: int) -> list[Any]:
    """Draw an action for each row, whatever the interface is."""
    space = envs.single_action_space if hasattr(envs, "single_action_space") else envs.action_space
    if isinstance(space, gym.spaces.Text):
        said = [text for texts in scenario.sentences["agent"].values() for text in texts]
        return [said[generator.integers(len(said))] for _ in range(rows)]
    if envs.unwrapped.tokenizer is not None and space.n == envs.unwrapped.tokenizer.size:
        tokens = [*envs.unwrapped.tokenizer.encode("What is your order number?"), envs.unwrapped.tokenizer.end]
        return [tokens[generator.integers(len(tokens))] for _ in range(rows)]
    return generator.integers(space.n, size=rows).tolist()


def same(one: Any, other: Any) -> bool:
    """Compare what two environments returned, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and one.dtype != object:
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    if isinstance(one, np.ndarray):
        return same(one.tolist(), other.tolist())
    return bool(one == other)


def arguments(drawn: tuple[str, str, str, bool]) -> dict[str, Any]:
    scenario, action, observation, judged = drawn
    found = find_scenario(scenario)
    return {
        "scenario": scenario, "action": action, "observation": observation, "llm": "template",
        "reward_model": default.load(found) if judged and action in ("act", "text") else None,
    }  # fmt: skip


cases = st.tuples(st.sampled_from(SCENARIOS), st.sampled_from(ACTIONS), st.sampled_from(OBSERVATIONS), st.booleans())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_copies_of_an_environment_go_on_as_it_does_in_every_interface(action, observation):
    check_copies((SCENARIOS[len(observation) % 3], action, observation, False), 3, 5)


@settings(max_examples=6, deadline=None)
@given(cases, st.integers(0, 8), st.integers(0, 1000))
def test_copies_of_an_environment_go_on_as_it_does(case, turns, seed):
    check_copies(case, turns, seed)


def check_copies(case, turns, seed):
    env = gym.make("ChatEnv-v0", **arguments(case))
    generator, scenario = np.random.default_rng(seed), env.unwrapped.scenario
    env.reset(seed=seed)
    for _ in range(turns):
        _, _, terminated, truncated, _ = env.step(draw_action(env, generator, scenario, 1)[0])
        if terminated or truncated:
            env.reset()
    copies = [verb(env) for verb in VERBS.values()]
    forked, restored = env.unwrapped.fork(), gym.make("ChatEnv-v0", **arguments(case)).unwrapped
    restored.restore(env.unwrapped.snapshot())
    for _ in range(6):
        action = draw_action(env, generator, scenario, 1)[0]
        first = env.step(action)
        others = [other.step(action) for other in (*copies, forked, restored)]
        assert all(same(first, other) for other in others)
        if first[2] or first[3]:
            assert all(same(env.unwrapped.transcript(), other.unwrapped.transcript()) for other in copies)
            first = env.reset()
            assert all(same(first, other.reset()) for other in (*copies, forked, restored))


@settings(max_examples=8, deadline=None)
@given(cases, st.sampled_from(("NextStep", "SameStep")), st.integers(0, 8), st.integers(0, 1000))
def test_copies_of_a_vector_environment_go_on_as_it_does(case, autoreset, turns, seed):
    how = {**arguments(case), "autoreset_mode": autoreset}
    envs = ChatVectorEnv(3, **how)
    generator = np.random.default_rng(seed)
    envs.reset(seed=seed)
    for _ in range(turns):
        envs.step(draw_action(envs, generator, envs.scenario, 3))
    copies = {**{name: verb(envs) for name, verb in VERBS.items()}, "restored": ChatVectorEnv(3, **how)}
    copies["restored"].restore(envs.snapshot())
    row = seed % 3
    forked = envs.fork(row, 2)
    for _ in range(6):
        actions = draw_action(envs, generator, envs.scenario, 3)
        first = envs.step(actions)
        others = {name: other.step(actions) for name, other in copies.items()}
        assert {name: other for name, other in others.items() if not same(first, other)} == {}, first
        _, rewards, *_ = forked.step([actions[row]] * 2)
        assert rewards.tolist() == [first[1][row]] * 2


def test_a_restored_vector_environment_offers_the_candidates_of_then():
    envs = ChatVectorEnv(100, action="candidate", observation="discrete", llm="template", reward_model=None)
    envs.reset(seed=1)
    envs.step(np.zeros(100, int))
    saved, then = envs.snapshot(), [envs._conversations.candidates(row) for row in range(100)]
    first = envs.step(np.zeros(100, int))
    for _ in range(3):
        envs.step(np.ones(100, int))
    envs.restore(saved)
    assert [envs._conversations.candidates(row) for row in range(100)] == then
    assert same(first, envs.step(np.zeros(100, int)))


def test_a_turn_of_tokens_is_copied_in_its_middle():
    env = gym.make("ChatEnv-v0", action="token", observation="discrete", llm="template", reward_model=None)
    env.reset(seed=2)
    tokenizer = env.unwrapped.tokenizer
    tokens = [*tokenizer.encode("What is your order number?"), tokenizer.end]
    for token in tokens[:4]:
        env.step(token)
    copies = [env, *(verb(env) for verb in VERBS.values()), env.unwrapped.fork()]
    for token in tokens[4:]:
        heard = [one.step(token)[-1]["agent_act"] for one in copies]
    assert heard == ["ask_reference"] * len(copies)


def test_a_partner_that_a_model_plays_is_copied_with_its_chat():
    env = gym.make("ChatEnv-v0", simulator="llm", llm=Chatty(), action="text", observation="text", reward_model=None)
    env.reset(seed=2)
    env.step("Hello, how can I help you?")
    copies = [verb(env) for verb in VERBS.values()]
    for text in ("What's your order number?", "When was that?"):
        first = env.step(text)
        assert all(same(first, other.step(text)) for other in copies)
        if first[2]:
            break
    assert same(env.unwrapped.llm_simulator._chats, copies[1].unwrapped.llm_simulator._chats)


def test_an_engine_that_cannot_be_pickled_is_named():
    env = gym.make("ChatEnv-v0", llm=Locked())
    assert copy.deepcopy(env).unwrapped._conversations.engine is env.unwrapped._conversations.engine
    with pytest.raises(InvalidValue, match=r"llm=Locked.*can't be pickled.*by name"):
        pickle.dumps(env)


def test_generators_and_spaces_are_copied_where_they_stand():
    env = gym.make("ChatEnv-v0", observation="discrete", llm="template")
    env.reset(seed=4)
    env.action_space.seed(7)
    env.action_space.sample()
    for verb in VERBS.values():
        other = verb(env)
        assert other.unwrapped.np_random.bit_generator.state == env.unwrapped.np_random.bit_generator.state
        assert copy.deepcopy(env.action_space).sample() == other.action_space.sample()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_copy_of_an_environment_that_never_began_begins_as_the_first_one_would(verb):
    for env in (gym.make("ChatEnv-v0", llm="template").unwrapped, ChatVectorEnv(2, llm="template")):
        assert env.np_random is not None
        copied = verb(env)
        with pytest.raises(ChatGymError, match="reset"):
            copied.step(0 if env.room.size == 1 else [0, 0])
        env.reset()
        copied.reset()
        assert env.room.keys.tolist() == copied.room.keys.tolist()
        assert env.room.roots.all()


def test_a_snapshot_of_another_environment_is_refused():
    with_words = ChatVectorEnv(2, llm="template", texts=True)
    without = ChatVectorEnv(2, llm="template")
    with_words.reset(seed=0)
    without.reset(seed=0)
    with pytest.raises(InvalidValue, match="same arguments"):
        with_words.restore(without.snapshot())
    with pytest.raises(InvalidValue, match="no row 2"):
        without.fork(2, 1)
    with pytest.raises(InvalidValue, match="same arguments"):
        ChatVectorEnv(3, llm="template").restore(without.snapshot())


def test_a_snapshot_is_saved_without_pickle(tmp_path):
    envs = ChatVectorEnv(2, llm="template", action="token", observation="token", reward_model=None)
    envs.reset(seed=0)
    envs.step([5, 6])
    np.savez(tmp_path / "state.npz", **envs.snapshot())
    other = ChatVectorEnv(2, llm="template", action="token", observation="token", reward_model=None)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        other.restore(dict(state))
    assert same(envs.step([7, 8]), other.step([7, 8]))


@pytest.mark.parametrize("changed", [{}, {"max_turns": 7}])
def test_the_specification_of_a_scenario_object_is_json(changed):
    scenario = dataclasses.replace(find_scenario("social"), **changed) if changed else find_scenario("social")
    env = gym.make("ChatEnv-v0", scenario=scenario, llm="template")
    text = env.spec.to_json()
    assert gym.make(env.spec).unwrapped.scenario is scenario
    if changed:
        with pytest.raises(InvalidValue, match="social@"):
            gym.make(EnvSpec.from_json(text))
    else:
        assert gym.make(EnvSpec.from_json(text)).unwrapped.scenario is scenario
    env.reset(seed=1)
    other = pickle.loads(pickle.dumps(env))
    assert other.unwrapped.scenario.max_turns == scenario.max_turns
    assert same(env.step(3), other.step(3))


def test_a_snapshot_of_another_version_is_refused():
    first, second = (ChatEnv(scenario=name, llm="template") for name in ("education-v1", "education"))
    for env, other in ((first, second), (second, first)):
        env.reset(seed=1)
        with pytest.raises(InvalidValue, match="the same version of the scenario"):
            other.restore(env.snapshot())


def test_what_is_set_later_is_as_if_the_environment_had_been_made_with_it():
    """Setting one thing at a time, in the middle of a conversation, or before it begins."""
    changes = {"error_rate": 0.9, "max_turns": 4, "reward_weights": {"time": 0.5, "reward_model": 0.1}}
    how = {"llm": "template", "action": "text", "observation": "discrete", "max_turns": 9}
    env, made = (gym.make("ChatEnv-v0", **{**how, **more}) for more in ({}, changes))
    before = env.unwrapped.identity()
    env.reset(seed=3)
    env.step("Hello!")
    for name, value in changes.items():
        env.set_wrapper_attr(name, value)
    snapshot = env.unwrapped.snapshot()
    fresh = gym.make("ChatEnv-v0", **how).unwrapped
    fresh.restore(snapshot)
    copies = [env, *(verb(env) for verb in VERBS.values()), env.unwrapped.fork(), gym.make(env.unwrapped.spec), fresh]
    for one in copies:
        assert one.unwrapped.identity() == made.unwrapped.identity() != before
        assert one.unwrapped.settings() == made.unwrapped.settings()
        assert one.unwrapped.spec is None or one.unwrapped.spec.kwargs["error_rate"] == 0.9
    weights = env.unwrapped.reward_weights
    said = ("What is your order number?", "When was that?")
    for text in said:
        first = env.step(text)
        assert first[1] == sum(weights[name] * value for name, value in first[4]["reward_terms"].items())
        assert all(same(first, one.step(text)) for one in copies[1:] if one.unwrapped.room.turns[0])
    assert not first[3]
    assert env.step("What is your order number?")[3]  # the fourth turn
    for one in (env, made):
        one.reset(options={"key": 11})
    assert all(same(env.step(text), made.step(text)) for text in said)


def test_a_snapshot_from_before_settings_were_kept_leaves_them_alone():
    envs = ChatVectorEnv(2, llm="template", error_rate=0.3)
    envs.reset(seed=1)
    old = {name: array for name, array in envs.snapshot().items() if not name.startswith("settings.")}
    other = ChatVectorEnv(2, llm="template", error_rate=0.6)
    other.restore(old)
    assert other.error_rate == 0.6
    other.restore(envs.snapshot())
    assert other.error_rate == 0.3


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fork_with_other_keys_has_the_same_past_and_another_future(name):
    envs = ChatVectorEnv(3, scenario=name, llm="template", error_rate=0.3, texts=True)
    envs.reset(seed=4)
    for _ in range(3):
        envs.step(envs.expert_acts())
    copies = 40
    keys = np.arange(copies, dtype=np.uint64)
    keys[:2] = envs.room.keys[1]
    forked = envs.fork(1, copies, keys=keys)
    for record in ("hidden", "belief", "said", "turns"):
        assert (getattr(forked.room, record) == getattr(envs.room, record)[1]).all()
    assert forked.texts == [envs.texts[1]] * copies
    for _ in range(2):
        acts = envs.expert_acts()
        seen, rewards, *_, infos = envs.step(acts)
        others, paid, *_, told = forked.step(np.full(copies, acts[1]))
        for row in (0, 1):  # the conversation's own key
            assert same([others[row], paid[row], told["text"][row]], [seen[1], rewards[1], infos["text"][1]])
    assert len({str(belief) for belief in forked.room.belief}) > 3
    for wrong in (keys[:3], [-1] * copies):
        with pytest.raises(InvalidValue, match=r"keys needs shape|integer from 0"):
            envs.fork(1, copies, keys=wrong)
