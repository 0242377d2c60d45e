"""ChatGym: a Gymnasium environment for training and comparing conversation agents.

Importing it registers ``ChatEnv-v0``; models, torch and plugins are loaded at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from chatgym import forks as forks  # from here on, forked processes are noticed
from chatgym.errors import ChatGymError, Corrupted, InvalidValue, ReplayMismatch, Unavailable

if TYPE_CHECKING:
    from chatgym.envs.replay import replay

__version__ = "0.1.0"
__all__ = ["ChatGymError", "Corrupted", "InvalidValue", "ReplayMismatch", "Unavailable", "replay"]

register(
    "ChatEnv-v0",
    entry_point="chatgym.envs.chat_env:ChatEnv",
    vector_entry_point="chatgym.envs.vector_env:ChatVectorEnv",
)


def __getattr__(name: str) -> Any:
    if name == "replay":
        from chatgym.envs.replay import replay

        return replay
    raise AttributeError(f"module 'chatgym' has no attribute {name!r}")
