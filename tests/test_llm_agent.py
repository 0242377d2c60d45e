"""Any language model as the agent: asked over HTTP, kept, gone on with, and understood."""

import json

import numpy as np
import pytest
from chatgym_agents.llm import LLM, briefing, tools_of
from chatgym_agents.scripted import Expert
from openai_server import LocalServer
from tiny import save_tiny_model, tiny_engine
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.engines import make_engine
from chatgym.envs import replay
from chatgym.envs.codecs import Spoken
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.evaluation import evaluate
from chatgym.evaluation.rollouts import converse
from chatgym.scenarios import UNCLEAR_ACT, find_scenario

SCENARIO = find_scenario("customer_service")
TASK = Task("customer_service", {"max_turns": 4})


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny_engine(save_tiny_model(tmp_path_factory.mktemp("tiny")))


class Scripted(LocalServer):
    """Answers chats by a function of the messages: words, or (tool, arguments)."""

    def __init__(self, said):
        super().__init__(None)
        self.said = said

    def answer(self, path, body):
        said = self.said(body["messages"])
        message = {"role": "assistant", "content": said if isinstance(said, str) else None}
        if isinstance(said, tuple):
            function = {"name": said[0], "arguments": said[1]}
            message["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return {"object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}


def agent_of(server, **settings):
    return LLM(SCENARIO, LLM.Config(llm=f"openai:{server.url}#tiny", **settings))


def test_conversations_held_together_are_those_held_alone(engine):
    with LocalServer(engine) as server:
        agent = agent_of(server, temperature=1.0, max_new_tokens=8)
        together = evaluate(agent, TASK, conversations=5, seed=7, references=False)
        asked = len(server.requests)
        assert server.most_running > 1
        alone = [evaluate(agent, TASK, conversations=1, seed=7 + i, references=False) for i in range(5)]
    assert together.returns.tolist() == [one.returns[0] for one in alone]
    assert together.outcomes.tolist() == [one.outcomes[0] for one in alone]
    assert asked == len(server.requests) - asked
    bodies = [json.dumps(body, sort_keys=True) for _, body, _ in server.requests]
    assert sorted(bodies[:asked]) == sorted(bodies[asked:])


def test_it_is_told_what_an_agent_has_to_know_and_hears_the_partner():
    with Scripted(lambda messages: "Which order or account number is it?") as server:
        env = TASK.make_env(LLM.requires)
        held = converse(agent_of(server), env, 3)
        (_, first, _), (_, second, _) = server.requests[:2]
    said = [turn["text"] for turn in held["turns"]]
    assert first["messages"][0] == {"role": "system", "content": briefing(SCENARIO)}
    assert SCENARIO.instructions() in first["messages"][0]["content"]
    assert [m["content"] for m in second["messages"][1:]] == said[:3]
    assert held["turns"][1]["act"] == "ask_reference"
    assert all(f"- {act}: " in briefing(SCENARIO) for act in SCENARIO.agent_acts)


def test_a_tool_that_it_calls_is_its_act_whatever_the_words():
    with Scripted(lambda messages: ("escalate", '{"say": "Lovely weather today!"}')) as server:
        env = TASK.make_env(LLM.requires)
        held = converse(agent_of(server, tools=True), env, 3)
        (_, body, _) = server.requests[0]
    assert [tool["function"]["name"] for tool in body["tools"]] == list(SCENARIO.agent_acts)
    turn = held["turns"][1]
    assert (turn["act"], turn["text"]) == ("escalate", "Lovely weather today!")
    assert held["outcome"] == "needless_escalation"


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        (("fly", "{}"), "unknown_tools"),
        (("greet", "no json"), "unknown_tools"),
        (("greet", '{"say": 3}'), "unknown_tools"),
        ("", "empty"),
        ("<think>So.</think>", "empty"),
    ],
)
def test_what_cannot_be_used_costs_a_turn_and_is_counted(said, counted):
    with Scripted(lambda messages: said) as server:
        agent = agent_of(server, tools=True)
        result = evaluate(agent, TASK, conversations=2, seed=3, references=False)
    replies = int(result.turns.sum())
    assert agent.counts == {"replies": replies, counted: replies}
    assert replies >= 4
    assert SCENARIO.success not in result.outcomes


def test_after_a_tool_call_the_partners_words_are_what_it_returned():
    with Scripted(lambda messages: ("ask_topic", "{}")) as server:
        converse(agent_of(server, tools=True), TASK.make_env(LLM.requires), 3)
        messages = server.requests[1][1]["messages"]
    called, returned = messages[-2:]
    assert returned["role"] == "tool"
    assert returned["tool_call_id"] == called["tool_calls"][0]["id"]


def test_a_model_of_this_process_answers_by_its_chat_template(engine):
    agent = LLM(SCENARIO, LLM.Config(max_new_tokens=6))
    agent.engine = engine
    with pytest.raises(InvalidValue, match="context"):  # the instructions are longer than this model's 256 tokens
        evaluate(agent, TASK, conversations=1, references=False)
    agent.config = LLM.Config(tools=True)
    agent.tools = tools_of(SCENARIO)
    with pytest.raises(InvalidValue, match="supports no tools"):
        evaluate(agent, TASK, conversations=1, references=False)


def test_a_model_that_needs_no_briefing_gets_none(engine):
    with Scripted(lambda messages: "Goodbye.") as server:
        converse(agent_of(server, briefing=False), TASK.make_env(LLM.requires), 3)
        (_, first, _) = server.requests[0]
    assert [message["role"] for message in first["messages"]] == ["user"]


def test_an_act_that_is_spoken_is_replayed(tmp_path):
    env = TASK.make_env(LLM.requires)
    plan = iter([Spoken("Hm.", UNCLEAR_ACT), Spoken("", 1), Spoken("Which number?", 2), Spoken("Bye.", 14)] * 2)
    replay.record(env, lambda observation, info: next(plan), tmp_path / "t.jsonl", keys=[5])
    assert '"act":2' in (tmp_path / "t.jsonl").read_text()
    assert replay.replay(tmp_path / "t.jsonl").conversations == 1
    env.reset(seed=1)
    with pytest.raises(InvalidValue, match="no agent act 99"):
        env.step(Spoken("x", 99))


def test_single_and_vector_agree_on_spoken_acts():
    env, envs = TASK.make_env(LLM.requires), TASK.make_envs(LLM.requires, 2, reward_model=None)
    env.reset(seed=4)
    envs.reset(seed=4)
    for act in (1, 2, UNCLEAR_ACT):
        observation, reward, *_ = env.step(Spoken("Well.", act))
        observations, rewards, *_ = envs.step([Spoken("Well.", act)] * 2)
        assert (observation, reward) == (observations[0], rewards[0])


def test_it_is_saved_and_loaded(tmp_path):
    agent = LLM(SCENARIO, LLM.Config(llm="openai:http://127.0.0.1:1/v1#x", tools=True, temperature=0.5), seed=3)
    agent.save(tmp_path)
    again = LLM.load(tmp_path)
    assert (again.config, again.seed, again.scenario.name) == (agent.config, 3, SCENARIO.name)
    (tmp_path / "agent.json").write_text('{"scenario": "customer_service", "seed": 0, "config": {"tools": 3}}')
    with pytest.raises(Corrupted):
        LLM.load(tmp_path)


def test_a_scripted_agent_saved_before_it_had_settings_is_loaded(tmp_path):
    (tmp_path / "agent.json").write_text('{"scenario": "social", "seed": 5}')
    agent = Expert.load(tmp_path)
    assert (agent.scenario.name, agent.seed, agent.config) == ("social", 5, Expert.Config())


def command(server, out, *more):
    line = ["evaluate", "llm", "--llm", f"openai:{server.url}#tiny", "--conversations", "4", "--out", str(out)]
    return CliRunner().invoke(app, [*line, "--max-turns", "3", *more])


def test_a_command_that_ran_out_of_its_budget_goes_on_and_asks_nothing_twice(tmp_path):
    def said(messages):
        return "Which order or account number is it?" if len(messages) < 4 else "I will pass you to a colleague."

    with Scripted(said) as server:
        whole = command(server, tmp_path / "whole", "--json")
        assert whole.exit_code == 0, whole.output
        asked = len(server.requests)
        stopped = command(server, tmp_path / "part", "--max-requests", "3")
        assert stopped.exit_code == 1
        assert "--max-requests" in stopped.output
        assert len(server.requests) == asked + 3
        went_on = command(server, tmp_path / "part", "--json")
        assert went_on.exit_code == 0, went_on.output
        assert len(server.requests) == 2 * asked
        assert command(server, tmp_path / "part").exit_code == 0
        assert len(server.requests) == 2 * asked  # all of it is kept
    files = [(tmp_path / name / "transcripts.jsonl").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]
    figures = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "part")]
    assert figures[0]["outcomes"] == figures[1]["outcomes"]
    held = [json.loads(line) for line in files[0].splitlines()]
    assert len(held) == 4
    assert np.mean([one["return"] for one in held]) == pytest.approx(figures[0]["mean_return"]["value"])


def test_limits_are_for_servers_alone(tmp_path):
    line = ["evaluate", "expert", "--partner", "template", "--max-requests", "3", "--conversations", "2"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "only a server" in result.output


def test_a_template_is_no_agent():
    agent = LLM(SCENARIO, LLM.Config(llm="template"))
    assert make_engine("template") is None
    with pytest.raises(InvalidValue, match="name one"):
        evaluate(agent, TASK, conversations=1, references=False)
