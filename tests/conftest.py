"""What several tests share: playing many conversations with a policy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from chatgym.room import ChatRoom

settings.register_profile("chatgym", deadline=None)  # nothing here may depend on time
settings.load_profile("chatgym")

Policy = Callable[[ChatRoom], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Played:
    returns: npt.NDArray[np.float64]
    outcomes: list[str]
    turns: npt.NDArray[np.int64]

    def share(self, outcome: str) -> float:
        return self.outcomes.count(outcome) / len(self.outcomes)


@pytest.fixture(scope="session")
def play() -> Callable[[ChatRoom, Policy], Played]:
    def play(room: ChatRoom, policy: Policy) -> Played:
        """Play one conversation in each row to its end."""
        room.start()
        going = np.ones(room.size, bool)
        returns = np.zeros(room.size)
        while going.any():
            room.step(policy(room), going)
            returns[going] += room.rewards[going]
            going &= ~(room.terminations | room.truncations)
        return Played(returns, [room.scenario.outcomes[k] for k in room.outcomes], room.turns.copy())

    return play


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
