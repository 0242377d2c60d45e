"""How a voice is made: lists of wordings as conversations, then supervised fine-tuning with LoRA.

It is taught twice: by what people wrote, then also by what it says itself and the guard lets pass, which is rejection
sampling fine-tuning (Dong et al. 2023, "RAFT"; Yuan et al. 2023). So it learns what the guard wants.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatgym import plugins
from chatgym.engines import PLAIN_MODEL
from chatgym.errors import InvalidValue
from chatgym.finetuning.dialogues import Dialogue
from chatgym.finetuning.loop import Optimization
from chatgym.finetuning.sft import SFT, Settings
from chatgym.scenarios import Scenario, fill, find_scenario
from chatgym.words.voice.prompts import LINES, messages
from chatgym.words.voice.wordings import FILE, Asked, wordings

PLAIN = 3
"""Wordings that fit after any act, put among those that answer one."""
BOUND = ("state_feeling",)
"""Acts of which a wording that answers another act would be wrong: one still feels what one felt before."""


def lessons(
    scenario: Scenario, rounds: int = 1, seed: int = 0, more: Mapping[Asked, Sequence[str]] | None = None
) -> Iterator[Dialogue]:
    """Yield what a voice learns of a scenario: for each bank, its wordings in lists of up to `LINES`.

    Args:
        scenario: With a ``voice.json``.
        rounds: How often each bank is shown, each time in another order.
        seed: Of the orders.
        more: Further wordings, as of `chatgym.finetuning.voice_practice.passed`.
    """
    draws = np.random.Generator(np.random.Philox(key=[seed, 0]))
    partner, written, more = scenario.sentences["partner"], {}, more or {}
    for bank in wordings(scenario):
        written[bank.part, bank.tone, bank.act] = bank.texts
    for _ in range(rounds):
        for part, tone, act in dict.fromkeys([*written, *more]):
            texts = list(written.get((part, tone, act), ()))
            plain = [*partner[part].get(tone, ()), *written.get((part, tone, ""), ())]
            usual = [text for text in plain if text not in texts]
            if not act:
                texts = plain
            elif part.partition("/")[0] not in BOUND:
                texts += [usual[i] for i in draws.permutation(len(usual))[:PLAIN]]
            texts += [text for text in more.get((part, tone, act), ()) if text not in (*texts, *usual)]
            asked = messages(scenario, part, tone, act)
            for chunk in _chunks([texts[i] for i in draws.permutation(len(texts))]):
                said = "\n".join(fill(text, scenario.examples) for text in chunk)
                yield [*asked, {"role": "assistant", "content": said}]


def _chunks(texts: Sequence[str]) -> list[Sequence[str]]:
    """Cut a list into as few parts as possible that are about equally long and none longer than `LINES`."""
    parts = -(-len(texts) // LINES)
    ends = [round(len(texts) * i / parts) for i in range(parts + 1)]
    return [texts[a:b] for a, b in itertools.pairwise(ends)]


def scenarios_of(names: Sequence[str] | None) -> list[Scenario]:
    """Return the scenarios of these names; all that have wordings when None.

    Raises:
        InvalidValue: There is no such scenario.
    """
    if names is not None:
        return [find_scenario(name) for name in names]
    return [one for one in map(find_scenario, plugins.load().scenarios) if any(wordings(one))]


def prepare(
    run: Path, scenarios: Sequence[Scenario], *, rounds: int = 2, practised: Mapping[str, Any] | None = None,
    seed: int = 0, overwrite: bool = False,
) -> SFT:  # fmt: skip
    """Begin the training of a voice.

    Args:
        run: Its run folder.
        scenarios: Whose partners it words.
        rounds: How often each bank is shown, each time in another order.
        practised: Scenario to further wordings, as of `chatgym.finetuning.voice_practice.passed`.
        seed: Of everything random.
        overwrite: Whether to replace the run that is there.

    Raises:
        InvalidValue: No scenario of these has wordings; and see `SFT.prepare`.
    """
    said = [
        lesson for scenario in scenarios
        for lesson in lessons(scenario, rounds, seed, (practised or {}).get(scenario.name))
    ]  # fmt: skip
    if not said:
        names = ", ".join(scenario.name for scenario in scenarios)
        raise InvalidValue(f"no wordings in {names or 'any scenario'}; write a {FILE} in its folder first")
    settings = Settings(PLAIN_MODEL, "", "", epochs=1, validation=0.02, evaluations=3, lora=8, seed=seed)
    optimization = Optimization(
        batch=2, micro_batch=2, learning_rate=1e-3, bf16=practised is not None
    )  # that one is long
    about = {"voice": [scenario.name for scenario in scenarios], "rounds": rounds, "practised": practised is not None}
    return SFT.prepare(run, settings, optimization, said=said, about=about, overwrite=overwrite)
