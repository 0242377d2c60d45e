"""Every combination of scenario, action and observation before the checkers of Gymnasium and Stable-Baselines3."""

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from chatgym.envs.codecs import row_of
from chatgym.envs.interfaces import ACTIONS
from chatgym.envs.vector_env import ChatVectorEnv

SCENARIOS = ("customer_service", "education", "social")
OBSERVATIONS = ("embedding", "discrete", "text", "token")
COMBINATIONS = list(itertools.product(SCENARIOS, ACTIONS, OBSERVATIONS))
combinations = pytest.mark.parametrize(("scenario", "action", "observation"), COMBINATIONS)


def make(scenario, action, observation):
    env = gym.make("ChatEnv-v0", scenario=scenario, action=action, observation=observation, llm="template")
    return env.unwrapped


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@combinations
def test_gymnasiums_checker_is_content(scenario, action, observation):
    check_env(make(scenario, action, observation), skip_render_check=True)


@pytest.mark.parametrize(
    ("scenario", "action", "observation"), [c for c in COMBINATIONS if "text" not in c]  # SB3 has no Text spaces
)  # fmt: skip
def test_stable_baselines3s_checker_is_content(scenario, action, observation):
    sb3_check_env(make(scenario, action, observation))


def plain(value):
    return value.item() if isinstance(value, np.generic) else value


class Row(gym.Env):
    """The last of three rows of the vector environment, seen as a single environment."""

    def __init__(self, scenario, action, observation):
        self.envs = ChatVectorEnv(
            3, scenario=scenario, action=action, observation=observation, llm="template", texts=True,
            autoreset_mode=AutoresetMode.DISABLED,
        )  # fmt: skip
        self.action_space, self.observation_space = self.envs.single_action_space, self.envs.single_observation_space
        self.action_space.seed(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        observations, infos = self.envs.reset(seed=None if seed is None else [seed + 100, seed + 200, seed])
        return row_of(observations, 2), self.info(infos)

    def step(self, action):
        if self.envs._conversations.action == "text":
            actions = ["Hello!", "What?", action]
        else:
            actions = np.array([self.action_space.sample(), self.action_space.sample(), action])
        observations, *values, infos = self.envs.step(actions)
        for row in np.flatnonzero(self.envs._ended[:2]):  # the neighbours begin anew when they like
            self.envs.reset(options={"reset_mask": np.arange(3) == row})
        reward, terminated, truncated = (value[2].item() for value in values)
        return row_of(observations, 2), reward, terminated, truncated, self.info(infos)

    def info(self, infos):
        return {
            name: self.info(value) if isinstance(value, dict) else plain(value[2])
            for name, value in infos.items()
            if not name.startswith("_") and infos[f"_{name}"][2]
        }


@combinations
def test_a_row_of_the_vector_environment_is_the_single_one(scenario, action, observation):
    """Gymnasium's own comparison: resets, observations, rewards, ends and infos, over several conversations."""
    single = make(scenario, action, observation)
    steps = 15 if action == "text" else 60  # a sample of that space is two thousand characters long
    check_environments_match(single, Row(scenario, action, observation), num_steps=steps, seed=3)


def course(env, seed, actions):
    """Return all that happens in conversations that take these actions, as plain values."""
    observation, info = env.reset(seed=seed)
    happened = [(observation, info)]
    for action in actions:
        *step, info = env.step(action)
        happened.append((*step, info))
        if step[2] or step[3]:
            happened.append(env.reset())
    return repr(happened)


@combinations
def test_the_seed_alone_decides(scenario, action, observation):
    """Two environments, whatever the global generators do; another seed is another conversation."""
    first, second = make(scenario, action, observation), make(scenario, action, observation)
    first.action_space.seed(5)
    actions = [first.action_space.sample() for _ in range(10 if action == "text" else 30)]
    np.random.seed(1)  # noqa: NPY002
    before = course(first, 42, actions)
    np.random.seed(2)  # noqa: NPY002
    assert course(second, 42, actions) == before
    assert course(first, 42, actions) == before  # used before or not
    assert course(second, 43, actions) != before
