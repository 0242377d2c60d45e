"""``reward=``: a function of arrays pays in the place of the weighted sum of reward terms."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import chatgym
from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.integrations.sb3 import ChatVecEnv
from chatgym.rewards import CUSTOM

ROWS = 5
HONEST = f"{__name__}:honest"


def honest(step):
    """Take 1.0 more where the agent gives up, and pay for each slot that became known."""
    gave_up = step.acted("close", "escalate") & ~step.ended("resolved") & (step.outcomes > 0)
    learned = (step.belief["sure"] > 0).sum(1) - (step.belief_before["sure"] > 0).sum(1)
    return step.rewards - 1.0 * gave_up + 0.01 * learned + 0.001 * step.turns + 0.1 * step.term("mood")


def make(cls=ChatVectorEnv, **arguments):
    size = {} if cls is ChatEnv else {"num_envs": ROWS}
    return cls(**{"llm": "template", "observation": "discrete", "reward": honest, "max_turns": 7, **size, **arguments})


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_single_and_vector_pay_the_same_bit_for_bit_and_the_terms_add_up(mode):
    envs, singles = make(autoreset_mode=mode), [make(ChatEnv) for _ in range(ROWS)]
    envs.reset(seed=40)
    for row, single in enumerate(singles):
        single.reset(seed=40 + row)
    generator, over, ended = np.random.default_rng(0), np.zeros(ROWS, bool), 0
    for _ in range(40):
        if mode == "Disabled" and over.any():
            envs.reset(options={"reset_mask": over.copy()})
        acts = generator.integers(0, 15, ROWS)
        _, rewards, terminated, truncated, infos = envs.step(acts)
        for row, single in enumerate(singles):
            if over[row]:
                single.reset()
            if over[row] and mode == "NextStep":
                assert rewards[row] == infos["reward_terms"][CUSTOM][row] == 0
                continue
            _, reward, *ends, info = single.step(acts[row])
            assert reward == rewards[row]
            assert [terminated[row], truncated[row]] == ends
            assert sum(single.reward_weights[name] * value for name, value in info["reward_terms"].items()) == reward
            told = infos["final_info"] if mode == "SameStep" and any(ends) else infos
            assert {name: values[row] for name, values in told["reward_terms"].items() if name[0] != "_"} == (
                info["reward_terms"]
            )
        over = terminated | truncated
        ended += over.sum()
    assert ended > 20


def test_the_function_sees_the_turns_that_were_taken_in_arrays_that_it_cannot_change():
    steps = []
    envs = make(reward=lambda step: steps.append(step) or step.rewards.copy())
    plain = make(reward=None)
    for each in (envs, plain):
        each.reset(seed=1)
    active = np.array([True, False, True, True, False])
    for acts in ([1, 1, 14, 0, 1], [2] * ROWS, [3] * ROWS):
        before = envs.room.belief.copy()
        first, other = envs.step(acts, active=active), plain.step(acts, active=active)
        assert np.array_equal(first[1], other[1])
        step = steps[-1]
        taken = np.flatnonzero((envs.room.turns > 0) & active)
        assert step.rows.tolist() == taken.tolist()
        assert step.acts.tolist() == np.array(acts)[taken].tolist()
        assert np.array_equal(step.belief_before, before[taken])
        assert np.array_equal(step.belief, envs.room.belief[taken])
        assert step.turns.tolist() == envs.room.turns[taken].tolist()
        assert step.outcomes.tolist() == envs.room.outcomes[taken].tolist()
        assert [step.scenario.user_acts[act] for act in step.user_acts] == other[4]["user_act"][taken].tolist()
        assert step.term_names == tuple(step.scenario.reward_terms)
        assert np.array_equal(step.terms[:, 0], other[4]["reward_terms"][step.term_names[0]][taken])
        for array in vars(step).values():
            if isinstance(array, np.ndarray):
                assert len(array) == len(taken)
                assert not array.flags.writeable
    assert steps[1].rows.tolist() == [0, 3]  # row 2 closed, and began the next conversation
    assert not {"hidden", "goal", "key", "keys"} & set(vars(steps[0]))


def test_a_turn_of_tokens_is_paid_at_its_end():
    calls = []
    env = make(ChatEnv, action="token", reward_model=None, reward=lambda step: calls.append(step) or np.ones(1))
    env.reset(seed=2)
    tokens = [*env.tokenizer.encode("What is your order number?"), env.tokenizer.end]
    assert [env.step(token)[1] for token in tokens] == [0.0] * (len(tokens) - 1) + [1.0]
    assert len(calls) == 1
    assert calls[0].scenario.agent_acts[calls[0].acts[0]] == "ask_reference"


def test_a_reward_model_is_one_of_its_terms():
    class Short:
        identity = "short@1"

        def score(self, conversations):
            return np.full(len(conversations), 0.5, np.float32)

    env = make(ChatEnv, action="text", reward_model=Short(), reward=lambda step: 3 * step.term("reward_model"))
    env.reset(seed=1)
    *_, info = env.step("Hello!")
    assert info["reward_terms"][CUSTOM] == 1.5
    assert env.identity()["reward"]["weights"] == dict(env.reward_weights)
    assert dict(env.reward_weights) == {**dict.fromkeys(env.reward_weights, 0.0), CUSTOM: 1.0}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda step: 1.0, "returned float, not an array float64\\[5\\]"),
        (lambda step: step.rewards[:2], "returned float64\\[2\\]"),
        (lambda step: step.acts, "returned int64\\[5\\].*astype"),
        (lambda step: np.where(step.rows == 3, np.nan, 0.0), "returned nan in row 3, turn 1, act 'greet'"),
        (lambda step: np.where(step.rows == 3, np.inf, 0.0), "returned inf in row 3.*rewards are finite"),
    ],
)
def test_what_is_no_reward_for_each_turn_is_refused_with_the_functions_name(wrong, words):
    envs = make(reward=wrong)
    envs.reset(seed=1)
    with pytest.raises(InvalidValue, match=f"reward function {__name__}:<lambda> {words}"):
        envs.step(np.zeros(ROWS, int))


@pytest.mark.parametrize("made", [ChatEnv, ChatVectorEnv])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reward": 3}, "reward is a function of a chatgym.rewards.RewardStep"),
        ({"reward": "honest"}, "write 'module:function'"),
        ({"reward": "nowhere.at_all:honest"}, "can't be imported .*No module named 'nowhere'"),
        ({"reward": "json:honest"}, "can't be imported .*no attribute 'honest'"),
        ({"reward_weights": {"time": 1.0}}, "leave them out"),
    ],
)
def test_a_function_that_is_none_is_refused_with_the_remedy(made, arguments, words):
    with pytest.raises(InvalidValue, match=words):
        make(made, **arguments)


def test_weights_and_the_function_are_not_set_later():
    env = make(ChatEnv)
    with pytest.raises(InvalidValue, match="leave them out"):
        env.reward_weights = {"time": 1.0}
    with pytest.raises(InvalidValue, match="make another with reward="):
        env.reward = honest


def test_the_identity_is_that_of_what_the_function_does():
    def paying(amount):
        return lambda step: np.full(len(step.rows), amount)

    rewards = (paying(1.0), paying(1.0), paying(2.0), None)
    one, same, other, none = (make(ChatEnv, reward=reward).identity() for reward in rewards)
    assert one == same
    assert len({each["sha256"] for each in (one, other, none)}) == 3
    assert make(ChatEnv).identity()["reward"]["function"]["name"] == HONEST
    assert make(ChatEnv, reward=HONEST).identity() == make(ChatEnv).identity()

    class Named:
        identity = "named@1"

        def __init__(self, file):
            self.file = file

        def __call__(self, step):
            return step.rewards

    with open(__file__) as file:
        assert make(ChatEnv, reward=Named(file)).identity()["reward"]["function"]["identity"] == "named@1"
        with pytest.raises(InvalidValue, match="attribute `identity`"):
            make(ChatEnv, reward=lambda step: file and step.rewards).identity()


@pytest.mark.parametrize("reward", [honest, HONEST, lambda step: 2 * step.rewards], ids=["function", "name", "lambda"])
def test_copies_are_paid_by_the_same_function(reward):
    envs = make(reward=reward)
    envs.reset(seed=3)
    envs.step(np.ones(ROWS, int))
    copies = [copy.deepcopy(envs), pickle.loads(pickle.dumps(envs)), make(reward=reward)]
    copies[2].restore(envs.snapshot())
    acts = np.array([2, 3, 4, 13, 14])
    _, rewards, *_ = envs.step(acts)
    for other in copies:
        assert np.array_equal(other.step(acts)[1], rewards)
        assert other.identity() == envs.identity()


def test_the_specification_of_a_function_is_json():
    env = gym.make("ChatEnv-v0", llm="template", reward=honest)
    assert env.spec.kwargs["reward"] == HONEST
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.identity() == env.unwrapped.identity()
    envs = gym.make_vec("ChatEnv-v0", 2, "sync", llm="template", reward=HONEST)
    envs.reset(seed=1)
    _, rewards, _, _, infos = envs.step([14, 14])
    assert infos["reward_terms"][CUSTOM].tolist() == rewards.tolist()


def test_it_pays_through_stable_baselines3():
    envs, plain = (ChatVecEnv(make(autoreset_mode="SameStep", reward=reward)) for reward in (honest, None))
    for each in (envs, plain):
        each.seed(1)
        each.reset()
    closing = np.full(ROWS, 14)
    assert (envs.step(closing)[1] < plain.step(closing)[1] - 0.9).all()


def test_a_trace_is_replayed_with_the_function_or_without(tmp_path):
    path, env = tmp_path / "t.jsonl", make(ChatEnv)
    replay.record(env, lambda *_: int(env.room.expert_acts()[0]), path, keys=[1, 2])
    assert chatgym.replay(path).sha256 == chatgym.replay(path, reward=honest).sha256
    with pytest.raises(chatgym.ReplayMismatch, match=f"or give the reward function {HONEST} as it was"):
        chatgym.replay(path, reward=lambda step: step.rewards)
    replay.record(make(ChatEnv, reward=None), lambda *_: 14, path, keys=[1, 2])
    with pytest.raises(InvalidValue, match="no function paid"):
        chatgym.replay(path, reward=honest)
