"""Texts from outside become valid Unicode where they come in: answers, actions, files, requests."""

import codecs
import json
import os

import gymnasium as gym
import numpy as np
import pytest
from chatgym_agents.llm import LLM
from openai_server import LocalServer
from tiny import save_tiny_model, tiny_engine
from typer.testing import CliRunner

import chatgym
from chatgym.cli.app import app
from chatgym.engines import Completion, make_engine
from chatgym.engines.chat import chat
from chatgym.engines.recorded import RecordedEngine
from chatgym.envs import replay
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.rollouts import converse
from chatgym.finetuning import dialogues
from chatgym.finetuning.loop import Optimization
from chatgym.finetuning.sft import SFT, Settings
from chatgym.rewards.judge import JudgeRewardModel
from chatgym.rewards.pairs import Pair, read_pairs, write_pairs
from chatgym.scenarios import find_scenario
from chatgym.serving.access import VARIABLE, Access, read_tokens
from chatgym.serving.bodies import ChatBody, CompletionBody, read
from chatgym.serving.refusal import Refusal
from chatgym.storage.cache import Cache
from chatgym.storage.utf8 import parsed, read_json, read_text, valid
from chatgym.training.run import read_object
from chatgym.words.nlu import nlu_of

SCENARIO = find_scenario("customer_service")
HALF = "Which order or account number is it? \ud83d"
WHOLE = "Which order or account number is it? \ufffd"
ENCODINGS = {"plain": b"", "BOM": codecs.BOM_UTF8, "UTF-16": codecs.BOM_UTF16_LE}


class Halves(LocalServer):
    """Answers with half of a character, which JSON writes as an escape."""

    def __init__(self, message=None):
        super().__init__(None)
        self.message = message or {"content": HALF}

    def answer(self, path, body):
        choice = {"index": 0, "finish_reason": "stop", "message": self.message}
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}

    @property
    def llm(self):
        return f"openai:{self.url}#tiny"


@pytest.fixture(params=ENCODINGS)
def write(request, tmp_path):
    """A function that writes a text as a file, as editors on Windows do."""

    def write(text, name="file"):
        mark = ENCODINGS[request.param]
        encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-8"
        (tmp_path / name).write_bytes(mark + text.replace("\n", "\r\n").encode(encoding))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\ud83db", "a\ufffdb"), ("\ude00\ud83d", "\ufffd\ufffd"), ("\ud83d\ude00", "😀"), ("é😀\ufffd", "é😀\ufffd")],
)
def test_halves_of_characters_are_replaced_or_joined(text, expected):
    assert valid(text) == expected
    assert parsed(json.dumps({text: [text, 1]})) == {expected: [expected, 1]}
    assert parsed(codecs.BOM_UTF8 + b'{"a": "\\\\ud83d"}') == {"a": "\\ud83d"}  # an escaped backslash is none of JSON's


def test_what_a_server_answers_can_be_recorded_and_evaluated(tmp_path):
    line = ["evaluate", "llm", "--conversations", "2", "--max-turns", "2", "--out", str(tmp_path / "out")]
    with Halves() as server:
        done = CliRunner().invoke(app, [*line, "--llm", server.llm, "--trace", str(tmp_path / "t.jsonl")])
        asked = len(server.requests)
        again = CliRunner().invoke(app, [*line, "--llm", server.llm])
        assert (done.exit_code, again.exit_code, len(server.requests)) == (0, 0, asked), done.output
    held = [json.loads(one) for one in (tmp_path / "out" / "transcripts.jsonl").read_text("utf-8").splitlines()]
    assert held[0]["turns"][1]["text"] == WHOLE
    assert chatgym.replay(tmp_path / "t.jsonl").conversations == 2


def test_stop_strings_and_keys_of_a_cache_are_valid(tmp_path):
    with Halves() as server:
        server.paths = ("chat/completions",)
        (made,) = make_engine(server.llm).generate(["Hi"], max_new_tokens=4, stop=("? \ud83d",))
    assert made.text == HALF.partition("?")[0]
    cache = Cache(tmp_path / "cache.sqlite")
    assert cache.add("key\udce9", HALF) == cache.get("key\udce9") == WHOLE


def test_names_that_are_no_text_are_refused_where_they_have_to_be_recorded(tmp_path):
    name = str(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(InvalidValue, match=r"isn't in UTF-8.*rename it"):
        make_engine(f"hf:{name}")
    with pytest.raises(InvalidValue, match=r"isn't in UTF-8.*rename it"):
        SFT.prepare(tmp_path / "run", Settings(model="", data=name, data_sha256=""), Optimization())


def test_words_and_names_of_a_tool_call_are_valid():
    call = {"function": {"name": "greet", "arguments": json.dumps({"say": HALF})}}
    with Halves({"content": None, "tool_calls": [call]}) as server:
        agent = LLM(SCENARIO, LLM.Config(llm=server.llm, tools=True))
        assert converse(agent, Task(arguments={"max_turns": 2}).make_env(LLM.requires), 1)["turns"][1]["text"] == WHOLE


def test_engines_of_plugins_may_write_halves(tmp_path):
    class Plugin:
        identity = "plugin"

        def generate(self, prompts, **sampling):
            return [Completion(HALF, (1,), None, "stop") for _ in prompts]

        def score(self, prompts, continuations):
            return [[0.0] for _ in prompts]

    engine = RecordedEngine(tmp_path / "calls.sqlite", Plugin())
    assert engine.generate([HALF], max_new_tokens=4)[0].text == WHOLE
    assert chat(engine, [[{"role": "user", "content": HALF}]], max_new_tokens=4)[0].text == WHOLE


def test_what_a_step_takes_can_be_recorded_and_replayed(tmp_path):
    env = gym.make("ChatEnv-v0", action="text", observation="text", llm="template", max_turns=2)
    replay.record(env, lambda observation, info: HALF, tmp_path / "t.jsonl", keys=[5])
    assert chatgym.replay(tmp_path / "t.jsonl").turns == 2
    assert env.unwrapped.agent_text == WHOLE


def test_prompts_conversations_and_words_with_halves_are_read(tmp_path):
    engine = tiny_engine(save_tiny_model(tmp_path))
    assert engine.generate([HALF], max_new_tokens=2) == engine.generate([WHOLE], max_new_tokens=2)
    assert engine.score([HALF], [HALF]) == engine.score([WHOLE], [WHOLE])
    assert nlu_of(SCENARIO).understand([HALF], "agent") == nlu_of(SCENARIO).understand([WHOLE], "agent")
    conversation = [{"role": "user", "content": HALF}, {"role": "assistant", "content": HALF}]
    with Halves({"content": "8"}) as server:
        judge = JudgeRewardModel(make_engine(server.llm))
        np.testing.assert_allclose(judge.score([conversation]), 5 / 9, rtol=1e-6)
        assert make_engine(server.llm).chat([conversation], max_new_tokens=4)[0].text == "8"
        server.message = {"content": HALF}
        server.paths = ("chat/completions",)
        assert make_engine(server.llm).generate([HALF], max_new_tokens=4)[0].text == WHOLE


def test_files_of_conversations_and_pairs_are_read(write, tmp_path):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": HALF}]
    held = dialogues.read(write(f"{json.dumps({'messages': said})}\n" * 2))
    assert [one[1]["content"] for one in held] == [WHOLE] * 2
    pair = {"prompt": said[:1], "chosen": said[1:], "rejected": [{"role": "assistant", "content": "No."}]}
    (read_,) = read_pairs(write(json.dumps(pair) + "\n"))
    assert read_.chosen[0]["content"] == WHOLE
    dialogues.write(tmp_path / "out", [said])
    assert dialogues.read(tmp_path / "out") == held[:1]
    write_pairs(tmp_path / "out", [Pair(said[:1], said[1:], [])])
    assert read_json(tmp_path / "out")["chosen"] == read_.chosen


def test_files_of_settings_and_traces_are_read(write, tmp_path):
    assert read_text(write("é\n😀\n")) == "é\n😀\n"
    assert read_json(write('{"é": 1}')) == {"é": 1}
    assert read_object(write('{"format": "x"}'), "run", "", "") == {"format": "x"}
    env = gym.make("ChatEnv-v0", action="text", observation="text", llm="template", max_turns=1)
    replay.record(env, lambda observation, info: "é", tmp_path / "t.jsonl", keys=[5])
    assert chatgym.replay(write((tmp_path / "t.jsonl").read_text("utf-8"), "copy.jsonl")).turns == 1


def test_a_token_file_with_a_mark_admits_its_first_token(write, monkeypatch):
    tokens = read_tokens(write("first-token\n# no token\nzweiter-schlüssel\n"))
    assert tokens == ["first-token", "zweiter-schlüssel"]
    access = Access(tokens)
    assert access.allows("Bearer first-token")
    assert access.allows("Bearer " + "zweiter-schlüssel".encode().decode("latin-1"))  # as servers decode headers
    assert not access.allows("Bearer \ufefffirst-token")
    monkeypatch.setenv(VARIABLE, "\ufefffirst-token, \udcfflatin-one")
    access = Access(read_tokens(None))
    assert access.allows("Bearer first-token")
    assert access.allows("Bearer \xfflatin-one")


def test_a_token_file_that_is_no_text_is_said_to_be(tmp_path):
    (tmp_path / "tokens").write_bytes(b"schl\xfcssel-eins\n")
    with pytest.raises(InvalidValue, match="isn't text in UTF-8"):
        read_tokens(tmp_path / "tokens")


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_request_with_halves_is_answered(mark):
    messages = [{"role": "user", "content": HALF}, {"role": "user", "content": "\ud83d\ude00 \\ud83d"}]
    body = read(ChatBody, mark + json.dumps({"model": "x", "messages": messages, "stop": ["\udc00"]}).encode())
    assert [one.content for one in body.messages] == [WHOLE, "😀 \\ud83d"]
    assert body.stop == ["\ufffd"]
    assert read(CompletionBody, mark + json.dumps({"model": "x", "prompt": HALF}).encode()).prompt == WHOLE
    with pytest.raises(Refusal, match="no JSON"):
        read(CompletionBody, mark + json.dumps({"model": "x", "prompt": HALF}).encode()[:-1] + b"," + b"[" * 100_000)


def test_a_key_with_a_mark_is_a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "\ufeffsk-secret\n")
    with Halves() as server:
        chat(make_engine(server.llm), [[{"role": "user", "content": "Hi"}]], max_new_tokens=4)
        headers = {name.lower(): value for name, value in server.requests[0][2].items()}
    assert headers["authorization"] == "Bearer sk-secret"
