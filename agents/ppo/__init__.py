"""Token-level PPO: a language model learns, token by token, to hold better conversations.

Read `agent` for the settings, `learner` for the algorithm from top to bottom, `rollout` and `turns` for how
conversations are held, `advantages` and `losses` for the equations, `policy` for the network.
"""

from .agent import PPO

__all__ = ["PPO"]
