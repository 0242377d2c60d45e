"""Reward models, which score conversations, and `make_reward_model`, which makes one by name."""

from chatgym.rewards.choose import make_reward_model
from chatgym.rewards.protocol import Conversation, RewardModel, identity_of

__all__ = ["Conversation", "RewardModel", "identity_of", "make_reward_model"]
