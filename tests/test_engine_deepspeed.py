"""DeepSpeed computes what transformers does, in one process and split over two."""

import json
import os
import socket
import subprocess
import sys

import pytest
from tiny import save_tiny_model, tiny_engine

from chatgym.engines import DEFAULT_MODEL, make_engine
from chatgym.errors import InvalidValue
from chatgym.testing import check_engine

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

PROMPTS = ["The capital of France is", "One, two, three,", "The capital of France is", "Hello"]
SAMPLING = {"max_new_tokens": 8, "temperature": 0.9, "top_p": 0.9, "seeds": [5, 6, 7, 8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(folder):
    return tiny_engine(folder)


@pytest.fixture
def deepspeed(folder):
    from chatgym.engines.deepspeed import DeepSpeedEngine

    return lambda **more: DeepSpeedEngine(folder, identity="tiny", dtype=torch.float32, **more)


def test_it_keeps_to_the_protocol_of_engines(deepspeed):
    check_engine(deepspeed())


def test_texts_and_scores_are_those_of_transformers(deepspeed, plain):
    engine = deepspeed()
    assert engine.generate(PROMPTS, logprobs=True, **SAMPLING) == plain.generate(PROMPTS, logprobs=True, **SAMPLING)
    assert engine.score(PROMPTS, [" Paris"] * 4) == plain.score(PROMPTS, [" Paris"] * 4)


def test_kernels_that_do_not_fit_are_done_without(deepspeed, plain):
    engine = deepspeed(kernels=True)  # there are none for the CPU
    assert "not been implemented" in engine.without_kernels
    assert engine.generate(PROMPTS, **SAMPLING) == plain.generate(PROMPTS, **SAMPLING)
    assert deepspeed().without_kernels == "not asked for"


def test_kernels_that_say_something_else_are_done_without(deepspeed, plain, monkeypatch):
    from chatgym.engines.deepspeed import DeepSpeedEngine

    load = DeepSpeedEngine._load_model

    def damaged(self, folder, dtype):
        self._inject, injected = False, self._inject
        model = load(self, folder, dtype)
        if injected:
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight.mul_(-1.0)
        return model

    monkeypatch.setattr(DeepSpeedEngine, "_load_model", damaged)
    engine = deepspeed(kernels=True)
    assert engine.without_kernels == "with them the model continues texts differently"
    assert engine.generate(PROMPTS, **SAMPLING) == plain.generate(PROMPTS, **SAMPLING)


def test_no_global_random_state_is_changed(deepspeed):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    deepspeed()
    assert torch.rand(1) == expected


PART = """
import json, os, sys, torch
from chatgym.engines.deepspeed import DeepSpeedEngine
torch.manual_seed(int(os.environ["RANK"]))
state, said = torch.random.get_rng_state(), []
for dtype in (torch.float32, torch.bfloat16):
    engine = DeepSpeedEngine(sys.argv[1], identity="tiny", dtype=dtype)
    said.append([c.text for c in engine.generate(json.loads(sys.argv[2]), **json.loads(sys.argv[3]))])
assert torch.equal(state, torch.random.get_rng_state())
print(json.dumps([*said, engine.model.model.layers[0].mlp.up_proj.weight.shape[0]]))
"""


def test_two_processes_say_what_one_does(folder, plain):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", PART, str(folder), json.dumps(PROMPTS), json.dumps(SAMPLING)]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    (one, said), (other, _) = outputs
    in_float32, _, size = json.loads(one)  # that it is JSON says that nothing else was printed
    assert in_float32 == [c.text for c in plain.generate(PROMPTS, **SAMPLING)]
    assert size == 16  # half of the layer's 32 in each
    assert one == other  # in bfloat16 too, where rounding may part them from a single process
    assert "deepspeed" not in said.lower()


def test_a_model_of_ones_own_by_name(folder, tmp_path):
    engine = make_engine(f"deepspeed:{folder}")
    assert engine.identity == make_engine(f"hf:{folder}").identity
    assert not engine.loaded
    assert engine.generate(["Hello"], max_new_tokens=1)
    assert type(engine._engine).__name__ == "DeepSpeedEngine"
    engine.close()
    with pytest.raises(InvalidValue, match="holds no model"):
        make_engine(f"deepspeed:{tmp_path}")


@pytest.mark.parametrize(("cuda", "kind"), [(True, "DeepSpeedEngine"), (False, "TransformersEngine")])
def test_the_default_model_is_served_by_deepspeed_on_cuda_only(folder, monkeypatch, cuda, kind):
    from chatgym.engines import choose
    from chatgym.storage import model_store

    monkeypatch.setattr(model_store, "path", lambda name: folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    # What is chosen, not what it does: there is no such device here.
    for name in ("_deepspeed", "_transformers"):
        monkeypatch.setattr(choose, name, lambda *chosen, name=name: name)
    chosen = make_engine(DEFAULT_MODEL)._open()
    assert {"_deepspeed": "DeepSpeedEngine", "_transformers": "TransformersEngine"}[chosen] == kind
