"""What a model, its memory and its limits are to forked processes and to threads."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from chatgym.engines.budget import Budget, Limits
from chatgym.scenarios import find_scenario
from chatgym.words import encoder as encoders
from chatgym.words.nlu import NLU

fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system can't fork")

ASYNC = """
import gymnasium as gym, chatgym
arguments = {"action": "text", "observation": "text", "llm": "template"}
env = gym.make("ChatEnv-v0", **arguments)
env.reset(seed=0)
env.step("What is your order number?")
envs = gym.make_vec("ChatEnv-v0", num_envs=2, vectorization_mode="async", **arguments)
envs.reset(seed=0)
envs.step_async(("Hello there!", "What is the number of the order?"))
print(envs.step_wait(timeout=60)[4]["agent_act"].tolist())
"""
"""Texts are understood in the parent, then in forked children."""

USERS = """
import os, chatgym, torch
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
if os.fork() == 0:
    from chatgym.words.encoder import encoder
    print(encoder().encode_alone("hello").shape, torch.get_num_threads(), flush=True)
    os._exit(0)
os.wait()
print(torch.get_num_threads())
"""
"""The user's own torch has computed in the parent, a model is first loaded in the child."""

OTHERS = """
import os, chatgym, torch
if os.fork() == 0:
    print(torch.get_num_threads(), flush=True)
    os._exit(0)
os.wait()
"""
"""A child that uses torch, but no model of ours."""


@fork
@pytest.mark.parametrize(
    ("code", "printed"),
    [(ASYNC, "['greet', 'ask_reference']"), (USERS, "(384,) 1\n2"), (OTHERS, "2")],
    ids=["async", "torch in the parent", "no model"],
)
def test_a_forked_child_computes_on_one_thread_what_it_would_wait_for(code, printed, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    # What hangs is killed with its children: these hold the pipes.
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    assert out.strip() == printed, errors


@fork
def test_a_forked_child_does_not_wait_for_requests_of_its_parent():
    budget = Budget()
    budget.reserve(Limits(max_tokens=10), 5, 5)
    with budget._changed:  # as another thread may hold it at that moment
        if (child := os.fork()) == 0:
            worker = threading.Thread(target=budget.reserve, args=(Limits(max_tokens=10), 5, 5), daemon=True)
            worker.start()
            worker.join(20)
            os._exit(worker.is_alive())
        assert os.waitpid(child, 0)[1] == 0
    assert budget._pending == 1


@pytest.fixture
def often():
    """Switch between threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work, count=4):
    """Call `work(i)` in threads, and return their errors."""
    errors = []

    def run(i):
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_vector_has_the_same_bits_on_any_number_of_threads():
    before, found = torch.get_num_threads(), []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        found.append([encoders.encoder().encode_alone("word " * n).tobytes() for n in range(1, 30)])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_threads_share_an_encoder_whose_memory_overflows(often, monkeypatch):
    monkeypatch.setattr(encoders, "REMEMBERED", 40)
    shared, alone, opened = encoders.Encoder(), encoders.encoder(), []
    model = alone._model()
    monkeypatch.setattr(shared, "_open", lambda: opened.append(1) or model)

    def work(thread):
        for i in range(8):
            texts = [f"order {(7 * i + (2 * thread + 1) * k) % 60}" for k in range(12)]
            expected = np.stack([alone.encode_alone(text) for text in texts[:2]])
            np.testing.assert_allclose(shared.encode(texts)[:2], expected, atol=1e-5)

    assert in_threads(work) == []
    assert opened == [1]


def test_threads_share_an_nlu(often):
    nlu = NLU(find_scenario("customer_service"))

    def work(thread):
        for i in range(5):
            nlu.__dict__.pop("_examples", None)  # Python 3.12 computes it in each thread that comes first
            assert nlu.examples([f"My order {thread} is late {i}.", "Hello."]).shape == (2, 384)
            assert nlu.understand(["I want my money back.", f"It is order {thread}{i}482913."])[0].act

    assert in_threads(work) == []
