"""Convert between records and meanings in words: for NLG, NLU, and descriptions for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from chatgym.dynamics.scenario import ABOUT, TONES, Meaning
from chatgym.scenarios.social.belief import to_restate
from chatgym.scenarios.social.person import say
from chatgym.scenarios.social.pictures import PICTURES, picture_for
from chatgym.scenarios.social.policy import *

NAMES = (PROBLEMS, FEELINGS, CAUSES)
PROBLEM_NAMES = (
    "trouble at work", "your breakup", "your exams", "trouble with a friend", "being alone so much",
    "losing someone dear to you", "money worries",
)  # fmt: skip
FEELING_NAMES = ("anxious", "angry", "sad", "ashamed")
CAUSE_NAMES = (
    "a quarrel that was never settled", "too much being on your shoulders", "not knowing what comes next",
)  # fmt: skip

EXAMPLES: dict[str, str] = {}
"""Empty: no slot has a pattern."""
CHOICES = {
    "problem": PROBLEM_NAMES, "feeling": FEELING_NAMES, "cause": CAUSE_NAMES,
    "picture": tuple(picture.caption for picture in PICTURES.values()),
}  # fmt: skip

AGENT_CODES = {
    "restate/problem": RESTATE + ABOUT * (PROBLEM + 1),
    "restate/cause": RESTATE + ABOUT * (CAUSE + 1),
}


def _part(said: Any, fact: int) -> str:
    """Return the key into the sentences for a fact of `said`, a record: ``"state_feeling/anger"``."""
    name = FACTS[fact]
    return f"state_{name}/{NAMES[fact][said[name]]}"


def partner_meaning(said: Any) -> Meaning:
    """Return the `Meaning` of `said`, a record or a dict of its fields, for NLG."""
    act = int(said["act"])
    name, about = USER_ACTS[act], int(said["about"])
    named = [fact for fact in range(3) if int(said["slots"]) & (1 << fact)]
    if about in named:  # what it is about goes first
        named.remove(about)
        named.insert(0, about)
    parts = [_part(said, fact) for fact in named]
    if act == BYE and about == PROBLEM:
        parts = ["bye/left"]
    elif not STATE_PROBLEM <= act <= STATE_CAUSE:
        parts.insert(0, name)
    return Meaning(name, tuple(parts), {}, TONES[said["tone"]])


def heard_meaning(said: Any, belief: Any) -> Meaning:
    """Return what the supporter heard of `said`, both records or dicts of their fields, after `understand`."""
    heard = int(belief["heard"])
    if heard == UNCLEAR:
        return Meaning("unclear", (), {}, TONES[said["tone"]])
    told = [fact for fact in range(3) if int(said["slots"]) & (1 << fact)]
    out = {name: said[name] for name in SAID.names or ()} | {FACTS[fact]: belief[FACTS[fact]] for fact in told}
    doubtful = tuple(_part(out, fact) for fact in told if belief["sure"][fact] == 1)
    return dataclasses.replace(partner_meaning({**out, "act": heard}), unsure=doubtful)


def agent_meaning(act: int, belief: Any) -> Meaning:
    """Return the `Meaning` of a supporter's act, given `belief`, a record, before it speaks."""
    name = AGENT_ACTS[act]
    if act == RESTATE:
        fact = int(to_restate.py_func(belief))
        if fact == PROBLEM:
            return Meaning(name, ("restate/problem",), {"problem": PROBLEM_NAMES[belief["problem"]]})
        if fact == CAUSE:
            return Meaning(name, ("restate/cause",), {"cause": CAUSE_NAMES[belief["cause"]]})
        return Meaning(name, ("restate",))
    if act == REFLECT:
        if belief["sure"][FEELING]:
            return Meaning(name, ("reflect_feeling/feeling",), {"feeling": FEELING_NAMES[belief["feeling"]]})
        return Meaning(name, ("reflect_feeling",))
    if act == PICTURE:
        feeling = int(belief["feeling"]) if belief["sure"][FEELING] else ANXIETY
        picture = picture_for(FEELINGS[feeling], int(belief["turn"]))
        return Meaning(name, (name,), {"picture": PICTURES[picture].caption})
    return Meaning(name, (name,))


def find_slots(text: str) -> tuple[dict[str, Any], str]:
    """Return no slots and the text as it is: no slot of this scenario has a pattern."""
    return {}, text


def parse(act: str, part: str, slots: Mapping[str, Any], said: Any) -> None:
    """Write a person's utterance that NLU understood (`chatgym.words.nlu.Understanding`) into `said`, a record."""
    say.py_func(said, USER_ACTS.index(act) if act in USER_ACTS else UNCLEAR)
    of, _, detail = part.partition("/")
    values = dict(slots)
    name = of.removeprefix("state_")
    if name in FACTS:
        values[name] = detail
    for fact, name in enumerate(FACTS):
        if name in values:
            said[name] = NAMES[fact].index(values[name])
            said["slots"] |= 1 << fact
            if said["about"] < 0:
                said["about"] = fact
    if part == "bye/left":
        said["about"] = PROBLEM


def instructions() -> str:
    """Return which strategy and which advice helps whom, made from the scenario's tables."""
    lines = [
        "Ask for the problem, then the feeling, then its cause; say back what you heard (restate, reflect_feeling),",
        "first of all where you are unsure. Never advise or comfort before you know all three. Then ask_advice.",
        "Who wants advice takes the one that fits the cause:",
    ]
    lines += [f"- {cause}: {AGENT_ACTS[SUGGEST_TALK + i]}" for i, cause in enumerate(CAUSE_NAMES)]
    lines.append(
        "Comfort soothes by feeling (best first; each wears off, and not everybody likes stories or pictures):"
    )
    for feeling, name in enumerate(FEELING_NAMES):
        order = sorted(range(len(STRATEGIES)), key=lambda i: -SOOTHES[feeling, i])
        fitting = [AGENT_ACTS[STRATEGIES[i]] for i in order if SOOTHES[feeling, i] > 0]
        lines.append(f"- {name}: {', '.join(fitting)}")
    lines.append("Then check_feeling, and close once the person feels better.")
    return "\n".join(lines)


def describe_belief(belief: Any) -> str:
    """Describe what the supporter understood so far, from `belief`, a record."""
    names = (PROBLEM_NAMES, FEELING_NAMES, CAUSE_NAMES)
    noted = []
    for fact, name in enumerate(FACTS):
        if sure := int(belief["sure"][fact]):
            noted.append(names[fact][belief[name]] + ("", " (unsure)", "", " (confirmed)")[sure])
    if belief["wants"]:
        noted.append(("wants advice", "wants to be heard")[belief["wants"] - 1])
    if belief["better"]:
        noted.append("feels better")
    return ", ".join(noted) or "nothing yet"


def describe_goal(hidden: Any) -> str:
    """Describe what the person feels and needs, from `hidden`, a record."""
    wants = "wants advice" if hidden["wants_advice"] else "wants to be heard"
    likes = [
        name
        for name, likes in (("stories", hidden["likes_disclosure"]), ("pictures", hidden["likes_pictures"]))
        if likes
    ]
    liked = " and ".join(likes) or "neither"
    return (
        f"{PROBLEMS[hidden['problem']]}, {FEELINGS[hidden['feeling']]} ({hidden['intensity']} of 10, "
        f"at first {hidden['at_first']}), {CAUSES[hidden['cause']]}; {wants}; likes {liked}; "
        f"rapport {hidden['rapport']} of {RAPPORT_MAX}"
    )
