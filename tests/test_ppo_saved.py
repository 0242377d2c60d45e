"""What several processes restore is what they compute with and save, whatever the ZeRO stage."""

import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from chatgym.finetuning.distributed import initialize
from chatgym.finetuning.loop import Loop, Optimization

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.frozen = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1).requires_grad_(False)

    def forward(self, rows):
        return self.frozen(self.layer(rows).tanh()).square().sum()

torch.manual_seed(0)
settings = Optimization(batch=4, micro_batch=2, learning_rate=0.1, zero=int(sys.argv[1]))
loop, rows = Loop(Net(), settings, 9), torch.arange(6.0).reshape(2, 3)
loop.step([rows], 4)
kept, before = loop.weights(), loop.measure([rows])
loop.step([rows], 4)
assert loop.measure([rows]) != before
loop.set_weights(kept)
assert loop.measure([rows]) == before
with loop.gathered():
    whole = {name: weight.clone() for name, weight in loop.module.named_parameters()}
assert all(torch.equal(whole[name], weight) for name, weight in kept.items())
loop.step([rows], 4)  # goes on from there
moved = loop.weights()
assert all(0 < (moved[name] - weight).abs().max() < 0.3 for name, weight in kept.items())
"""


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_processes_compute_with_the_weights_that_were_set(zero):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(zero)], env={**os.environ, **world, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
