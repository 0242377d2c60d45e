"""Who observes words is judged by them: what they say, and how surely it was heard, is what the room believes."""

import dataclasses
import functools
import re

import gymnasium as gym
import numpy as np
import pytest

from chatgym.agent import Interface
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.evaluation import Competitor, compare
from chatgym.evaluation.references import references
from chatgym.finetuning.dialogues import held_by
from chatgym.scenarios import find_scenario
from chatgym.scenarios.customer_service.policy import INFORM, SLOTS, STATE_PROBLEM
from chatgym.scenarios.education import belief as tutor
from chatgym.scenarios.education.policy import ANSWER, STATE_GOAL
from chatgym.scenarios.social.policy import FACTS
from chatgym.training.run import find_agent
from chatgym.words.nlg import INAUDIBLE, doubted
from chatgym.words.nlu import DOUBT, nlu_of

NAMED = {"customer_service": SLOTS, "education": (), "social": FACTS}
"""Scenario to the slots that `said` has as bits."""
VALUES = {
    "reference": r"\d{6}", "date": r"(?:yesterday|\d+ (?:days|weeks) ago)", "amount": r"\d+ euros",
    "answer": r"-?\d+(?:/\d+)?",
}  # fmt: skip


class Reader:
    """Reads a scenario's own sentences, without NLU, into the belief of somebody who hears nothing else."""

    def __init__(self, name):
        self.scenario, self.slots = find_scenario(name), NAMED[name]
        self.patterns = []
        for part, tones in self.scenario.sentences["partner"].items():
            for sentence in {one for said in tones.values() for one in said}:
                words = sentence.rstrip(".!?…")
                pattern = f"{re.escape(words)}({re.escape(DOUBT)})?{re.escape(sentence[len(words) :])}"
                for slot, value in VALUES.items():
                    pattern = pattern.replace(rf"\{{{slot}\}}", value)
                self.patterns.append((re.compile(rf"{pattern}(?: |$)", re.I), part))

    @functools.cache  # noqa: B019
    def sentences(self, text):
        """Return part, words and whether they were heard with low confidence of each sentence; None: unreadable."""
        if text in ("", INAUDIBLE):
            return ()
        ways = []
        for pattern, part in self.patterns:
            match = pattern.match(text)
            if match and (rest := self.sentences(text[match.end() :])) is not None:
                ways.append(((part, match[0].strip().replace(DOUBT, ""), match[1] is not None), *rest))
        assert len(ways) < 2, ways
        return ways[0] if ways else None

    def hear(self, belief, text):
        """Update `belief`, a record in which the agent's own act is noted."""
        sentences = self.sentences(text)
        assert sentences is not None, text
        said, unsure = self.record(), set()
        self.scenario.parse("unclear", "", {}, said)
        for number, (part, words, doubt) in enumerate(sentences):
            one = self.record() if number else said
            self.scenario.parse(part.partition("/")[0], part, self.scenario.find_slots(words)[0], one)
            named = [bit for bit in range(len(self.slots)) if one["slots"] & 1 << bit]
            for bit in named:
                said[self.slots[bit]] = one[self.slots[bit]]
                said["slots"] |= 1 << bit
            unsure |= {*named, part} if doubt else set()
        before = belief.copy()
        if unsure and said["act"] == ANSWER and not self.slots:
            tutor.hear_answer(np.uint64(0), belief.turn, belief, said.num, said.den, False, 1)
            belief.heard = ANSWER
        elif unsure and said["act"] == STATE_GOAL and not self.slots:
            tutor.hear_goal(belief, said.goal, 1)
            belief.heard = STATE_GOAL
        else:
            self.scenario.hear(belief, said)
        for bit, slot in enumerate(self.slots):
            if bit in unsure and not (before["sure"][bit] and before[slot] == belief[slot]):
                belief["sure"][bit] = 1

    def record(self):
        return np.zeros(1, self.scenario.said).view(np.recarray)[0]


def talk(name, error_rate, conversations, *, seed=0):
    """Hold conversations, check each belief against what its agent read, and return how many words were garbled."""
    reader, scenario, draws = Reader(name), find_scenario(name), np.random.default_rng(seed)
    envs = ChatVectorEnv(
        conversations, scenario=name, observation="text", error_rate=error_rate, llm="template", reward_model=None
    )
    heard, infos = envs.reset(seed=seed)
    room, going, garbled = envs.room, np.ones(conversations, bool), 0
    while going.any():
        before = room.belief.copy().view(np.recarray)
        acts = np.where(draws.random(conversations) < 0.3, [np.flatnonzero(m)[-1] for m in infos["action_mask"]],
                        room.expert_acts(room.belief))  # fmt: skip
        heard, _, terminations, truncations, infos = envs.step(acts, active=going)
        for row in np.flatnonzero(going & ~terminations):
            mine = before[row]
            scenario.note(mine, int(acts[row]), int(room.turns[row]))
            reader.hear(mine, heard[row])
            differing = [one for one in mine.dtype.names if not np.array_equal(mine[one], room.belief[row][one])]
            apart = {one: (mine[one], room.belief[row][one]) for one in differing}
            apart.pop("tone", None)  # words leave it open
            if name == "customer_service" and apart.get("heard") == (STATE_PROBLEM, INFORM):
                del apart["heard"]  # a topic is told by stating the problem, whatever it is told for
            assert not apart, heard[row]
            garbled += int(room.belief[row]["heard"] != room.said[row]["act"])
        going &= ~(terminations | truncations)
    return garbled


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("error_rate", [0.0, 0.2, 0.9])
def test_the_words_that_were_heard_give_the_belief_that_the_room_holds(name, error_rate):
    garbled = talk(name, error_rate, 200)
    assert (garbled > 50) == (error_rate > 0)


@pytest.mark.parametrize(
    ("observation", "rate"), [("embedding", 0.1), ("discrete", 0.1), ("text", 0.0), ("token", 0.0)]
)
def test_who_reads_words_mishears_nothing_by_default(observation, rate):
    how = {"observation": observation, "llm": "template", "reward_model": None}
    env = gym.make("ChatEnv-v0", **how, disable_env_checker=True).unwrapped
    assert env.error_rate == ChatVectorEnv(2, **how).error_rate == env.identity()["error_model"]["rate"] == rate


def test_a_score_of_who_reads_words_is_of_references_that_mishear_as_little():
    agent = find_agent("expert")(find_scenario("customer_service"))
    agent.requires = Interface(observation="text")
    task = Task().heard_by(agent.requires)
    assert task.arguments == {"error_rate": 0.0}
    assert task.heard_by(Interface(observation="text")) is task
    assert Task("social", {"error_rate": 0.3}).heard_by(agent.requires).arguments == {"error_rate": 0.3}
    exact, usual = references(task), references(Task())
    assert (exact.error_rate, usual.error_rate) == (0.0, 0.1)
    assert exact.expert_success > usual.expert_success + 0.02


def test_a_scenario_without_words_for_what_was_heard_garbles_none():
    scenario = dataclasses.replace(find_scenario("social"), heard_meaning=None)
    how = {"scenario": scenario, "observation": "text", "llm": "template", "reward_model": None}
    with pytest.raises(InvalidValue, match="has no heard_meaning, so an agent that observes words can't mishear"):
        ChatVectorEnv(2, **how, error_rate=0.2)
    envs = ChatVectorEnv(2, **how)
    with pytest.raises(InvalidValue, match="error_rate=0, or observe beliefs"):
        envs.error_rate = 0.2


@pytest.mark.parametrize("name", NAMED)
def test_words_that_were_heard_are_the_same_in_copies_and_in_many_rows(name):
    how = {"scenario": name, "observation": "text", "llm": "template", "reward_model": None, "error_rate": 0.5}
    env = gym.make("ChatEnv-v0", **how, disable_env_checker=True).unwrapped
    read = [env.reset(seed=seed)[0] for seed in range(30)]
    assert list(ChatVectorEnv(30, **how).reset(seed=0)[0]) == read
    assert INAUDIBLE in read
    for act in (2, 3, 1, 2):
        copy = env.fork()
        observation, _, terminated, _, info = env.step(act)
        assert copy.step(act)[0] == observation == info["text"]
        if terminated:
            break


@pytest.mark.parametrize("error_rate", [0.0, 0.5])
def test_conversations_to_learn_from_hold_what_their_teacher_heard(error_rate):
    expert = find_agent("expert")(find_scenario("education"))
    said = held_by(expert, Task("education", {"error_rate": error_rate}), 20, seed=1)
    lost = [message for one in said for message in one if message["content"] == INAUDIBLE]
    assert {message["role"] for message in lost} == ({"user"} if error_rate else set())


def test_a_mark_of_doubt_is_no_word():
    nlu, said = nlu_of(find_scenario("customer_service")), "The number is 482913."
    assert nlu.understand([doubted(said)]) == nlu.understand([said])
    assert doubted(said) == "The number is 482913 (?)."
    assert doubted("Is it?!") == "Is it (?)?!"


@pytest.mark.parametrize("readers", [(0, 1), (1, 0), (0, 0)])
def test_in_a_comparison_all_mishear_as_much_as_a_reader_of_words(readers):
    class Reading(find_agent("constant")):
        requires = Interface(observation="text")

    scenario = find_scenario("social")
    competitors = [
        Competitor(str(number), (Reading if reads else find_agent("expert"))(scenario), Task("social"), {"agent": "x"})
        for number, reads in enumerate(readers)
    ]
    found = compare(competitors, conversations=100)
    rates = [one.identity["error_model"]["rate"] for agent in found.agents for _, _, one in agent.evaluations()]
    assert rates == [0.0 if any(readers) else 0.1] * 2
