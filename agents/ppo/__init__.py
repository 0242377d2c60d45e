"""Token-level PPO: a language model learns, token by token, to hold better conversations.

Read `iteration` for the algorithm from top to bottom and `equations` for its formulas. `policy` is the network,
`rollout` and `turns` collect conversations, `systems` holds DeepSpeed, processes and servers, `training` the alarm and
checkpoints, `config` the settings, and `agent` the class that the plugin registers.
"""

from .agent import PPO

__all__ = ["PPO"]
