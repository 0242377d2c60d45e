"""The dynamics of a conversation: random draws, the `Scenario` type, and the compiled loops over B conversations.

Nothing here knows words, language models or Gymnasium.
"""
