"""The partner's voice: a language model that was fine-tuned to list wordings of one utterance.

A plain model continues a list of examples, and much of what it writes was not meant. A voice was trained on people's
wordings of every part of a scenario in every tone, with the agent's last act where they answer it
(`chatgym.words.voice.wordings`). `chatgym.words.voice.prompts` writes its prompts. The voice that comes with ChatGym is
`chatgym.engines.DEFAULT_MODEL`, a LoRA adapter to SmolLM2 that ``chatgym voice`` trains (`chatgym.finetuning.voice`).
"""

from __future__ import annotations

import re


def is_voice(identity: str) -> bool:
    """Return whether an engine's model is a voice, by its identity: the model's name ends in ``-partner``.

    The name decides, so a voice is also known behind a server and in a record.
    """
    return re.search(r"-partner(?:@|$)", identity) is not None
