"""Write the banks of wordings that ship with a scenario: ``chatgym scenarios NAME --fill-banks``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from chatgym.errors import Unavailable
from chatgym.storage.atomic import write_text
from chatgym.words.banks import FILE, Bank, dropped
from chatgym.words.nlg import Speaker


def write(speaker: Speaker, progress: Callable[[int], None] | None = None) -> tuple[Path, dict[str, Bank]]:
    """Fill all banks of a speaker that has a model, and write them beside its scenario's sentences.

    The cache keeps each bank that the model filled, so an interrupted run continues where it stopped.

    Args:
        speaker: The speaker; it must not use the shipped banks itself (give it a cache).
        progress: Called with the number of banks that are there.

    Returns:
        The file, and what stands in it.

    Raises:
        Unavailable: The folder cannot be written to.
    """
    assert speaker.engine is not None
    scenario, names = speaker.scenario, speaker.askable()
    if progress is not None:
        speaker.progress = lambda _: progress(len(speaker.banks))
    speaker.prepare(names)
    unwanted, banks = dropped(scenario), {}
    for name in names:
        bank = speaker.banks[name]
        kept = tuple(wording for wording in bank.accepted if wording not in unwanted.get(name, ()))
        banks[name] = Bank(kept, sampled=bank.candidates)
    content = {
        "engine": speaker.engine.identity, "key": speaker.digest,
        "banks": {name: {"candidates": bank.sampled, "wordings": bank.accepted} for name, bank in banks.items()},
    }  # fmt: skip
    path = scenario.folder / FILE
    try:
        write_text(path, json.dumps(content, indent=0, ensure_ascii=False, sort_keys=True) + "\n")
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({error.strerror}); install the scenario editable") from error
    return path, banks
