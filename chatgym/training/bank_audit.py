"""Check whole banks of wordings: what would NLU and the wording guard make of each line?"""

from __future__ import annotations

from collections.abc import Mapping

from chatgym.banks import Bank
from chatgym.evaluation.audit import misheard
from chatgym.scenarios import Meaning, Scenario, fill
from chatgym.words.guard import Guard
from chatgym.words.nlu import nlu_of


def misheard_wordings(scenario: Scenario, banks: Mapping[str, Bank]) -> list[tuple[str, str, str]]:
    """Find the wordings that NLU takes for another act or value than was meant, or that the guard rejects.

    All are understood in one batch, with `Scenario.examples` in the place of slots.

    Args:
        scenario: The scenario.
        banks: Its banks, by name.

    Returns:
        Bank, wording and reason.
    """
    nlu, examples, found = nlu_of(scenario), scenario.examples, []
    guard = Guard(scenario, nlu)
    texts = {name: [fill(wording, examples) for wording in bank.accepted] for name, bank in banks.items()}
    understood = iter(nlu.understand([text for said in texts.values() for text in said]))
    for name, bank in banks.items():
        part, tone, *act = name.split("|")
        verdicts = guard.check(texts[name], part, tone, act="".join(act))
        for wording, verdict in zip(bank.accepted, verdicts, strict=True):
            slots = {slot: surface for slot, surface in examples.items() if "{" + slot + "}" in wording}
            meaning = Meaning(part.partition("/")[0], (part,), slots, tone)
            reason = misheard(scenario, meaning, next(understood))
            if reason or verdict.wording is None:
                found.append((name, wording, reason or verdict.reason))
    return found
