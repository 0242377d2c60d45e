import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import chatgym
from chatgym.agent import Interface
from chatgym.dynamics.rng import episode_key, in_split, split_of
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue

B = 4
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
OBSERVATIONS = ["embedding", "discrete", "text", "belief"]


def vector(observation="discrete", **arguments):
    return ChatVectorEnv(
        arguments.pop("num_envs", B), observation=observation, **{"llm": "template", "texts": True, **arguments}
    )


def singles(observation, mode):
    makers = [lambda: gym.make("ChatEnv-v0", llm="template", observation=observation)] * B
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return all(equal(a, b) for a, b in zip(one, other, strict=True))
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype == object:
        return all((a is b) or np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return one.dtype == other.dtype and np.array_equal(one, other)


def masked(infos):
    """The infos without what their masks say isn't there."""
    kept = {}
    for name, value in infos.items():
        if name.startswith("_"):
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = masked(value)
        else:
            kept[name] = np.asarray(value)[infos[f"_{name}"]]
    return kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_single_and_vector_agree_bit_for_bit(observation, mode):
    """Against Gymnasium's own vector of single environments, autoresets and infos included."""
    mine, theirs = vector(observation, autoreset_mode=mode), singles(observation, mode)
    generator = np.random.default_rng(0)
    seeds = [11, 5, 2**31, 0]
    one, other = mine.reset(seed=seeds), theirs.reset(seed=seeds)
    episodes = 0
    while episodes < (200 if observation == "discrete" else 40):
        assert equal(one[0], other[0])
        assert equal(one[1:-1], other[1:-1])
        assert equal(masked(one[-1]), masked(other[-1]))
        acts = generator.integers(0, 13, B)
        one, other = mine.step(acts), theirs.step(acts)
        ended = one[2] | one[3]
        episodes += int(ended.sum())
        if mode is AutoresetMode.DISABLED and ended.any():
            assert equal(one[:-1], other[:-1])
            one, other = (envs.reset(options={"reset_mask": ended.copy()}) for envs in (mine, theirs))
            one = (one[0], {k: v for k, v in one[1].items()})


@pytest.mark.parametrize("mode", MODES)
def test_a_split_holds_until_the_next_seed_in_both_environments_alike(mode):
    mine, single = vector("discrete", num_envs=1, autoreset_mode=mode), ChatEnv(observation="discrete", llm="template")
    seen = []
    for seed, options in ((5, {"split": "test"}), (None, None), (None, {"split": "validation"}), (5, None)):
        one, other = mine.reset(seed=seed, options=options), single.reset(seed=seed, options=options)
        for _ in range(3):
            assert one[0][0] == other[0]
            assert mine.room.keys[0] == single.key
            seen.append(split_of(single.key))
            over = False
            while not over:
                one, other = mine.step([1]), single.step(1)
                over = other[2] or other[3]
            if mode is AutoresetMode.NEXT_STEP:
                one = mine.step([1])
            elif mode is AutoresetMode.DISABLED:
                one = mine.reset()
            other = single.reset()
    assert seen == ["test"] * 6 + ["validation"] * 3 + ["train"] * 3


def test_a_seed_gives_no_conversation_that_is_kept_for_evaluations():
    envs = ChatVectorEnv(5000, llm="template")
    for options in (None, {"reset_mask": np.arange(5000) < 10}):  # before any seed, then with seeds
        envs.reset(seed=None if options is None else 2_000_000, options=options)
        assert set(split_of(envs.room.keys)) == {"train"}
    envs.reset(options={"split": "test", "reset_mask": np.arange(5000) < 10})
    assert split_of(envs.room.keys)[:11].tolist() == ["test"] * 10 + ["train"]


def test_an_unknown_split_or_one_beside_keys_is_refused():
    envs = ChatVectorEnv(2, llm="template")
    with pytest.raises(InvalidValue, match=r"unknown split 'tests'.* Did you mean 'test'"):
        envs.reset(options={"split": "tests"})
    with pytest.raises(InvalidValue, match="leave out one of the two"):
        envs.reset(options={"split": "test", "keys": [1, 2]})


def test_an_environment_for_training_begins_no_conversation_of_another_split():
    envs = Task().maker(Interface())(2)
    test, train = ([episode_key(root, 0) for root in in_split(np.arange(2), split)] for split in ("test", "train"))
    for options in ({"split": "test"}, {"keys": test}):
        for refusing in (envs, copy.deepcopy(envs)):
            with pytest.raises(InvalidValue, match="for conversations of the split 'train' only, not test"):
                refusing.reset(options=options)
    envs.reset(seed=1, options={"split": "train"})
    with pytest.raises(InvalidValue, match="not test"):
        envs.fork(0, 3).reset(options={"split": "test"})
    envs.reset(options={"keys": train})


@pytest.mark.parametrize("seed", [np.int64(40), np.array(40), np.array([40, 41]), [np.uint8(40), 41]])
def test_seeds_may_be_numbers_of_numpy(seed):
    envs = ChatVectorEnv(2, llm="template")
    envs.reset(seed=[40, 41])
    roots = envs.room.roots.tolist()
    envs.reset(seed=seed)
    assert envs.room.roots.tolist() == roots
    single = ChatEnv(llm="template")
    single.reset(seed=np.uint32(40))
    assert single.room.roots[0] == roots[0]


@pytest.mark.parametrize("seed", [-1, 1.0, "40", True])
def test_a_seed_that_is_none_is_refused(seed):
    for env, given in (
        (ChatEnv(llm="template"), seed),
        (envs := ChatVectorEnv(2, llm="template"), seed),
        (envs, [1, seed]),
    ):
        with pytest.raises(InvalidValue, match="a seed is an integer of at least 0"):
            env.reset(seed=given)


@pytest.mark.parametrize("mode", MODES)
def test_an_int_seed_gives_row_i_the_seed_plus_i(mode):
    by_int, by_list = vector(autoreset_mode=mode), vector(autoreset_mode=mode)
    by_int.reset(seed=40)
    by_list.reset(seed=[40, 41, 42, 43])
    assert np.array_equal(by_int.room.keys, by_list.room.keys)


def test_make_vec_makes_it():
    envs = gym.make_vec("ChatEnv-v0", num_envs=8, vectorization_mode="vector_entry_point", llm="template")
    assert isinstance(envs.unwrapped, ChatVectorEnv)
    observations, infos = envs.reset(seed=1)
    assert envs.observation_space.contains(observations)
    assert "text" not in infos
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_observations_and_actions_are_in_their_spaces(observation):
    envs = vector(observation)
    envs.action_space.seed(0)
    observations, _ = envs.reset(seed=3)
    for _ in range(30):
        assert envs.observation_space.contains(observations)
        observations = envs.step(envs.action_space.sample())[0]


def test_a_snapshot_restores_the_whole_environment():
    envs, acts = vector(num_envs=32), np.random.default_rng(1).integers(0, 15, (60, 32))

    def go(moments):
        return [envs.step(act)[:4] for act in moments]

    envs.reset(seed=9)
    go(acts[:20])
    saved = envs.snapshot()
    first = go(acts[20:])
    envs.restore(saved)
    assert all(equal(a, b) for a, b in zip(first, go(acts[20:]), strict=True))


def test_a_restored_snapshot_goes_on_in_a_new_environment():
    acts = np.random.default_rng(1).integers(0, 15, (60, 32))
    envs = vector(num_envs=32)
    envs.reset(seed=9)
    for act in acts[:20]:
        envs.step(act)
    other = vector(num_envs=32)
    other.restore(envs.snapshot())
    for act in acts[20:]:
        assert equal(envs.step(act)[:4], other.step(act)[:4])


def test_without_words_no_sentence_is_made():
    envs = vector(texts=False)
    envs.reset(seed=1)
    assert envs.speaker is None
    assert "text" not in envs.step(np.zeros(B, np.int64))[4]


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros(3, np.int64), "expected 4 agent acts"),
        (np.zeros(4), "expected 4 agent acts as an integer array"),
        ([0, 0, 15, 0], "no agent act 15; they are 0 to 14"),
        ([0, -1, 0, 0], "no agent act -1"),
    ],
)
def test_wrong_actions_are_refused(actions, words):
    envs = vector()
    envs.reset(seed=1)
    with pytest.raises(chatgym.InvalidValue, match=words):
        envs.step(actions)


def test_misuse_is_refused_with_the_remedy():
    envs = vector(autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(chatgym.ChatGymError, match="call reset"):
        envs.step(np.zeros(B, np.int64))
    envs.reset(seed=1)
    envs.step(np.full(B, 14))
    with pytest.raises(chatgym.ChatGymError, match="rows 0, 1, 2, 3 have ended"):
        envs.step(np.zeros(B, np.int64))
    with pytest.raises(chatgym.InvalidValue, match="reset_mask"):
        envs.reset(options={"reset_mask": np.zeros(B, bool)})
    with pytest.raises(chatgym.InvalidValue, match="got 2 seeds for 4"):
        envs.reset(seed=[1, 2])
    with pytest.raises(chatgym.InvalidValue, match="doesn't render"):
        vector(render_mode="human")
