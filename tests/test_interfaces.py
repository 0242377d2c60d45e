import functools
import itertools

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chatgym
from chatgym.engines.tokenizer import tokenizer_of
from chatgym.envs import replay
from chatgym.envs.tokens import CONTEXT, TokenHistory
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.scenarios import fill
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.wrappers import ChatMLMessages, FlatTokens

ACTS = SCENARIO.agent_acts
SCENARIOS = ("customer_service", "education", "social")
EPISODES = 300


def make(**arguments):
    return gym.make("ChatEnv-v0", **{"llm": "template", "reward_model": None, **arguments}).unwrapped


def sentence(env, act):
    """Return the first of the sentences for an act in the agent's situation."""
    meaning = SCENARIO.agent_meaning(act, env.room.belief[0])
    return " ".join(fill(SCENARIO.sentences["agent"][part][0], meaning.slots) for part in meaning.parts)


def expert_act(env):
    return int(env.room.expert_acts()[0])


def play(env, choose, seed):
    """Play a conversation; returns what the agent heard and got at every turn."""
    env.reset(seed=seed)
    moments, over = [], False
    while not over:
        for action in choose(env, expert_act(env)):
            _, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        moments.append((info["agent_act"], info["user_act"], info["text"], reward, info.get("outcome")))
    return moments


def by_act(env, act):
    return [act]


def by_candidate(env, act):
    return [env._conversations.codec.acts[0].tolist().index(act)]


def by_text(env, act):
    return [sentence(env, act)]


def by_tokens(env, act):
    tokenizer = env.tokenizer
    return [*tokenizer.encode(sentence(env, act)), tokenizer.end]


@pytest.mark.parametrize(("action", "choose"), [("candidate", by_candidate), ("text", by_text), ("token", by_tokens)])
def test_every_action_level_has_the_same_dynamics(action, choose):
    acts, other = make(), make(action=action)
    for seed in range(25):
        assert play(other, choose, seed) == play(acts, by_act, seed)


def test_nothing_happens_within_a_turn_of_tokens():
    env = make(action="token")
    first, info = env.reset(seed=1)
    before = (info["text"], info["user_act"])
    for token in env.tokenizer.encode("What can I do for you"):
        observation, reward, terminated, truncated, info = env.step(token)
        assert (reward, terminated, truncated, info["agent_act"]) == (0.0, False, False, "")
        assert set(info["reward_terms"].values()) == {0.0}
        assert (info["text"], info["user_act"]) == before
        np.testing.assert_array_equal(observation, first)
        assert len(env.transcript()) == 1
    _, reward, _, _, info = env.step(env.tokenizer.end)
    assert (info["agent_act"], reward < 0.0, len(env.transcript())) == ("ask_topic", True, 3)


def test_a_turn_of_tokens_ends_by_itself():
    env = make(action="token")
    env.reset(seed=1)
    token = env.tokenizer.encode(" the")[0]
    acts = [env.step(token)[4]["agent_act"] for _ in range(128)]
    assert [i for i, act in enumerate(acts) if act] == [63, 127]


def test_what_is_not_understood_costs_a_turn_and_the_partner_asks_what_was_meant():
    env = make(action="text")
    env.reset(seed=1)
    _, reward, _, _, info = env.step("colourless green ideas sleep furiously")
    assert (info["agent_act"], info["user_act"]) == ("unclear", "ask_repeat")
    assert reward == pytest.approx(-0.07)  # a turn, and a point of the mood
    assert env.transcript()[1]["text"] == "colourless green ideas sleep furiously"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_in_every_scenario_the_partner_asks_what_an_unclear_agent_meant(scenario):
    env = make(action="text", scenario=scenario)
    env.reset(seed=1)
    _, reward, _, _, info = env.step("qwrt zzxv plmk 12 #!")
    assert (info["agent_act"], info["user_act"]) == ("unclear", "ask_repeat")
    assert reward < 0.0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_act_its_candidate_its_words_and_its_tokens_are_the_same_turn(scenario):
    acts, words, expected = random_episodes(scenario, EPISODES)
    assert len(set(expected)) > EPISODES // 2  # these episodes differ

    def candidates(envs, turn):
        offered = envs._conversations.codec.acts
        return [offered[i].tolist().index(said[turn]) if turn < len(said) else 0 for i, said in enumerate(acts)]

    def texts(envs, turn):
        return [said[turn] if turn < len(said) else "" for said in words]

    assert play_all(scenario, "candidate", candidates) == expected
    assert play_all(scenario, "text", texts) == expected
    tokenizer = tokenizer_of("smollm2-135m")
    encode = functools.cache(tokenizer.encode)
    streams = [[token for text in said for token in (*encode(text), tokenizer.end)] for said in words]

    def tokens(envs, turn):
        return [stream[turn] if turn < len(stream) else tokenizer.end for stream in streams]

    assert play_all(scenario, "token", tokens) == expected


def random_episodes(scenario, size):
    """Play episodes by random sensible acts; returns each row's acts, their canonical words, and what came of it."""
    acts, words = [[] for _ in range(size)], [[] for _ in range(size)]
    draws = np.random.default_rng(1)

    def choose(envs, turn):
        room, chosen = envs.room, []
        for i, allowed in enumerate(room.action_masks()):
            chosen.append(int(draws.choice(np.flatnonzero(allowed))) if allowed.any() else 0)
            acts[i].append(chosen[-1])
            words[i].append(envs.agent_words(i, chosen[-1]))
        return chosen

    expected = play_all(scenario, "act", choose)
    for i, (rewards, *_) in enumerate(expected):
        del acts[i][len(rewards) :], words[i][len(rewards) :]  # of the next episode
    return acts, words, expected


def play_all(scenario, action, choose):
    """Play `EPISODES` rows to the end of their first episode; returns the rewards, the outcome and the last words."""
    envs = ChatVectorEnv(
        EPISODES,
        scenario=scenario,
        action=action,
        llm="template",
        texts=True,
        tokenizer="smollm2-135m",
        reward_model=None,
    )
    envs.reset(seed=5)
    rewards, ends = [[] for _ in range(EPISODES)], {}
    for turn in itertools.count():
        _, gained, terminations, truncations, infos = envs.step(choose(envs, turn))
        for i in set(range(EPISODES)) - ends.keys():
            if infos["agent_act"][i]:  # a turn, not a token of it
                rewards[i].append(float(gained[i]))
            if terminations[i] or truncations[i]:
                ends[i] = (tuple(rewards[i]), int(envs.room.outcomes[i]), infos["text"][i])
        if len(ends) == EPISODES:
            return [ends[i] for i in range(EPISODES)]


def test_a_confirmation_in_words_is_about_the_slot_that_it_names():
    env = make(action="text", error_rate=0.0)
    for seed in range(40):
        env.reset(seed=seed)
        env.step("What can I do for you?")
        env.step("Could you give me your order or account number?")
        if env.room.belief[0]["sure"][1]:
            break
    env.step("So you have no proof of that, is that right?")  # nothing was said of a proof
    assert env.room.belief[0]["confirming"] == -1
    env.step(f"So your number is {env.room.belief[0]['reference']}, is that right?")
    assert env.room.belief[0]["confirming"] == 1


@given(st.text(max_size=200))
@settings(max_examples=60)
def test_any_characters_are_safe(tmp_path_factory, text):
    env = make(action="text", observation="text", render_mode="ansi")
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    said = iter([text])
    replay.record(env, lambda *_: next(said, "goodbye"), path, keys=[5])
    assert chatgym.replay(path).conversations == 1
    env.render().encode()


@pytest.mark.parametrize("action", ["candidate", "text", "token"])
def test_a_trace_of_every_action_level_replays(tmp_path, action):
    env = make(action=action, observation="token")
    choose = {"candidate": by_candidate, "text": by_text, "token": by_tokens}[action]
    queue = []

    def policy(observation, info):
        if not queue:
            queue.extend(choose(env, expert_act(env)))
        return queue.pop(0)

    path = tmp_path / "t.jsonl"
    replay.record(env, policy, path, keys=[1, 2])
    assert chatgym.replay(path).turns == path.read_text().count('"type":"turn"')


@pytest.mark.parametrize("action", ["candidate", "text", "token"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_single_and_vector_agree(action, mode):
    choose = {"candidate": by_candidate, "text": by_text, "token": by_tokens}[action]
    envs = ChatVectorEnv(
        3, action=action, observation="token", llm="template", texts=True, autoreset_mode=mode, reward_model=None
    )
    singles = [make(action=action, observation="token") for _ in range(3)]
    observations, infos = envs.reset(seed=10)
    starts = [env.reset(seed=10 + i) for i, env in enumerate(singles)]
    queues, ended = [[], [], []], [False] * 3
    for _ in range(60):
        actions = []
        for env, queue, over in zip(singles, queues, ended, strict=True):
            if not queue and not (over and mode == "NextStep"):
                queue.extend(choose(env, expert_act(env)))
            actions.append(queue.pop(0) if queue else ("" if action == "text" else 0))
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        for i, env in enumerate(singles):
            if ended[i] and mode == "NextStep":
                starts[i] = env.reset()
                observation, reward, info, ended[i] = starts[i][0], 0.0, starts[i][1], False
            else:
                observation, reward, terminated, truncated, info = env.step(actions[i])
                ended[i] = terminated or truncated
                assert (terminations[i], truncations[i]) == (terminated, truncated)
                if ended[i] and mode == "SameStep":
                    np.testing.assert_array_equal(infos["final_obs"][i]["ids"], observation["ids"])
                    observation, info = env.reset()
            np.testing.assert_array_equal(observations["ids"][i], observation["ids"])
            np.testing.assert_array_equal(observations["mask"][i], observation["mask"])
            assert rewards[i] == reward
            assert infos["text"][i] == info["text"]
            if action == "candidate":
                assert infos["candidates"][i] == info["candidates"]


def test_candidates_are_different_acts_in_another_order_each_turn():
    env = make(action="candidate")
    orders = set()
    for seed in range(5):
        _, info = env.reset(seed=seed)
        acts = env._conversations.codec.acts[0]
        there = info["action_mask"] == 1
        assert (acts[there] >= 0).all()
        assert (acts[~there] < 0).all()
        assert sorted(acts[there]) == np.flatnonzero(env.room.action_masks()[0]).tolist()
        assert all(bool(text) == present for text, present in zip(info["candidates"], there, strict=True))
        orders.add(tuple(acts.tolist()))
        env.step(acts.tolist().index(ACTS.index("ask_topic")))
        both = [act for act in env._conversations.codec.acts[0].tolist() if act >= 0 and act in acts]
        orders.add(tuple(sorted(both, key=acts.tolist().index)))
        orders.add(tuple(both))
    assert len(orders) == 15


def test_the_agent_says_the_candidate_that_it_chose():
    env = make(action="candidate")
    _, info = env.reset(seed=3)
    choice = by_candidate(env, expert_act(env))[0]
    env.step(choice)
    assert env.transcript()[1]["text"] == info["candidates"][choice]


def test_a_choice_of_padding_says_nothing():
    env = make(action="candidate")
    _, info = env.reset(seed=3)
    padding = int(np.flatnonzero(info["action_mask"] == 0)[0])
    assert env.step(padding)[4]["agent_act"] == "unclear"


def test_token_observations_are_the_conversation_and_are_never_tokenised_anew():
    env = make(action="token", observation="token")
    observation, info = env.reset(seed=2)
    tokenizer = env.tokenizer
    assert env.observation_space.contains(observation)
    odd = tokenizer.encode("Wh")[:1] + tokenizer.encode("at can I do for you?")  # not how the text would be split
    for token in [*odd, tokenizer.end]:
        observation, *_, info = env.step(token)
    ids = observation["ids"][observation["mask"] == 1].tolist()
    text = tokenizer.decode(ids)
    assert env.transcript()[0]["text"] in text
    assert info["text"] in text
    assert any(ids[i : i + len(odd)] == odd for i in range(len(ids)))


def test_a_long_conversation_keeps_its_end():
    history = TokenHistory(1, tokenizer_of("smollm2-135m"))
    history.begin(0, "word " * 600)
    observed = history.observe()
    assert observed["mask"].sum() == CONTEXT
    assert observed["ids"][0].tolist() == history.ids[0][-CONTEXT:]


@pytest.mark.parametrize(
    ("action", "given", "words"),
    [
        ("text", 7, "1 strings"),
        ("token", 10**6, "there is no token"),
        ("token", -1, "there is no token"),
        ("candidate", 15, "there is no candidate"),
        ("candidate", "greet", "there is no action 'greet'"),
    ],
)
def test_wrong_actions_are_refused(action, given, words):
    env = make(action=action)
    env.reset(seed=1)
    with pytest.raises(InvalidValue, match=words):
        env.step(given)


def test_an_unknown_tokenizer_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(InvalidValue, match="smollm2-135m"):
        make(action="token", tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidValue, match="save_pretrained"):
        make(action="token", tokenizer=str(tmp_path))


def test_the_nlu_is_part_of_the_identity_where_it_decides():
    assert make().identity()["nlu"] is None
    assert make(action="text").identity()["nlu"]["heads_sha256"]
    assert make(action="text").identity()["sha256"] != make().identity()["sha256"]


def test_flat_tokens_are_one_box_with_a_mark_for_padding():
    env = FlatTokens(make(observation="token"))
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    inner = env.env._conversations.observe()
    np.testing.assert_array_equal(observation[inner["mask"][0] == 1], inner["ids"][0][inner["mask"][0] == 1])
    assert set(observation[inner["mask"][0] == 0]) == {-1}
    with pytest.raises(InvalidValue, match='observation="token"'):
        FlatTokens(make())


def test_messages_are_those_of_a_language_model():
    env = ChatMLMessages(make(action="text", observation="discrete"))
    messages, info = env.reset(seed=1)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == SCENARIO.instructions()
    assert messages[-1]["content"] == info["text"]
    for _ in range(3):
        messages, *_, info = env.step("What can I do for you?")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert (messages[-2]["content"], messages[-1]["content"]) == ("What can I do for you?", info["text"])
    assert env.observation_space.contains(messages)


def test_what_is_said_token_by_token_is_observed_as_what_is_said_at_once():
    at_once, in_tokens = (make(action=action, observation="token") for action in ("text", "token"))
    for env in (at_once, in_tokens):
        env.reset(seed=3)
    tokenizer = in_tokens.tokenizer
    for text in ("What can I do for you?", "When was that?"):
        observation = at_once.step(text)[0]
        for token in [*tokenizer.encode(text), tokenizer.end]:
            tokens = in_tokens.step(token)[0]
        np.testing.assert_array_equal(tokens["ids"], observation["ids"])
        np.testing.assert_array_equal(tokens["mask"], observation["mask"])
