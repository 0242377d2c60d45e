"""How a voice practises: it says lists of its own, and learns from what is right in them beyond doubt.

What it says is kept as it comes, a line of JSON for each bank, so that a practice that was interrupted goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.dynamics import rng
from chatgym.engines import Engine
from chatgym.errors import Corrupted
from chatgym.scenarios import Scenario
from chatgym.storage import atomic
from chatgym.words.guard import Guard
from chatgym.words.nlg import LIST_SAMPLING, TOGETHER, list_lines
from chatgym.words.nlu import nlu_of
from chatgym.words.voice.prompts import messages, prompt
from chatgym.words.voice.wordings import Asked, banks_of

SAMPLING: dict[str, Any] = {**LIST_SAMPLING, "temperature": 1.0}
"""How a voice says what it may learn from: more freely than when it is used."""
MARGIN = 0.15
"""By how much NLU has to be surer of a wording that is learned from than of one that is only heard."""


def practise(
    path: Path, scenarios: Sequence[Scenario], engine: Engine, lists: int, seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> None:  # fmt: skip
    """Have a voice say lists for each bank, and append them to a file; those that stand there aren't said again.

    Args:
        path: Of the file.
        scenarios: Whose partners.
        engine: With the voice.
        lists: How many lists it says for a bank.
        seed: Of what it says.
        progress: Called with the number of banks that are done.
    """
    banks = [(scenario, *asked) for scenario in scenarios for asked in banks_of(scenario)]
    there = [json.dumps(line) + "\n" for line in _read(path)]
    done = len(there) if len(there) == len(banks) else len(there) // TOGETHER * TOGETHER
    atomic.write_text(path, "".join(there[:done]))  # a kill may have left a part of what one call said
    for first in range(done, len(banks), TOGETHER):
        together = banks[first : first + TOGETHER]
        prompts = [prompt(messages(*bank)) for bank in together for _ in range(lists)]
        seeds = [int(rng.bits(np.uint64(seed), first, i)) for i in range(len(prompts))]
        completions = engine.generate(prompts, seeds=seeds, **SAMPLING)
        lines = []
        for i, (scenario, *asked) in enumerate(together):
            said = [line for one in completions[i * lists : (i + 1) * lists] for line in list_lines(one)]
            lines.append(json.dumps([scenario.name, *asked, said]) + "\n")
        atomic.append_text(path, "".join(lines))
        if progress is not None:
            progress(first + len(together))


def passed(paths: Sequence[Path], scenario: Scenario) -> dict[Asked, list[str]]:
    """Return what was said of each of a scenario's banks and is right beyond doubt, each wording once.

    Args:
        paths: Files of practices.
        scenario: The scenario.

    Raises:
        Corrupted: One of the files isn't what `practise` writes.
    """
    guard = Guard(scenario, nlu_of(scenario), margin=MARGIN)
    said: dict[Asked, list[str]] = {}
    for name, part, tone, act, lines in itertools.chain.from_iterable(map(_read, paths)):
        if name == scenario.name:
            said.setdefault((part, tone, act), []).extend(lines)
    found = {}
    for (part, tone, act), lines in said.items():
        kept = [verdict.wording for verdict in guard.check(lines, part, tone, act=act)]
        found[part, tone, act] = list(dict.fromkeys(wording for wording in kept if wording))
    return found


def _read(path: Path) -> list[tuple[str, str, str, str, list[str]]]:
    """Return the lines of a practice, without one that was cut off."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    try:
        found = [json.loads(line) for line in lines]
        if any(len(one) != 5 for one in found):
            raise ValueError("a line of other things than a scenario, a part, a tone, an act and wordings")
    except (ValueError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error
    return found
