"""The environments' wrappers, defined in `chatgym.envs.wrappers`."""

from chatgym.envs.wrappers import ChatMLMessages, FlatTokens, LegacyAPI

__all__ = ["ChatMLMessages", "FlatTokens", "LegacyAPI"]
