"""Measure NLU on held-out utterances: `python benchmarks/nlu.py` writes `docs/nlu.md` and its pictures.

The utterances of `benchmarks/heldout/` were written as people type, and no head is trained on them. Every second one
of a label is the development half, on which thresholds and training data were chosen; the others are the test half,
and its figures are the published ones.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from chatgym import plugins
from chatgym.scenarios import Scenario
from chatgym.storage.figures import new_figure, write_figure
from chatgym.words.nlu import THRESHOLD, UNCLEAR, labelled, nlu_of

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ROOT / "benchmarks" / "heldout"
HALVES = ("development", "test")
ROLES = ("partner", "agent")
SURE = 0.59
"""From this confidence on, a wrong act counts as one that NLU is sure of."""
COMMAND = "python benchmarks/nlu.py"


@dataclass(frozen=True)
class Utterance:
    """What somebody typed, and what it means; `label` is empty when it has nothing to do with the scenario."""

    text: str
    label: str = ""
    slots: Mapping[str, Any] | None = None
    two: bool = False

    @property
    def act(self) -> str:
        return self.label.partition("/")[0]


@dataclass(frozen=True)
class Scores:
    """How utterances of one role were understood.

    Attributes:
        n: How many there are.
        accuracy: Share whose act is right.
        macro_f1: Mean over the acts of the F1 score; an unclear utterance is a miss.
        part_accuracy: Share whose part is right, too, of those labelled with one.
        two_accuracy: Share whose act is right, of those that say two things.
        slots_found: Share of the utterances that name values in which exactly those were found.
        slots_invented: Share of the utterances that name none in which one was found.
        false_accepts: Share of the out-of-domain utterances that were taken for an act.
        confusions: (meant, heard) to count, right ones included.
        f1: By act.
    """

    n: int
    accuracy: float
    macro_f1: float
    part_accuracy: float
    two_accuracy: float
    slots_found: float
    slots_invented: float
    false_accepts: float
    confusions: Counter[tuple[str, str]]
    f1: dict[str, float]


def held_out(name: str, role: str, half: str | None = None) -> Iterator[Utterance]:
    """Yield a scenario's held-out utterances of a role and those out of its domain; of one half, if named."""
    data = json.loads((HELD_OUT / f"{name}.json").read_text(encoding="utf-8"))
    for label, entries in [*data[role].items(), ("", data["out_of_domain"])]:
        for i, entry in enumerate(entries):
            if half is None or HALVES[i % 2] == half:
                fields = {"text": entry} if isinstance(entry, str) else entry
                yield Utterance(label=label, **fields)


def contrasts(name: str, role: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield a scenario's held-out denials, irony and conditions: the text and the acts or parts that are right."""
    data = json.loads((HELD_OUT / "contrasts" / f"{name}.json").read_text(encoding="utf-8"))
    for labels, texts in data[role].items():
        yield from ((text, frozenset(labels.split("|"))) for text in texts)


def evaluate_contrasts(scenario: Scenario, role: str) -> Counter[str]:
    """Count the contrasts of a role by ``right``, ``unclear`` and ``wrong``, and the wrong ones that NLU is sure of."""
    said = list(contrasts(scenario.name, role))
    heard = nlu_of(scenario).understand([text for text, _ in said], role)
    counts: Counter[str] = Counter()
    for (_, labels), found in zip(said, heard, strict=True):
        right = bool(labels & {found.act, found.part})
        counts["right" if right else UNCLEAR if found.act == UNCLEAR else "wrong"] += 1
        counts["sure"] += not right and found.act != UNCLEAR and found.confidence >= SURE
    return counts


def evaluate(scenario: Scenario, role: str, half: str) -> Scores:
    """Understand one half of the held-out utterances of a role."""
    said = list(held_out(scenario.name, role, half))
    heard = nlu_of(scenario).understand([utterance.text for utterance in said], role)
    pairs = list(zip(said, heard, strict=True))
    inside = [(u, h) for u, h in pairs if u.label]
    confusions = Counter((u.act, h.act) for u, h in inside)
    f1 = {act: _f1(confusions, act) for act in sorted({u.act for u, _ in inside})}
    return Scores(
        n=len(inside),
        accuracy=_share(u.act == h.act for u, h in inside),
        macro_f1=sum(f1.values()) / len(f1),
        part_accuracy=_share(u.label == h.part for u, h in inside if "/" in u.label),
        two_accuracy=_share(u.act == h.act for u, h in inside if u.two),
        slots_found=_share(u.slots == h.slots for u, h in inside if u.slots),
        slots_invented=_share(bool(h.slots) for u, h in inside if not u.slots),
        false_accepts=_share(h.act != UNCLEAR for u, h in pairs if not u.label),
        confusions=confusions,
        f1=f1,
    )


def report(scenarios: list[Scenario], docs: Path) -> str:
    """Evaluate scenarios, draw their confusion matrices into `docs`, and return the page."""
    lines = [INTRODUCTION.format(command=COMMAND, threshold=THRESHOLD), "## All scenarios\n", *_head(HEADINGS)]
    chapters: list[str] = []
    for scenario in scenarios:
        scores = {role: evaluate(scenario, role, "test") for role in ROLES}
        lines += [_row(scenario.name, role, *_figures(scores[role])) for role in ROLES]
        draw(scenario, scores, docs / f"nlu_{scenario.name}.png")
        chapters += _chapter(scenario, scores)
    columns = ("scenario", "role", "utterances", "right", "unclear", "wrong", f"wrong at {SURE} or more")
    lines += ["", CONTRASTS.format(sure=SURE), *_head(columns)]
    for scenario in scenarios:
        for role in ROLES:
            counts = evaluate_contrasts(scenario, role)
            shown = [counts[key] for key in ("right", UNCLEAR, "wrong", "sure")]
            lines.append(_row(scenario.name, role, *map(str, (sum(shown[:3]), *shown))))
    return "\n".join([*lines, "", *chapters]).rstrip() + "\n"


HEADINGS = (
    "scenario", "role", "utterances", "accuracy", "macro-F1", "part right", "two acts in one", "slots found",
    "slots invented", "out of domain accepted",
)  # fmt: skip
INTRODUCTION = """# NLU accuracy on text as people type it

<!-- Generated by `{command}`; edit that, not this. -->

`NLU.understand` maps an utterance to a dialogue act with slots, or to `unclear`. This page measures it on held-out
utterances in `benchmarks/heldout/`. They are written as people type: short and long, with typos, slang and missing
punctuation, and some with two acts in one. None of them is in the training sentences (a test checks that). Another
set is out of domain: chit-chat, abuse, other languages, gibberish, prompt injections, code, emojis.

**Development and test half.** Every second utterance of a label is in the development half. It was used to choose the
threshold ({threshold}), the weight decay and the weight of the out-of-domain training sentences, for all scenarios. In
customer service, the errors on the development half also showed which paraphrases the training data lacked. The
paraphrases of education and social were written after their held-out utterances, without looking at the errors. All
figures below are of the test half.

**Two leaks from the test half.** That out-of-domain sentences needed more weight was seen on the test half as well,
where 5.7% were accepted as a customer's; how much more was chosen on the development halves. What reads the slots was
extended after a look at both halves. The labels of education had the last number of a question as its answer; since
questions give none, 118 of these labels were removed.

**Values are read whole or not found.** One grammar reads each run of digits and number words
(`chatgym/scenarios/numbers.py`); a range, a bound, a denied value and one of several give nothing, so the agent asks.
`tests/data/values.json` has 1,259 forms of dates, amounts, order numbers and answers with what they mean, or null
where that isn't sure. The first 228 were written before the code. Each of the five later tables was written after the
code that could read those before it. At first sight it read wrong 10 of 216, 10 of 183, 10 of 192, 15 of 209 and 25 of
168, most of the last 25 denials in other words (of these 70 expectations 10 were mistaken or too strict and were
changed). It reads none of them wrong since; expect wrong readings of forms as odd as these: of some 1,100 more,
written afterwards, 44 were read wrong, which a seventh table of 63 forms holds, and which are mended. Of the
other 1,196:

| reader | right | wrong | not found | rightly nothing |
| --- | --- | --- | --- | --- |
| this one | 614 | 0 | 6 | 576 |
| the regular expressions before it | 332 | 524 | 149 | 191 |
| the same after text2num 3.1 | 407 | 567 | 62 | 160 |
| quantulum3 0.10 | 432 | 557 | 64 | 143 |
| word2number 1.1 | 86 | 136 | 474 | 500 |
| dateparser 1.5 (322 dates) | 83 | 207 | 8 | 24 |
| parsedatetime 2.6 (322 dates) | 62 | 215 | 12 | 33 |
| price-parser 0.5 (315 amounts) | 88 | 154 | 38 | 35 |

They find a number wherever there is one, and none knows a range or a denial; so no library is used.

An agent's utterance that is one of the scenario's own sentences is recognised by look-up. No utterance here is one.

| column | meaning |
| --- | --- |
| accuracy, macro-F1 | of the dialogue acts; `unclear` counts as a miss |
| part right | of the utterances labelled with a part of an act (`inform/date`): share whose part is right, too |
| two acts in one | of the utterances with two acts: share whose main act is right |
| slots found | of the utterances with values: share in which exactly these values were found |
| slots invented | of the utterances without values: share in which a value was found |
| out of domain accepted | share of the out-of-domain utterances that were taken for an act |

Made by `{command}`.
"""

CONTRASTS = """## Denials, irony and conditions

"I don't feel sad anymore", "thanks for nothing", "sure, but only if you also pay the shipping": the words of one act in
an utterance that means another, or none that a scenario knows. The training data has such sentences under
`nlu/contrasts`, and the heads see what an utterance denies (`chatgym.words.encoder.DENIED`). Held-out ones are in
`benchmarks/heldout/contrasts/`. "Right" includes `unclear` where no act fits; "unclear" means an act was missed.

These figures flatter: errors on these utterances showed which training sentences were lacking. 63 utterances of
partners were written last. When first measured, 9 of them were wrong (39 without the contrasts), 8 at a confidence of
{sure} or more (34 without). Sentences of the kinds that were lacking were added afterwards.
"""


def _figures(scores: Scores) -> list[str]:
    shares = (
        scores.part_accuracy, scores.two_accuracy, scores.slots_found, scores.slots_invented, scores.false_accepts,
    )  # fmt: skip
    percents = [f"{share:.1%}" if share == share else "–" for share in shares]
    return [str(scores.n), f"{scores.accuracy:.1%}", f"{scores.macro_f1:.3f}", *percents]


def _chapter(scenario: Scenario, scores: Mapping[str, Scores]) -> list[str]:
    """Return a scenario's F1 by act and its confusions."""
    learnt = len({text for _, _, text in labelled(scenario)})
    lines = [f"## {scenario.name}\n", f"Training data: {learnt:,} sentences.\n"]
    lines.append(f"![Confusion matrices of {scenario.name}](nlu_{scenario.name}.png)\n")
    for role in ROLES:
        found = scores[role]
        lines += [f"### {getattr(scenario, role + '_role').capitalize()}\n", *_head(("act", "utterances", "F1"))]
        for act, f1 in found.f1.items():
            lines.append(_row(act, str(sum(n for (one, _), n in found.confusions.items() if one == act)), f"{f1:.2f}"))
        wrong = [((one, other), n) for (one, other), n in found.confusions.items() if one != other]
        wrong.sort(key=lambda pair: (-pair[1], pair[0]))
        lines += ["\nMost frequent confusions:\n", *_head(("meant", "understood as", "times"))]
        lines += [_row(one, other, str(n)) for (one, other), n in wrong[:8]] + [""]
    return lines


def _head(names: tuple[str, ...]) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(scenario: Scenario, scores: Mapping[str, Scores], path: Path) -> None:
    """Draw the confusion matrices of both roles, in shares of what was meant."""
    figure = new_figure(15, 7.5)
    for role, ax in zip(ROLES, figure.subplots(1, 2), strict=True):
        meant = list(scores[role].f1)
        heard = [*meant, UNCLEAR]
        counts = np.array([[scores[role].confusions[one, other] for other in heard] for one in meant], float)
        shares = counts / counts.sum(1, keepdims=True)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.argwhere(counts > 0):
            colour = "white" if shares[i, j] > 0.6 else "black"
            ax.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=9)
        ax.set_xticks(range(len(heard)), heard, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(meant)), meant)
        ax.set(xlabel="heard", ylabel="meant", title=f"{scenario.name}: {getattr(scenario, role + '_role')}")
    write_figure(figure, path)


def _share(right: Iterator[bool]) -> float:
    """Return the share of true ones; nan when there are none."""
    values = list(right)
    return sum(values) / len(values) if values else float("nan")


def _f1(confusions: Counter[tuple[str, str]], act: str) -> float:
    right = confusions[act, act]
    meant = sum(n for (one, _), n in confusions.items() if one == act)
    heard = sum(n for (_, other), n in confusions.items() if other == act)
    return 2 * right / (meant + heard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=HALVES, help="print the figures of one half, and write nothing")
    options = parser.parse_args()
    found = plugins.load().scenarios
    scenarios = [found[path.stem] for path in sorted(HELD_OUT.glob("*.json"))]
    if options.half:
        for scenario in scenarios:
            for role in ROLES:
                figures = zip(HEADINGS[2:], _figures(evaluate(scenario, role, options.half)), strict=True)
                Console().print(scenario.name, role, ", ".join(f"{name} {value}" for name, value in figures))
        return
    page = ROOT / "docs" / "nlu.md"
    page.write_text(report(scenarios, page.parent), encoding="utf-8")
    Console().print(f"Written to {page}")


if __name__ == "__main__":
    main()
