"""Writes ``docs/generation.md`` from what ``benchmarks/generation.py`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Found = dict[str, Any]
KINDS = {"greedy": "likeliest token", "sampled": "temperature 0.7, top-p 0.9", "uneven": "rows that end apart"}


def page(kept: Found) -> str:
    lines = [
        "# Generation", "",
        "Made by `python benchmarks/generation.py`: SmolLM2-135M in float32, one thread for each engine, the last 32 "
        "tokens of the environment's own prompts, 32 new tokens in each row and no early end. What counts are the "
        "ratios: they are of one run on one machine.", "",
    ]  # fmt: skip
    for name, write in WRITERS.items():
        if name in kept:
            lines += [*write(kept[name]), ""]
    return "\n".join(lines)


def rates(found: Found) -> list[str]:
    engines: Found = found["engines"]
    mine: Found = engines["ours"]
    lines = ["## Beside other engines", "",
             "New tokens per second, the prompts' reading included; in brackets, ours over it.", "",
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
    lines += ["", f"Rows whose tokens are ours, all of them, where the likeliest is taken: {said}. The rows that end "
              "apart have 4 to 63 new tokens; `transformers.generate` computes all of them up to the longest, the "
              "others let go of a row that is done."]  # fmt: skip
    lines += [f"{name} was not measured: {why}." for name, why in found["skipped"].items()]
    return lines


def reuse(found: Found) -> list[str]:
    lines = ["## One prompt, 16 continuations", "",
             "A prompt that several rows continue is read once and its keys and values are copied. Seconds until the "
             "first token can be drawn, and of the 24 steps after it:", "",
             "| tokens of the prompt | read once | 16 times in one batch | 16 times, one after the other | steps | "
             "gain in reading | gain in all |", "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
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
    lines = ["## A chat that goes on", "",
             f"Chats with instructions of {found['told']} tokens, {found['turn']} more and an answer of 20 in each of "
             f"{found['turns']} turns. Seconds in all, where what was read before is kept, and where it is read anew:",
             "", "| chats | kept | anew | gain |", "|---:|---:|---:|---:|"]  # fmt: skip
    for rows in ("1", "8"):
        kept, anew = found[rows]["kept"], found[rows]["anew"]
        lines.append(f"| {rows} | {kept:.1f} | {anew:.1f} | {anew / kept:.1f} |")
    return lines


def compiling(found: Found) -> list[str]:
    lines = ["## Static cache and torch.compile", "", "Milliseconds of a step, the likeliest token taken:", "",
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
        f"Compiled, a step is at best {gain:.2f} times as fast as ours. It holds for one number of rows and one "
        "length: rows that join and leave, and prompts of any length, would have it compile again and again. "
        + ("It is not used." if gain < 1.5 else "It isn't used yet.")
    )
    return [*lines, "", finding]


def overhead(found: Found) -> list[str]:
    lines = ["## The worded environment over raw generation", "",
             "Four conversations of random acts, no wording known before, until the banks of words are there: seconds "
             "in all and in the model's `generate`, of the very same tokens. With the banks in memory no model is "
             "needed: turns per second of 1,024 conversations with their texts.", "",
             "| scenario | turns | banks | tokens | seconds | in the model | overhead | turns/s with banks |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, one in found.items():
        if name == "took":
            continue
        over = one["seconds"] / one["model"] - 1
        lines.append(f"| {name} | {one['turns']} | {one['banks']} | {one['tokens']:,} | {one['seconds']:.2f} | "
                     f"{one['model']:.2f} | {over:.1%} | {one['warm']:,.0f} |")  # fmt: skip
    return lines


def halves(found: Found) -> list[str]:
    lines = ["## Does a row's text depend on those beside it?", "",
             "Rows whose tokens differ between alone and all together, and how many tokens they have in common:", "",
             "| | rows | new tokens | differ | first difference |", "|---|---:|---:|---:|---|"]  # fmt: skip
    for name, one in found.items():
        if name == "took":
            continue
        parted = one["parted"]
        where = f"median {statistics.median(parted):.0f}, lowest {min(parted)}" if parted else "–"
        share = f"{len(parted)} ({len(parted) / one['rows']:.0%})"
        lines.append(f"| {name} | {one['rows']} | {one['tokens']} | {share} | {where} |")
    lines += ["", "In float32 a token is another only where two come within a millionth of each other. In bfloat16 a "
              "row is reproducible only among the same rows; where a run is to be repeated to the letter, record it "
              "(`llm=\"record:FILE,LLM\"`, see engines.md)."]  # fmt: skip
    return lines


WRITERS: dict[str, Callable[[Found], list[str]]] = {
    "rates": rates, "reuse": reuse, "history": history, "compiling": compiling, "overhead": overhead,
    "bfloat16": halves,
}  # fmt: skip
