import hashlib
import json

import gymnasium as gym
import pytest
from gymnasium import wrappers

import chatgym
from chatgym.dynamics import trace
from chatgym.envs import replay
from chatgym.errors import Corrupted, InvalidValue, ReplayMismatch, Unavailable


def recorded(path, observation="discrete", **arguments):
    env = gym.make("ChatEnv-v0", llm="template", observation=observation, **arguments)
    replay.record(env, lambda *_: int(env.unwrapped.room.expert_acts()[0]), path, keys=[1, 2, 2**64 - 1])
    return path


def reseal(path, change):
    """Change a trace's lines and seal it again, as somebody would who wants to cheat."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("")
    with trace.TraceWriter(path, lines[0]["identity"]) as writer:
        for line in lines[1:-1]:
            writer.write(line)
    return path


@pytest.mark.parametrize("observation", ["discrete", "embedding", "text"])
def test_a_replay_reproduces_every_observation_reward_act_and_text(tmp_path, observation):
    path = recorded(tmp_path / "t.jsonl", observation, error_rate=0.2, max_turns=9, reward_weights={"mood": 0.3})
    result = chatgym.replay(path)
    assert result.conversations == 3
    assert result.turns == sum('"type":"turn"' in line for line in path.read_text().splitlines())
    assert path.read_text().splitlines()[-1].count(result.sha256) == 1


def test_a_trace_is_of_one_error_rate(tmp_path):
    env = gym.make("ChatEnv-v0", llm="template")
    env.unwrapped.error_rate = 0.4
    replay.record(env, lambda *_: 1, tmp_path / "t", keys=[1])
    assert '"rate":0.4' in (tmp_path / "t").read_text()
    chatgym.replay(tmp_path / "t")

    def policy(observation, info):
        env.unwrapped.error_rate /= 2
        return 1

    with pytest.raises(InvalidValue, match=r"error_rate was 0\.4 when the trace began and is 0\.2"):
        replay.record(env, policy, tmp_path / "t", keys=[1])
    with pytest.raises(Corrupted):
        chatgym.replay(tmp_path / "t")


def test_two_recordings_are_byte_identical(tmp_path):
    assert recorded(tmp_path / "a").read_bytes() == recorded(tmp_path / "b").read_bytes()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, Unavailable])
@pytest.mark.parametrize("where", ["policy", "engine"])
def test_an_error_leaves_a_trace_that_is_refused_as_unfinished(tmp_path, monkeypatch, where, error):
    class Broken:
        """A policy, and a language model, that fails; the policy on its third turn."""

        identity, turn = "broken@1", 0

        def __call__(self, observation, info):
            self.turn += 1
            return self.generate() if self.turn == 3 else 1

        def generate(self, *prompts, **sampling):
            raise error

        score = close = generate

    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path / "cache"))
    path = recorded(tmp_path / "t.jsonl")  # a whole trace, which is replaced
    env = gym.make("ChatEnv-v0", llm=Broken() if where == "engine" else "template", observation="discrete")
    with pytest.raises(error):
        replay.record(env, Broken(), path, keys=[1, 2])
    assert path.read_text().count('"type":"turn"') == (2 if where == "policy" else 0)
    with pytest.raises(Corrupted, match="is unfinished: it has no end line, its recording was cut off or failed"):
        chatgym.replay(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", 1.0),
        ("text", "I am perfectly happy with everything."),
        ("agent_text", "Hello."),
        ("user_act", "thank"),
        ("observation", 7),
        ("reward_terms", {}),
        ("heard_act", "thank"),
        ("garbled", "no"),
        ("belief", "nothing"),
        ("heard_right", "everything"),
        ("expert_act", "close"),
        ("goal", "to be left in peace"),
    ],
)
def test_a_single_changed_value_is_found_even_when_the_trace_was_sealed_again(tmp_path, field, value):
    path = reseal(recorded(tmp_path / "t.jsonl"), lambda lines: lines[2].update({field: value}))
    with pytest.raises(ReplayMismatch, match=f"line 3: {field} is "):
        chatgym.replay(path)


def test_the_lines_of_a_trace_say_what_was_heard_and_believed_and_the_goal_at_the_end(tmp_path):
    env = gym.make("ChatEnv-v0", llm="template", error_rate=0.3, max_turns=9)
    replay.record(env, lambda *_: int(env.unwrapped.room.expert_acts()[0]), tmp_path / "t", keys=[7, 8], seeds=None)
    lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()[1:-1]]
    starts, turns = ([line for line in lines if line["type"] == kind] for kind in ("start", "turn"))
    assert [line["key"] for line in starts] == [f"{7:016x}", f"{8:016x}"]
    assert all(line["expert_act"] == line["agent_act"] for line in turns)
    assert all({"heard_act", "garbled", "belief"} <= line.keys() for line in lines)
    assert any(line["garbled"] and line["heard_act"] != line["user_act"] for line in lines)
    assert any(line["garbled"] and line.get("heard_right", line["belief"]) != line["belief"] for line in lines)
    assert ["goal" in line for line in lines] == ["outcome" in line for line in lines]
    assert lines[-1]["goal"] == env.unwrapped.transcript()[-1]["text"]


def test_seeds_stand_in_the_trace_and_are_those_of_the_keys(tmp_path):
    env, path = gym.make("ChatEnv-v0", llm="template"), tmp_path / "t.jsonl"
    keys = []
    for seed in (5, 6):
        env.reset(seed=seed)
        keys.append(env.unwrapped.key)
    replay.record(env, lambda *_: 14, path, keys=keys, seeds=[5, 6])
    assert chatgym.replay(path).conversations == 2
    lines = map(json.loads, path.read_text().splitlines())
    assert [line["seed"] for line in lines if line["type"] == "start"] == [5, 6]
    with pytest.raises(ReplayMismatch, match="line 2: seed is 6, the replay gave None"):
        chatgym.replay(reseal(path, lambda lines: lines[1].update(seed=6)))


@pytest.mark.parametrize("seed", ["5", True, -1, 0.5])
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    with pytest.raises(ReplayMismatch, match=r"line 2: seed is .*, the replay gave None"):
        chatgym.replay(reseal(recorded(tmp_path / "t.jsonl"), lambda lines: lines[1].update(seed=seed)))


def test_a_trace_of_version_1_which_has_no_beliefs_replays(tmp_path):
    path = recorded(tmp_path / "t.jsonl", error_rate=0.2)
    lines = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    lines[0]["version"] = 1
    old = [{name: value for name, value in line.items() if name not in trace.ACCOUNT} for line in lines]
    text = "".join(map(trace.encode_line, old))
    seal = trace.encode_line({"type": "end", "sha256": hashlib.sha256(text.encode()).hexdigest()})
    path.write_text(text + seal)
    assert chatgym.replay(path).conversations == 3
    again = list(replay.replayed(path, trace.read(path)))
    assert again == lines[1:]


def test_a_single_changed_word_is_found(tmp_path):
    path = recorded(tmp_path / "t.jsonl")

    def change(lines):
        words = lines[1]["text"].split()
        lines[1]["text"] = " ".join([words[0] + "x", *words[1:]])

    with pytest.raises(ReplayMismatch, match="line 2: text is"):
        chatgym.replay(reseal(path, change))


@pytest.mark.parametrize(
    "action",
    [{}, {"text": "Hello."}, {"text": 3, "act": 1}, {"text": "Hello.", "act": "1"}, {"text": "Hello.", "act": True},
     {"text": "Hello.", "act": 1, "__class__": "x"}],
)  # fmt: skip
def test_a_spoken_action_that_is_malformed_is_refused_with_its_line(tmp_path, action):
    path = reseal(recorded(tmp_path / "t.jsonl"), lambda lines: lines[2].update(action=action))
    with pytest.raises(Corrupted, match=r'line 3: .* is no action; .*"text"'):
        chatgym.replay(path)


def test_a_dropped_turn_is_found(tmp_path):
    path = reseal(recorded(tmp_path / "t.jsonl"), lambda lines: lines.pop(3))
    with pytest.raises(ReplayMismatch):
        chatgym.replay(path)


def test_a_trace_changed_without_sealing_is_found(tmp_path):
    path = recorded(tmp_path / "t.jsonl")
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({"type": "end", "sha256": "0" * 64})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ReplayMismatch, match="SHA-256 doesn't match"):
        chatgym.replay(path)


def test_a_trace_of_another_simulator_is_refused(tmp_path):
    def change(lines):
        lines[0]["identity"]["sha256"] = "0" * 64

    with pytest.raises(ReplayMismatch, match="another simulator"):
        chatgym.replay(reseal(recorded(tmp_path / "t.jsonl"), change))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", InvalidValue, "no ChatGym trace"),
        ('{"some": "json"}\n', InvalidValue, "no ChatGym trace"),
        ("not json\n", Corrupted, "line 1 is not JSON"),
        ("[" * 200_000, Corrupted, "line 1 is not JSON: .* too deeply"),
        ('{"format": "chatgym-trace", "version": 99}\n', InvalidValue, "version 99"),
        ('{"format": "chatgym-trace", "version": 1}\n[1]\n', Corrupted, "unfinished"),
        ('{"format": "chatgym-trace", "version": 1}\n[1]\n{"type": "end"}\n', Corrupted, "line 2 is no line of a conv"),
        ('{"format": "chatgym-trace", "version": 1}\n{"type": "end"}\n{"type": "end"}\n', Corrupted, "line 2 .* 'end'"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, error, words):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=words):
        trace.read(path)


@pytest.mark.parametrize(
    "wrap",
    [lambda env: wrappers.FrameStackObservation(env, 2), lambda env: wrappers.ClipReward(env, -0.01, 0.01),
     lambda env: wrappers.TransformAction(env, lambda act: (act + 1) % 3, None), wrappers.RecordEpisodeStatistics],
)  # fmt: skip
def test_a_trace_replays_whatever_wrappers_make_of_the_environment(tmp_path, wrap):
    path = tmp_path / "t.jsonl"
    env = wrap(gym.make("ChatEnv-v0", llm="template"))

    def looks_ahead(observation, info):
        before = env.unwrapped.snapshot()
        env.unwrapped.step(1)  # which is no turn of the conversation
        env.unwrapped.restore(before)
        return 1

    replay.record(env, looks_ahead, path, keys=[1, 2])
    assert chatgym.replay(path).conversations == 2
    assert "step" not in vars(env.unwrapped)


def test_a_trace_that_was_cut_off_is_refused(tmp_path):
    path = recorded(tmp_path / "t.jsonl")
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(Corrupted, match="cut off"):
        chatgym.replay(path)


def test_the_identity_changes_with_everything_that_decides_outcomes_and_with_nothing_else():
    def digest(**arguments):
        env = gym.make("ChatEnv-v0", **{"llm": "template", **arguments}, disable_env_checker=True)
        return env.unwrapped.identity()["sha256"]

    usual = digest()
    assert digest(observation="discrete") == usual
    assert digest(observation="text") == digest(error_rate=0.0) != usual  # who reads words mishears nothing by default
    assert digest(observation="text", error_rate=0.2) != digest(error_rate=0.2)  # it reads other words
    for arguments in ({"error_rate": 0.2}, {"max_turns": 19}, {"reward_weights": {"mood": 0.1}}):
        assert digest(**arguments) != usual


def test_a_scenarios_digest_sees_its_code_and_not_its_comments():
    from chatgym.dynamics.identity import code_digest

    code = 'X = 1\ndef f(a):\n    """Say."""\n    return a + X\n'
    same = '# why\nX = 1  # one\n\n\ndef f(a):\n    """Say it\n    otherwise."""\n\n    return a   +   X\n'
    assert code_digest(code) == code_digest(same)
    assert code_digest(code) != code_digest(code.replace("a + X", "a - X"))
    assert code_digest("if a:\n    b\n    c\n") != code_digest("if a:\n    b\nc\n")
