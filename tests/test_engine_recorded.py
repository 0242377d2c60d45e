"""Calls of an engine written down, and answered from the record with no server, model or network."""

import random
import sqlite3
import subprocess
import sys

import pytest
from openai_server import LocalServer
from tiny import save_tiny_model, tiny_engine

import chatgym
from chatgym.engines import Completion, make_engine
from chatgym.engines.openai import OpenAIEngine, Settings
from chatgym.engines.recorded import RecordedEngine
from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv
from chatgym.errors import BudgetSpent, Corrupted, InvalidValue, Unavailable
from chatgym.storage.cache import Cache
from chatgym.testing import check_engine

PROMPTS = ["The capital of France is", "One, two, three,"]


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    return tiny_engine(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def own_words(tmp_path, monkeypatch):
    """Words stored by other tests aren't seen, and these are seen by none; the models are where they are."""
    monkeypatch.setattr("chatgym.words.nlg.default_path", lambda: tmp_path / "words.sqlite")


class Moody:
    """A server that heeds no seed: each answer is another one."""

    identity = "moody"

    def __init__(self):
        self.asked = []

    def generate(self, prompts, **sampling):
        self.asked += prompts
        return [Completion(f" {len(self.asked)}", (1, 2), (-0.1, -1 / 3), "stop") for _ in prompts]

    def score(self, prompts, continuations):
        self.asked += prompts
        return [[-1 / 3, -len(self.asked)] for _ in prompts]

    def close(self):
        self.asked.append("closed")


def test_it_keeps_to_the_protocol_of_engines(direct, tmp_path):
    with LocalServer(direct) as server:
        check_engine(make_engine(f"record:{tmp_path}/calls.sqlite,openai:{server.url}#tiny"))
    check_engine(RecordedEngine(tmp_path / "calls.sqlite"))  # the same calls, from the record alone


class Parrot:
    """Says one of the sentences that it is shown, a little longer, another one each time, whatever the seed."""

    def __init__(self):
        self.said = 0

    def generate(self, prompts, **sampling):
        made = []
        for prompt in prompts:
            lines = [line[2:] for line in prompt.splitlines() if line.startswith("- ")]
            self.said += 1
            draw = random.Random(self.said)
            text = f"{draw.choice(lines).rstrip('.!?')}{draw.choice([', please.', ', thanks.', ' now.', ' today.'])}"
            made.append(Completion(f" {text}", (1, 2), (-0.1, -0.2), "stop"))
        return made


@pytest.fixture
def server():
    with LocalServer(Parrot()) as running:
        running.counts = False
        yield running


def play(llm, path):
    env = ChatEnv(scenario="customer_service", llm=llm)
    replay.record(env, lambda observation, info: int(info["action_mask"].argmax()), path, keys=[1, 2, 3])
    env.close()
    return path.read_bytes()


def test_a_run_is_repeated_from_its_record_to_the_same_trace(server, tmp_path, monkeypatch):
    record, llm = tmp_path / "calls.sqlite", f"openai:{server.url}#tiny"
    recorded = play(f"record:{record},{llm}", tmp_path / "first.jsonl")
    asked = len(server.requests)
    assert asked > 0
    assert play(f"record:{record},{llm}", tmp_path / "again.jsonl") == recorded
    assert len(server.requests) == asked  # what was recorded isn't asked again
    other = play(f"record:{tmp_path}/other.sqlite,{llm}", tmp_path / "other.jsonl")
    assert b'"wordings":["' in recorded  # the guard took some of them
    assert other != recorded  # the server doesn't say the same again
    server.stop()
    monkeypatch.setenv("CHATGYM_OFFLINE", "1")
    assert play(f"recorded:{record}", tmp_path / "second.jsonl") == recorded
    assert server.url.encode() in recorded
    assert chatgym.replay(tmp_path / "second.jsonl").conversations == 3


def test_completions_alone_make_the_same_wordings(server, tmp_path):
    record = tmp_path / "calls.sqlite"
    recorded = play(f"record:{record},openai:{server.url}#tiny", tmp_path / "first.jsonl")
    server.stop()
    with sqlite3.connect(record) as connection:  # as after a change of the wording guard: no bank is valid
        assert connection.execute("DELETE FROM words WHERE value LIKE '{\"accepted\"%'").rowcount > 0
    connection.close()
    assert play(f"recorded:{record}", tmp_path / "second.jsonl") == recorded


def test_the_first_answer_is_the_one_that_stays(tmp_path):
    moody = Moody()
    recorder = RecordedEngine(tmp_path / "calls.sqlite", moody)
    first = recorder.generate(PROMPTS, max_new_tokens=2, seeds=[1, 2], logprobs=True)
    assert recorder.generate(PROMPTS, max_new_tokens=2, seeds=[1, 2], logprobs=True) == first
    assert recorder.generate(PROMPTS[::-1], max_new_tokens=2, seeds=[2, 1], logprobs=True) == first[::-1]
    assert recorder.score(PROMPTS, ["a", "b"]) == recorder.score(PROMPTS, ["a", "b"])
    assert moody.asked == PROMPTS * 2
    recorder.close()
    assert moody.asked[-1] == "closed"
    replayed = RecordedEngine(tmp_path / "calls.sqlite")
    assert replayed.identity == "moody"
    assert replayed.generate(PROMPTS, max_new_tokens=2, seeds=[1, 2], logprobs=True) == first
    assert replayed.score(PROMPTS[:1], ["a"]) == [[-1 / 3, -4]]


def test_the_same_call_twice_in_a_batch_is_one_answer(tmp_path):
    moody = Moody()
    first, second = RecordedEngine(tmp_path / "calls.sqlite", moody).generate(
        PROMPTS[:1] * 2, max_new_tokens=2, seeds=[1, 1]
    )
    assert first == second
    assert len(moody.asked) == 1


@pytest.mark.parametrize(
    "other",
    [{"seeds": [3]}, {"max_new_tokens": 3}, {"temperature": 0.5}, {"top_p": 0.9}, {"stop": ("x",)}, {"logprobs": True}],
)
def test_another_call_is_not_answered_by_this_one(tmp_path, other):
    call = {"max_new_tokens": 2, "seeds": [1]}
    RecordedEngine(tmp_path / "calls.sqlite", Moody()).generate(PROMPTS[:1], **call)
    replayed = RecordedEngine(tmp_path / "calls.sqlite")
    with pytest.raises(
        Unavailable, match=r"no answer to 1 of these calls, such as the prompt 'The capital of.*record:"
    ):
        replayed.generate(PROMPTS[:1], **{**call, **other})


def test_what_was_paid_for_before_the_budget_ended_is_written_down(direct, tmp_path):
    prompts = [*PROMPTS, "Hello", "Hi"]
    with LocalServer(direct) as server:
        engine = OpenAIEngine(server.url, "tiny", settings=Settings(max_requests=2, concurrency=1))
        recorder = RecordedEngine(tmp_path / "calls.sqlite", engine)
        recorder.generate(prompts[:1], max_new_tokens=2, seeds=[0])
        with pytest.raises(BudgetSpent) as spent:
            recorder.generate(prompts, max_new_tokens=2)
        assert sorted(spent.value.answered) == [0, 1]
        later = RecordedEngine(tmp_path / "calls.sqlite", make_engine(f"openai:{server.url}#tiny"))  # another process
        assert later.generate(prompts, max_new_tokens=2) != []
        assert [body["prompt"] for _, body, _ in server.requests] == prompts


def test_two_that_record_at_once_give_the_same_answers(tmp_path):
    one, two = (RecordedEngine(tmp_path / "calls.sqlite", Moody()) for _ in range(2))
    asked = one.engine.generate

    def meanwhile(prompts, **sampling):
        two.generate(prompts, **sampling)
        return asked([*prompts], **sampling)

    two.engine.asked.append("something before")
    one.engine.generate = meanwhile
    assert one.generate(PROMPTS, max_new_tokens=2) == two.generate(PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize(
    ("llm", "words"),
    [
        ("recorded:{}/none.sqlite", "there is no record .*llm='record:"),
        ("recorded:{}/other.sqlite", "holds no record of an engine"),
        (
            "record:{}/mine.sqlite,openai:http://127.0.0.1:1#tiny",
            "is a record of 'moody', not of 'http://127.0.0.1:1/v1",
        ),
        ("record:{}/new.sqlite,template", "names nothing to record"),
        ("record:{}/new.sqlite", "names nothing to record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, llm, words):
    Cache(tmp_path / "other.sqlite").close()
    RecordedEngine(tmp_path / "mine.sqlite", Moody()).close()
    with pytest.raises(InvalidValue, match=words):
        make_engine(llm.format(tmp_path))
    assert not (tmp_path / "none.sqlite").exists()


def test_a_damaged_record_is_said_to_be(tmp_path):
    recorder = RecordedEngine(tmp_path / "calls.sqlite", Moody())
    recorder.generate(PROMPTS[:1], max_new_tokens=1)
    connection = recorder.cache._connection
    connection.execute("UPDATE words SET value = '{' WHERE key != 'engine'")
    with pytest.raises(Corrupted, match="is damaged"):
        recorder.generate(PROMPTS[:1], max_new_tokens=1)


def test_answers_from_a_record_need_neither_torch_nor_a_network(tmp_path):
    RecordedEngine(tmp_path / "calls.sqlite", Moody()).generate(PROMPTS, max_new_tokens=2)
    code = (
        "import sys\n"
        "from chatgym.engines import make_engine\n"
        f"engine = make_engine('recorded:{tmp_path}/calls.sqlite')\n"
        f"print(engine.generate({PROMPTS!r}, max_new_tokens=2)[1].text)\n"
        "assert not {'torch', 'openai', 'httpx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == " 2\n"
