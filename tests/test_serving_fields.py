"""Every field of the official client's requests is implemented, ignored or refused with a reason, as documented."""

import json
import re
from pathlib import Path

import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from test_serving import client, engine, folder, served  # noqa: F401

from chatgym.serving.bodies import ChatBody, CompletionBody, Ignored, unsupported

BODIES = {"chat": (ChatBody, chat_create_params), "completions": (CompletionBody, completion_create_params)}
FIELDS = {
    endpoint: {"stream", *types.CompletionCreateParamsBase.__annotations__} for endpoint, (_, types) in BODIES.items()
}
DOCUMENTED = re.compile(r"^\| `(\w+)` \| (chat|completions|both) \| (implemented|ignored|refused) \|", re.M)

FUNCTION = {
    "name": "choose",
    "parameters": {"type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"],
                   "additionalProperties": False},
}  # fmt: skip
TOOLS = [{"type": "function", "function": FUNCTION}]
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "coin", "schema": FUNCTION["parameters"], "strict": True},
}
PLAIN = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 30, "seed": 1},
    "completions": {"prompt": "Hello", "max_tokens": 30, "seed": 1},
}
LONG = {"max_tokens": 300, "temperature": 1.0}

SENT = {
    "audio": {"format": "wav", "voice": "alloy"}, "function_call": "auto", "functions": [FUNCTION],
    "modalities": ["text", "audio"], "moderation": {"model": "omni-moderation-latest"}, "web_search_options": {},
    "best_of": 4, "suffix": "the end", "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k", "prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "24h",
    "reasoning_effort": "low", "safety_identifier": "u", "service_tier": "auto", "store": True, "user": "u",
    "verbosity": "low",
}  # fmt: skip
"""A value of each field that is ignored or refused."""


def text(answer, index=0):
    choice = answer.choices[index]
    return choice.text if hasattr(choice, "text") else choice.message.content


def repeats(answer):
    return max(text(answer).count(letter) for letter in text(answer))


def calls(answer):
    return [(call.function.name, json.loads(call.function.arguments)) for call in answer.choices[0].message.tool_calls]


def differs(**more):
    return lambda ask, plain: text(ask(**more)) != text(plain)


def short(**more):
    return lambda ask, plain: ask(**more).usage.completion_tokens <= 3 < plain.usage.completion_tokens


def refused_elsewhere(ask, plain):
    with pytest.raises(openai.NotFoundError):
        ask(model="other")
    return plain.model == "tiny"


def alike(**more):
    return lambda ask, plain: text(ask(seed=5, **more)) == text(ask(temperature=0.0)) != text(plain)


def stops(ask, plain):
    mark = text(plain)[2:4]
    return text(ask(stop=mark)) == text(plain)[: text(plain).index(mark)]


def streams(ask, plain):
    events = [event.choices[0] for event in ask(stream=True)]
    pieces = [one.text if hasattr(one, "text") else one.delta.content for one in events]
    return len(pieces) > 3 and "".join(pieces) == text(plain)


def tells_usage(ask, plain):
    *others, last = ask(stream=True, stream_options={"include_usage": True})
    return last.usage == plain.usage and all(event.usage is None for event in others)


def called(several, **more):
    def claim(ask, plain):
        found = calls(ask(tools=TOOLS, max_tokens=120, **more))
        assert all(name == "choose" and arguments["side"] in ("left", "right") for name, arguments in found)
        return len(found) >= 1 if several else len(found) == 1

    return claim


def calls_if_it_likes(ask, plain):
    """Declared tools are in the prompt; the model may answer in words."""
    with_tools = ask(tools=TOOLS)
    return with_tools.usage.prompt_tokens > plain.usage.prompt_tokens and with_tools.choices[0].message.content


IMPLEMENTED = {
    "messages": differs(messages=[{"role": "user", "content": "Bye"}]),
    "prompt": differs(prompt=[1, 2, 3]),
    "model": refused_elsewhere,
    "frequency_penalty": lambda ask, plain: repeats(ask(frequency_penalty=-2.0, **LONG)) > 2 * repeats(ask(**LONG)),
    "presence_penalty": lambda ask, plain: text(ask(presence_penalty=2.0, **LONG)) != text(ask(**LONG)),
    "logit_bias": lambda ask, plain: len(set(text(ask(logit_bias={"40": 100})))) == 1,
    "max_tokens": short(max_tokens=3),
    "max_completion_tokens": short(max_tokens=None, max_completion_tokens=3),
    "n": lambda ask, plain: len(ask(n=2).choices) == 2 and text(ask(n=2)) == text(plain),
    "seed": differs(seed=2),
    "stop": stops,
    "stream": streams,
    "stream_options": tells_usage,
    "temperature": alike(temperature=0.0),
    "top_p": alike(top_p=1e-9),
    "echo": lambda ask, plain: text(ask(echo=True)) == "Hello" + text(plain),
    "parallel_tool_calls": called(False, tool_choice="required", parallel_tool_calls=False),
    "tool_choice": called(False, tool_choice={"type": "function", "function": {"name": "choose"}}),
    "tools": calls_if_it_likes,
    "response_format": lambda ask, plain: json.loads(text(ask(response_format=FORMAT)))["side"] in ("left", "right"),
}
"""What is seen of each field that is implemented: a function of how to ask, and of the answer without the field."""
IN_CHAT = {
    "logprobs": lambda ask, plain: len(ask(logprobs=True).choices[0].logprobs.content) == plain.usage.completion_tokens,
    "top_logprobs": lambda ask, plain: all(
        len(one.top_logprobs) == 2 for one in ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    ),
}
IN_COMPLETIONS = {
    "logprobs": lambda ask, plain: all(len(one) == 2 for one in ask(logprobs=2).choices[0].logprobs.top_logprobs)
}


def kind_of(endpoint, field):
    """Return what the server does with a field."""
    body, _ = BODIES[endpoint]
    assert field in body.model_fields, (
        f"the {endpoint} requests of openai {openai.__version__} have the field {field!r}, which the server doesn't "
        "know. Decide: implement it (a field of a body in chatgym/serving/bodies.py), ignore it if no answer depends "
        "on it (Ignored), or refuse it with a reason (UnsupportedInChat, UnsupportedInCompletions); then add it to the "
        "table in docs/serving.md and to this test"
    )
    if field in unsupported(body):
        return "refused"
    return "ignored" if field in Ignored.model_fields else "implemented"


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_documentation_lists_each_field_of_the_client_and_what_becomes_of_it(endpoint):
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    listed = {name: kind for name, where, kind in DOCUMENTED.findall(page) if where in (endpoint, "both")}
    known = {field: kind_of(endpoint, field) for field in FIELDS[endpoint]}
    assert {field: listed.get(field) for field in known} == known


@pytest.mark.parametrize(
    ("endpoint", "field"), [(endpoint, field) for endpoint in BODIES for field in sorted(FIELDS[endpoint])]
)
def test_each_field_of_the_client_does_what_is_documented(client, endpoint, field):  # noqa: F811
    create = client.chat.completions.create if endpoint == "chat" else client.completions.create

    def ask(**more):
        return create(**{"model": "tiny"} | PLAIN[endpoint] | more)

    kind = kind_of(endpoint, field)
    if kind == "refused":
        with pytest.raises(openai.BadRequestError, match=re.escape(unsupported(BODIES[endpoint][0])[field])) as refused:
            ask(**{field: SENT[field]})
        assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")
    elif kind == "ignored":
        assert text(ask(**{field: SENT[field]})) == text(ask())
    else:
        claims = IMPLEMENTED | (IN_CHAT if endpoint == "chat" else IN_COMPLETIONS)
        assert claims[field](ask, ask())


def test_a_field_that_a_newer_client_has_says_what_to_decide():
    with pytest.raises(AssertionError, match=r"'telepathy'.*implement it.*ignore it.*refuse it"):
        kind_of("chat", "telepathy")
