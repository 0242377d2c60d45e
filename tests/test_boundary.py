"""What a user hands over is checked where it comes in: the error names the value, what is allowed, and the remedy."""

import gymnasium as gym
import numpy as np
import pytest

from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.evaluation import converse, evaluate


def make(**arguments):
    return gym.make("ChatEnv-v0", **{"llm": "template", **arguments})


@pytest.mark.parametrize("key", [-1, 2**64, 1.5, "7", True, [1]])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(InvalidValue, match=r"integer from 0 to 2\*\*64 - 1"):
        make().reset(options={"key": key})
    with pytest.raises(InvalidValue, match=r"integer from 0 to 2\*\*64 - 1"):
        ChatVectorEnv(2, llm="template").reset(options={"keys": [0, key]} if key != [1] else {"keys": [0, "x"]})


def test_the_largest_key_is_a_conversation():
    env = make()
    env.reset(options={"key": 2**64 - 1})
    assert env.unwrapped.key == 2**64 - 1
    envs = ChatVectorEnv(2, llm="template")
    envs.reset(options={"keys": [3, 2**64 - 1]})
    assert envs.room.keys.tolist() == [3, 2**64 - 1]


def test_an_unknown_reset_option_is_refused():
    with pytest.raises(InvalidValue, match=r"reset option 'keys'.*known: 'key'"):
        make().reset(options={"keys": [1]})
    with pytest.raises(InvalidValue, match=r"reset option 'key'; .*'keys'.*'reset_mask'"):
        ChatVectorEnv(2, llm="template").reset(options={"key": 1})
    with pytest.raises(InvalidValue, match=r"a dict with 'key', 'split', not \['key'\]"):
        make().reset(options=["key"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_turns": 2.7}, "max_turns is a number of turns, an integer from 1 to 10000, not 2.7"),
        ({"max_turns": "5"}, "not '5'"),
        ({"max_turns": True}, "not True"),
        ({"error_rate": "0.1"}, "error_rate is a probability from 0 to 1, not '0.1'"),
        ({"error_rate": float("nan")}, "not nan"),
        (
            {"reward_weights": {"time": float("nan")}},
            "the weight of the reward term 'time' is a finite number, not nan",
        ),
        ({"reward_weights": {"time": float("inf")}}, "not inf"),
        ({"reward_weights": {"time": "1"}}, "not '1'"),
        ({"reward_weights": [("time", 1.0)]}, "reward_weights maps names"),
        ({"action": "text", "reward_weights": {"reward_model": float("nan")}}, "'reward_model' is a finite number"),
        ({"scenario": 3}, "unknown scenario 3"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused(arguments, message):
    for made in (make, lambda **given: ChatVectorEnv(2, llm="template", **given)):
        with pytest.raises(InvalidValue, match=message.replace("*", r"\*")):
            made(**arguments)


def test_numpy_numbers_are_numbers():
    env = make(max_turns=np.int64(3), error_rate=np.float32(0.25), reward_weights={"time": np.float64(0.5)})
    assert (env.unwrapped.room.max_turns, env.unwrapped.room.error_rate) == (3, 0.25)


@pytest.mark.parametrize("size", [0, 2.5, "2", True])
def test_a_number_of_conversations_that_is_none_is_refused(size):
    with pytest.raises(InvalidValue, match="num_envs is the number of conversations"):
        ChatVectorEnv(size, llm="template")


def test_a_text_that_is_too_long_is_cut_off_as_tokens_are():
    envs = ChatVectorEnv(2, action="text", observation="discrete", llm="template", reward_model=None)
    envs.reset(seed=0)
    *_, infos = envs.step(["Hello! " * 400, "What is your order number?"])
    assert infos["agent_act"][1] == "ask_reference"


def test_the_action_mask_is_what_sample_takes():
    env = make(observation="discrete")
    _, info = env.reset(seed=0)
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"][env.action_space.sample(info["action_mask"])] == 1
    envs = gym.make_vec("ChatEnv-v0", num_envs=3, vectorization_mode="vector_entry_point", llm="template")
    _, infos = envs.reset(seed=0)
    assert infos["action_mask"].dtype == np.int8
    assert envs.action_space.sample(mask=tuple(infos["action_mask"])).shape == (3,)


def test_rows_that_are_not_active_stay_as_they_were():
    for mode in ("NextStep", "SameStep", "Disabled"):
        envs = ChatVectorEnv(4, observation="embedding", llm="template", texts=True, autoreset_mode=mode)
        alone = ChatVectorEnv(4, observation="embedding", llm="template", texts=True, autoreset_mode=mode)
        before, _ = envs.reset(seed=5)
        alone.reset(seed=5)
        active = np.array([True, False, True, False])
        after, rewards, terminations, truncations, infos = envs.step(envs.expert_acts(), active=active)
        expected, earned, *_ = alone.step(alone.expert_acts())
        assert np.array_equal(after[~active], before[~active])
        assert np.array_equal(after[active], expected[active])
        assert rewards.tolist() == np.where(active, earned, 0.0).tolist()
        assert not terminations[~active].any()
        assert not truncations[~active].any()
        assert infos["_agent_act"].tolist() == active.tolist()
        assert envs.room.turns.tolist() == active.astype(int).tolist()


def test_an_ended_row_that_is_not_active_is_left_ended():
    for mode in ("NextStep", "Disabled"):
        envs = ChatVectorEnv(2, observation="discrete", llm="template", autoreset_mode=mode)
        envs.reset(seed=0)
        close = envs.scenario.agent_acts.index("close")
        envs.step([close, 0])
        keys = envs.room.keys.copy()
        for _ in range(3):
            envs.step(envs.expert_acts(), active=np.array([False, True]))
        assert envs.room.keys[0] == keys[0]
        assert envs.room.outcomes[0] > 0


@pytest.mark.parametrize("active", [[True, False], np.array([1, 0]), np.array([True])])
def test_an_active_mask_of_another_form_is_refused(active):
    envs = ChatVectorEnv(2, llm="template")
    envs.reset(seed=0)
    with pytest.raises(InvalidValue, match=r"active is a numpy bool array of shape \(2,\)"):
        envs.step([0, 0], active=active)


class Spelling:
    """Says the expert's sentence token by token: an agent with the token interface."""

    from chatgym.agent import Interface

    requires = Interface("token", "belief")

    def __init__(self, scenario, tokenizer):
        self.scenario, self.tokenizer = scenario, tokenizer

    def begin(self, keys):
        self.known, self.left = keys, [[] for _ in keys]

    def act(self, observations, *, deterministic=True, action_masks=None):
        from chatgym.dynamics.room import ChatRoom

        room = ChatRoom(self.scenario, len(observations))
        acts = room.expert_acts(np.ascontiguousarray(observations).view(self.scenario.belief)[:, 0])
        tokens = []
        for row, act in enumerate(acts.tolist()):
            if not self.left[row]:
                part = next(
                    p for p in self.scenario.sentences["agent"] if p.partition("/")[0] == self.scenario.agent_acts[act]
                )
                self.left[row] = [*self.tokenizer.encode(self.scenario.sentences["agent"][part][0]), self.tokenizer.end]
            tokens.append(self.left[row].pop(0))
        return np.array(tokens)


def test_an_agent_that_speaks_in_tokens_is_evaluated_in_turns():
    task = Task("customer_service")
    envs = task.make_envs(Spelling.requires, 1)
    agent = Spelling(task.find_scenario(), envs.tokenizer)
    result = evaluate(agent, task, conversations=6, references=False)
    assert (result.turns <= 20).all()
    assert (result.turns >= 2).all()
    rows = task.make_envs(Spelling.requires, 6)
    rows.reset(seed=result.seed)
    assert len(agent.known) == 6
    assert not set(agent.known.tolist()) & set(rows.room.keys.tolist())  # from which everything hidden follows
    held = [converse(agent, task.make_env(agent.requires), result.seed + i) for i in range(6)]
    assert [one["outcome"] for one in held] == result.outcomes.tolist()
    assert [one["return"] for one in held] == pytest.approx(result.returns.tolist())


@pytest.mark.parametrize("made", [ChatEnv, lambda **given: ChatVectorEnv(2, **given)], ids=["single", "vector"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("error_rate", 1.5, "error_rate is a probability from 0 to 1, not 1.5"),
        ("error_rate", None, "not None"),
        ("max_turns", 0, "an integer from 1 to 10000, not 0"),
        ("reward_weights", {"tme": 1.0}, "unknown reward term 'tme'.*Did you mean 'time'"),
        ("reward_weights", {"reward_model": 1.0}, "unknown reward term 'reward_model'"),
        ("eror_rate", 0.5, "known: 'error_rate', 'max_turns', 'reward_weights'. Did you mean 'error_rate'"),
        ("scenario", "social", "make another with scenario=.*error_rate, max_turns, reward_weights"),
        ("action", "text", "make another with action="),
        ("texts_", True, "would have no effect"),
        ("room", None, "make another|can't be set"),
    ],
)
def test_an_attribute_that_can_not_be_set_is_refused(made, name, value, message):
    env = made(llm="template")
    before = env.settings()
    with pytest.raises(InvalidValue, match=message):
        setattr(env, name, value)
    assert env.settings() == before


def test_a_subclass_and_gymnasium_set_their_own_attributes():
    class Mine(ChatEnv):
        def __init__(self):
            super().__init__(llm="template")
            self.note = "mine"

    env = Mine()
    env.note = env.note + "!"
    env.error_rate = 0.2
    assert (env.note, env.room.error_rate) == ("mine!", 0.2)
    env = ChatEnv(llm="template")
    env.render_mode, env.action_space, env.np_random = "ansi", env.action_space, np.random.default_rng(1)
    with pytest.raises(InvalidValue, match=r"set env.reward_weights = \{'time': 3.0\}"):
        env.reward_weights["time"] = 3.0


def test_an_attribute_on_a_wrapper_where_it_has_no_effect_is_refused():
    """Stable-Baselines3's DummyVecEnv sets attributes on the outermost wrapper."""
    env = make()
    env.error_rate = 0.9
    with pytest.raises(InvalidValue, match=r"on the wrapper OrderEnforcing.*set_wrapper_attr\('error_rate', 0.9\)"):
        env.reset()
    del env.error_rate
    env.set_wrapper_attr("error_rate", 0.9)
    env.reset()
    assert env.unwrapped.room.error_rate == 0.9


def test_a_model_that_plays_the_partner_has_no_error_rate_to_set():
    env = make(simulator="llm", llm=Silent(), action="text", observation="text", reward_model=None).unwrapped
    with pytest.raises(InvalidValue, match="would have no effect: with simulator='llm'"):
        env.error_rate = 0.2


class Silent:
    """An engine that is never asked."""

    identity = "silent@1"

    def generate(self, prompts, **sampling):
        raise AssertionError

    score = close = generate
