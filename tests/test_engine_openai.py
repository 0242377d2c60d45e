"""A model behind a URL: a real server on the loopback, with the faults that real ones have."""

import dataclasses
import os
import subprocess
import sys
import threading
from email.utils import formatdate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import DROP, GARBAGE, NO_COMPLETION, SILENCE, TRUNCATED, LocalServer
from tiny import save_tiny_model, tiny_engine

from chatgym.engines import UNKNOWN_TOKEN, make_engine
from chatgym.engines.budget import Budget, Limits
from chatgym.engines.openai import FEW, LONGEST_WAIT, OpenAIEngine, Settings
from chatgym.engines.patience import FIRST, LONGEST, backoff, retry_after
from chatgym.errors import BudgetSpent, InvalidValue, Unavailable, Unfinished
from chatgym.testing import check_engine

PROMPTS = ["The capital of France is", "One, two, three,", "Hello", "Good morning"]
SAMPLING = {"max_new_tokens": 4, "temperature": 1.0, "seeds": [5, 6, 7, 8]}
KEY = "sk-secret-4711"


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    return tiny_engine(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "CHATGYM_OPENAI_", "CHATGYM_OFFLINE"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def server(direct):
    with LocalServer(direct) as running:
        yield running


@pytest.fixture
def slept():
    return []


@pytest.fixture
def engine(server, slept):
    made = OpenAIEngine(server.url, "tiny", sleep=slept.append)
    yield made
    made.close()


def texts(completions):
    return [c.text for c in completions]


def ask_on(engine):
    for _ in range(100):
        engine.generate(PROMPTS, **SAMPLING)


def limited(engine, **limits):
    engine.settings = dataclasses.replace(engine.settings, **limits)


def test_it_keeps_to_the_protocol_of_engines(server):
    engine = make_engine(f"openai:{server.url}#tiny")
    check_engine(engine)
    assert engine.identity == f"{server.url}#tiny"


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_texts_and_logprobs_are_those_of_the_model_behind_it(server, engine, direct, path):
    server.paths = (path,)
    expected = direct.generate(PROMPTS, logprobs=True, stop=("e",), **SAMPLING)
    got = engine.generate(PROMPTS, logprobs=True, stop=("e",), **SAMPLING)
    assert [(c.text, c.finish_reason) for c in got] == [(c.text, c.finish_reason) for c in expected]
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
        assert mine.tokens == (UNKNOWN_TOKEN,) * len(theirs.tokens)
    assert {p for p, _, _ in server.requests[1:]} == {path}  # one request found out which there is
    assert engine.usage.requests == len(PROMPTS)


def test_what_is_asked_is_what_was_given(server, engine):
    engine.generate(["Hello"], max_new_tokens=3, temperature=0.5, top_p=0.9, seeds=[2**63 + 9], stop=("a", "", "b"))
    (path, body, _), *_ = server.requests
    assert path == "completions"
    assert body == {
        "model": "tiny", "prompt": "Hello", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 9,
        "stop": ["a", "b"],
    }  # fmt: skip


def test_more_stop_strings_than_a_server_takes_cut_all_the_same(server, engine, direct):
    (whole,) = direct.generate(["Hello"], max_new_tokens=8, seeds=[1])
    last = whole.text[len(whole.text) // 2 :][:2]
    stop = ("\x01", "\x02", "\x03", "\x04", last)
    (cut,) = engine.generate(["Hello"], max_new_tokens=8, seeds=[1], stop=stop)
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.find(last)], "stop")
    assert len(server.requests[0][1]["stop"]) == 4


def test_a_chat_model_that_wants_the_other_name_of_the_length_gets_it(server, engine, direct):
    server.paths, server.wants = ("chat/completions",), "max_completion_tokens"
    assert texts(engine.generate(PROMPTS, **SAMPLING)) == texts(direct.generate(PROMPTS, **SAMPLING))


def test_scores_are_those_of_the_model_behind_it(engine, direct):
    continuations = [" Paris, of course.", " four", " there", ""]
    for mine, theirs in zip(
        engine.score(PROMPTS, continuations), direct.score(PROMPTS, continuations), strict=True
    ):  # fmt: skip
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_a_server_that_cannot_score_is_said_to(server, engine):
    server.echoes = False
    with pytest.raises(Unfinished, match="it can't score"):
        engine.score(["Hello"], [" there"])
    with pytest.raises(InvalidValue, match="after an empty prompt"):
        engine.score([""], ["Hello"])


@pytest.mark.parametrize(
    "fault", [(429, {}, "slow down"), (500, {}, "oops"), (503, {}, "restarting"), DROP, TRUNCATED, NO_COMPLETION]
)
def test_what_fails_for_now_is_asked_again(server, engine, slept, direct, fault):
    server.faults.extend([None, None, fault])
    assert texts(engine.generate(PROMPTS, **SAMPLING)) == texts(direct.generate(PROMPTS, **SAMPLING))
    assert (engine.usage.requests, engine.usage.retries) == (5, 1)
    assert len(slept) == 1
    assert FIRST / 2 <= slept[0] <= FIRST


def test_a_server_that_does_not_answer_in_time_is_asked_again(server, slept, direct):
    engine = OpenAIEngine(server.url, "tiny", settings=Settings(timeout=1.0), sleep=slept.append)
    expected = direct.generate(PROMPTS, **SAMPLING)
    server.faults.extend([None, SILENCE])
    assert texts(engine.generate(PROMPTS, **SAMPLING)) == texts(expected)
    assert engine.usage.retries >= 1


def test_waits_double_up_to_a_limit_and_vary():
    assert [backoff(attempt, 0.0) for attempt in (1, 2, 3, 4)] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert backoff(5000, 0.0) == LONGEST
    assert backoff(1, 1.0) == FIRST / 2


def test_a_server_is_given_the_time_it_asks_for(server, slept):
    now = 1_700_000_000.0
    engine = OpenAIEngine(server.url, "tiny", sleep=slept.append, clock=lambda: now)
    server.faults.extend(
        [(429, {"Retry-After": "7"}, ""), (503, {"Retry-After": formatdate(now + 90, usegmt=True)}, "")]
    )
    engine.generate(PROMPTS[:1], max_new_tokens=1)
    assert 7 <= slept[0] < 8
    assert 90 <= slept[1] < 91


def test_a_wait_that_would_look_like_a_hang_is_said_instead(server, engine, slept):
    server.faults.append((429, {"Retry-After": str(LONGEST_WAIT + 1)}, "tomorrow"))
    with pytest.raises(Unfinished, match=r"asks to wait 601 s"):
        engine.generate(PROMPTS, **SAMPLING)
    assert slept == []


@given(st.text() | st.floats().map(str) | st.integers().map(str))
def test_no_header_makes_a_wait_that_is_no_number(header):
    seconds = retry_after(header, 0.0)
    assert seconds is None or 0.0 <= seconds < float("inf")


def test_a_failing_server_is_given_up_and_what_it_answered_is_kept(server, slept, direct):
    engine = OpenAIEngine(server.url, "tiny", settings=Settings(concurrency=1, retries=2), sleep=slept.append)
    server.faults.extend([None, None, *[(500, {}, "oops")] * 3])
    with pytest.raises(Unfinished, match=r"was asked 3 times: it answered .*500.*oops.*; run it again later") as broken:
        engine.generate(PROMPTS, **SAMPLING)
    expected = direct.generate(PROMPTS, **SAMPLING)
    assert {row: c.text for row, c in broken.value.answered.items()} == dict(enumerate(texts(expected)[:2]))
    before = len(server.requests)
    assert texts(engine.generate(PROMPTS, **SAMPLING)) == texts(expected)
    assert [body["prompt"] for _, body, _ in server.requests[before:]] == PROMPTS[2:]  # none asked twice
    engine.generate(PROMPTS, **SAMPLING)
    assert len(server.requests) == before + 2 + 4  # another call is another call


def test_a_server_that_restarts_is_waited_for(server, direct):
    port, restarted = server.port, []

    def restart(_):
        if not restarted:
            restarted.append(LocalServer(direct, port=port))

    engine = OpenAIEngine(server.url, "tiny", settings=Settings(concurrency=1), sleep=restart)
    server.faults.extend([None, DROP])
    first = engine.generate(PROMPTS[:1], max_new_tokens=4, seeds=[5])
    server.stop()
    engine.close()
    rest = engine.generate(PROMPTS[1:], max_new_tokens=4, seeds=[6, 7, 8])
    restarted[0].stop()
    assert texts(first + rest) == texts(direct.generate(PROMPTS, **SAMPLING))


def test_several_are_asked_at_once_and_no_more_than_allowed(server, direct):
    engine = OpenAIEngine(server.url, "tiny", settings=Settings(concurrency=3))
    engine.generate(["Hello"], max_new_tokens=1)
    server.together = threading.Barrier(3)  # none is answered before three have come
    prompts = PROMPTS * 3
    assert texts(engine.generate(prompts, max_new_tokens=2)) == texts(direct.generate(prompts, max_new_tokens=2))
    assert server.most_running == 3


def test_the_same_prompt_twice_is_asked_twice(server, engine):
    engine.generate(["Hello"] * 3, max_new_tokens=1, seeds=[1, 1, 1])
    assert len(server.requests) == 3


def test_requests_stop_at_their_limit_and_go_on_when_it_is_raised(server, engine, direct):
    limited(engine, max_requests=3)
    with pytest.raises(BudgetSpent, match=r"3 requests of max_requests=3; .* raise the limit") as spent:
        engine.generate(PROMPTS, **SAMPLING)
    assert len(server.requests) == 3 == len(spent.value.answered)
    limited(engine, max_requests=4)
    assert texts(engine.generate(PROMPTS, **SAMPLING)) == texts(direct.generate(PROMPTS, **SAMPLING))
    assert len(server.requests) == 4


def test_requests_made_again_count_too(server, engine):
    limited(engine, max_requests=2)
    server.faults.extend([(500, {}, "")] * 5)
    with pytest.raises(BudgetSpent):
        engine.generate(["Hello"], max_new_tokens=1)
    assert (len(server.requests), engine.usage.retries) == (2, 1)


@pytest.mark.parametrize("counts", [True, False])
def test_tokens_never_pass_their_limit(server, engine, counts):
    server.counts = counts  # a server that doesn't count them: the most that they can be
    limited(engine, max_tokens=300, concurrency=4)
    with pytest.raises(BudgetSpent, match="tokens of max_tokens=300, and the next request may take"):
        ask_on(engine)
    used = engine.usage.prompt_tokens + engine.usage.completion_tokens
    assert 0 < used <= 300
    assert len(server.requests) > 3 * counts


def test_cost_is_counted_by_price_and_never_passes_its_limit(engine):
    limited(engine, prompt_price=1e4, completion_price=1e5, max_cost=5.0)
    with pytest.raises(BudgetSpent, match=r"of max_cost=5.0, and the next request may cost"):
        ask_on(engine)
    usage = engine.usage
    assert usage.cost == pytest.approx((usage.prompt_tokens * 1e4 + usage.completion_tokens * 1e5) / 1e6)
    assert 0 < usage.cost <= 5.0


def test_a_request_waits_for_others_that_are_in_its_way():
    budget, limits, passed = Budget(), Limits(max_tokens=10), threading.Event()
    budget.reserve(limits, 5, 4)
    other = threading.Thread(target=lambda: (budget.reserve(limits, 3, 2), passed.set()))
    other.start()
    assert not passed.is_set()
    budget.settle(limits, 5, 4, (2, 1))
    other.join(60)
    assert passed.is_set()
    budget.settle(limits, 3, 2, (0, 0))
    with pytest.raises(BudgetSpent, match="3 tokens of max_tokens=10"):
        budget.reserve(limits, 8, 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"prompt_price": float("nan")}, "prompt_price is nan"),
        ({"max_cost": 1.0}, "needs prompt_price"),
        ({"concurrency": 0}, "concurrency >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(values, words):
    with pytest.raises(InvalidValue, match=words):
        Settings(**values)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CHATGYM_OPENAI_CONCURRENCY", "3")
    monkeypatch.setenv("CHATGYM_OPENAI_MAX_TOKENS", "1000")
    monkeypatch.setenv("CHATGYM_OPENAI_PROMPT_PRICE", "0.15")
    engine = make_engine("openai:http://127.0.0.1:1#tiny")
    assert engine.settings == Settings(concurrency=3, max_tokens=1000, prompt_price=0.15)
    monkeypatch.setenv("CHATGYM_OPENAI_CONCURRENCY", "many")
    with pytest.raises(InvalidValue, match="CHATGYM_OPENAI_CONCURRENCY is 'many'"):
        make_engine("openai:http://127.0.0.1:1#tiny")


def test_the_key_opens_the_server_and_stands_nowhere(server, engine, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    server.key = KEY
    with pytest.raises(Unfinished, match="OPENAI_API_KEY is not set"):
        engine.generate(["Hello"], max_new_tokens=1)
    assert "Authorization" not in server.requests[0][2]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key")
    engine.close()
    with pytest.raises(Unfinished, match="refuses the key") as refused:
        engine.generate(["Hello"], max_new_tokens=1)
    assert refused.value.__suppress_context__
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    engine.close()
    server.faults.append((400, {}, f"bad request with Bearer {KEY}"))
    with pytest.raises(Unfinished, match=r"refuses the request.*Bearer \*\*\*"):
        engine.generate(["Hello"], max_new_tokens=1)
    assert engine.generate(["Hello"], max_new_tokens=1)
    said = caplog.text + str(vars(engine)) + engine.identity + str(refused.value)
    assert KEY not in said
    assert "sk-wrong-key" not in said


def test_a_key_that_fits_in_no_header_is_not_shown(server, engine, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(InvalidValue, match="characters that no key has") as refused:
        engine.generate(["Hello"], max_new_tokens=1)
    assert "lines" not in str(refused.value)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_unknown_model_is_named_with_those_there_are(server, path):
    server.paths = (path,)
    engine = OpenAIEngine(server.url, "tony")
    with pytest.raises(Unfinished, match=r"has no model 'tony'; it has 'another', 'tiny'"):
        engine.generate(["Hello"], max_new_tokens=1)


def test_a_url_of_something_else_is_said_to_be_wrong(server, slept):
    server.lists = False
    with pytest.raises(Unfinished, match=r"no such endpoint below .*/v2 \(404\); check the URL's path"):
        OpenAIEngine(server.url.replace("v1", "v2"), "tiny").generate(["Hello"], max_new_tokens=1)
    server.faults.extend([GARBAGE] * FEW)
    engine = OpenAIEngine(server.url, "tiny", sleep=slept.append)
    with pytest.raises(Unfinished, match=r"its answer is no JSON: '<html>Welcome.*check the URL"):
        engine.generate(["Hello"], max_new_tokens=1)
    assert len(slept) == FEW - 1


def test_a_server_that_never_answered_is_not_waited_for_long(slept):
    with LocalServer(None) as gone:
        url = gone.url
    with pytest.raises(Unfinished, match=r"was asked 3 times: it can't be reached .*; start the server, or check"):
        OpenAIEngine(url, "tiny", sleep=slept.append).generate(["Hello"], max_new_tokens=1)
    assert len(slept) == FEW - 1


def test_a_used_up_quota_is_not_asked_for_again(server, engine, slept):
    server.faults.append((429, {}, "insufficient_quota"))
    with pytest.raises(Unfinished, match="refuses the request"):
        engine.generate(["Hello"], max_new_tokens=1)
    assert slept == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("127.0.0.1:8000#tiny", "needs a URL such as"),
        ("http://127.0.0.1:99999#tiny", "needs a URL such as"),
        ("http://127.0.0.1:8000", "names no model; write 'openai:http://127.0.0.1:8000/v1#MODEL'"),
        (f"http://me:{KEY}@127.0.0.1:8000/v1#tiny", "set the key as OPENAI_API_KEY"),
        (f"http://127.0.0.1:8000/v1?key={KEY}#tiny", "set the key as OPENAI_API_KEY"),
    ],
)
def test_urls_that_are_none_or_hold_credentials_are_refused(spec, words):
    with pytest.raises(InvalidValue, match=words) as refused:
        make_engine(f"openai:{spec}")
    assert KEY not in str(refused.value)


def test_offline_only_this_machine_is_asked(server, engine, monkeypatch):
    monkeypatch.setenv("CHATGYM_OFFLINE", "1")
    assert engine.generate(["Hello"], max_new_tokens=1)
    away = make_engine("openai:https://api.example.com/v1#big")  # stored words need no server
    with pytest.raises(Unavailable, match=r"CHATGYM_OFFLINE forbids .*api.example.com.*recorded:FILE"):
        away.generate(["Hello"], max_new_tokens=1)


def test_a_proxy_is_not_asked_for_this_machine(server, engine, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert engine.generate(["Hello"], max_new_tokens=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_connections_of_its_own(server, engine, direct):
    engine.generate(["Hello"], max_new_tokens=1)
    code = (
        "import os, sys\n"
        "from chatgym.engines.openai import OpenAIEngine\n"
        f"engine = OpenAIEngine({server.url!r}, 'tiny')\n"
        "ask = lambda: engine.generate(['Hello'] * 4, max_new_tokens=4, seeds=range(4))\n"
        "before, child = ask(), os.fork()\n"
        "same = ask() == before\n"
        "os._exit(not same) if child == 0 else sys.exit(not same or os.waitpid(child, 0)[1])\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    assert len(server.requests) == 1 + 3 * 4


def test_without_the_library_it_says_what_to_install():
    code = (
        "import sys, importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'openai' else found(name, *more)\n"
        "from chatgym.engines import make_engine\n"
        "make_engine('openai:http://127.0.0.1:1#tiny')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "needs the openai library: pip install 'chatgym[openai]'" in done.stderr
