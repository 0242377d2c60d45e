"""The partner's voice: a language model taught to say one thing in many ways.

A plain model continues a list of examples and says much that was not meant. A voice was shown, for every part of a
scenario in every tone, how people say it, and which words answer what the agent said last
(`chatgym.words.voice.wordings`); it is asked in its chat form what a partner could say
(`chatgym.words.voice.prompts`). The one that comes with ChatGym is a LoRA adapter to SmolLM2
(`chatgym.engines.adapter`), made by ``chatgym voice``, see `chatgym.finetuning.voice`.
"""

from __future__ import annotations

import re
from pathlib import Path

PARTNER = "smollm2-135m-partner"
"""Name of the voice that comes with ChatGym; …"""
BASE = "smollm2-135m"
"""… and of the stored model that it is an adapter to."""
ADAPTER = Path(__file__).parent / PARTNER


def is_voice(identity: str) -> bool:
    """Tell from an engine's identity whether its model is a voice: such a model's name ends in ``-partner``.

    It is the name that counts, so that a voice is known behind a server and in a record, too.
    """
    return re.search(r"-partner(?:@|$)", identity) is not None
