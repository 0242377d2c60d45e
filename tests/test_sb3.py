import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import vector
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from chatgym.dynamics.rng import split_of
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.integrations.sb3 import ChatVecEnv

ROWS = 6


@pytest.fixture
def envs():
    envs = ChatVecEnv.make(ROWS, llm="template", max_turns=7)
    envs.seed(40)
    envs.reset()
    return envs


def random_acts(masks, generator):
    return (generator.random(masks.shape) * masks).argmax(1)


@pytest.mark.parametrize("observation", ["embedding", "discrete"])
def test_each_row_is_the_single_environment_step_for_step(observation):
    """With few turns, so that conversations are truncated as well as terminated."""
    arguments = {"llm": "template", "observation": observation, "max_turns": 7}
    envs = ChatVecEnv.make(ROWS, **arguments)
    singles = [ChatEnv(**arguments) for _ in range(ROWS)]
    assert envs.seed(40) == [40, 41, 42, 43, 44, 45]
    observations = envs.reset()
    begun = [single.reset(seed=40 + row) for row, single in enumerate(singles)]
    assert np.array_equal(observations, [one for one, _ in begun])
    masks = np.array([info["action_mask"] for _, info in begun])
    generator, endings = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(60):
        assert np.array_equal(envs.action_masks(), masks)
        acts = random_acts(masks, generator)
        observations, rewards, dones, infos = envs.step(acts)
        assert rewards.dtype == np.float32
        for row, single in enumerate(singles):
            expected, reward, terminated, truncated, info = single.step(acts[row])
            assert rewards[row] == np.float32(reward)
            assert dones[row] == (terminated or truncated)
            if dones[row]:
                assert np.array_equal(infos[row]["terminal_observation"], expected)
                assert np.array_equal(infos[row]["terminal_action_mask"], info["action_mask"])
                assert infos[row]["TimeLimit.truncated"] is (truncated and not terminated)
                assert infos[row]["outcome"] == info["outcome"]
                assert infos[row]["is_success"] is info["is_success"]
                assert info["is_success"] is (info["outcome"] == single.scenario.success)
                endings[infos[row]["TimeLimit.truncated"]] += 1
                expected, info = single.reset()
            else:
                assert infos[row] == {}
            assert np.array_equal(observations[row], expected)
            masks[row] = info["action_mask"]
    assert min(endings.values()) > 5


def test_each_row_has_an_info_of_its_own(envs):
    generator = np.random.default_rng(0)
    infos = envs.step(random_acts(envs.action_masks(), generator))[3]
    for given in (infos, envs.reset_infos):
        assert len({id(info) for info in given}) == ROWS
        given[0]["written"] = "by a wrapper"
        assert all("written" not in info for info in given[1:])
    assert "written" not in envs.step(random_acts(envs.action_masks(), generator))[3][0]


@pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO])
def test_an_algorithm_of_sb3_learns_through_it(algorithm):
    envs = VecMonitor(ChatVecEnv.make(8, llm="template"))
    model = algorithm(
        "MlpPolicy", envs, n_steps=16, seed=3, device="cpu", **({} if algorithm is A2C else {"n_epochs": 2})
    )
    before = [weights.clone() for weights in model.policy.parameters()]
    model.learn(8 * 16 * 3)
    assert model.num_timesteps == 8 * 16 * 3
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))
    assert len(model.ep_info_buffer) > 5
    assert all(1 <= episode["l"] <= 20 for episode in model.ep_info_buffer)
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer)


def test_maskable_ppo_does_what_makes_sense_only():
    envs = ChatVecEnv.make(8, llm="template")
    assert is_masking_supported(envs)
    acted, step = [], envs.step_async

    def recorded(acts):
        acted.append(envs.action_masks()[np.arange(8), acts])
        step(acts)

    envs.step_async = recorded
    MaskablePPO("MlpPolicy", envs, n_steps=16, seed=3, device="cpu").learn(8 * 32)
    assert len(acted) == 32
    assert np.all(acted)
    assert np.array_equal(get_action_masks(envs), envs.action_masks())


def test_the_same_seed_gives_the_same_conversations_and_none_lets_them_go_on(envs):
    first = envs.envs.room.keys.copy()
    envs.seed(40)
    envs.reset()
    assert np.array_equal(envs.envs.room.keys, first)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert envs.seed() == [None] * ROWS
    envs.reset()
    assert not (envs.envs.room.keys == first).any()
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_key_for_each_row_names_the_conversations_of_the_next_reset(envs):
    envs.set_options([{"key": 7 + row} for row in range(ROWS)])
    envs.reset()
    assert envs.envs.room.keys.tolist() == list(range(7, 7 + ROWS))
    envs.reset()
    assert not np.isin(envs.envs.room.keys, range(7, 7 + ROWS)).any()
    for wrong in ({"topic": "refund"}, {"key": -5}, {"key": 5.7}, {"key": "5"}, [{"key": 5}], [{"key": 5}] + [{}] * 5):
        with pytest.raises(InvalidValue, match="key"):
            envs.set_options(wrong)


def test_a_split_holds_until_the_next_seed(envs):
    envs.seed(3)
    envs.set_options({"split": "test"})
    single = ChatEnv(llm="template")
    for options in ({"split": "test"}, None):
        envs.reset()
        single.reset(seed=options and 3, options=options)
        assert envs.envs.room.keys[0] == single.key
        assert set(split_of(envs.envs.room.keys)) == {"test"}
    envs.seed(3)
    envs.reset()
    assert set(split_of(envs.envs.room.keys)) == {"train"}
    for wrong in ([{"split": "test"}] * (ROWS - 1) + [{"split": "train"}], {"split": "test", "key": 1}):
        with pytest.raises(InvalidValue, match="to all"):
            envs.set_options(wrong)


def test_attributes_and_methods_are_given_for_each_row(envs):
    assert envs.get_attr("scenario") == [envs.envs.scenario] * ROWS
    assert envs.env_method("expert_acts", indices=[1, 4]) == envs.envs.expert_acts()[[1, 4]].tolist()
    assert np.array_equal(envs.env_method("action_masks", indices=2)[0], envs.action_masks()[2])
    assert envs.env_is_wrapped(VecMonitor, indices=[0, 1]) == [False, False]
    assert not envs.has_attr("nothing")
    assert envs.render_mode is None
    with pytest.raises(InvalidValue, match="all conversations"):
        envs.set_attr("error_rate", 0.5, indices=[0])
    for name, words in (("eror_rate", "Did you mean 'error_rate'"), ("scenario", "make another with scenario=")):
        with pytest.raises(InvalidValue, match=words):
            envs.set_attr(name, 0.5)


def test_an_error_rate_that_is_set_takes_effect_from_the_next_turn_on(envs):
    changed = ChatVecEnv.make(ROWS, llm="template", max_turns=7, error_rate=0.9)
    before = envs.envs.identity()
    for each in (changed, envs):
        each.set_options([{"key": 7 + row} for row in range(ROWS)])
    begun = changed.reset()
    VecMonitor(envs).set_attr("error_rate", 0.9)
    assert np.array_equal(envs.reset(), begun)
    assert envs.get_attr("error_rate", [2]) == [0.9] == [envs.error_rate]
    assert envs.envs.identity() == changed.envs.identity() != before
    one, other = envs.step(np.zeros(ROWS, int)), changed.step(np.zeros(ROWS, int))
    assert all(map(np.array_equal, one[:3], other[:3]))
    envs.error_rate = 0.0
    assert envs.envs.room.error_rate == 0.0


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
@pytest.mark.parametrize("arguments", [{"texts": True}, {"action": "candidate"}], ids=["act", "candidate"])
def test_infos_on_request_are_those_of_the_single_environment(mode, arguments):
    arguments = {"llm": "template", "max_turns": 7, "reward_model": None, **arguments}
    envs = ChatVecEnv(ChatVectorEnv(ROWS, autoreset_mode=mode, **arguments), infos=True)
    arguments.pop("texts", None)
    singles = [ChatEnv(**arguments) for _ in range(ROWS)]
    envs.seed(40)
    envs.reset()
    begun = [single.reset(seed=40 + row)[1] for row, single in enumerate(singles)]
    generator, ended = np.random.default_rng(0), 0
    for _ in range(25):
        assert all(map(same_info, envs.reset_infos, begun))
        acts = random_acts(envs.action_masks(), generator)
        observations, _, dones, infos = envs.step(acts)
        for row, single in enumerate(singles):
            seen, _, terminated, truncated, expected = single.step(acts[row])
            assert dones[row] == (terminated or truncated)
            if dones[row]:
                assert np.array_equal(infos[row].pop("terminal_observation"), seen)
                assert np.array_equal(infos[row].pop("terminal_action_mask"), expected["action_mask"])
                del infos[row]["TimeLimit.truncated"]
                seen, begun[row] = single.reset()
                ended += 1
            assert same_info(infos[row], expected)
            assert np.array_equal(observations[row], seen)
    assert ended > 10


def same_info(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["single", "DummyVecEnv", "ChatVecEnv"])
def test_the_evaluation_of_sb3_counts_successes(kind, tmp_path):
    arguments = {"llm": "template", "max_turns": 12}
    single = gym.make("ChatEnv-v0", **arguments)
    made = {
        "single": lambda: single, "DummyVecEnv": lambda: DummyVecEnv([lambda: single]),
        "ChatVecEnv": lambda: ChatVecEnv.make(1, **arguments),
    }[kind]()  # fmt: skip
    callback = EvalCallback(made, n_eval_episodes=30, eval_freq=8, log_path=str(tmp_path), verbose=0, warn=False)
    callback.eval_env.seed(3)
    base = callback.eval_env.base if kind == "ChatVecEnv" else single.unwrapped
    model = PPO("MlpPolicy", ChatVecEnv.make(1, **arguments), n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.predict = lambda observations, **how: (base.room.expert_acts(), None)
    model.learn(8, callback)
    with np.load(tmp_path / "evaluations.npz") as file:
        counted = file["successes"].tolist()
    expert, successes = ChatEnv(**arguments), []
    expert.reset(seed=3)
    for _ in range(30):
        over = False
        while not over:
            *_, terminated, truncated, info = expert.step(expert.room.expert_acts()[0])
            over = terminated or truncated
        successes.append(info["outcome"] == "resolved")
        expert.reset()
    assert counted == [successes]
    assert 0.5 < np.mean(successes) < 1


def test_infos_are_asked_for_by_name():
    envs = ChatVecEnv.make(2, llm="template", infos=["reward_terms", "action_mask"])
    envs.reset()
    assert set(envs.step(np.zeros(2, int))[3][0]) == {"reward_terms", "action_mask"}
    with pytest.raises(InvalidValue, match=r"unknown info 'text'; known: .*texts=True"):
        ChatVecEnv.make(2, llm="template", infos=["text"])
    with pytest.raises(InvalidValue, match=r"such as \['agent_act'\]"):
        ChatVecEnv.make(2, llm="template", infos="agent_act")


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_gymnasiums_wrappers_stand_around_the_vector_environment(mode):
    """Own rewards and observations at full speed; both modes give the same conversations."""
    inner = ChatVectorEnv(ROWS, llm="template", max_turns=7, autoreset_mode=mode)
    wrapped = vector.RecordEpisodeStatistics(vector.TransformReward(inner, lambda rewards: 2 * rewards))
    if mode == "Disabled":
        wrapped = vector.TransformObservation(wrapped, lambda seen: -seen)
    envs, plain = ChatVecEnv(wrapped), ChatVecEnv.make(ROWS, llm="template", max_turns=7)
    sign, generator, returns, finished = -1 if mode == "Disabled" else 1, np.random.default_rng(0), np.zeros(ROWS), 0
    for each in (envs, plain):
        each.seed(40)
    assert np.array_equal(envs.reset(), sign * plain.reset())
    for _ in range(25):
        acts = random_acts(plain.action_masks(), generator)
        (seen, rewards, dones, infos), (observed, paid, over, known) = envs.step(acts), plain.step(acts)
        assert np.array_equal(seen, sign * observed)
        assert np.array_equal(rewards, 2 * paid)
        assert np.array_equal(dones, over)
        assert np.array_equal(envs.action_masks(), plain.action_masks())
        returns += rewards
        for row in np.flatnonzero(dones):
            episode = infos[row].pop("episode")
            assert episode["r"] == pytest.approx(returns[row], abs=1e-5)
            assert np.array_equal(infos[row].pop("terminal_observation"), sign * known[row].pop("terminal_observation"))
            assert all(np.array_equal(infos[row][name], known[row][name]) for name in known[row])
            returns[row], finished = 0, finished + 1
        assert all("episode" not in infos[row] for row in np.flatnonzero(~dones))
    assert finished > 10
    assert envs.env_is_wrapped(vector.TransformReward) == [True] * ROWS
    envs.set_attr("error_rate", 0.3)
    assert inner.error_rate == 0.3
    assert len(envs.get_attr("return_queue")[0]) == finished


def test_a_restored_environment_goes_on_as_before(envs):
    generator = np.random.default_rng(0)
    snapshot, masks = envs.snapshot(), envs.action_masks()
    acts = random_acts(masks, generator)
    first = envs.step(acts)
    envs.restore(snapshot)
    assert np.array_equal(envs.action_masks(), masks)
    again = envs.step(acts)
    assert all(np.array_equal(one, other) for one, other in zip(first[:3], again[:3], strict=True))


def test_spaces_are_those_of_one_conversation(envs):
    assert isinstance(envs.observation_space, spaces.Box)
    assert envs.observation_space == envs.envs.single_observation_space
    assert envs.action_space == envs.envs.single_action_space


def test_what_can_not_be_adapted_is_refused_with_the_remedy():
    with pytest.raises(InvalidValue, match="autoreset_mode='SameStep'"):
        ChatVecEnv(ChatVectorEnv(2, llm="template"))
    for wrapper, words in ((vector.DictInfoToList, "leave out"), (vector.NormalizeReward, "VecNormalize")):
        with pytest.raises(InvalidValue, match=words):
            ChatVecEnv(wrapper(ChatVectorEnv(2, llm="template", autoreset_mode="Disabled")))
    with pytest.raises(InvalidValue, match="make_vec_env"):
        ChatVecEnv(gym.vector.SyncVectorEnv([lambda: ChatEnv(llm="template")]))
    more = vector.TransformAction(ChatVectorEnv(2, llm="template", autoreset_mode="SameStep"), lambda acts: acts, None)
    more.single_action_space = spaces.Discrete(3)
    envs = ChatVecEnv(more)
    envs.reset()
    with pytest.raises(ChatGymError, match="leave out the wrapper"):
        envs.action_masks()
    with pytest.raises(ChatGymError, match=r"before reset\(\)"):
        ChatVecEnv.make(2, llm="template").action_masks()
