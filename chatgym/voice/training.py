"""How a voice is made: lists of wordings as conversations, then supervised fine-tuning with LoRA."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from chatgym import plugins
from chatgym.errors import InvalidValue
from chatgym.finetuning.dialogues import Dialogue
from chatgym.finetuning.loop import Optimization
from chatgym.finetuning.sft import SFT, Settings
from chatgym.scenarios import Scenario, fill
from chatgym.talk import find_scenario
from chatgym.voice import BASE
from chatgym.voice.prompts import LINES, messages
from chatgym.voice.wordings import FILE, wordings

PLAIN = 3
"""Wordings that fit after any act, put among those that answer one."""
BOUND = ("state_feeling",)
"""Acts of which a wording that answers another act would be wrong: one still feels what one felt before."""


def lessons(scenario: Scenario, rounds: int = 1, seed: int = 0) -> Iterator[Dialogue]:
    """Yield what a voice learns of a scenario: for each bank, its wordings in lists of up to `LINES`.

    Args:
        scenario: With a ``voice.json``.
        rounds: How often each bank is shown, each time in another order.
        seed: Of the orders.
    """
    draws = np.random.Generator(np.random.Philox(key=[seed, 0]))
    partner = scenario.sentences["partner"]
    plain: dict[tuple[str, str], list[str]] = {}
    for bank in wordings(scenario):
        if not bank.act:
            plain[bank.part, bank.tone] = [*partner[bank.part][bank.tone], *bank.texts]
    for _ in range(rounds):
        for bank in wordings(scenario):
            texts = list(bank.texts)
            usual = [text for text in plain[bank.part, bank.tone] if text not in texts]
            if not bank.act:
                texts = plain[bank.part, bank.tone]
            elif bank.part.partition("/")[0] not in BOUND:
                texts += [usual[i] for i in draws.permutation(len(usual))[:PLAIN]]
            asked = messages(scenario, bank.part, bank.tone, bank.act)
            for chunk in _chunks([texts[i] for i in draws.permutation(len(texts))]):
                said = "\n".join(fill(text, scenario.examples) for text in chunk)
                yield [*asked, {"role": "assistant", "content": said}]


def _chunks(texts: Sequence[str]) -> list[Sequence[str]]:
    """Cut a list into as few parts as possible that are about equally long and none longer than `LINES`."""
    parts = -(-len(texts) // LINES)
    ends = [round(len(texts) * i / parts) for i in range(parts + 1)]
    return [texts[a:b] for a, b in itertools.pairwise(ends)]


def prepare(
    run: Path, names: Sequence[str] | None = None, *, rounds: int = 2, seed: int = 0, overwrite: bool = False
) -> SFT:
    """Begin the training of a voice.

    Args:
        run: Its run folder.
        names: The scenarios whose partners it words; all that have wordings when None.
        rounds: How often each bank is shown.
        seed: Of everything random.
        overwrite: Whether to replace the run that is there.

    Raises:
        InvalidValue: No scenario of these has wordings; and see `SFT.prepare`.
    """
    known = plugins.load().scenarios
    scenarios = [find_scenario(name) for name in (known if names is None else names)]
    said = [lesson for scenario in scenarios for lesson in lessons(scenario, rounds, seed)]
    if not said:
        raise InvalidValue(f"no {FILE} in {', '.join(str(scenario.folder) for scenario in scenarios)}; write one first")
    settings = Settings(BASE, "", "", epochs=1, validation=0.02, evaluations=3, lora=8, seed=seed)
    optimization = Optimization(batch=2, micro_batch=2, learning_rate=1e-3)
    about = {"voice": [scenario.name for scenario in scenarios], "rounds": rounds}
    return SFT.prepare(run, settings, optimization, said=said, about=about, overwrite=overwrite)
