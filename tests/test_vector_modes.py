"""gymnasium's own vector environments, which run one `ChatEnv` a row, observe what `ChatVectorEnv` does."""

import gymnasium as gym
import numpy as np
import pytest

ROWS = 2
KEYS = [5, 6]


def transcript(envs, turns=3):
    """Return the observations of the first turns of conversations with given seeds."""
    seen = [envs.reset(seed=KEYS)[0]]
    for turn in range(turns):
        seen.append(envs.step(np.array([turn + 1] * ROWS))[0])
    return seen


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("observation", ["text", "token", "embedding", "discrete", "belief"])
def test_gymnasiums_vector_modes_observe_what_single_environments_do(observation, mode):
    arguments = {"observation": observation, "llm": "template", "disable_env_checker": True}
    alone = []
    for key in KEYS:
        env = gym.make("ChatEnv-v0", **arguments)
        alone.append([env.reset(seed=key)[0], *(env.step(turn + 1)[0] for turn in range(3))])
    envs = gym.make_vec("ChatEnv-v0", num_envs=ROWS, vectorization_mode=mode, **arguments)
    try:
        for turn, together in enumerate(transcript(envs)):
            for row, expected in enumerate(alone):
                got = {k: v[row] for k, v in together.items()} if isinstance(together, dict) else together[row]
                if isinstance(expected[turn], dict):
                    assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in expected[turn].items()}
                else:
                    assert np.array_equal(got, expected[turn])
            assert envs.observation_space.contains(together)
    finally:
        envs.close()


def test_texts_in_shared_memory_keep_what_they_were_when_the_environment_goes_on():
    envs = gym.make_vec("ChatEnv-v0", num_envs=ROWS, vectorization_mode="async", observation="text", llm="template")
    try:
        first, _ = envs.reset(seed=KEYS)
        copy = tuple(first)
        second, *_ = envs.step(np.array([1] * ROWS))
        assert first == copy != second
        assert all(isinstance(text, str) and "\n" not in text for text in first + second)
    finally:
        envs.close()


def test_texts_in_shared_memory_can_be_read_without_a_copy():
    envs = gym.make_vec(
        "ChatEnv-v0", num_envs=ROWS, vectorization_mode="async", observation="text", llm="template",
        vector_kwargs={"copy": False},
    )  # fmt: skip
    try:
        texts, infos = envs.reset(seed=KEYS)
        assert list(texts) == list(infos["text"])
        _, _, _, _, infos = envs.step(np.array([1] * ROWS))
        assert list(texts) == list(infos["text"])
        assert len(texts) == ROWS
    finally:
        envs.close()


def test_text_actions_reach_the_environments_of_other_processes():
    arguments = {"action": "text", "observation": "text", "llm": "template"}
    envs = gym.make_vec("ChatEnv-v0", num_envs=ROWS, vectorization_mode="async", **arguments)
    try:
        envs.reset(seed=KEYS)
        _, _, _, _, infos = envs.step(("Hello!", "Goodbye."))
        assert all(infos["agent_act"])
    finally:
        envs.close()
