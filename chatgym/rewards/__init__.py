"""Reward models, which score conversations, and reward functions, which pay for turns.

`make_reward_model` makes a reward model by name; `RewardStep` is what a function of one's own is given.
"""

from chatgym.rewards.choose import make_reward_model
from chatgym.rewards.function import CUSTOM, RewardFunction, RewardStep
from chatgym.rewards.protocol import Conversation, RewardModel, identity_of

__all__ = [
    "CUSTOM",
    "Conversation",
    "RewardFunction",
    "RewardModel",
    "RewardStep",
    "identity_of",
    "make_reward_model",
]
