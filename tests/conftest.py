"""What several tests share: playing many conversations with a policy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from chatgym.dynamics.room import ChatRoom

settings.register_profile("chatgym", deadline=None)  # nothing here may depend on time
settings.load_profile("chatgym")

Policy = Callable[[ChatRoom], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class LLMPartner:
    returns: npt.NDArray[np.float64]
    outcomes: list[str]
    turns: npt.NDArray[np.int64]

    def share(self, outcome: str) -> float:
        return self.outcomes.count(outcome) / len(self.outcomes)


@pytest.fixture(scope="session")
def play() -> Callable[[ChatRoom, Policy], LLMPartner]:
    def play(room: ChatRoom, policy: Policy) -> LLMPartner:
        """Play one conversation in each row to its end."""
        room.begin()
        going = np.ones(room.size, bool)
        returns = np.zeros(room.size)
        while going.any():
            room.step(policy(room), going)
            returns[going] += room.rewards[going]
            going &= ~(room.terminations | room.truncations)
        return LLMPartner(returns, [room.scenario.outcomes[k] for k in room.outcomes], room.turns.copy())

    return play


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own at `folder`, to be filled."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounted(tmp_path / "disk", "256k") as folder:
        yield folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    with mounted(tmp_path / "disk", "6m") as folder:
        yield folder


@pytest.fixture(scope="session")
def above_chance() -> Callable[..., float]:
    def above_chance(features, goal, classes):
        """How far a small classifier, trained on one half, is above the commonest class on the other, in deviations."""
        from torch import Generator, nn, no_grad, optim, tensor

        half, generator = len(goal) // 2, Generator().manual_seed(0)
        x, y = tensor(features), tensor(goal.astype(np.int64))
        model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, classes))
        for weights in model.parameters():
            nn.init.uniform_(weights, -0.1, 0.1, generator=generator)
        optimiser = optim.Adam(model.parameters(), 0.01, weight_decay=1e-3)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[:half]), y[:half]).backward()
            optimiser.step()
        with no_grad():
            accuracy = (model(x[half:]).argmax(1) == y[half:]).float().mean().item()
        chance = (goal[half:] == np.bincount(goal[:half], minlength=classes).argmax()).mean()
        return (accuracy - chance) / np.sqrt(chance * (1 - chance) / half)

    return above_chance
