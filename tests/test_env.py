import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import chatgym
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.infos import AT_END, EACH_STEP
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios.customer_service import SCENARIO

OBSERVATIONS = ("embedding", "discrete", "text", "belief")


def make(**arguments):
    return gym.make("ChatEnv-v0", **{"llm": "template", **arguments})


def run_to_end(env, policy=None, **reset):
    observation, info = env.reset(**reset)
    moments = [(observation, 0.0, info)]
    over = False
    while not over:
        action = policy(info) if policy else int(env.unwrapped.room.expert_acts()[0])
        observation, reward, terminated, truncated, info = env.step(action)
        moments.append((observation, reward, info))
        over = terminated or truncated
    return moments


def test_gymnasiums_checker_is_content_with_rendering(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode="ansi").unwrapped)  # tries the other modes too
    assert "customer" in capsys.readouterr().out


def test_the_environment_is_made_without_importing_chatgym_first():
    make = "gym.make('chatgym:ChatEnv-v0', llm='template')"
    code = f"import gymnasium as gym; print({make}.reset(seed=1)[1]['user_act'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() in SCENARIO.user_acts


def test_importing_chatgym_loads_neither_torch_nor_numba_nor_a_plugin():
    code = (
        "import sys, chatgym; heavy = {'torch', 'transformers', 'numba', 'pluggy', 'matplotlib', 'stable_baselines3',"
        " 'deepspeed', 'chatgym_agents'}; print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("action", ["act", "candidate", "text"])
def test_info_has_what_the_docs_say_in_both_environments(action):
    page = (Path(__file__).parent.parent / "docs" / "environment.md").read_text(encoding="utf-8")
    section = page.partition("### The keys of `info`")[2].partition("\n###")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", section, re.MULTILINE))
    assert tuple(table) == (*EACH_STEP, *AT_END)
    assert all(f"| ``{name}`` |" in ChatEnv.__doc__ for name in table)
    types = {"dict[str, float]": dict, "str": str, "int8[n]": np.ndarray, "tuple[str, ...]": tuple, "bool": bool}
    arguments = {"action": action, "llm": "template", "reward_model": None, "max_turns": 3}
    env, envs = ChatEnv(**arguments), ChatVectorEnv(1, **arguments, texts=True, autoreset_mode="Disabled")
    infos, rows = [env.reset(seed=1)[1]], [envs.reset(seed=1)[1]]
    for _ in range(3):
        act = "Hello" if action == "text" else 1
        infos.append(env.step(act)[-1])
        rows.append(envs.step([act])[-1])
    assert envs.info_names == env.info_names
    for info, row in zip(infos, rows, strict=True):
        assert set(info) == {*env.info_names, *(AT_END if info is infos[-1] else ())}
        assert all(isinstance(value, types[table[name]]) for name, value in info.items())
        assert {name for name in row if name[0] != "_"} == set(info)
        assert all(row[f"_{name}"].tolist() == [True] for name in info)
        assert {name: row["reward_terms"][name][0] for name in info["reward_terms"]} == info["reward_terms"]
        assert all(np.array_equal(row[name][0], value) for name, value in info.items() if name != "reward_terms")


def test_a_template_conversation_needs_no_torch():
    code = (
        "import sys, gymnasium as gym; env = gym.make('chatgym:ChatEnv-v0', llm='template'); env.reset(); env.step(1);"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_info_holds_what_was_said_and_what_it_earned():
    env = make()
    moments = run_to_end(env, seed=3)
    weights = SCENARIO.reward_terms
    for i, (_, reward, info) in enumerate(moments):
        assert info["user_act"] in SCENARIO.user_acts
        assert info["text"]
        assert info["action_mask"].shape == (15,)
        assert info["agent_act"] == "" if i == 0 else info["agent_act"] in SCENARIO.agent_acts
        assert sum(weights[term] * info["reward_terms"][term] for term in weights) == pytest.approx(reward, abs=1e-12)
        assert ("outcome" in info) == (i == len(moments) - 1)


def test_info_never_shows_the_hidden_goal():
    env = make()
    for seed in range(20):
        moments = run_to_end(env, seed=seed, policy=lambda info: 0)
        reference = str(env.unwrapped.room.hidden["reference"][0])
        told = env.unwrapped.room.hidden["told"][0] & 2
        assert told or all(reference not in repr(info) for _, _, info in moments)


def test_the_transcript_tells_the_goal_only_when_it_is_over():
    env = make()
    env.reset(seed=1)
    assert [turn["role"] for turn in env.unwrapped.transcript()] == ["customer"]
    env.step(1)
    assert [turn["role"] for turn in env.unwrapped.transcript()] == ["customer", "agent", "customer"]
    env.step(14)
    last = env.unwrapped.transcript()[-1]
    assert last["role"] == "goal"
    assert last["act"] == "abandoned"
    assert "number" in last["text"]


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others():
    def three(seed):
        env = make()
        first = run_to_end(env, seed=seed)
        return [m[2]["text"] for m in first + run_to_end(env) + run_to_end(env)]

    assert three(5) == three(5)
    assert three(5) != three(6)


def test_a_key_begins_the_very_conversation_again():
    env = make()
    run_to_end(env, seed=5)
    run_to_end(env)
    key = env.unwrapped.key
    texts = [turn["text"] for turn in env.unwrapped.transcript()]
    run_to_end(make(), options={"key": key})
    env = make()
    run_to_end(env, options={"key": key})
    assert [turn["text"] for turn in env.unwrapped.transcript()] == texts


def test_a_generator_set_from_outside_is_the_one_that_draws_the_keys():
    env = make().unwrapped
    env.np_random = np.random.default_rng(7)
    first = env.reset()[1]["text"], env.key
    env.np_random = np.random.default_rng(7)
    assert (env.reset()[1]["text"], env.key) == first


def test_the_ansi_rendering_shows_both_sides_with_acts_and_rewards():
    env = make(render_mode="ansi")
    env.reset(seed=2)
    env.step(1)
    shown = env.render()
    assert "customer" in shown
    assert "ask_topic, reward " in shown
    assert "\x1b[" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scenario": "customer_servise"}, "Did you mean 'customer_service'"),
        ({"action": "akt"}, "unknown action interface 'akt'; known: 'act'"),
        ({"observation": "pixels"}, "unknown observation interface 'pixels'"),
        ({"llm": "gpt-9"}, "gpt-9"),
        ({"simulator": "mine"}, "unknown simulator 'mine'"),
        ({"reward_model": "best"}, "unknown reward model 'best'"),
        ({"render_mode": "video"}, "unknown render_mode 'video'; known: None, 'ansi', 'human', 'rgb_array'"),
    ],
)
def test_unknown_names_are_refused_with_those_that_are_known(arguments, words):
    with pytest.raises(chatgym.InvalidValue, match=words):
        chatgym_env(**arguments)


def chatgym_env(**arguments):
    from chatgym.envs.chat_env import ChatEnv

    return ChatEnv(**{"llm": "template", **arguments})


@pytest.mark.parametrize("action", [15, -1, 1.5, "greet", None])
def test_an_act_out_of_range_is_refused(action):
    env = chatgym_env()
    env.reset(seed=1)
    with pytest.raises(chatgym.InvalidValue, match="they are 0 to 14: greet, ask_topic"):
        env.step(action)


def test_a_step_before_reset_or_after_the_end_is_refused():
    env = chatgym_env()
    with pytest.raises(chatgym.ChatGymError, match="call reset"):
        env.step(0)
    env.reset(seed=1)
    env.step(14)
    with pytest.raises(chatgym.ChatGymError, match="call reset"):
        env.step(0)


def test_the_docstrings_tables_say_what_is_so():
    doc = chatgym_env().__doc__
    for number, act in enumerate(SCENARIO.agent_acts):
        assert f"| {number} | {act}" in doc
    assert f"Box(-1, 1, ({SCENARIO.embedding_size},), float32)" in doc
    assert f"Discrete({SCENARIO.n_beliefs})" in doc
    for term, weight in SCENARIO.reward_terms.items():
        assert f"| {term} | {weight:g} |" in doc
    assert f"`max_turns` agent turns ({SCENARIO.max_turns})" in doc


def test_legacy_api_returns_plain_python_values():
    from chatgym.wrappers import LegacyAPI

    env = LegacyAPI(make(observation="discrete"))
    assert (type(env.state_space), type(env.action_space)) == (int, int)
    state = env.reset()
    assert type(state) is int
    state, reward, done, info = env.step(14)
    assert [type(x) for x in (state, reward, done, info)] == [int, float, bool, dict]
    assert done
    assert state == 0


def test_legacy_api_refuses_what_no_table_can_hold():
    from chatgym.wrappers import LegacyAPI

    with pytest.raises(chatgym.InvalidValue, match='observation="discrete"'):
        LegacyAPI(make(observation="embedding"))
