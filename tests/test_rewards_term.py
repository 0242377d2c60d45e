"""The reward model's term of the reward, in environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue, ReplayMismatch
from chatgym.evaluation.evaluation import evaluate
from chatgym.rewards import default
from chatgym.rewards.term import NAME, WEIGHT
from chatgym.scenarios import find_scenario
from chatgym.training.run import find_agent

SCENARIO = find_scenario("customer_service")
TEXTS = ("Which order is it about?", "I am sorry to hear that.", "What happened?", "Shut up.", "Bye.")


class Counting:
    """Scores the messages of a conversation, a thousandth each."""

    identity = "counting"

    def __init__(self):
        self.seen = []

    def score(self, conversations):
        self.seen += [[dict(one) for one in conversation] for conversation in conversations]
        return np.array([len(one) / 1000 for one in conversations], np.float32)


def make(**arguments):
    return ChatEnv(**{"llm": "template", "action": "text", **arguments})


def vector(size, **arguments):
    return ChatVectorEnv(size, **{"llm": "template", "action": "text", **arguments})


def steps_of(env, seed, count=30):
    """Say `TEXTS` in turn, over several conversations."""
    env.reset(seed=seed)
    found = []
    for i in range(count):
        _, reward, terminated, truncated, info = env.step(TEXTS[i % len(TEXTS)])
        found.append((reward, info["reward_terms"]))
        if terminated or truncated:
            env.reset()
    return found


def test_the_term_is_listed_and_the_weighted_sum_is_the_reward_exactly():
    weights = {**SCENARIO.reward_terms, NAME: WEIGHT}
    seen = set()
    for reward, terms in steps_of(make(), 3):
        assert list(terms) == list(weights)
        total = 0.0
        for name, weight in weights.items():
            total += weight * terms[name]
        assert reward == total
        assert -1 <= terms[NAME] <= 1
        seen.add(terms[NAME])
    assert len(seen) > 5


def test_the_model_reads_the_conversation_up_to_the_agents_words():
    model = Counting()
    env = make(reward_model=model)
    _, info = env.reset(seed=1)
    said = [{"role": "user", "content": info["text"]}]
    for text in TEXTS[:3]:
        said.append({"role": "assistant", "content": text})
        info = env.step(text)[-1]
        assert model.seen[-1] == said
        assert info["reward_terms"][NAME] == np.float32(len(said) / 1000)
        said.append({"role": "user", "content": info["text"]})
    _, info = env.reset()
    env.step(TEXTS[0])
    assert [one["content"] for one in model.seen[-1]] == [info["text"], TEXTS[0]]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_single_and_vector_agree_bit_for_bit(mode):
    envs = vector(3, autoreset_mode=mode, max_turns=4)
    singles = [make(max_turns=4) for _ in range(3)]
    envs.reset(seed=5)
    for i, env in enumerate(singles):
        env.reset(seed=5 + i)
    over = np.zeros(3, bool)
    for step in range(14):
        texts = [TEXTS[(step + i) % len(TEXTS)] for i in range(3)]
        _, rewards, terminations, truncations, infos = envs.step(texts)
        for i, env in enumerate(singles):
            if over[i] and mode is AutoresetMode.NEXT_STEP:
                env.reset()
                assert (rewards[i], infos["reward_terms"][NAME][i]) == (0, 0)
                continue
            _, reward, _, _, info = env.step(texts[i])
            assert rewards[i] == reward
            reset = mode is AutoresetMode.SAME_STEP and terminations[i] | truncations[i]
            told = infos["final_info"] if reset else infos
            assert told["reward_terms"][NAME][i] == info["reward_terms"][NAME]
            if reset:
                env.reset()
        over = terminations | truncations


@pytest.mark.parametrize("action", ["candidate", "token"])
def test_other_agents_that_choose_words_are_judged_by_what_they_said(action):
    model = Counting()
    env = make(action=action, reward_model=model, tokenizer="smollm2-135m" if action == "token" else None)
    _, info = env.reset(seed=2)
    if action == "candidate":
        wanted = int(np.flatnonzero(info["action_mask"])[0])
        text = info["candidates"][wanted]
        env.step(wanted)
    else:
        text = "What happened?"
        tokenizer = env.tokenizer
        for token in tokenizer.encode(text):
            info = env.step(token)[-1]
            assert info["reward_terms"][NAME] == 0
        assert not model.seen
        env.step(tokenizer.end)
    assert [one["content"] for one in model.seen[0]][1:] == [text]


def test_acts_without_words_are_untouched():
    env, plain = (make(action="act", reward_model=model) for model in ("default", None))
    assert env.identity() == plain.identity()
    assert env._conversations.judged is None
    assert vector(4, action="act")._conversations.worded is False
    text, none = (make(reward_model=model) for model in ("default", None))
    assert text.identity()["sha256"] != none.identity()["sha256"]
    assert "model" not in none.identity()["reward"]


def test_a_model_that_was_named_judges_acts_too_by_their_words():
    model = Counting()
    env = make(action="act", reward_model=model)
    env.reset(seed=4)
    env.step(1)
    assert model.seen[0][-1]["content"] == env.transcript()[1]["text"]
    assert vector(2, action="act", reward_model=default.load(SCENARIO))._conversations.worded


def test_the_weight_can_be_chosen_and_needs_a_model():
    heavy = steps_of(make(reward_weights={NAME: 0.5, "mood": 0.0}), 3, 4)
    light = steps_of(make(reward_weights={NAME: 0.0, "mood": 0.0}), 3, 4)
    for (a, terms), (b, _) in zip(heavy, light, strict=True):
        assert a == pytest.approx(b + 0.5 * terms[NAME], abs=1e-12)
    with pytest.raises(InvalidValue, match='with action="act" the default one is off'):
        make(action="act", reward_weights={NAME: 0.1})
    make(reward_model=None, reward_weights={NAME: 0.1})  # as evaluations make it


class Broken:
    def score(self, conversations):
        return np.full(len(conversations), np.nan, np.float32)


def test_a_model_that_gives_no_number_is_told():
    env = make(reward_model=Broken())
    env.reset(seed=0)
    with pytest.raises(InvalidValue, match=r"Broken.*check_reward_model"):
        env.step("Hello")


@pytest.mark.parametrize("model", ["default", "counting"])
def test_a_trace_replays_exactly_with_the_model_or_without_it(model, tmp_path):
    env = make(reward_model=Counting() if model == "counting" else model, observation="text", max_turns=5)
    texts = iter(TEXTS * 9)
    replay.record(env, lambda observation, info: next(texts), tmp_path / "t.jsonl", keys=[7, 8])
    assert replay.replay(tmp_path / "t.jsonl").conversations == 2
    changed = (tmp_path / "t.jsonl").read_text().replace(f'"{NAME}":0.002', f'"{NAME}":0.003')
    if model == "counting":
        (tmp_path / "t.jsonl").write_text(changed)
        with pytest.raises(ReplayMismatch):
            replay.replay(tmp_path / "t.jsonl")


def test_a_restored_environment_goes_on_the_same():
    envs = vector(2)
    envs.reset(seed=1)
    envs.step(["Hello", "What happened?"])
    snapshot, other = envs.snapshot(), vector(2)
    other.reset(seed=9)
    other.restore(snapshot)
    assert other.step(TEXTS[:2])[1].tolist() == envs.step(TEXTS[:2])[1].tolist()
    with pytest.raises(InvalidValue, match=r"no judge\.said"):
        other.restore(vector(2, reward_model=None).snapshot())


def test_an_evaluation_counts_the_tasks_own_reward():
    agent = find_agent("expert")(SCENARIO)
    plain, judged = (
        evaluate(agent, Task("customer_service", arguments), conversations=50)
        for arguments in ({}, {"reward_model": default.load(SCENARIO), "reward_weights": {NAME: 0.5}})
    )
    assert plain.returns.tolist() == judged.returns.tolist()
    assert plain.identity["sha256"] == judged.identity["sha256"]
    assert plain.score == judged.score


def test_the_registered_environment_takes_a_reward_model():
    env = gym.make("ChatEnv-v0", llm="template", action="text", reward_model=Counting())
    env.reset(seed=0)
    assert NAME in env.step("Hello")[-1]["reward_terms"]
