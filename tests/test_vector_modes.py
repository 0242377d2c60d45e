"""gymnasium's own vector environments, which run one `ChatEnv` a row, observe what `ChatVectorEnv` does.

So do its wrappers for vector environments, around both.
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers as single
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers import vector

from chatgym.errors import InvalidValue

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


MODES = {
    VectorWrapper: "NSD",
    vector.RecordEpisodeStatistics: "NSD",
    vector.DictInfoToList: "NSD",
    vector.NormalizeReward: "NSD",
    vector.NormalizeObservation: "N",
    lambda envs: vector.TransformReward(envs, lambda rewards: 2 * rewards): "NSD",
    lambda envs: vector.VectorizeTransformReward(envs, single.TransformReward, func=lambda reward: 2 * reward): "NSD",
    lambda envs: vector.ClipReward(envs, -0.1, 0.5): "NSD",
    lambda envs: vector.TransformAction(envs, lambda acts: (acts + 1) % 13): "NSD",
    lambda envs: vector.VectorizeTransformAction(
        envs, single.TransformAction, func=lambda act: (act + 1) % 13, action_space=envs.single_action_space
    ): "NSD",
    lambda envs: vector.TransformObservation(envs, lambda seen: -seen): "ND",
    lambda envs: vector.VectorizeTransformObservation(
        envs, single.TransformObservation, func=lambda seen: -seen, observation_space=envs.single_observation_space
    ): "ND",
    vector.FlattenObservation: "ND",
    lambda envs: vector.ReshapeObservation(envs, (5, 17)): "ND",
    lambda envs: vector.RescaleObservation(envs, np.float32(0), np.float32(1)): "ND",
    lambda envs: vector.DictInfoToList(vector.RecordEpisodeStatistics(envs)): "NSD",
}  # fmt: skip
"""Gymnasium's wrappers to the modes (next step, same step, disabled) in which they work around its own environments."""


def alike(one, other):
    """Compare what two environments returned, without elapsed times and what the masks of infos leave out."""
    if isinstance(one, dict):
        names = {name for name in (*one, *other) if name != "t" and not name.startswith("_")}
        return all(name in one and name in other and alike(one[name], other[name]) for name in names)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    return np.array_equal(one, other)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("wrap", MODES)
def test_gymnasiums_wrappers_make_of_it_what_they_make_of_single_environments(wrap, mode):
    arguments = {"llm": "template", "max_turns": 4}
    mine = gym.make_vec("ChatEnv-v0", 3, "vector_entry_point", texts=True, autoreset_mode=mode, **arguments)
    theirs = gym.make_vec("ChatEnv-v0", 3, "sync", vector_kwargs={"autoreset_mode": mode}, **arguments)
    if mode.value[0] not in MODES[wrap]:
        for envs in (mine, theirs):
            with pytest.raises(ValueError, match=r"autoreset_mode.* to be .*NEXT_STEP"):
                wrap(envs)
        return
    mine, theirs = wrap(mine), wrap(theirs)
    assert mine.observation_space == theirs.observation_space
    assert alike(mine.reset(seed=5)[0], theirs.reset(seed=5)[0])
    generator = np.random.default_rng(0)
    for _ in range(12):
        acts = generator.integers(0, 13, 3)
        one, other = mine.step(acts.copy()), theirs.step(acts.copy())  # one wrapper writes into them
        assert alike(one[:4], other[:4])
        if isinstance(one[4], list):
            assert alike(one[4], other[4])
        elif "episode" in other[4]:
            assert alike(one[4]["episode"], other[4]["episode"])
        ended = one[2] | one[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            seen = [envs.reset(options={"reset_mask": ended.copy()})[0] for envs in (mine, theirs)]
            assert alike(*seen)


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_attributes_are_set_through_each_vector_environment(mode):
    envs = gym.make_vec("ChatEnv-v0", 2, mode, llm="template")
    try:
        envs.reset(seed=1)
        envs.set_attr("error_rate", 0.9)
        assert envs.get_attr("error_rate") == (0.9, 0.9)
        envs.set_attr("max_turns", [2, 2])
        envs.step(np.zeros(2, int))
        assert envs.step(np.zeros(2, int))[3].all()
        if mode != "async":  # there the error comes from another process
            for name, value in (("eror_rate", 0.1), ("error_rate", 1.5), ("scenario", "social")):
                with pytest.raises(InvalidValue):
                    envs.set_attr(name, value)
    finally:
        envs.close()
