"""Find contradictions of a simulated student by rules of their own, independent of the student's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chatgym.dynamics.scenario import UNCLEAR_ACT
from chatgym.scenarios.contradictions import Conversation, Exchange, Finding, out_of_tone, repeats, unasked
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.problems import problem

GOAL = ("goal", "known_first", "style", "patience")
ANNOYED, ANGRY = 5, 8  # boredom or frustration from which a student sounds so
DIVERTS = {BREAK: 3, EXPLAIN: 1, EXAMPLE: 1, ASK_HARD: 1, HINT: 1, PLAN: 1, ASK_FEELING: 1}
"""Greatest fall in boredom by an act; other acts never lower it."""
QUESTIONS = (ASK_EASY, ASK_MEDIUM, ASK_HARD)
UNABLE = (DONT_KNOW, ASK_HELP)
ANSWERS = {
    GREET: (U_GREET,), ASK_GOAL: (STATE_GOAL,), PRAISE: (THANK,), BREAK: (AGREE,), END: (BYE,),
    EXPLAIN: (UNDERSTOOD, CONFUSED, ASK_HELP), EXAMPLE: (UNDERSTOOD, CONFUSED, ASK_HELP),
    ASK_FEELING: (FINE, BORED, FRUSTRATED), UNCLEAR_ACT: (ASK_REPEAT,),
} | dict.fromkeys(QUESTIONS, (ANSWER, *UNABLE))  # fmt: skip
"""Agent act to its fitting answers, where they depend on nothing else."""


@dataclass
class _Lesson:
    """The last question and its answer.

    Attributes:
        question: Seed, number, skill and difficulty of the last question.
        answer: The student's answer to it as (numerator, denominator); None without one.
    """

    question: tuple[int, int, int, int] | None = None
    answer: tuple[int, int] | None = None


def audit(conversation: Conversation) -> Iterator[Finding]:
    """Find a student's contradictions in a conversation."""
    lesson = _Lesson()
    unfit: set[int] = set()
    for exchange in conversation:
        _ask(exchange, lesson)
        if not _answers(exchange, lesson):
            unfit.add(exchange.turn)
            if not _interrupts(exchange):
                yield unasked(exchange)
        for what in (*_denied(exchange, conversation[0]), *_denied_answer(exchange, lesson)):
            yield Finding(exchange.turn, "denies", what)
        yield from _stay(exchange)
    # Whoever goes on with the lesson though the student is bored has it coming to hear so again.
    yield from repeats(conversation, lambda exchange, _: exchange.turn not in unfit or _interrupts(exchange))


def _led(exchange: Exchange) -> bool:
    """Tell whether the tutor's act needs a goal; without a goal the act's words ask for it."""
    return EXPLAIN <= exchange.act <= NEXT or exchange.act == PLAN


def _at(exchange: Exchange) -> int:
    """Return the skill of the lesson after the step that the tutor's act takes."""
    skill, goal = int(exchange.belief["skill"]), int(exchange.belief["goal"])
    if skill >= 0 and exchange.act == REVIEW:
        return int(BUILDS_ON[skill]) if BUILDS_ON[skill] >= 0 else skill
    if skill >= 0 and exchange.act == NEXT:
        steps = _builds_on(goal)
        return steps[steps.index(skill) - 1] if skill in steps[1:] else goal
    return skill


def _builds_on(skill: int) -> list[int]:
    """Return a skill and its prerequisites, the skill first."""
    steps = [skill]
    while BUILDS_ON[steps[-1]] >= 0:
        steps.append(int(BUILDS_ON[steps[-1]]))
    return steps


def _ask(exchange: Exchange, lesson: _Lesson) -> None:
    """Store the tutor's question in `lesson`, unless the student rejects it for another goal."""
    belief, act = exchange.belief, exchange.act
    if act in QUESTIONS and belief["skill"] >= 0 and exchange.said["act"] != STATE_GOAL:
        number, difficulty = int(belief["asked"]) + 1, act - ASK_EASY
        lesson.question = (int(belief["seed"]), number, int(belief["skill"]), difficulty)
        lesson.answer = None


def _answers(exchange: Exchange, lesson: _Lesson) -> bool:
    """Tell whether the student's act answers the tutor's."""
    act, reply, again = exchange.act, exchange.said["act"], bool(exchange.said["about"])
    if exchange.turn == 0:
        return reply in (U_GREET, STATE_GOAL)
    if reply == BYE:
        return exchange.outcome not in ("", "truncated")
    skill, goal = _at(exchange), int(exchange.before["goal"])
    if _led(exchange) and (skill < 0 or (act != PLAN and skill not in _builds_on(goal))):
        return bool(reply == STATE_GOAL)  # that isn't what it came for
    if act == PLAN:
        return bool(reply == (AGREE if exchange.belief["goal"] == goal else STATE_GOAL))
    if act in (REVIEW, NEXT):
        return bool(reply == (AGREE if skill != exchange.belief["skill"] else ASK_REPEAT))
    if act == CHECK:
        heard = exchange.belief["answered"] in (RIGHT, WRONG)
        if reply == ASK_REPEAT:
            return not heard or lesson.answer is None
        return bool(reply == ANSWER and again) and lesson.answer is not None
    if act == HINT:
        failed = exchange.belief["answered"] in (WRONG, GIVEN_UP) and not exchange.before["succeeded"]
        return (reply == ASK_REPEAT and not failed) or (lesson.question is not None and reply in (ANSWER, *UNABLE))
    return reply in ANSWERS[act] and not (reply == ANSWER and again)


def _interrupts(exchange: Exchange) -> bool:
    """Tell whether the student interrupts the lesson to say that it feels bad, which it may at any time."""
    bad = max(exchange.before["boredom"], exchange.before["frustration"]) >= BAD
    lesson = EXPLAIN <= exchange.act <= NEXT and exchange.act != CHECK
    return bool(bad and lesson and exchange.said["act"] in (BORED, FRUSTRATED))


def _denied(exchange: Exchange, opening: Exchange) -> Iterator[str]:
    """Yield what the student said against its goal, its feelings or its knowledge."""
    said, before, after = exchange.said, exchange.before, exchange.after
    if any(after[name] != opening.after[name] for name in GOAL):
        yield "its goal changes"
    if said["act"] == STATE_GOAL and said["goal"] != after["goal"]:
        yield f"wants {SKILLS[said['goal']]}, and wants {SKILLS[after['goal']]}"
    feelings = (before["boredom"], before["frustration"])
    if said["act"] == FINE and max(feelings) >= BAD:
        yield f"is fine with boredom and frustration {feelings}"
    if said["act"] in (BORED, FRUSTRATED):
        felt, other = feelings if said["act"] == BORED else feelings[::-1]
        if felt < BAD or felt < other:
            yield f"is {USER_ACTS[said['act']]} with boredom and frustration {feelings}"
    if exchange.outcome in ("learned", "little_learned"):
        if bool(after["known"] >> after["goal"] & 1) != (exchange.outcome == "learned"):
            yield f"ends {exchange.outcome}, knowing {after['known']:06b}"
    if said["act"] == BYE and bool(said["about"]) != (exchange.outcome == "gave_up"):
        yield f"takes its leave {'in anger' if said['about'] else 'kindly'}, though it ended {exchange.outcome}"
    worse = max(after["boredom"], after["frustration"])
    if wrong := out_of_tone(said["tone"], (worse >= ANNOYED) + (worse >= ANGRY)):
        yield f"{wrong} (boredom {after['boredom']}, frustration {after['frustration']})"


def _denied_answer(exchange: Exchange, lesson: _Lesson) -> Iterator[str]:
    """Yield answers to another question, answers that change when they are checked, and misjudged answers."""
    said = exchange.said
    given = (int(said["num"]), int(said["den"]))
    if said["act"] != ANSWER:
        if exchange.act == HINT and said["act"] in UNABLE:
            lesson.answer = None
        return
    if said["about"]:
        if lesson.answer is not None and given != lesson.answer:
            yield f"says that it answered {given}, and it was {lesson.answer}"
        return
    if lesson.question is None:
        return
    seed, number, skill, difficulty = lesson.question
    _, (num, den, wrong_num, wrong_den) = problem(np.uint64(seed), number, skill, difficulty)
    if given not in ((num, den), (num + den, den), (wrong_num, wrong_den)):
        yield f"{given} is neither the answer {num, den} nor a mistake that is made there"
    counts = exchange.after["succeeded"]
    if (given == (num, den)) != bool(counts):
        yield f"{given}, where {num, den} is right, and takes it for {'right' if counts else 'wrong'}"
    lesson.answer = given


def _stay(exchange: Exchange) -> Iterator[Finding]:
    """Yield that the student left or stayed against its feelings and its patience."""
    before, after, turn = exchange.before, exchange.after, exchange.turn
    worst, goes_on = max(after["boredom"], after["frustration"]), exchange.outcome in ("", "truncated")
    if turn == 0:
        return
    if exchange.act == END:
        if goes_on:
            yield Finding(turn, "stays", "goes on after end")
        return
    if worst < AFFECT_MAX and (not goes_on or exchange.said["act"] == BYE):
        yield Finding(turn, "early", f"leaves with boredom and frustration at most {worst}")
    if worst >= AFFECT_MAX and goes_on:
        yield Finding(turn, "stays", f"goes on with boredom or frustration {worst}")
    least = max(before["boredom"] - DIVERTS.get(exchange.act, 0), 0) + 1
    if turn > before["patience"] and after["boredom"] < min(least, AFFECT_MAX):
        yield Finding(turn, "stays", f"is patient in turn {turn}, of {before['patience']}")
