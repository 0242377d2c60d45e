"""A voice's prompts in ChatML: the role, the tone, the situation, and what the agent said last."""

from __future__ import annotations

from collections.abc import Sequence

from chatgym.scenarios import Scenario, fill
from chatgym.words.voice.wordings import said_by_agent

LINES = 8
"""Wordings in a list: a voice is trained on lists of up to so many."""


def messages(scenario: Scenario, part: str, tone: str, act: str = "") -> list[dict[str, str]]:
    """Return the messages of system and user that ask a voice for a bank, with slots replaced by their examples.

    Args:
        scenario: The scenario.
        part: The part to word.
        tone: Its tone.
        act: The agent's last act, if the wordings should answer it.
    """
    role = scenario.partner_role
    situation = fill(scenario.sentences["situations"][part], scenario.examples)
    heard = f'\nThe {scenario.agent_role} said: "{said_by_agent(scenario, act)}"' if act else ""
    return [
        {"role": "system", "content": f"You are the {role} in a chat. Tone: {tone}."},
        {"role": "user", "content": f"{situation}{heard}\nSay it in different ways, one a line."},
    ]


def prompt(asked: Sequence[dict[str, str]]) -> str:
    """Return messages as a ChatML prompt, up to the beginning of the assistant's reply."""
    said = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in asked)
    return f"{said}<|im_start|>assistant\n"
