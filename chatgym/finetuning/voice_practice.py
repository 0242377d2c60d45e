"""Practice of a voice: it generates lists of wordings, and those that pass a strict guard become training data.

The lists are appended to a file, one line of JSON a bank, so that an interrupted practice can continue.
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
from chatgym.engines.protocol import generated
from chatgym.errors import Corrupted
from chatgym.scenarios import Scenario
from chatgym.storage import atomic
from chatgym.storage.utf8 import read_lines
from chatgym.words.guard import Guard
from chatgym.words.nlg import LIST_SAMPLING, TOGETHER, list_lines
from chatgym.words.nlu import nlu_of
from chatgym.words.voice.prompts import messages, prompt
from chatgym.words.voice.wordings import Asked, banks_of

SAMPLING: dict[str, Any] = {**LIST_SAMPLING, "temperature": 1.0}
"""Sampling in a practice, at a higher temperature than in use."""
MARGIN = 0.15
"""Margin of the guard in a practice, see `Guard`: training data has to be surer than wordings in use."""


def practise(
    path: Path, scenarios: Sequence[Scenario], engine: Engine, lists: int, seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> None:  # fmt: skip
    """Generate lists for each bank, and append them to a file; banks that are in the file aren't repeated.

    Args:
        path: The file.
        scenarios: The scenarios.
        engine: The voice.
        lists: Number of lists for a bank.
        seed: Seed of the sampling.
        progress: Called with the number of banks done.
    """
    banks = [(scenario, *asked) for scenario in scenarios for asked in banks_of(scenario)]
    there = [json.dumps(line) + "\n" for line in _read(path)]
    done = len(there) if len(there) == len(banks) else len(there) // TOGETHER * TOGETHER
    atomic.write_text(path, "".join(there[:done]))  # a kill can leave a part of one call's banks
    for first in range(done, len(banks), TOGETHER):
        together = banks[first : first + TOGETHER]
        prompts = [prompt(messages(*bank)) for bank in together for _ in range(lists)]
        seeds = [int(rng.bits(np.uint64(seed), first, i)) for i in range(len(prompts))]
        completions = generated(engine, prompts, seeds=seeds, **SAMPLING)
        lines = []
        for i, (scenario, *asked) in enumerate(together):
            said = [line for one in completions[i * lists : (i + 1) * lists] for line in list_lines(one)]
            lines.append(json.dumps([scenario.name, *asked, said]) + "\n")
        atomic.append_text(path, "".join(lines))
        if progress is not None:
            progress(first + len(together))


def passed(paths: Sequence[Path], scenario: Scenario) -> dict[Asked, list[str]]:
    """Return the wordings of practices that pass the guard with `MARGIN`, each once, by bank.

    Args:
        paths: Files of practices.
        scenario: The scenario.

    Raises:
        Corrupted: A file can't be read.
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
    """Return the lines of a practice (scenario, part, tone, act, wordings), without a last one that was cut off."""
    try:
        found = read_lines(path)
        if any(len(one) != 5 for one in found):
            raise ValueError("a line isn't a scenario, a part, a tone, an act and wordings")
    except (ValueError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error
    return found
