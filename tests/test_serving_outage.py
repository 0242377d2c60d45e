"""The server is killed in the middle of an environment's run, and comes back."""

import json
import re
import sqlite3
import threading

import httpx
import pytest
from test_serving import WAIT, started, until
from tiny import save_tiny_model

import chatgym
from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv


@pytest.fixture(autouse=True)
def own_words(tmp_path, monkeypatch):
    """The model is asked for all words: none is known from before."""
    monkeypatch.setattr("chatgym.words.nlg.default_path", lambda: tmp_path / "words.sqlite")
    monkeypatch.setattr("chatgym.words.nlg.CANDIDATES", 6)


def play(llm, path):
    env = ChatEnv(scenario="customer_service", llm=llm, max_turns=2)
    replay.record(env, lambda observation, info: int(info["action_mask"].argmax()), path, keys=[1])
    env.close()
    return path.read_bytes()


def calls(record):
    """What was asked, and the texts answered; log-probabilities hang on the rows beside, in the last place."""
    with sqlite3.connect(record) as connection:
        found = connection.execute("SELECT key, value FROM words WHERE value LIKE '{%' ORDER BY key").fetchall()
    connection.close()
    return [(key, json.loads(value).get("tokens")) for key, value in found]


def test_environments_wait_for_a_server_that_was_killed_and_go_on_to_the_same_replay(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    process, port = started(folder)
    llm = f"openai:http://127.0.0.1:{port}/v1#tiny"
    undisturbed = play(f"record:{tmp_path}/first.sqlite,{llm}", tmp_path / "first.jsonl")
    metrics = f"http://127.0.0.1:{port}/metrics"

    def words():
        return float(re.search(r"^chatgym_generated_tokens_total (.*)$", httpx.get(metrics).text, re.M)[1])

    whole, again = words(), []

    def outage():
        until(lambda: words() > 1.5 * whole)  # half of the second run
        process.kill()
        process.wait(WAIT)
        again.append(started(folder, port))

    killer = threading.Thread(target=outage)
    killer.start()
    disturbed = play(f"record:{tmp_path}/second.sqlite,{llm}", tmp_path / "second.jsonl")
    killer.join(WAIT)
    assert 0 < words() < whole  # the second server did the rest, not the first one all of it
    assert disturbed == undisturbed
    assert calls(tmp_path / "second.sqlite") == calls(tmp_path / "first.sqlite")
    assert len(calls(tmp_path / "first.sqlite")) > 12
    again[0][0].kill()
    again[0][0].wait(WAIT)
    for one in (process, again[0][0]):
        one.stdout.close()
    assert chatgym.replay(tmp_path / "second.jsonl").conversations == 1
