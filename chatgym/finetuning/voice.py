"""Train a voice: lists of wordings as conversations, then supervised fine-tuning with LoRA.

The first training uses the wordings that people wrote. Later ones add the voice's own wordings that pass the wording
guard, which is rejection sampling fine-tuning (Dong et al. 2023, "RAFT"; Yuan et al. 2023).
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
"""How many wordings that fit after any act are added to those that answer one act."""
BOUND = ("state_feeling",)
"""Acts of the partner for which wordings that fit after any act aren't added to those that answer one."""


def lessons(
    scenario: Scenario, rounds: int = 1, seed: int = 0, more: Mapping[Asked, Sequence[str]] | None = None
) -> Iterator[Dialogue]:
    """Yield a voice's training conversations: for each bank of a scenario, its wordings in lists of up to `LINES`.

    Args:
        scenario: A scenario with a ``voice.json``.
        rounds: How often each bank is used, each time in another order.
        seed: Seed of the orders.
        more: Further wordings, see `chatgym.finetuning.voice_practice.passed`.
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
    """Split texts into the fewest parts of at most `LINES` texts, about equally long."""
    parts = -(-len(texts) // LINES)
    ends = [round(len(texts) * i / parts) for i in range(parts + 1)]
    return [texts[a:b] for a, b in itertools.pairwise(ends)]


def scenarios_of(names: Sequence[str] | None) -> list[Scenario]:
    """Return scenarios by name, or, when None, all that have a ``voice.json``.

    Raises:
        InvalidValue: There is no scenario of a name.
    """
    if names is not None:
        return [find_scenario(name) for name in names]
    return [one for one in plugins.load().scenarios.usable().values() if any(wordings(one))]


def prepare(
    run: Path, scenarios: Sequence[Scenario], *, rounds: int = 2, practised: Mapping[str, Any] | None = None,
    seed: int = 0, overwrite: bool = False,
) -> SFT:  # fmt: skip
    """Begin the training of a voice.

    Args:
        run: The run folder.
        scenarios: The scenarios whose partners it words.
        rounds: How often each bank is used, each time in another order.
        practised: Scenario to further wordings, see `chatgym.finetuning.voice_practice.passed`.
        seed: Seed of everything random.
        overwrite: Whether to replace a run in the folder.

    Raises:
        InvalidValue: None of the scenarios has wordings; see also `SFT.prepare`.
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
    )  # the later trainings are long
    about = {"voice": [scenario.name for scenario in scenarios], "rounds": rounds, "practised": practised is not None}
    return SFT.prepare(run, settings, optimization, said=said, about=about, overwrite=overwrite)
