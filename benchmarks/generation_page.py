"""Writes ``docs/generation.md`` from what ``benchmarks/generation.py`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Found = dict[str, Any]
KINDS = {"greedy": "greedy", "sampled": "temperature 0.7, top-p 0.9", "uneven": "rows of uneven length"}


def page(kept: Found) -> str:
    lines = [
        "# Speed of generation", "",
        "SmolLM2-135M in float32, one thread for each engine. Every row has a prompt of 32 tokens (the end of one of "
        "the environment's own prompts) and 32 new tokens, with no early end. All figures of a table are of one run on "
        "one machine: read them as ratios. Made by `python benchmarks/generation.py`.", "",
    ]  # fmt: skip
    for name, write in WRITERS.items():
        if name in kept:
            lines += [*write(kept[name]), ""]
    return "\n".join(lines)


def rates(found: Found) -> list[str]:
    engines: Found = found["engines"]
    mine: Found = engines["ours"]
    lines = ["## Beside other engines", "",
             "New tokens per second, prefill included. In brackets: ours divided by it.", "",
             "| rows | " + " | ".join(engines) + " |", "|---|" + "---:|" * len(engines)]  # fmt: skip
    for case, rate in mine.items():
        kind, rows = case.split()
        cells = [
            f"{rate:.1f}"
            if name == "ours"
            else f"{other[case]:.1f} ({rate / other[case]:.2f})"
            if case in other
            else "–"
            for name, other in engines.items()
        ]
        lines.append(f"| {rows}, {KINDS[kind]} | " + " | ".join(cells) + " |")
    agree = {name: statistics.mean(cases.values()) for name, cases in found["agree"].items() if name != "ours"}
    said = "; ".join(f"{name} {share:.0%}" for name, share in agree.items())
    lines += ["", f"Greedy rows in which every token equals ours: {said}. The rows of uneven length have 4 to 63 new "
              "tokens; `transformers.generate` computes all rows up to the longest, the other engines drop a row that "
              "is done."]  # fmt: skip
    lines += [f"{name} was not measured: {why}." for name, why in found["skipped"].items()]
    return lines


def reuse(found: Found) -> list[str]:
    lines = ["## One prompt, 16 continuations", "",
             "A prompt that several rows share is prefilled once, and its keys and values are copied. Seconds of the "
             "prefill, and of the 24 steps after it:", "",
             "| prompt tokens | once | 16 times in one batch | 16 times, one after the other | steps | "
             "speed-up of the prefill | speed-up in all |", "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for length, best in found.items():
        if length == "took":
            continue
        once, together, steps = best["once"], best["together"], best["steps"]
        lines.append(
            f"| {length} | {once:.2f} | {together:.2f} | {best['apart']:.2f} | {steps:.2f} | "
            f"{together / once:.1f} | {(together + steps) / (once + steps):.2f} |"
        )
    return lines


def history(found: Found) -> list[str]:
    lines = ["## Chats of several turns", "",
             f"Instructions of {found['told']} tokens, then {found['turns']} turns of {found['turn']} new prompt "
             "tokens and 20 generated ones. Seconds in all, with the keys and values of earlier turns kept, and "
             "without:", "", "| chats | kept | not kept | speed-up |", "|---:|---:|---:|---:|"]  # fmt: skip
    for rows in ("1", "8"):
        kept, anew = found[rows]["kept"], found[rows]["anew"]
        lines.append(f"| {rows} | {kept:.1f} | {anew:.1f} | {anew / kept:.1f} |")
    return lines


def compiling(found: Found) -> list[str]:
    lines = ["## Static cache and torch.compile", "", "Milliseconds of a greedy step:", "",
             "| rows | our cache | static cache | static cache, compiled | seconds to compile |",
             "|---:|---:|---:|---:|---:|"]  # fmt: skip
    pays = []
    for rows, mine in found.items():
        if rows == "took":
            continue
        compiled = f"{1000 * mine['compiled']:.1f}" if "compiled" in mine else mine.get("failed", "–")
        lines.append(f"| {rows} | {1000 * mine['ours']:.1f} | {1000 * mine['static']:.1f} | {compiled} | "
                     f"{mine.get('compiling', 0):.0f} |")  # fmt: skip
        pays.append(mine["ours"] / mine.get("compiled", float("inf")))
    gain = max(pays)
    finding = (
        f"Compiled, a step is at best {gain:.2f} times as fast as ours. A compiled step serves one number of rows and "
        "one length, so rows that join and leave would trigger compilation again and again. "
        + ("It is not used." if gain < 1.5 else "It is not used yet.")
    )
    return [*lines, "", finding]


def overhead(found: Found) -> list[str]:
    lines = ["## Overhead of the worded environment", "",
             "Four conversations of random acts with empty wording banks. Seconds in all, and seconds in the model's "
             "`generate` for the same tokens; the difference is the overhead. The last column is the speed once the "
             "banks are filled and no model is needed: turns per second of 1,024 conversations with their texts.", "",
             "| scenario | turns | banks filled | tokens | seconds | in the model | overhead | turns/s with banks |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, one in found.items():
        if name == "took":
            continue
        over = one["seconds"] / one["model"] - 1
        lines.append(f"| {name} | {one['turns']} | {one['banks']} | {one['tokens']:,} | {one['seconds']:.2f} | "
                     f"{one['model']:.2f} | {over:.1%} | {one['warm']:,.0f} |")  # fmt: skip
    return lines


def halves(found: Found) -> list[str]:
    lines = ["## Rows whose tokens change with the batch size", "",
             "Each row is generated alone and in a batch of all rows. *First difference* is the position of the first "
             "token that differs.", "",
             "| | rows | new tokens | rows that differ | first difference |", "|---|---:|---:|---:|---|"]  # fmt: skip
    for name, one in found.items():
        if name == "took":
            continue
        parted = one["parted"]
        where = f"median {statistics.median(parted):.0f}, lowest {min(parted)}" if parted else "–"
        share = f"{len(parted)} ({len(parted) / one['rows']:.0%})"
        lines.append(f"| {name} | {one['rows']} | {one['tokens']} | {share} | {where} |")
    lines += ["", "In float32 a token differs only where two candidates are within a millionth of each other. In "
              "bfloat16 a row is reproducible only in the same batch. To repeat a run exactly, record it "
              "(`llm=\"record:FILE,LLM\"`, see [engines](engines.md))."]  # fmt: skip
    return lines


WRITERS: dict[str, Callable[[Found], list[str]]] = {
    "rates": rates, "reuse": reuse, "history": history, "compiling": compiling, "overhead": overhead,
    "bfloat16": halves,
}  # fmt: skip
