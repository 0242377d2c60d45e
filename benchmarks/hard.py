"""Measure NLU on hard utterances: ``python benchmarks/hard.py`` prints the tables; `benchmarks/nlu.py` writes the page.

The utterances in ``benchmarks/heldout/hard/`` deny acts, contrast them, make them depend on something, do several in a
turn, quote them or ask about them; they were written without looking at what NLU understands, and no head is trained on
them. A line is ``{"role", "kind", "text", "acts", "slots"}``: the acts in order, ``-`` before an act that is denied.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chatgym.scenarios import Scenario, find_scenario
from chatgym.words.nlu import UNCLEAR, nlu_of

HARD = Path(__file__).resolve().parent / "heldout" / "hard"
OFF_TOPIC = "off_topic"


@dataclass(frozen=True)
class Hard:
    """A hard utterance: `said` and `denied` are acts, `slots` what its words affirm."""

    kind: str
    text: str
    said: frozenset[str]
    denied: frozenset[str]
    slots: dict[str, object]


@dataclass(frozen=True)
class Understood:
    """How `n` utterances were understood.

    Attributes:
        f1: Micro-averaged F1 of the acts that are said, over all utterances.
        whole: Share whose set of acts is right.
        denied: Acts that are denied.
        taken: Share of these that were taken for said.
        accepted: Share of the utterances without an act in which one was found.
        unclear: Share in which none was found.
    """

    n: int
    f1: float
    whole: float
    denied: int
    taken: float
    accepted: float
    unclear: float


def utterances(name: str, role: str) -> Iterator[Hard]:
    """Yield the hard utterances of a role in a scenario."""
    for line in (HARD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if one["role"] == role:
            acts = [act.partition("/")[0] for act in one["acts"]]
            denied = frozenset(act[1:] for act in acts if act[0] == "-")
            said = frozenset(act for act in acts if act[0] != "-")
            yield Hard(one["kind"], one["text"], said, denied, one["slots"])


def measure(scenario: Scenario, role: str) -> dict[str, Understood]:
    """Return how the utterances of each kind were understood; ``""``: all of them."""
    lines = list(utterances(scenario.name, role))
    heard = nlu_of(scenario).understand([line.text for line in lines], role)
    pairs = [(line, frozenset({one.act} - {UNCLEAR})) for line, one in zip(lines, heard, strict=True)]
    kinds = sorted({line.kind for line in lines})
    return {kind: _scores([pair for pair in pairs if kind in ("", pair[0].kind)]) for kind in (*kinds, "")}


def _scores(pairs: Sequence[tuple[Hard, frozenset[str]]]) -> Understood:
    count: Counter[str] = Counter()
    for line, found in pairs:
        count["right"] += len(line.said & found)
        count["all"] += len(line.said) + len(found)
        count["whole"] += line.said == found
        count["denied"] += len(line.denied)
        count["taken"] += len(line.denied & found - line.said)
        count["empty"] += not line.said
        count["accepted"] += bool(found) and not line.said
        count["unclear"] += not found
    n = len(pairs)
    return Understood(
        n, _ratio(2 * count["right"], count["all"]), count["whole"] / n, count["denied"],
        _ratio(count["taken"], count["denied"]), _ratio(count["accepted"], count["empty"]), count["unclear"] / n,
    )  # fmt: skip


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


HEADINGS = ("kind", "utterances", "F1 of acts", "all acts right", "denied, taken for said", "none, taken for one",
            "unclear")  # fmt: skip


def cells(kind: str, found: Understood) -> tuple[str, ...]:
    """Return the row of a kind; a dash where there is nothing to count."""

    def percent(share: float) -> str:
        return f"{share:.1%}" if share == share else "–"

    denied = f"{percent(found.taken)} of {found.denied}" if found.denied else "–"
    return (kind or "all", str(found.n), f"{found.f1:.3f}" if found.f1 == found.f1 else "–", percent(found.whole),
            denied, percent(found.accepted), percent(found.unclear))  # fmt: skip


def main() -> None:
    console = Console()
    for path in sorted(HARD.glob("*.jsonl")):
        scenario = find_scenario(path.stem)
        for role in ("agent", "partner"):
            table = Table(*HEADINGS, title=f"{scenario.name}, {getattr(scenario, f'{role}_role')}")
            for kind, found in measure(scenario, role).items():
                table.add_row(*cells(kind, found))
            console.print(table)


if __name__ == "__main__":
    main()
