"""How a voice is asked for wordings, in ChatML: who speaks, in which tone and situation, what the agent said last."""

from __future__ import annotations

from collections.abc import Sequence

from chatgym.scenarios import Scenario, fill
from chatgym.words.voice.wordings import said_by_agent

LINES = 8
"""Wordings that a voice is used to say in one go."""


def messages(scenario: Scenario, part: str, tone: str, act: str = "") -> list[dict[str, str]]:
    """Return what a voice is asked for a bank: a system's and a user's message, slots as their examples.

    Args:
        scenario: Whose partner.
        part: What is to be said.
        tone: And how.
        act: The agent's last act, where the wordings should answer it.
    """
    role = scenario.partner_role
    situation = fill(scenario.sentences["situations"][part], scenario.examples)
    heard = f'\nThe {scenario.agent_role} said: "{said_by_agent(scenario, act)}"' if act else ""
    return [
        {"role": "system", "content": f"You are the {role} in a chat. Tone: {tone}."},
        {"role": "user", "content": f"{situation}{heard}\nSay it in different ways, one a line."},
    ]


def prompt(asked: Sequence[dict[str, str]]) -> str:
    """Write messages as ChatML up to where the voice begins to speak."""
    said = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in asked)
    return f"{said}<|im_start|>assistant\n"
