"""`chatgym evaluate llm`: what it keeps, shows and counts, and language models in comparisons."""

import json

import pytest
from chatgym_agents.llm import briefing
from openai_server import LocalServer
from test_llm_agent import SCENARIO, Scripted, agent_of
from tiny import save_tiny_model
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.engines import make_engine
from chatgym.engines.chat import Reply, ask
from chatgym.engines.recorded import RecordedEngine
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.evaluation.recorder import Recorder

THOUGHT = "<think>The number first.</think>Which order or account number is it?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of this process whose context holds the instructions; its replies are noise."""
    return f"hf:{save_tiny_model(tmp_path_factory.mktemp('tiny'), context=4096)}"


def chatgym(*line):
    result = CliRunner().invoke(app, [str(part) for part in line])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def measured(server, out, *more):
    return chatgym("evaluate", "llm", "--llm", server if isinstance(server, str) else f"openai:{server.url}#tiny",
                   "--conversations", 3, "--max-turns", 3, "--out", out, *more)  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_that_a_model_was_told_and_wrote_is_kept_beside_each_transcript(tmp_path):
    with Scripted(lambda messages: THOUGHT if len(messages) < 4 else "") as server:
        printed = measured(server, tmp_path)
        assert printed.exit_code == 0
        asked = [body["messages"] for _, body, _ in server.requests]
    assert json.loads((tmp_path / "result.json").read_text())["unclear"] == pytest.approx(2 / 3)
    assert "turns not understood 66.7 %" in " ".join(printed.stdout.split())
    transcripts, kept = lines(tmp_path / "transcripts.jsonl"), lines(tmp_path / "messages.jsonl")
    assert [one["key"] for one in kept] == [one["key"] for one in transcripts]
    for told, held in zip(kept, transcripts, strict=True):
        messages, said = told["messages"], [turn["text"] for turn in held["turns"][:-1]]
        assert messages[0] == {"role": "system", "content": briefing(SCENARIO)}
        assert [m["content"] for m in messages if m["role"] == "user"] == said[:-1:2]  # the last ends the conversation
        assert [m["content"] for m in messages if m["role"] == "assistant"] == [said[1], "...", "..."]
        assert [reply["text"] for reply in told["replies"]] == [THOUGHT, "", ""]
        assert all((reply["prompt_tokens"], reply["completion_tokens"]) == (10, 5) for reply in told["replies"])
        assert all(messages[:n] in asked for n in (2, 4, 6))


def test_messages_hold_the_tools_and_the_calls(tmp_path):
    with Scripted(lambda messages: ("ask_topic", '{"say": "What can I do for you?"}')) as server:
        assert measured(server, tmp_path, "--set", "tools=true").exit_code == 0
    told = lines(tmp_path / "messages.jsonl")[0]
    assert [tool["function"]["name"] for tool in told["tools"]] == list(SCENARIO.agent_acts)
    called = told["messages"][2]["tool_calls"][0]["function"]
    assert (called["name"], told["replies"][0]["calls"][0]["name"]) == ("ask_topic", "ask_topic")


def test_messages_of_several_batches_are_in_order(monkeypatch):
    monkeypatch.setattr("chatgym.evaluation.evaluation.ROWS", 2)
    with Scripted(lambda messages: "Goodbye.") as server:
        recorder = Recorder(agent_of(server))
        evaluate(recorder, Task("customer_service", {"max_turns": 2}), conversations=5, references=False)
        alone = Recorder(agent_of(server))
        evaluate(alone, Task("customer_service", {"max_turns": 2}), conversations=1, seed=4, references=False)
    told = recorder.exchanges()
    assert len(told) == 5
    assert told[4]["messages"] == alone.exchanges()[0]["messages"] != told[3]["messages"]


@pytest.mark.parametrize("more", [(), ("--set", "tools=true"), ("--set", "briefing=false")])
def test_the_first_prompt_is_shown_without_asking_the_model(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    with Scripted(lambda messages: "Goodbye.") as server:
        line = ("evaluate", "llm", "--llm", f"openai:{server.url}#tiny", "--seed", 5, *more)
        shown = json.loads(chatgym(*line, "--show-prompt", "--json").stdout)
        text = chatgym(*line, "--show-prompt").stdout
        assert not server.requests
        assert not list(tmp_path.iterdir())
        chatgym(*line, "--conversations", 1)
        body = server.requests[0][1]
    assert shown["messages"] == body["messages"]
    assert shown.get("tools") == body.get("tools")
    assert all(message["content"] in text for message in body["messages"])


def test_of_a_model_of_this_process_the_prompt_is_shown_as_its_template_writes_it(tiny):
    shown = json.loads(chatgym("evaluate", "llm", "--llm", tiny, "--show-prompt", "--json").stdout)
    system, user = shown["messages"]
    assert shown["prompt"].startswith(f"<|im_start|>system\n{system['content']}<|im_end|>\n<|im_start|>user\n")
    assert shown["prompt"].endswith(f"{user['content']}<|im_end|>\n<|im_start|>assistant\n")
    engine = make_engine(tiny).opened()
    assert shown["tokens"] == len(engine.tokenizer(shown["prompt"])["input_ids"])


def test_only_a_language_model_has_a_prompt():
    result = chatgym("evaluate", "expert", "--show-prompt")
    assert (result.exit_code, "expert is no language model" in result.stderr) == (2, True)


def test_tokens_time_and_cost_are_counted_in_process_too_also_of_replies_from_a_record(tiny, tmp_path):
    prices = ("--prompt-price", 100, "--completion-price", 1000)
    first = measured(tiny, tmp_path, "--set", "max_new_tokens=4", *prices)
    assert first.exit_code == 0, first.output
    again = measured(tiny, tmp_path, "--set", "max_new_tokens=4", *prices, "--json")
    figures = json.loads(again.stdout)
    told = [reply for one in lines(tmp_path / "messages.jsonl") for reply in one["replies"]]
    tokens = {
        "prompts": sum(one["prompt_tokens"] for one in told),
        "replies": sum(r["completion_tokens"] for r in told),
    }
    assert figures["agent"]["tokens"] == tokens
    assert tokens["replies"] > len(told)
    assert figures["agent"]["cost"] == pytest.approx((tokens["prompts"] * 100 + tokens["replies"] * 1000) / 1e6)
    assert figures["usage"]["seconds"] >= 0
    assert f"{tokens['prompts']:,}" in first.stdout
    assert "cost of these tokens" in first.stdout
    assert "seconds waited for replies" in first.stdout
    limited = measured(tiny, tmp_path / "limited", "--max-tokens", 5)
    assert (limited.exit_code, "only a server has limits" in limited.stderr) == (2, True)


def test_an_engines_own_count_of_tokens_is_taken(tiny, tmp_path):
    engine = make_engine(tiny)
    chats = [[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello there."}]]
    (reply,) = ask(engine, chats, max_new_tokens=3, temperature=0.0)
    text = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello there.<|im_end|>\n<|im_start|>assistant\n"
    assert (reply.prompt_tokens, reply.completion_tokens) == (len(engine.opened().tokens(text)), 3)
    with LocalServer(engine.opened()) as server:
        served = make_engine(f"openai:{server.url}#tiny")
        (reply,) = ask(served, chats, max_new_tokens=3, temperature=0.0)
        assert reply.completion_tokens == 3
        server.counts = False
        (reply,) = ask(served, chats, max_new_tokens=3, temperature=0.0, seeds=[1])
    assert (reply.prompt_tokens, reply.completion_tokens) == (None, None)


def test_records_from_before_tokens_were_kept_still_answer(tmp_path):
    with Scripted(lambda messages: "Goodbye.") as server:
        recorded = RecordedEngine(tmp_path / "calls.sqlite", make_engine(f"openai:{server.url}#tiny"))
        chats = [[{"role": "user", "content": "Hi."}]]
        ask(recorded, chats, max_new_tokens=3)
        (key,) = recorded._stored([recorded._key("chat", chats[0], 0, {
            "max_new_tokens": 3, "temperature": 1.0, "top_p": 1.0, "tools": []})])  # fmt: skip
        recorded.cache.put(key, '{"text": "Goodbye.", "calls": [], "finish_reason": "stop"}')
        assert ask(recorded, chats, max_new_tokens=3) == [Reply("Goodbye.")]
        assert len(server.requests) == 1


def test_the_table_says_in_words_what_became_of_replies_and_the_error_rate(tmp_path):
    answers = iter(["Which order or account number is it?", "<think>Hm", "", *[""] * 30])

    class Cut(Scripted):
        def answer(self, path, body):
            made = super().answer(path, body)
            if "<think>" in made["choices"][0]["message"]["content"]:
                made["choices"][0]["finish_reason"] = "length"
            return made

    with Cut(lambda messages: next(answers)) as server:
        out = measured(server, tmp_path).stdout
    assert "had no words outside of thoughts; the partner doesn't understand that" in out
    assert "cut off after max_new_tokens=64 tokens; a higher one is --set max_new_tokens=N" in out
    assert "3 conversations of customer_service, error rate 0, max turns 3" in out
    assert f"`chatgym show {tmp_path} N`" in out


def test_a_second_evaluation_says_what_differs_and_asks_nothing(tmp_path):
    with Scripted(lambda messages: "Goodbye.") as server:
        assert measured(server, tmp_path).exit_code == 0
        before, asked = (tmp_path / "result.json").read_bytes(), len(server.requests)
        other = measured(server, tmp_path, "--set", "temperature=0.7", "--error-rate", 0.3, "--seed", 2)
        assert other.exit_code == 2
        for words in (
            "temperature (0.7, there 0.0)", "error_rate (0.3, there 0.0)", "seed (2, there 0)", "--out",
            "--overwrite",
        ):  # fmt: skip
            assert words in other.stderr
        fewer = chatgym(
            "evaluate", "llm", "--llm", f"openai:{server.url}#tiny", "--conversations", 3, "--out", tmp_path
        )
        assert "max_turns (not given, there 3)" in fewer.stderr
        assert (len(server.requests), (tmp_path / "result.json").read_bytes()) == (asked, before)
        model = f"openai:{server.url}#another"
        for more, said in (((), f"llm ({model}, there openai:{server.url}#tiny)"), (("--overwrite",), "--out")):
            refused = measured(model, tmp_path, *more)
            assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr
        assert measured(server, tmp_path, "--set", "temperature=0.7", "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "result.json").read_text())["agent"]["temperature"] == 0.7


def test_a_language_model_is_compared_in_the_same_conversations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Scripted(lambda messages: "I will pass you to a colleague.") as server:
        llm = ("--llm", f"openai:{server.url}#tiny", "--set", "temperature=0.5", "--conversations", 6)
        compared = chatgym("evaluate", "--compare", "llm", "expert", *llm, "--json", "--returns", "all.csv")
        assert compared.exit_code == 0, compared.output
        asked = len(server.requests)
        alone = chatgym("evaluate", "llm", *llm, "--json", "--returns", "alone.csv")
        assert len(server.requests) == asked  # the comparison has kept the replies where `evaluate llm` finds them
        text = chatgym("evaluate", "--compare", "expert", "llm", *llm, "--overwrite").stdout
    found, figures = json.loads(compared.stdout), json.loads(alone.stdout)
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert [row for row in rows if not row.startswith("expert,")] == (tmp_path / "alone.csv").read_text().splitlines()
    assert found["agents"][0]["success_rate"]["value"] == figures["success_rate"]["value"]
    assert found["provenance"]["llm"]["settings"]["temperature"] == 0.5
    assert found["provenance"]["llm"]["counts"] == figures["agent"]["counts"]
    assert found["provenance"]["llm"]["usage"]["requests"] == asked
    assert "settings" in found["provenance"]["expert"]
    assert "6 conversations of customer_service, error rate 0" in text
    assert "seconds waited for replies" in text


def test_options_of_a_language_model_need_one_in_the_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in (("--llm", "smollm2-135m"), ("--set", "tools=true"), ("--out", "x"), ("--max-requests", 3)):
        refused = chatgym("evaluate", "--compare", "random", "expert", *more)
        assert (refused.exit_code, "name llm among the agents" in refused.stderr) == (2, True)
    refused = chatgym("evaluate", "--compare", "random", "expert", "--partner", "template")
    assert (refused.exit_code, "--partner" in refused.stderr) == (2, True)


def test_a_comparison_with_a_model_that_says_nothing_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Scripted(lambda messages: "") as server:
        llm = ("--llm", f"openai:{server.url}#tiny", "--conversations", 2)
        refused = chatgym("evaluate", "--compare", "llm", "expert", *llm)
    assert (refused.exit_code, "none of the" in refused.stderr) == (1, True)
    assert not (tmp_path / "compare.png").exists()


def test_a_comparison_that_ran_out_of_its_budget_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Scripted(lambda messages: "Goodbye.") as server:
        llm = ("--compare", "llm", "expert", "--llm", f"openai:{server.url}#tiny", "--conversations", 6)
        stopped = chatgym("evaluate", *llm, "--max-requests", 2)
        assert (stopped.exit_code, "--max-requests" in stopped.stderr, len(server.requests)) == (1, True, 2)
        assert chatgym("evaluate", *llm).exit_code == 0
    assert len({json.dumps(body, sort_keys=True) for _, body, _ in server.requests}) == len(server.requests)


@pytest.mark.parametrize(("command", "then"), [
    ("play --seed 3", "begins a conversation anew"),
    ("audit customer_service --conversations 3", "begins anew with them, with --overwrite"),
])  # fmt: skip
def test_a_command_that_can_not_go_on_says_what_it_does_instead(command, then, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path))
    with Scripted(lambda messages: "Goodbye.") as server:
        stopped = chatgym(*command.split(), "--llm", f"openai:{server.url}#tiny", "--max-requests", 1)
    assert stopped.exit_code == 1
    assert stopped.stderr.rstrip().endswith(
        f"the utterances generated so far are kept: the same command with a higher --max-requests {then}"
    )


def test_a_garbled_value_is_the_one_that_is_read_and_asked_about(tmp_path):
    """The partner denies what its agent misheard: what that read, asked for and believed is the same number."""

    def said(messages):
        told = messages[-1]["content"]
        number = "".join(filter(str.isdigit, told))
        return f"So your number is {number}, is that right?" if len(number) == 6 else "What is your order number?"

    with Scripted(said) as server:
        line = ("--conversations", 12, "--max-turns", 6, "--error-rate", 0.6, "--out", tmp_path)
        chatgym("evaluate", "llm", "--llm", f"openai:{server.url}#tiny", *line)
    held = lines(tmp_path / "transcripts.jsonl")
    for number, one in enumerate(held, 1):
        turns = one["turns"]
        for told, asked, answer in zip(turns[:-2:2], turns[1:-1:2], turns[2:-1:2], strict=True):
            if asked["act"] == "confirm" and told["garbled"] and answer["act"] in ("deny", "reject", "correct"):
                assert asked["heard"] == "about reference"
                wrong = "".join(filter(str.isdigit, asked["text"]))
                assert wrong in told["belief"]
                assert wrong in told["text"]
                assert wrong not in answer["text"]
                shown = " ".join(chatgym("show", tmp_path, number).stdout.split())
                assert f"understood about reference, as believed: {told['belief']}" in shown
                return
    pytest.fail(f"no garbled value was denied: {held}")
