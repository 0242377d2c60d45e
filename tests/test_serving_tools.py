"""JSON by a schema, function calls, their messages, and pages in a browser."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from test_serving import TOKEN, Served, client, engine, folder, served  # noqa: F401

from chatgym.errors import InvalidValue
from chatgym.serving.access import Access
from chatgym.serving.app import check_origins
from chatgym.serving.bodies import Function, Message, ResponseFormat
from chatgym.serving.grammars import Grammars
from chatgym.serving.messages import render
from chatgym.serving.tools import WORDS_ONLY, Calling, split

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
PICKS = {
    "type": "object",
    "properties": {"picks": {"type": "array", "items": {"enum": ["a", "é", 3]}, "minItems": 1, "maxItems": 3}},
    "required": ["picks"], "additionalProperties": False,
}  # fmt: skip
WEATHER, CLOCK = {"name": "weather", "parameters": CITY}, {"name": "clock", "description": "Tells the time."}
TOOLS = [{"type": "function", "function": one} for one in (WEATHER, CLOCK)]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALL_CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def by_schema(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def pieces(events, index):
    return [choice for event in events for choice in event.choices if choice.index == index]


def test_an_answer_by_a_schema_is_valid_whole_and_as_a_stream(client):  # noqa: F811
    ask = ASK | {"response_format": by_schema(PICKS, strict=True), "max_tokens": 100, "n": 6, "logprobs": True}
    whole = client.chat.completions.create(**ask)
    events = list(client.chat.completions.create(stream=True, **ask))
    for choice in whole.choices:
        assert set(json.loads(choice.message.content)["picks"]) <= {"a", "é", 3}
        assert choice.finish_reason == "stop"
        mine = pieces(events, choice.index)
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert all(one.logprob <= 0 for one in choice.logprobs.content)
    assert len({choice.message.content for choice in whole.choices}) > 1


def test_answers_without_a_grammar_are_those_of_the_engine_beside_answers_with_one(client, engine):  # noqa: F811
    def ask(seed):
        if seed % 2:
            form = {"response_format": by_schema(PICKS), "max_tokens": 60}
            return client.chat.completions.create(**ASK | {"seed": seed} | form).choices[0].message.content
        return client.completions.create(model="tiny", prompt="Beside", max_tokens=30, seed=seed).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    direct = engine.generate(["Beside"] * 8, max_new_tokens=30, seeds=range(0, 16, 2))
    assert answers[::2] == [one.text for one in direct]
    assert all(json.loads(answer)["picks"] for answer in answers[1::2])


def test_a_required_call_names_a_function_and_its_arguments_whole_and_as_a_stream(client):  # noqa: F811
    ask = ASK | {"tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    choice = client.chat.completions.create(**ask).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason, choice.message.content) == ("weather", "tool_calls", None)
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    mine = pieces(list(client.chat.completions.create(stream=True, **ask)), 0)
    (streamed,) = [one for piece in mine for one in piece.delta.tool_calls or ()]
    assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments)
    assert not any(piece.delta.content for piece in mine)
    assert mine[-1].finish_reason == "tool_calls"
    cut = client.chat.completions.create(**ask | {"max_tokens": 60}).choices[0]
    assert cut.finish_reason == "length"
    named = ask | {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    assert client.chat.completions.create(**named).choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("said", "words", "json_too", "required", "single"),
    [
        ("Hello", True, False, False, True),
        ('{"city": "Rome"}', True, True, False, True),
        (CALL, True, True, True, True),
        ("Hm. " + CALL_CLOCK, True, False, False, True),
        (CALL + "\n" + CALL_CLOCK, True, True, True, False),
        ("<tool_call>no", False, False, False, False),
        (CALL.replace("Paris", "Bern"), False, False, False, False),
    ],
)
def test_a_grammar_lets_the_model_call_or_speak_as_it_was_asked(engine, said, words, json_too, required, single):  # noqa: F811
    functions = (Function(**WEATHER), Function(**CLOCK))
    grammars = Grammars(engine.tokenizer, engine.ends, 257)
    form = ResponseFormat.model_validate(by_schema(CITY))

    def follows(form, calling):
        matcher = grammars.constraint(form, calling)()
        for token in engine.tokens(said):
            if not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return bool(matcher.allowed()[min(engine.ends)])

    assert follows(None, Calling(functions)) == words
    assert follows(form, Calling(functions)) == json_too
    assert follows(None, Calling(functions, required=True)) == required
    assert follows(None, Calling(functions, several=False)) == (words and single)


def test_calls_are_read_back_from_what_the_model_wrote():
    words, calls = split("Let me see. " + CALL + "\n" + CALL_CLOCK)
    assert words == "Let me see. "
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("weather", '{"city": "Paris"}'), ("clock", "{}"),
    ]  # fmt: skip
    assert len({c["id"] for c in calls}) == 2
    assert split(CALL[: CALL.index('is"}')])[1][0]["function"]["arguments"] == '{"city": "Par'
    assert split("no calls") == ("no calls", [])


HISTORY = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": None, "refusal": None,
     "tool_calls": [{"id": "call_1", "type": "function",
                     "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
]  # fmt: skip


def test_calls_and_results_go_through_a_template_that_knows_tools_else_they_are_text(client, engine):  # noqa: F811
    assert client.chat.completions.create(model="tiny", messages=HISTORY, tools=TOOLS[:1], max_tokens=2).choices
    messages = [Message.model_validate(one) for one in HISTORY]
    calling = Calling((Function(**CLOCK),))
    plain = render(engine.tokenizer, messages, calling)
    assert plain.startswith("<system>Be brief.\n\nYou may call these functions")
    assert json.dumps(calling.declared()[0]) in plain
    assert plain.endswith(f"<user>Paris?\n<assistant>{CALL}\n<user>Result of weather:\nrain\n<assistant>")
    knowing = copy.deepcopy(engine.tokenizer)
    knowing.chat_template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
        "{{ m.tool_call_id }}{{ m.name }}{% endfor %}"
    )
    assert render(knowing, messages, calling) == (
        "[clock]<system>Be brief.<user>Paris?<assistant>weather(Paris)<tool>raincall_1weather"
    )
    assert "clock" not in render(knowing, messages, WORDS_ONLY)


def message(**more):
    return {"messages": [{"role": "user", "content": "Hi"} | more]}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        (message(content=None), "messages", "content is null"),
        (message(role="assistant", content=None), "messages", "content is null"),
        (message(role="tool"), "messages", "needs tool_call_id"),
        (message(role="function", name="f"), "messages", "send role 'tool'"),
        (message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages", "text only"),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools", "only call functions"),
        ({"tools": TOOLS[:1] * 2}, "tools", "two functions of one name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice", "'fly'"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice", "'custom'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nope"}}}]}, "tools", "nope"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema"),
        ({"response_format": by_schema({"uniqueItems": True, "type": "array"}, strict=True)}, "response_format",
         "uniqueItems"),
        ({"response_format": by_schema({"$ref": "#/$defs/no"})}, "response_format", "does not exist"),
        ({"logit_bias": {"257": 1}}, "logit_bias", "0 to 256"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "no token"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_refused_with_the_reason(client, change, param, words):  # noqa: F811
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(**ASK | {"max_tokens": 2} | change)
    assert refused.value.param == param


def test_allowed_tools_are_the_only_ones_that_are_called(client):  # noqa: F811
    choice = {"type": "allowed_tools", "allowed_tools": {
        "mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]}}  # fmt: skip
    answer = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False,
                                            max_tokens=80)  # fmt: skip
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["clock"]
    silent = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none", max_tokens=9)
    assert silent.choices[0].message.content == (
        client.chat.completions.create(**ASK, max_tokens=9).choices[0].message.content
    )


def test_a_page_may_ask_only_from_an_origin_that_was_allowed(engine, served):  # noqa: F811
    page = {"Origin": "https://example.org"}
    wanted = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    path = "/v1/chat/completions"
    assert "access-control-allow-origin" not in httpx.get(f"{served.root}/v1/models", headers=page).headers
    assert httpx.options(served.root + path, headers=wanted).status_code == 405
    opened = Served(engine, origins=["https://example.org"], access=Access([TOKEN]))
    before = httpx.options(opened.root + path, headers=wanted)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, "https://example.org")
    assert "authorization" in before.headers["access-control-allow-headers"].lower()
    refused = httpx.get(
        f"{opened.root}/v1/models", headers=page
    )  # without a token, which the page must be able to read
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://example.org")
    other = httpx.get(f"{opened.root}/v1/models", headers={"Origin": "https://other.org"})
    assert "access-control-allow-origin" not in other.headers
    opened.close()
    check_origins(["*", "http://localhost:3000"])
    for wrong in ("example.org", "https://example.org/", "https://a.b/c", ""):
        with pytest.raises(InvalidValue, match="without a path"):
            check_origins([wrong])
