"""The server before the official client: conformance, many clients at once, hostile ones, signals and a kill."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from chatgym.engines.batch import Batch, Request
from chatgym.engines.transformers import TransformersEngine
from chatgym.errors import InvalidValue, Unavailable
from chatgym.serving.access import VARIABLE, Access, read_tokens
from chatgym.serving.limits import Limits
from chatgym.serving.server import bind, make_server
from chatgym.storage import model_store

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'odd' %}{{ raise_exception('no such role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKEN = "a-token-for-the-tests"
WAIT = 120.0  # for what comes at once; nothing is measured by it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of random weights over bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = tmp_path_factory.mktemp("models") / "tiny"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<end>", *letters])}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(made)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def engine(folder):
    """In float64: which rows share a batch depends on the clock, and a float32's rounding would once decide a draw."""
    return TransformersEngine(folder, identity="tiny@1", dtype=torch.float64)


class Served:
    """A server in a thread."""

    def __init__(self, engine, **more):
        listener, up = bind("127.0.0.1", 0), threading.Event()
        self.port = listener.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.server = make_server(engine, ready=up.set, **more)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        assert up.wait(WAIT)

    def client(self, **more):
        return openai.OpenAI(base_url=f"{self.root}/v1", api_key=TOKEN, max_retries=0, timeout=WAIT, **more)

    def metric(self, name):
        text = httpx.get(f"{self.root}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        return float(re.search(rf"^{name} (.*)$", text, re.M)[1])

    def close(self):
        self.server.should_exit = True
        self.thread.join(WAIT)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def served(engine):
    made = Served(engine, limits=Limits(rows=16, queue=1000, max_tokens=400, max_rows=16, max_body=20_000))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def until(claim):
    end = time.monotonic() + WAIT
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


# The official client


def test_a_completion_is_the_direct_engines_with_the_same_seed(client, engine):
    answer = client.completions.create(
        model="tiny", prompt="Hello", max_tokens=12, seed=7, temperature=0.9, top_p=0.8, n=3
    )
    direct = engine.generate(["Hello"] * 3, max_new_tokens=12, seeds=[7, 8, 9], temperature=0.9, top_p=0.8)
    assert [choice.text for choice in answer.choices] == [one.text for one in direct]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in answer.choices] == [one.finish_reason for one in direct]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in direct)


def test_several_prompts_and_tokens_as_prompts_are_answered_in_order(client, engine):
    words = [f"Word {i}" for i in range(3)]
    direct = [c.text for c in engine.generate(words, max_new_tokens=6, seeds=[1, 2, 3])]
    for prompt in (words, [engine.tokens(word) for word in words]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, seed=1)
        assert [choice.text for choice in answer.choices] == direct


def test_a_seed_repeats_an_answer_and_none_does_not(client):
    def ask(**more):
        return client.completions.create(model="tiny", prompt="Once", max_tokens=20, **more).choices[0].text

    assert ask(seed=3) == ask(seed=3) != ask(seed=4)
    assert ask(seed=-1) == ask(seed=2**64 - 1)
    assert ask() != ask()


def test_a_chat_continues_the_models_own_template(client, engine):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi é"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=9, seed=5)
    text = "<system>Be brief.\n<user>Hi é\n<assistant>"
    (direct,) = engine.generate([text], max_new_tokens=9, seeds=[5])
    assert answer.choices[0].message.content == direct.text
    assert answer.choices[0].message.role == "assistant"
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    again = client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=9, seed=5)
    assert again.choices[0].message.content == direct.text


def test_a_stream_is_the_whole_answer_in_pieces(client):
    ask = {"model": "tiny", "max_tokens": 40, "seed": 11, "n": 2}
    text = client.completions.create(prompt="Stream", **ask).choices[0].text
    at = next(i for i in range(8, 40) if text[i : i + 2].isascii())  # two tokens: the first alone isn't the stop string
    ask["stop"] = [text[at : at + 2], "never"]
    whole = client.completions.create(prompt="Stream", **ask)
    events = list(client.completions.create(prompt="Stream", stream=True, **ask))
    for choice in whole.choices:
        mine = [c for event in events for c in event.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
    assert len(events) > 4

    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "seed": 2}
    said = client.chat.completions.create(**chat, logprobs=True).choices[0]
    events = list(
        client.chat.completions.create(**chat, stream=True, logprobs=True, stream_options={"include_usage": True})
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == said.message.content
    streamed = [t for e in events if e.choices and e.choices[0].logprobs for t in e.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in said.logprobs.content]
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == len(streamed)


def test_logprobs_and_echo_are_the_scores_of_the_model(client, engine):
    prompt = "Scored é"
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=5, seed=1, logprobs=3, echo=True, temperature=0.7
    ).choices[0]
    (said,) = engine.generate([prompt], max_new_tokens=5, seeds=[1], temperature=0.7)
    assert answer.text == prompt + said.text
    (scores,) = engine.score_tokens([engine.tokens(prompt) + list(said.tokens)], 3)
    found = answer.logprobs
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx([one.logprob for one in scores], abs=1e-4)
    assert sorted(found.top_logprobs[1].values()) == pytest.approx(sorted(v for _, v in scores[0].likeliest), abs=1e-4)
    assert [answer.text[at] for at in found.text_offset[:8]] == [*"Scored é"]  # é is two tokens at one place
    assert len(found.tokens) == len(scores) + 1
    only = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, logprobs=0, echo=True).choices[0]
    assert only.text == prompt
    assert client.completions.create(model="tiny", prompt="A", max_tokens=0, echo=True).choices[0].text == "A"
    assert only.logprobs.token_logprobs[1:] == pytest.approx([one.logprob for one in scores[:8]], abs=1e-4)


def test_a_stop_string_and_the_length_end_an_answer(client, engine):
    (free,) = engine.generate(["Stop"], max_new_tokens=30, seeds=[2])
    mark = free.text[3:5]
    answer = client.completions.create(model="tiny", prompt="Stop", max_tokens=30, seed=2, stop=mark).choices[0]
    assert answer.text == free.text[: free.text.find(mark)]
    assert answer.finish_reason == "stop"
    short = client.completions.create(model="tiny", prompt="Stop", max_tokens=2, seed=2).choices[0]
    assert short.finish_reason == "length"


def test_models_health_and_metrics_are_told(served, client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "chatgym"
    assert httpx.get(f"{served.root}/health").json()["status"] == "ok"
    before = served.metric("chatgym_generated_tokens_total")
    client.completions.create(model="tiny", prompt="x", max_tokens=3, seed=0, n=2)
    assert 2 <= served.metric("chatgym_generated_tokens_total") - before <= 6


def test_top_k_and_min_p_narrow_the_choice_as_vllm_does(client):
    def ask(temperature=1.5, **more):
        return client.completions.create(
            model="tiny", prompt="Hello", max_tokens=20, seed=3, temperature=temperature, logprobs=20, extra_body=more
        ).choices[0]  # fmt: skip

    def places(**more):
        """Return each token's rank, and how far its log-probability is below the likeliest one's."""
        found = ask(**more).logprobs
        named = list(zip(found.token_logprobs, found.top_logprobs, strict=True))
        ranks = [sum(value > own for value in likeliest.values()) for own, likeliest in named]
        return max(ranks), max(max(likeliest.values()) - own for own, likeliest in named)

    likeliest = ask(temperature=0).token_ids
    assert ask(top_k=1).token_ids == ask(min_p=1.0).token_ids == likeliest
    plain = ask().token_ids
    assert plain != likeliest
    for off in ({"top_k": -1}, {"top_k": 0}, {"top_k": 10**9}, {"min_p": 0.0}, {"top_k": None, "min_p": None}):
        assert ask(**off).token_ids == plain
    assert places(top_k=3)[0] < 3 <= places()[0]
    assert places(min_p=0.9)[1] <= 1.5 * math.log(1 / 0.9) + 1e-4 < places()[1]


def test_chat_template_kwargs_are_variables_of_the_template(engine, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "chat_template", "{% if calm %}calm {% endif %}" + TEMPLATE)
    served = Served(engine)
    messages = [{"role": "user", "content": "Hi"}]

    def tokens(**more):
        create = served.client().chat.completions.create
        return create(model="tiny", messages=messages, max_tokens=3, extra_body=more).usage.prompt_tokens

    assert tokens(chat_template_kwargs={"calm": True}) > tokens(chat_template_kwargs={"calm": False}) == tokens()
    served.close()


# What is refused

HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": 401}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 17}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"prompt": ["a"] * 17}, 400, "n"),
        ({"prompt": "a" * 600}, 400, "prompt"),
        ({"prompt": [9999]}, 400, "prompt"),
        ({"prompt": 5}, 400, "prompt"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"stop": [""]}, 400, "stop[0]"),
        ({"presence_penalty": 2.1}, 400, "presence_penalty"),
        ({"max_tokns": 3}, 400, "max_tokns"),
        ({"messages": []}, 400, "messages"),
    ],
)
def test_values_out_of_bounds_are_refused_with_the_field(served, client, change, status, param):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2} | change
    answer = httpx.post(f"{served.root}/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert error["message"]
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices


@pytest.mark.parametrize(
    ("change", "param", "code", "words"),
    [
        ({"temperature": 3}, "temperature", "above_max_value", "Invalid 'temperature': expected a value <= 2.0."),
        ({"n": 0}, "n", "below_min_value", "Invalid 'n': expected a value >= 1."),
        ({"top_k": 1.5}, "top_k", "invalid_type", "Invalid 'top_k': expected an integer."),
        ({"top_k": -2}, "top_k", "below_min_value", "Invalid 'top_k': expected a value >= -1."),
        ({"min_p": 1.5}, "min_p", "above_max_value", "Invalid 'min_p': expected a value <= 1.0."),
        ({"echo": "yes"}, "echo", "invalid_type", "Invalid 'echo': expected true or false."),
        ({"prompt": 5}, "prompt", "invalid_type", "Invalid 'prompt': expected a string or an array."),
        ({"stop": [""]}, "stop[0]", "too_short", "Invalid 'stop[0]': expected at least 1 characters."),
        ({"max_tokns": 3}, "max_tokns", "unknown_parameter", "Unrecognized request argument supplied: max_tokns"),
        ({"messages": []}, "messages", "too_short", "Invalid 'messages': expected at least 1 items."),
        ({"messages": 1}, "messages", "invalid_type", "Invalid 'messages': expected an array."),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "missing_required_parameter",
         "Missing required parameter: 'messages[0].role'."),
        ({"messages": [HI], "tool_choice": "never"}, "tool_choice", "invalid_value", "one of 'none', 'auto'"),
        ({"messages": [HI], "chat_template_kwargs": 1}, "chat_template_kwargs", "invalid_type", "expected an object."),
        ({"messages": [HI], "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", None,
         "sets 'tokenize', which the server sets itself"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_as_openai_tells_it(served, change, param, code, words):
    endpoint, needed = ("chat/completions", {}) if "messages" in change else ("completions", {"prompt": "a"})
    answer = httpx.post(f"{served.root}/v1/{endpoint}", json={"model": "tiny"} | needed | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert words in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 9000, b"null", b"1e999"]
)
def test_bodies_that_are_no_request_are_refused(served, body):
    answer = httpx.post(f"{served.root}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_oversize_bodies_and_unknown_paths_are_refused(served):
    for content in (b"x" * 20_001, (b"x" * 1000 for _ in range(30))):  # with a stated length, and without
        answer = httpx.post(f"{served.root}/v1/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    assert httpx.get(f"{served.root}/v1/other").json()["error"]["code"] == "no_such_endpoint"
    assert httpx.get(f"{served.root}/v1/completions").status_code == 405


def test_errors_are_those_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="no such role"):
        client.chat.completions.create(model="tiny", messages=[{"role": "odd", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], tools=[])


def test_a_model_without_a_chat_template_says_so(folder):
    bare = TransformersEngine(folder, identity="bare", dtype=torch.float32)
    bare.tokenizer.chat_template = None
    served = Served(bare)
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        served.client().chat.completions.create(model="bare", messages=[{"role": "user", "content": "a"}])
    served.close()


def test_without_a_token_nothing_is_answered(engine, tmp_path, monkeypatch):
    served = Served(engine, access=Access([TOKEN, "another-token"]))
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
                   {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}x"}):  # fmt: skip
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics")):
            answer = httpx.request(method, served.root + path, headers=header)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{served.root}/health").status_code == 200
    assert served.client().completions.create(model="tiny", prompt="a", max_tokens=1).choices
    served.close()
    (tmp_path / "tokens").write_text(f"# mine\n{TOKEN}\n\nanother-token\n")
    assert read_tokens(tmp_path / "tokens") == [TOKEN, "another-token"]
    monkeypatch.setenv(VARIABLE, f"{TOKEN}, another-token")
    assert read_tokens(None) == [TOKEN, "another-token"]
    for text in ("", "short\n"):
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(InvalidValue, match="token"):
            read_tokens(tmp_path / "tokens")


# Many at once


def test_64_clients_at_once_each_get_their_own_answer(client, engine):
    kinds = [
        {"max_tokens": most, "temperature": temperature, "top_p": top_p}
        for most in (1, 7, 16) for temperature in (0.0, 0.7, 1.0) for top_p in (0.9, 1.0)
    ]  # fmt: skip
    asked = [(f"{'Client ' * (i % 7)}{i % 40}", i, kinds[i % len(kinds)]) for i in range(256)]

    def ask(prompt, seed, kind):
        if seed % 5 == 0:
            events = client.completions.create(model="tiny", prompt=prompt, seed=seed, stream=True, **kind)
            return "".join(event.choices[0].text for event in events)
        return client.completions.create(model="tiny", prompt=prompt, seed=seed, **kind).choices[0].text

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, *zip(*asked, strict=True)))
    for number, kind in enumerate(kinds):
        prompts, seeds, _ = zip(*asked[number :: len(kinds)], strict=True)
        sampling = {"max_new_tokens": kind["max_tokens"], "temperature": kind["temperature"], "top_p": kind["top_p"]}
        direct = engine.generate(prompts, seeds=seeds, **sampling)
        assert answers[number :: len(kinds)] == [one.text for one in direct]


@pytest.mark.parametrize("model", ["tiny", "smollm2-135m"])
def test_a_rows_text_does_not_depend_on_when_it_joined_or_who_left(model, engine):
    if model != "tiny":
        engine = TransformersEngine(model_store.path(model), identity=model, dtype=torch.float32)
    prompts = ["Hello", "The capital of France is", "A long time ago, in a town by the sea,", "Hi"]
    requests = [
        Request(tuple(engine.tokens(p)), 4 + 2 * i, seed=i, top_p=(0.9, 1.0)[i % 2]) for i, p in enumerate(prompts)
    ]
    batch = Batch(engine)
    rows = batch.join([requests[2]])
    batch.step()
    going = batch.join([Request(tuple(engine.tokens("Somebody who leaves again, after some words")), 20)])
    rows += batch.join([requests[0]])
    batch.step()
    batch.step()
    batch.leave(going)
    rows += batch.join([requests[3], requests[1]])
    while batch.rows:
        batch.step()
    for request, row in zip([requests[2], requests[0], requests[3], requests[1]], rows, strict=True):
        (alone,) = engine.generate(
            [engine.text(request.prompt)], max_new_tokens=request.max_new_tokens, seeds=[request.seed],
            top_p=request.top_p,
        )  # fmt: skip
        assert tuple(row.tokens) == alone.tokens


def test_scores_do_not_depend_on_how_many_are_held_at_once(engine, monkeypatch):
    sequences = [engine.tokens("Some words that are scored."), engine.tokens("Few")]
    whole = engine.score_tokens(sequences, 1)
    monkeypatch.setattr("chatgym.engines.transformers.SCORED", 8)
    for row, other in zip(whole, engine.score_tokens(sequences, 1), strict=True):
        assert [a.logprob for a in row] == pytest.approx([a.logprob for a in other], abs=1e-4)
    assert list(map(len, whole)) == [len(sequence) - 1 for sequence in sequences]


class Gated(TransformersEngine):
    """Computes as often as it is let to."""

    gate = threading.Semaphore(3)

    def forward(self, *arguments, **more):
        assert self.gate.acquire(timeout=WAIT)
        return super().forward(*arguments, **more)


def test_a_full_queue_refuses_with_the_time_to_come_back_and_a_client_that_left_frees_its_rows(folder):
    gated = Gated(folder, identity="tiny@1", dtype=torch.float32)
    gated.ends = frozenset()
    served = Served(gated, limits=Limits(rows=2, queue=1))
    client = served.client()
    messages = [{"role": "user", "content": "x"}]
    running = client.chat.completions.create(model="tiny", messages=messages, max_tokens=400, n=2, stream=True)
    next(iter(running))
    until(lambda: served.metric("chatgym_rows") == 2)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(client.completions.create, model="tiny", prompt="y", max_tokens=2, seed=0)
        until(lambda: served.metric("chatgym_waiting_requests") == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tiny", prompt="z", max_tokens=1)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        running.close()  # the client goes away; the one that waits is answered
        until(lambda: served.metric("chatgym_cancelled_requests_total") == 1)
        gated.gate.release(1000)
        assert second.result(WAIT).choices
    until(lambda: served.metric("chatgym_rows") == 0)
    assert served.metric("chatgym_generated_tokens_total") < 20
    served.close()


def test_clients_that_send_half_a_request_block_nobody_and_are_let_go(engine):
    served = Served(engine, limits=Limits(patience=1.0))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    slow = []
    for half in [head, head + b"Content-Length: 100\r\n\r\n{", b"P"] * 8:
        connection = socket.create_connection(("127.0.0.1", served.port), WAIT)
        connection.sendall(half)
        slow.append((half, connection))
    assert served.client().completions.create(model="tiny", prompt="a", max_tokens=1).choices
    for half, connection in slow:
        answer = b""
        while chunk := connection.recv(1000):  # until the server closes it
            answer += chunk
        assert (b" 408 " in answer) == (b"Content-Length" in half)
        connection.close()
    with socket.create_connection(("127.0.0.1", served.port), WAIT) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert served.client().completions.create(model="tiny", prompt="a", max_tokens=1).choices
    served.close()


def test_a_model_that_fails_tells_those_in_the_batch_and_goes_on(folder):
    engine = TransformersEngine(folder, identity="tiny@1", dtype=torch.float32)
    served = Served(engine)
    model, engine.model = engine.model, torch.nn.Module()  # computes nothing
    engine.model.config = model.config
    with pytest.raises(openai.InternalServerError, match="log says why"):
        served.client().completions.create(model="tiny", prompt="a")
    engine.model = model
    assert served.client().completions.create(model="tiny", prompt="a", max_tokens=1).choices
    served.close()


# A process of its own


def started(folder, port=0, **more):
    """A server in a process of its own, in float64 as `engine`."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from chatgym.cli import main; main()", "serve", "--llm", f"hf:{folder}",
         "--port", str(port), "--max-tokens", "450"],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CHATGYM_OFFLINE": "1", "CHATGYM_DTYPE": "float64"} | more,
    )  # fmt: skip
    line = process.stdout.readline()
    return process, re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)[1]


def test_sigterm_lets_running_requests_finish_and_sends_new_ones_away(folder):
    process, port = started(folder)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=WAIT)
    ask = {"model": "tiny", "prompt": "x", "max_tokens": 450, "n": 8, "temperature": 2.0, "seed": 1}
    whole = client.completions.create(**ask)
    assert max(len(choice.text) for choice in whole.choices) > 100
    stream = client.completions.create(stream=True, **ask)
    events = [next(stream)]
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503)
    with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
        client.completions.create(model="tiny", prompt="x")
    assert refused.value.status_code == 503
    events += list(stream)
    for choice in whole.choices:
        assert "".join(c.text for e in events for c in e.choices if c.index == choice.index) == choice.text
    assert process.wait(WAIT) == 0
    process.stdout.close()


def test_after_a_kill_and_a_restart_at_the_same_port_a_client_that_retries_goes_on(folder):
    process, port = started(folder)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=WAIT)

    def ask(seed):
        end = time.monotonic() + WAIT
        while True:
            try:
                return client.completions.create(model="tiny", prompt="x", max_tokens=20, seed=seed).choices[0].text
            except openai.APIConnectionError:
                assert time.monotonic() < end
                time.sleep(0.05)

    expected = [ask(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, seed) for seed in range(40)]
        answers[3].result(WAIT)
        process.kill()
        process.wait(WAIT)
        process.stdout.close()
        process, again = started(folder, port)
        assert again == port
        assert [answer.result(WAIT) for answer in answers] == expected
    process.kill()
    process.wait(WAIT)
    process.stdout.close()


def test_what_cannot_be_served_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Unavailable, match="choose another --port"):
        bind("127.0.0.1", taken.getsockname()[1])
    from typer.testing import CliRunner

    from chatgym.cli.app import app

    for arguments, words in (
        (["--llm", "template"], "no model in this process"),
        (["--llm", "nothing"], "unknown llm"),
    ):
        result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert result.exit_code == 2
        assert words in result.output


def test_without_the_libraries_the_extra_is_named(monkeypatch):
    from chatgym import serving

    monkeypatch.setattr(serving, "NEEDED", ("fastapi", "no_such_library"))
    with pytest.raises(Unavailable, match=r"no_such_library: pip install 'chatgym\[serve\]'"):
        serving.check_installed()
