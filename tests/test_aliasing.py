"""What is handed out doesn't change afterwards, also of a scenario whose records have arrays as fields."""

import copy
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from chatgym.dynamics.room import ChatRoom
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.evaluation.audit import Audit
from chatgym.integrations.sb3 import ChatVecEnv

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "restaurant"))
from chatgym_restaurant import SCENARIO as RESTAURANT


def listed(thing):
    """Return object arrays, which numpy can't compare, as lists, wherever they are in a thing."""
    if isinstance(thing, dict):
        return {name: listed(part) for name, part in thing.items()}
    if isinstance(thing, (tuple, list)) or (isinstance(thing, np.ndarray) and thing.dtype.hasobject):
        return [listed(part) for part in thing]
    return thing


class Kept:
    """Things as they are handed out, with copies made at once."""

    def __init__(self):
        self.things = []

    def keep(self, thing):
        self.things.append((thing, copy.deepcopy(thing)))

    def check(self):
        assert self.things
        for now, then in self.things:
            np.testing.assert_equal(listed(now), listed(then))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("observation", ["belief", "embedding", "discrete", "text"])
def test_what_steps_and_snapshots_give_stays_as_it_is(observation, mode):
    kept = Kept()

    def paid(step):
        kept.keep([step.belief_before, step.belief, step.acts, step.terms, step.outcomes, step.turns])
        return np.ones(len(step.rows))

    envs = ChatVectorEnv(
        5, scenario=RESTAURANT, observation=observation, llm="template", reward_model=None, reward=paid,
        texts=True, autoreset_mode=mode, error_rate=0.4,
    )  # fmt: skip
    kept.keep(envs.reset(seed=1))
    going = np.ones(5, bool)
    for turn in range(25):
        going[turn % 5] ^= True
        kept.keep(envs.step(envs.expert_acts(), active=going))
        kept.keep(envs.snapshot())
    kept.check()


def test_a_transcript_and_the_infos_stay_as_they_are():
    kept = Kept()
    env = gym.make("ChatEnv-v0", scenario=RESTAURANT, llm="template", error_rate=0.4, disable_env_checker=True)
    kept.keep(env.reset(seed=1))
    for _ in range(6):
        kept.keep(env.step(int(env.unwrapped.room.expert_acts()[0])))
        kept.keep(env.unwrapped.transcript())
    kept.check()


def test_what_stable_baselines3_is_given_stays_as_it_is():
    kept = Kept()
    envs = ChatVecEnv.make(
        4, infos=True, scenario=RESTAURANT, observation="belief", llm="template", reward_model=None, error_rate=0.4
    )
    kept.keep(envs.reset())
    for _ in range(25):
        kept.keep(envs.step(envs.base.expert_acts()))
    kept.check()


def test_an_audit_records_each_turn_as_it_was():
    audit = Audit(RESTAURANT, error_rate=0.4)
    envs = audit._envs(30, llm="template")
    for row, conversation in enumerate(audit.record(envs, "expert", 1)):
        room = ChatRoom(RESTAURANT, 1, error_rate=0.4)
        room.begin(keys=envs.room.keys[row : row + 1])
        for exchange in conversation:
            if exchange.turn:
                np.testing.assert_equal(exchange.belief, room.belief[0])
                np.testing.assert_equal(list(exchange.before.values()), list(room.hidden[0]))
                room.step(np.array([exchange.act]))
            np.testing.assert_equal(list(exchange.said.values()), list(room.said[0]))
            np.testing.assert_equal(list(exchange.after.values()), list(room.hidden[0]))


def test_an_audit_compares_each_text_with_what_was_meant_then():
    audit, texts, compared = Audit(RESTAURANT), [], 0
    envs = audit._envs(40, llm="template", texts=True)
    for row, conversation in enumerate(audit.record(envs, "expert", 1, texts)):
        for exchange in conversation:
            compared += len(exchange.meaning.slots)
            assert all(value in texts[exchange.turn][row] for value in exchange.meaning.slots.values())
    assert compared > 100
