import operator
import re
from fractions import Fraction

import numpy as np
import pytest

from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import TONES, fill
from chatgym.scenarios import education as ed
from chatgym.scenarios.education import problems, words
from chatgym.scenarios.education.belief import depth, status
from chatgym.words import nlu

ASKING = [ed.ASK_EASY, ed.ASK_MEDIUM, ed.ASK_HARD]
CASES = [(skill, difficulty) for skill in range(ed.N_SKILLS) for difficulty in range(3)]


def room_of(size, **arguments):
    room = ChatRoom(ed.SCENARIO, size, **arguments)
    room.seed(np.arange(size, dtype=np.uint64) + np.uint64(10**9))
    return room


def uniform(room, generator):
    """Acts at random, sensible or not."""
    return generator.integers(len(ed.AGENT_ACTS), size=room.size)


# -- Questions and answers ---------------------------------------------------------------------------------------


def solve(text):
    """Solve a question by other means than the generators do: from its text alone, by search where it's an equation."""
    n = [Fraction(int(number)) for number in re.findall(r"\d+", text)]
    if text.startswith("What is") and "%" not in text:
        expression = re.sub(r"(\d+)", r"Fraction(\1)", text.removeprefix("What is ").rstrip("?"))
        left, divided, right = expression.replace("×", "*").partition(" divided by ")
        return eval(f"({left})/({right})" if divided else left)
    if text.endswith("What is x?"):
        left, right = (re.sub(r"(\d)x", r"\1*x", side) for side in text.split(".")[0].split("="))
        return next(Fraction(x) for x in range(200) if eval(left, {"x": x}) == eval(right, {"x": x}))
    first = text.split()[0]
    if "ratio" in text:
        return max(n[0] * n[1] / (n[1] + n[2]), n[0] * n[2] / (n[1] + n[2]))
    if "older" in text:
        return next(Fraction(age) for age in range(200) if age + (age + n[0]) == n[1])
    rules = {"What": lambda: n[1] * n[0] / 100, "A": lambda: n[0] - n[0] * n[1] / 100,
             "After": lambda: next(Fraction(p) for p in range(5000) if p + p * n[0] / 100 == n[1]),
             "Mia": lambda: sum([n[2]] * int(n[1]), n[0])}  # fmt: skip
    if "ticket" in text:
        return n[0] + n[0] + sum([n[1]] * int(n[3]))
    if "pens" in text:
        return n[2] * operator.truediv(n[1], n[0])
    if "painters" in text:
        return Fraction(int(n[0] * n[1]), int(n[2]))
    return rules[first]()


@pytest.mark.parametrize(("skill", "difficulty"), CASES)
def test_a_right_answer_is_the_right_number_and_a_typical_mistake_is_not(skill, difficulty):
    texts = set()
    for number in range(300):
        text, answer = problems.question(number // 10, number, skill, difficulty)
        _, (num, den, wrong_num, wrong_den) = problems.problem(np.uint64(number // 10), number, skill, difficulty)
        assert Fraction(num, den) == Fraction(answer) == solve(text), text
        assert Fraction(wrong_num, wrong_den) != Fraction(num, den), text
        assert (num, den) == Fraction(num, den).as_integer_ratio()
        assert num > 0
        assert wrong_num > 0
        texts.add(text)
    assert len(texts) > 25


def test_what_students_answer_is_right_when_they_know_it_and_plausible_when_not():
    seen = 0
    for skill, difficulty in CASES:
        room = room_of(300, error_rate=0.0)
        room.begin()
        room.belief["goal"] = room.hidden["goal"] = max(skill, 1)
        room.belief["skill"] = skill
        room.hidden["boredom"] = room.hidden["frustration"] = 0
        for _ in range(2):
            belief = room.belief.copy()
            room.step(np.full(room.size, ASKING[difficulty]))
            for i in np.flatnonzero(room.said["act"] == ed.ANSWER):
                asked = words.agent_meaning(ASKING[difficulty], belief[i]).slots["question"]
                given = Fraction(ed.words.partner_meaning(room.said[i]).slots["answer"])
                assert (given == solve(asked)) == bool(room.hidden["succeeded"][i])
                assert room.belief["answered"][i] == (ed.RIGHT if room.hidden["succeeded"][i] else ed.WRONG)
                seen += 1
    assert seen > 5000


# -- Words -------------------------------------------------------------------------------------------------------


def test_every_part_has_six_wordings_in_each_tone_and_what_nlu_needs():
    sentences = ed.SCENARIO.sentences
    assert set(sentences["partner"]) == set(sentences["nlu"]["partner"]) == set(sentences["situations"])
    assert set(sentences["agent"]) == set(sentences["nlu"]["agent"])
    assert {part.partition("/")[0] for part in sentences["partner"]} == set(ed.USER_ACTS)
    assert {part.partition("/")[0] for part in sentences["agent"]} == set(ed.AGENT_ACTS)
    for tones in sentences["partner"].values():
        assert set(tones) == set(TONES)
        assert all(len(set(texts)) >= 6 for texts in tones.values())
    for role in ("partner", "agent"):
        assert all(len(set(texts)) >= 10 for texts in sentences["nlu"][role].values())
    assert len(set(sentences["nlu"]["out_of_domain"])) >= 40


def test_everything_that_is_ever_said_has_words_with_every_value_filled_in():
    sentences = ed.SCENARIO.sentences
    room = room_of(400)
    room.begin()
    generator = np.random.default_rng(6)
    said_parts, agent_parts = set(), set()
    for _ in range(25):
        mixed = generator.random(room.size) < 0.5
        acts = np.where(mixed, uniform(room, generator), room.expert_acts())
        for act, belief in zip(acts, room.belief, strict=True):
            meaning = ed.words.agent_meaning(int(act), belief)
            for part in meaning.parts:
                agent_parts.add(part)
                assert all("{" not in fill(text, meaning.slots) for text in sentences["agent"][part])
        room.step(acts)
        for said in room.said:
            meaning = ed.words.partner_meaning(said)
            said_parts.update(meaning.parts)
            texts = sentences["partner"][meaning.parts[0]][meaning.tone]
            assert all("{" not in fill(text, meaning.slots) for text in texts)
        room.begin(room.terminations | room.truncations)
    assert said_parts == set(sentences["partner"])
    assert agent_parts == set(sentences["agent"])


def test_an_utterance_survives_being_worded_read_and_parsed():
    room = room_of(300, error_rate=0.0)
    room.begin()
    for _ in range(10):
        for said in room.said:
            meaning = ed.words.partner_meaning(said)
            for text in ed.SCENARIO.sentences["partner"][meaning.parts[0]][meaning.tone]:
                slots, _ = ed.words.find_slots(fill(text, meaning.slots))
                assert ("answer" in slots) == ("answer" in meaning.slots)
                parsed = np.zeros(1, ed.SAID)[0]
                ed.words.parse(meaning.act, meaning.parts[0], slots, parsed)
                for name in ("act", "goal", "num", "den", "about"):
                    assert parsed[name] == said[name]
        room.step(room.expert_acts(), room.outcomes == 0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("it's 12", "12"), ("3/4", "3/4"), ("I get 6/8.", "3/4"), ("x = 7!", "7"), ("about 0,5?", "1/2"), ("1.25", "5/4"),
     ("-3", "-3"), ("seven", "7"), ("it's eight.", "8"), ("4 + 5 is 9", "9"), ("I'm the one", None), ("3x", None),
     ("1/0", None), ("no idea", None)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text, answer):
    assert ed.words.find_slots(text)[0].get("answer") == answer


def test_the_student_is_understood_in_words_of_its_own():
    understood = nlu.nlu_of(ed.SCENARIO)
    said = {
        "hmm, i think that would be 3/8": "answer", "wait i really dont understand this": "confused",
        "ok that makes total sense now": "understood", "we're learning percentages at school": "state_goal",
        "no clue at all, sorry": "dont_know", "this lesson is super boring": "bored", "ok cool, lets do that": "agree",
        "i'm too dumb for this, it's so frustrating": "frustrated", "thanks a lot!": "thank", "bye for now": "bye",
    }  # fmt: skip
    heard = [understanding.act for understanding in understood.understand(list(said))]
    assert sum(map(operator.eq, heard, said.values())) >= len(said) - 1
    assert nlu._stored(ed.SCENARIO, nlu._heads_in) is not None, "run `chatgym scenarios education --train-nlu`"


def test_what_the_tutor_makes_of_the_student_is_described():
    belief = np.zeros(1, ed.BELIEF)[0]
    belief["goal"] = belief["skill"] = -1
    assert ed.SCENARIO.describe_belief(belief) == "nothing yet"
    belief["goal"], belief["skill"], belief["goal_sure"], belief["known"] = 2, 1, 1, [0.9, 0.5, 0.02, 0, 0, 0]
    belief["answered"], belief["num"], belief["den"], belief["sure"], belief["feeling"] = ed.WRONG, 3, 4, 1, 2
    assert ed.SCENARIO.describe_belief(belief) == (
        "wants percentages (unsure); arithmetic 90% known; fractions 50% known; percentages 2% known; now at "
        "fractions; answered 3/4 (unsure), wrong; frustrated"
    )
    assert status.py_func(belief) == 1
    assert depth.py_func(belief) == 1


def test_instructions_name_what_each_goal_builds_on():
    text = ed.SCENARIO.instructions()
    for goal in range(1, ed.N_SKILLS):
        assert f"- {words.SKILL_NAMES[goal]}: arithmetic" in text
