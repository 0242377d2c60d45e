"""The exact part of a conversation: random draws, the scenario type, and the loops that advance B conversations.

Nothing here knows words, models or Gymnasium.
"""
