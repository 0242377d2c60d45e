"""Measure the wordings of the partner with and without the adapter: fill every bank of every scenario with each.

python benchmarks/voice.py                 writes the table of docs/voice.md, and 200 wordings to read
python benchmarks/voice.py --only voice    keeps the plain model's rows (it takes the most time)
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from chatgym.engines import DEFAULT_MODEL, PLAIN_MODEL, make_engine
from chatgym.scenarios import find_scenario
from chatgym.storage.cache import Cache
from chatgym.words.nlg import Speaker
from chatgym.words.voice.wordings import wordings

SCENARIOS = ("customer_service", "education", "social")
MODELS = {"plain": PLAIN_MODEL, "voice": DEFAULT_MODEL}
READ = 200
PAGE = Path(__file__).parents[1] / "docs" / "voice.md"
MARK = "<!-- made by benchmarks/voice.py -->"
REPEATED = "said before"


def fill(name: str, scenario_name: str, engine: object) -> Speaker:
    """Fill all banks of a scenario."""
    with tempfile.TemporaryDirectory() as folder:
        speaker = Speaker(find_scenario(scenario_name), engine, cache=Cache(Path(folder) / "words.sqlite"))  # type: ignore[arg-type]
        speaker.progress = lambda n: print(f"\r{name} {scenario_name}: {n} banks", end="", file=sys.stderr, flush=True)
        speaker.prepare()
    print(file=sys.stderr)
    return speaker


def figures(speaker: Speaker) -> dict[str, float]:
    """Count a speaker's candidates by how the guard handled them."""
    banks = speaker.banks
    accepted = sum(len(bank.accepted) for bank in banks.values())
    repeated = sum(reason == REPEATED for bank in banks.values() for _, reason in bank.rejected)
    all_ = accepted + sum(len(bank.rejected) for bank in banks.values())
    hand = {text for bank in wordings(speaker.scenario) for text in bank.texts}
    hand |= {t for tones in speaker.scenario.sentences["partner"].values() for ts in tones.values() for t in ts}
    distinct = {text for bank in banks.values() for text in bank.accepted}
    answering = [name for name in banks if name.count("|") == 2]
    own = [len(set(banks[n].accepted) - set(banks[n.rpartition("|")[0]].accepted)) / max(len(banks[n].accepted), 1)
           for n in answering]  # fmt: skip
    return {
        "banks": len(banks), "empty": sum(not bank.accepted for bank in banks.values()), "candidates": all_,
        "passed": (accepted + repeated) / all_, "distinct": len(distinct), "new": len(distinct - hand) / len(distinct),
        "a bank": accepted / len(banks), "own": float(np.mean(own)) if own else float("nan"),
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--to-read", type=Path, default=Path("wordings.jsonl"), help="where the 200 wordings go")
    parser.add_argument("--rejected", type=Path, help="where all that was rejected goes")
    arguments = parser.parse_args()
    rows, voiced, rejected = [], [], []
    for name in [arguments.only] if arguments.only else MODELS:
        engine = make_engine(MODELS[name])
        for scenario in SCENARIOS:
            speaker = fill(name, scenario, engine)
            found = figures(speaker)
            rows.append(
                f"| {name} | {scenario} | {found['banks']} | {found['candidates']:,} | {found['passed']:.1%} "
                f"| {found['distinct']:,} | {found['new']:.1%} | {found['a bank']:.1f} | {found['empty']} "
                f"| {'' if np.isnan(found['own']) else format(found['own'], '.1%')} |"
            )
            print(rows[-1])
            if name == "voice":
                voiced += [(scenario, bank, text) for bank, b in speaker.banks.items() for text in b.accepted]
                rejected += [(scenario, bank, *one) for bank, b in speaker.banks.items() for one in b.rejected]
        engine.close()  # type: ignore[union-attr]
    picked = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(voiced))[:READ]
    arguments.to_read.write_text("".join(json.dumps(voiced[i]) + "\n" for i in sorted(picked)), encoding="utf-8")
    if arguments.rejected:
        arguments.rejected.write_text("".join(json.dumps(one) + "\n" for one in rejected), encoding="utf-8")
    head = (
        "| model | scenario | banks | candidates | passed the guard | distinct wordings | of them not by hand "
        "| wordings a bank | empty banks | specific to the agent's act |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    before, table, after = PAGE.read_text(encoding="utf-8").split(MARK)
    if arguments.only:
        others = ("| model", f"| {arguments.only} |")
        rows += [row for row in table.splitlines() if row.startswith("| ") and not row.startswith(others)]
    PAGE.write_text(f"{before}{MARK}\n\n{head}" + "\n".join(sorted(rows)) + f"\n\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
