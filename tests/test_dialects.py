"""Servers that refuse fields by name, and the ways in which servers tell what is wrong."""

import json
import warnings

import pytest
from openai_server import LocalServer

from chatgym.engines.chat import chat
from chatgym.engines.openai import FEW, OpenAIEngine
from chatgym.errors import Unfinished

ASK = [{"role": "user", "content": "Hello"}]
KEY = "sk-secret-4711-and-more"
SAMPLING = {"max_new_tokens": 4, "temperature": 0.7, "top_p": 0.9, "seeds": [5]}
GOOD = {"index": 0, "finish_reason": "stop"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Picky(LocalServer):
    """Refuses requests by a function of the body, which returns (status, body of the refusal) or None."""

    def __init__(self, refuse):
        super().__init__(None)
        self.refuse = refuse

    def answer(self, path, body):
        if path == "completions":
            return {"choices": [{**GOOD, "text": "Hello."}]}
        return {"choices": [{**GOOD, "message": {"content": "Hello."}}]}


def respond(handler, server, path, body, fault):
    refused = server.refuse(body)
    if refused is None:
        return handler.reply(200, server.answer(path, body))
    status, told = refused
    return handler.send(status, told.encode() if isinstance(told, str) else json.dumps(told).encode(), {})


@pytest.fixture
def picky():
    made = []

    def make(refuse):
        server = Picky(refuse)
        server.http.RequestHandlerClass.respond = respond
        engine = OpenAIEngine(server.url, "tiny", sleep=lambda seconds: None)
        made.append((server, engine))
        return server, engine

    yield make
    for server, engine in made:
        engine.close()
        server.stop()


def openai_form(name):
    return {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "param": name}}


def fastapi_form(name):
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]}


FORMS = {
    "OpenAI": (400, openai_form),
    "FastAPI": (422, fastapi_form),
    "value": (422, lambda name: {"detail": [{"loc": ["body", name], "msg": "Input should be less than 10"}]}),
    "text": (400, lambda name: f"Argument not supported on this model: {name}"),
    "message": (400, lambda name: {"message": f"Unrecognized request argument supplied: {name}"}),
    "within 200": (200, lambda name: {"error": {"code": 400, "message": f"property '{name}' is unsupported"}}),
    "details": (
        400,
        lambda name: {"error": {"message": "Failed", "details": [{"field": f"body.{name}", "msg": "no"}]}},
    ),
    "gateway": (400, lambda name: {"error": {"message": "Failed", "metadata": {"raw": json.dumps(openai_form(name))}}}),
    "list within 200": (200, lambda name: [{"error": {"code": 400, "message": f"Unknown name '{name}'"}}]),
    "capital": (400, lambda name: {"message": f"{name.upper().replace('_', '-')} must be 1"}),
    "no route": (404, lambda name: {"error": {"message": f"No endpoints found that support '{name}'"}}),
    "keyword": (500, lambda name: {"detail": f"create() got an unexpected keyword argument '{name}'"}),
}


@pytest.mark.parametrize("name", ["seed", "top_p", "temperature"])
@pytest.mark.parametrize("form", FORMS)
def test_a_field_that_a_server_refuses_is_left_out_and_said_once(picky, name, form):
    status, told = FORMS[form]
    server, engine = picky(lambda body: (status, told(name)) if name in body else None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("always", RuntimeWarning)
        assert [reply.text for reply in chat(engine, [ASK], **SAMPLING)] == ["Hello."]
        assert [reply.text for reply in chat(engine, [ASK] * 3, **{**SAMPLING, "seeds": [1, 2, 3]})] == ["Hello."] * 3
    assert [str(one.message).partition(" (")[0].split()[-1] for one in warned] == [f"'{name}'"]
    assert len(server.requests) == 5  # only one was refused
    kept = {"seed", "top_p", "temperature"} - {name}
    assert all(kept <= set(body) and name not in body for _, body, _ in server.requests[1:])


def test_of_two_fields_that_go_together_with_none_but_each_alone_the_first_is_left_out(picky):
    told = {"error": {"message": "`temperature` and `top_p` cannot both be specified for this model."}}
    server, engine = picky(lambda body: (400, told) if {"temperature", "top_p"} <= set(body) else None)
    with pytest.warns(RuntimeWarning, match="'top_p'"):
        chat(engine, [ASK], **SAMPLING)
    assert "temperature" in server.requests[-1][1]


def test_all_that_is_refused_is_left_out_one_by_one_and_the_length_gets_its_other_name(picky):
    def refuse(body):
        for name in ("max_tokens", "seed", "top_p", "temperature"):
            if name in body:
                return 400, fastapi_form(name)
        return None

    server, engine = picky(refuse)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("always", RuntimeWarning)
        chat(engine, [ASK], **SAMPLING)
        chat(engine, [ASK], **SAMPLING)
    assert len(warned) == 3
    assert set(server.requests[-1][1]) == {"model", "messages", "max_completion_tokens"}
    assert len(server.requests) == 6


@pytest.mark.parametrize("name", ["logprobs", "stop"])
def test_texts_come_without_what_is_only_reported_or_cut_here(picky, name):
    _, engine = picky(lambda body: (400, openai_form(name)) if name in body else None)
    with pytest.warns(RuntimeWarning, match=name):
        (made,) = engine.generate(["Hi"], max_new_tokens=4, logprobs=True, stop=("o",))
    assert made.text == "Hell"
    assert (made.logprobs is None) or name == "stop"


def test_the_length_gets_its_other_name_for_prompts_as_well(picky):
    server, engine = picky(lambda body: (422, fastapi_form("max_tokens")) if "max_tokens" in body else None)
    assert engine.generate(["Hi"], max_new_tokens=4)[0].text == "Hello."
    assert server.requests[-1][1]["max_completion_tokens"] == 4


def test_what_is_needed_is_not_left_out(picky):
    server, engine = picky(lambda body: (400, openai_form("logprobs")) if "logprobs" in body else None)
    with pytest.raises(Unfinished, match="Unsupported parameter: 'logprobs'"):
        engine.score(["Hi"], [" there"])
    server.refuse = lambda body: (400, openai_form("tools")) if "tools" in body else None
    with pytest.raises(Unfinished, match="Unsupported parameter: 'tools'"):
        chat(engine, [ASK], max_new_tokens=4, tools=[{"type": "function", "function": {"name": "x"}}])


def test_a_field_that_was_not_the_trouble_is_sent_again(picky):
    told = {"error": {"message": "the words 'my temperature is 40' are refused"}}
    server, engine = picky(lambda body: (400, told))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(Unfinished, match="my temperature is 40"):
            chat(engine, [ASK], **SAMPLING)
        server.refuse = lambda body: None
        chat(engine, [ASK], **SAMPLING)
    assert "temperature" in server.requests[-1][1]


@pytest.mark.parametrize(
    ("status", "told", "reason"),
    [
        (422, {"detail": [{"loc": ["body", "messages", 0], "msg": "Required"}]}, "body.messages.0: Required"),
        (422, {"detail": [{"loc": ["a"], "msg": "one"}, {"loc": ["b"], "msg": "two"}]}, "a: one; b: two"),
        (400, {"detail": "no such LoRA"}, "no such LoRA"),
        (400, {"message": "too long"}, "too long"),
        (400, {"error": "model is gone"}, "model is gone"),
        (400, {"error": {"message": {"detail": "deep"}}}, "deep"),
        (400, {"errors": [{"message": "one"}, {"message": "two"}]}, "one; two"),
        (400, "plain words", "plain words"),
        (400, '"a JSON text"', "a JSON text"),
        (413, "<html><head><title>413 Request Entity Too Large</title></head></html>", "413 Request Entity Too Large"),
        (400, {"object": "error", "message": "old vLLM", "code": 40001}, "old vLLM"),
        (400, {}, "no reason given"),
        (401, {"error": {"message": "this key has expired"}}, "this key has expired"),
        (403, {"detail": "your country is not served"}, "your country is not served"),
        (404, {"error": {"message": "deployment not ready"}}, "deployment not ready"),
        (503, {"error": {"message": "the model is loading"}}, "it answered 503: the model is loading"),
        (200, {"error": {"message": "quota of the provider"}}, "it answered with an error: quota of the provider"),
        (200, {"error": {"code": 402, "message": "no credits"}}, r"refuses the request \(402\): no credits"),
        (200, {"error": "upstream died"}, "upstream died"),
        (200, {"detail": "Not what you think"}, "Not what you think"),
        (200, {"choices": [{"error": {"code": 502, "message": "provider fell over"}}]}, "502: provider fell over"),
        (200, {"choices": [{"message": {}}], "error": {"code": 402, "message": "no credits"}}, "no credits"),
        (200, {"choices": [{**GOOD, "finish_reason": "error", "message": {}}]}, 'finish_reason is "error"'),
        (200, {"base_resp": {"status_msg": "login failed"}, "choices": None}, "login failed"),
        (200, 'event: error\ndata: {"error": {"code": 402, "message": "no credits"}}\n\n', r"\(402\): no credits"),
        (400, {"error": {"message": "Failed", "metadata": {"raw": '{"message": "no GPU"}'}}}, "Failed: no GPU"),
        (200, {"hello": "world"}, 'no completion: {"hello": "world"}; start the server, or check the URL'),
    ],
)  # fmt: skip
def test_the_servers_own_reason_is_shown(picky, status, told, reason):
    server, engine = picky(lambda body: (status, told))
    with pytest.raises(Unfinished, match=reason) as shown:
        chat(engine, [ASK], **SAMPLING)
    assert ("check the URL" in str(shown.value)) == (status == 404 or "hello" in told)
    assert len(server.requests) <= max(FEW, 11 * (status == 503 or "choices" in told))


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_a_reason_is_short_and_holds_no_key(picky, monkeypatch, status):
    told = {"error": {"message": f"Bearer {KEY} and {KEY[:20]}, hf_abcdefghijklmnopqrstuv {'x ' * 400}"}}
    _, engine = picky(lambda body: (status, told))
    with pytest.raises(Unfinished) as shown:
        chat(engine, [ASK], **SAMPLING)
    assert KEY[:12] not in str(shown.value)
    assert "abcdefg" not in str(shown.value)
    assert len(str(shown.value)) < 600


@pytest.mark.parametrize(
    ("stated", "read"),
    [
        ({"content": [{"token": "Hi", "logprob": -1.0}]}, (-1.0,)),
        ({"content": None, "token_logprobs": [-1.0]}, (-1.0,)),
        ({"content": [{"token": "Hi", "logprob": None}]}, None),
        ({"content": [{"token": "Hi"}]}, None),
        ({"token_logprobs": [None, -1.0]}, None),
        ({"token_logprobs": [float("nan")]}, None),
        ([-1.0], None),
        ("n/a", None),
    ],
)
def test_log_probabilities_that_cannot_be_read_are_none(picky, stated, read):
    server, engine = picky(lambda body: None)
    server.answer = lambda path, body: {"choices": [{**GOOD, "text": "Hi", "logprobs": stated}]}
    assert engine.generate(["x"], max_new_tokens=4, logprobs=True)[0].logprobs == read


@pytest.mark.parametrize("begins", [[0, 0, 0], [4, 2, 0], [0, 2, 9], [4], [2, 4, 4], None])
def test_offsets_that_cannot_be_true_give_no_score(picky, begins):
    server, engine = picky(lambda body: None)
    stated = {"text_offset": begins, "token_logprobs": [None, -1.0, -2.0][-len(begins or [1]) :]}
    server.answer = lambda path, body: {"choices": [{**GOOD, "text": "abcd!", "logprobs": stated}]}
    with pytest.raises(Unfinished, match="no log-probabilities of a prompt"):
        engine.score(["ab"], ["cd"])
