"""`check_scenario` passes what is right, and each of its checks is seen to fail on something that isn't."""

import dataclasses
import inspect
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from chatgym.dynamics import rng
from chatgym.dynamics import room as rooms
from chatgym.errors import ChatGymError
from chatgym.scenarios import Meaning
from chatgym.testing import NonConforming, balance, check_scenario, dynamics, inversion, leaks, scenarios, words
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import fixed, hold, play, room_of

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "restaurant"))
from chatgym_restaurant import AFFIRM, BELIEF, BOOK, CLOSE, GREET, THANK
from chatgym_restaurant import SCENARIO as RESTAURANT


def problems(check, *arguments, **more):
    with pytest.raises(NonConforming) as raised:
        check(*arguments, **more)
    return "\n".join(raised.value.problems)


@pytest.mark.parametrize(
    "scenario", ["customer_service", "education", "social", RESTAURANT], ids=lambda each: getattr(each, "name", each)
)
def test_scenarios_that_keep_to_the_frame_pass(scenario):
    check_scenario(scenario)


def found(part, scenario, *more):
    """Return the problems that a part of `check_scenario` finds."""
    findings = Findings("it", "Scenario")
    with findings.trying("this"):
        part(findings, scenario, *more)
    return "\n".join(findings.problems)


def changed(**fields):
    """The restaurant with other fields than compiled ones; it runs the restaurant's loops."""
    scenario = dataclasses.replace(RESTAURANT, **fields)
    rooms._compiled[scenario] = rooms.kernels(RESTAURANT)
    return scenario


def broken(loop, fault, before=None):
    """The restaurant, one of whose compiled loops does something else as well: `fault` gets its arguments by name."""
    scenario, loops = dataclasses.replace(RESTAURANT), rooms.kernels(RESTAURANT)
    compiled = getattr(loops, loop)
    names = list(inspect.signature(compiled.py_func).parameters)

    def run(*arguments):
        given = dict(zip(names, arguments, strict=True))
        (before or (lambda given: None))(given)
        compiled(*given.values())
        fault(given)

    rooms._compiled[scenario] = dataclasses.replace(loops, **{loop: run})
    return scenario


def nothing(given):
    pass


def sets(record, field, value):
    """A fault that writes into a field of the rows that took part."""

    def fault(given):
        rows = given["rows"].astype(bool)
        new = value(given) if callable(value) else value
        given[record][field][rows] = new[rows] if np.ndim(new) else new

    return fault


def swaps(array, old, new):
    def fault(given):
        given[array][given[array] == old] = new

    return fault


def as_record(*fields):
    return np.dtype((np.record, [*fields]))


MISDECLARED = [
    ({"agent_acts": ("greet", "greet")}, "`agent_acts` are ('greet', 'greet')"),
    ({"outcomes": ("going", "booked", "truncated")}, "The first is '' (it goes on)"),
    ({"success": "sold"}, "`success` is 'sold'"),
    ({"leaving": ("booked",)}, "`leaving` is ('booked',)"),
    ({"belief": np.dtype([("x", "i1")])}, "Make it np.dtype((np.record, [...]))"),
    ({"hidden": as_record(("x", "O"))}, "of numbers only"),
    ({"said": as_record(("x", "i1"))}, "`said` has no field 'act'"),
    ({"n_beliefs": 20_001}, "`n_beliefs` is 20001"),
    ({"reward_terms": {}}, "`reward_terms` are {}"),
    ({"reward_terms": {"outcome": float("nan")}}, "with a finite weight"),
    ({"agent_codes": {"confirm/day": -3}}, "`agent_codes` has codes below 0"),
]


@pytest.mark.parametrize(("fields", "words"), MISDECLARED, ids=[words for _, words in MISDECLARED])
def test_what_a_scenario_declares_is_checked(fields, words):
    assert words in problems(check_scenario, dataclasses.replace(RESTAURANT, **fields))


def clipped(given):
    np.maximum(given["out"], 1, out=given["out"])


def fill(value, column=slice(None)):
    def fault(given):
        given["out"][..., column] = value

    return fault


def shift(by):
    def fault(given):
        given["out"] += by

    return fault


SEEN = [
    (broken("index", shift(99)), "`n_beliefs` is 129"),
    (broken("index", clipped), "`index` isn't 0 exactly where a conversation has terminated"),
    (broken("embed", shift(1)), "`embed` writes numbers up to 2"),
    (broken("embed", fill(np.nan, 3)), "and NaN"),
    (broken("embed", fill(0.0)), "two beliefs with different numbers have the same embedding"),
    (broken("mask", fill(False)), "`mask` leaves no act at all"),
    (broken("mask", fill(False, GREET)), "`mask` never allows greet"),
    (broken("expert", fill(99)), "`expert` returns [99]"),
    (broken("expert", fill(BOOK)), "`expert` takes acts that `mask` doesn't allow: book"),
]


@pytest.mark.parametrize(("scenario", "words"), SEEN, ids=[words for _, words in SEEN])
def test_what_an_agent_sees_is_checked(scenario, words):
    assert words in found(scenarios._observed, scenario, play(scenario, 300, 20))


def without_time(given):
    given["rewards"] -= given["weights"][1] * given["terms"][:, 1]
    given["terms"][:, 1] = 0


def nan_terms(given):
    given["terms"][:, 1] = given["rewards"][:] = np.nan


def dearer(given):
    given["rewards"] += 0.5


ENDED = [
    (broken("step", sets("said", "act", 50)), "`said.act` is 1 to 50"),
    (broken("step", lambda given: swaps("act", AFFIRM, THANK)({"act": given["said"]["act"]})), "never says affirm"),
    (broken("step", swaps("outcomes", 3, 9)), "`respond` returns outcomes 0 to 9"),
    (broken("step", nan_terms), "`respond` leaves reward terms that aren't finite"),
    (broken("step", dearer), "the reward isn't the weighted sum of its terms"),
    (broken("step", without_time), "the reward terms time are always 0"),
]  # fmt: skip


@pytest.mark.parametrize(("scenario", "words"), ENDED, ids=[words for _, words in ENDED])
def test_rewards_and_ends_are_checked(scenario, words):
    assert words in found(scenarios._ended, scenario, play(scenario, 300, 20))


def kept(record, field):
    """A loop that leaves a field as it was before."""
    memory = {}

    def before(given):
        memory["was"] = given[record][field].copy()

    def after(given):
        given[record][field] = memory["was"]

    return after, before


def forgetting():
    memory = {}

    def before(given):
        memory["was"] = given["out"][:, -1].copy()

    def after(given):
        given["out"][:, -1] = memory["was"]

    return after, before


def counting(given):
    given["belief"]["turn"] += 1


def restless(given):
    given["hidden"]["patience"] = 8 + time.perf_counter_ns() % 5


def sociable(given):
    given["belief"]["booked"] = given["belief"]["booked"].max()


def longer(given):
    given["max_turns"] += 1


def without_keys():
    def keyless(given):
        given["keys"] = np.zeros_like(given["keys"])

    scenario = broken("start", nothing, keyless)
    step = rooms._compiled[broken("step", nothing, keyless)].step
    rooms._compiled[scenario] = dataclasses.replace(rooms._compiled[scenario], step=step)
    return scenario


def punished(given):
    given["terms"][given["truncations"], 0] = -0.5


def answering(given):
    given["acts"] = np.where(given["acts"] == -2, 1 + np.arange(len(given["acts"])) % 3, given["acts"])


def leaving(given):
    given["acts"] = np.where(given["acts"] == -2, CLOSE, given["acts"])


DYNAMICS = [
    ("filling arrays", broken("embed", *forgetting()), "`embed` leaves places of `out` as they were before"),
    ("filling arrays", broken("mask", *forgetting()), "`mask` leaves places of `out` as they were before"),
    ("filling arrays", broken("index", counting), "changes the belief that it reads"),
    ("playing conversations again", broken("step", restless), "give other conversations the second time"),
    ("playing conversations again", broken("start", *kept("belief", "booked")), "depends on the one before it"),
    ("playing conversations again", broken("step", sociable), "a conversation depends on those beside it"),
    ("playing conversations again", without_keys(), "other keys give the same conversations"),
    ("coming to an end", broken("step", nothing, longer), "conversations go on after `max_turns`"),
    ("coming to an end", broken("step", swaps("outcomes", 4, 2)), "no conversation ever ends as hung_up"),
    ("cutting conversations off", broken("step", punished), "at truncation the reward terms outcome aren't"),
    ("playing acts that weren't understood", broken("step", nothing, answering), "the partner says inform/day, inform"),
    ("playing acts that weren't understood", broken("step", nothing, leaving), "1000 of 1000 conversations end"),
    ("noting and hearing", changed(hear=lambda belief, said: None), "`note` and `hear` leave other beliefs"),
    ("noting and hearing", changed(note=lambda belief, act, turn: None), "in field act, "),
]  # fmt: skip


@pytest.mark.parametrize(("part", "scenario", "words"), DYNAMICS, ids=[words for *_, words in DYNAMICS])
def test_how_conversations_go_on_and_end_is_checked(part, scenario, words):
    assert words in found(dynamics.DYNAMICS[part], scenario)


def seeing(dtype, value):
    """The restaurant with a field in the belief, made of the keys: the loops run on the belief without it."""
    wide = as_record(*((name, BELIEF.fields[name][0]) for name in BELIEF.names), ("seed", dtype))
    scenario, loops = dataclasses.replace(RESTAURANT, belief=wide), rooms.kernels(RESTAURANT)

    def on_narrow(compiled):
        names = list(inspect.signature(compiled.py_func).parameters)

        def run(*arguments):
            given = dict(zip(names, arguments, strict=True))
            belief = given["belief"]
            narrow = np.zeros(len(belief), BELIEF)
            for name in BELIEF.names:
                narrow[name] = belief[name]
            compiled(*{**given, "belief": narrow}.values())
            for name in BELIEF.names:
                belief[name] = narrow[name]
            if "keys" in given:
                belief["seed"] = value(given["keys"])

        return run

    rooms._compiled[scenario] = dataclasses.replace(
        loops, **{each.name: on_narrow(getattr(loops, each.name)) for each in dataclasses.fields(loops)}
    )
    return scenario


LEAKS = [
    (broken("start", sets("belief", "turn", lambda g: g["hidden"]["goal"][:, 0])), "goes with hidden 'goal[0]'"),
    (
        broken("start", sets("belief", "turn", lambda g: np.where(g["keys"] % 5 == 0, g["hidden"]["patience"], 0))),
        "belief field 'turn' goes with hidden 'patience'",
    ),
    (
        broken("step", sets("belief", "turn", lambda g: g["hidden"]["patience"])),
        "something else in belief field 'turn'",
    ),
    (changed(index=lambda belief, hidden: 0), "`index` takes 2 arguments, not 1"),
    (changed(embed=lambda belief, out, hidden: None), "`embed` takes 3 arguments, not 2"),
]


@pytest.mark.parametrize(("scenario", "words"), LEAKS, ids=[words for _, words in LEAKS])
def test_a_belief_that_knows_more_than_was_said_is_noticed(scenario, words):
    assert words in found(leaks.check_leaks, scenario)


def drawn(purpose, keys):
    return rng._mix.py_func(rng._mix.py_func(keys) + np.uint64((purpose + 1) * int(rng._GOLDEN) % 2**64))


SEEDS = [
    ("u8", lambda keys: keys, True),
    ("u8", lambda keys: drawn(1, keys), True),  # as education had it
    ("u4", lambda keys: drawn(1, keys), True),  # half of it: the rest is soon tried
    ("u4", lambda keys: ~drawn(700, keys) >> np.uint64(32), True),
    ("f8", lambda keys: rng.uniform(keys, 0, 5), True),
    ("f4", lambda keys: 2.0 * rng.uniform(keys, 0, 5) - 1.0, True),
    ("i4", lambda keys: rng.uniform(keys, 0, 5) * 1e9, True),
    ("i4", lambda keys: 100_000 + rng.uniform(keys, 0, 5) * 900_000, False),  # an order's number
    ("u2", lambda keys: (drawn(1, keys) ^ drawn(2, keys)) >> np.uint64(48), False),  # rng.public_seed
]


@pytest.mark.parametrize(("dtype", "value", "tells"), SEEDS, ids=range(len(SEEDS)))
def test_a_field_from_which_the_key_can_be_computed_is_noticed(dtype, value, tells):
    told = found(inversion.check_inversion, seeing(dtype, value))
    assert ("can be computed from belief seed" in told) == tells
    assert bool(told) == tells


def test_a_key_in_the_infos_is_noticed():
    keys = rng._mix.py_func(np.arange(1, inversion.ROWS + 1, dtype=np.uint64))
    columns = list(
        inversion._columns("info", {"text": np.array([f"Ticket {key}." for key in keys >> np.uint64(2)], object)})
    )
    assert [name for name, _ in columns] == ["info text"]
    assert "info text" in set(inversion.revealing(columns, keys, 0))


def script(*order):
    def fault(given):
        given["out"][:] = np.array(order)[np.minimum(given["belief"]["turn"], len(order) - 1)]

    return fault


BALANCE = [
    (broken("expert", fill(GREET)), "the expert ends with 'booked' in 0% of conversations"),
    (broken("expert", fill(GREET)), "The expert has to be far above"),
    (broken("expert", fill(CLOSE)), "the expert takes 1.0 turns on average"),
    (broken("expert", script(1, 2, 3, 4, 4, 4, 5, 6)), "a fixed order of acts does as well as the expert"),
]


@pytest.mark.parametrize(("scenario", "words"), BALANCE, ids=[words for _, words in BALANCE])
def test_a_scenario_that_needs_no_policy_is_noticed(scenario, words, monkeypatch):
    monkeypatch.setattr(balance, "CHANGES", 5)
    assert words in found(balance.check_balance, scenario)


def test_the_search_for_a_fixed_order_goes_uphill(monkeypatch):
    order = [1, 2, 3, 4, 5, 6]  # asks for all, confirms once, books, closes
    monkeypatch.setattr(balance, "_expert_orders", lambda room: [order])
    before, after = (
        hold(room_of(RESTAURANT, 1000), fixed(each)).returns.mean() for each in (order, balance.best_order(RESTAURANT))
    )
    assert after > before + 0.1


def means(**fields):
    return lambda said: dataclasses.replace(RESTAURANT.partner_meaning(said), **fields)


def agent_means(**fields):
    return lambda act, belief: dataclasses.replace(RESTAURANT.agent_meaning(act, belief), **fields)


def confused(said):
    return Meaning("greet", ("greet",)) if isinstance(said, dict) else RESTAURANT.partner_meaning(said)


WORDS = [
    ({"instructions": lambda: " "}, "instructions() is empty"),
    ({"describe_goal": lambda hidden: "a table"}, "describe_goal() gives 1 text"),
    ({"describe_belief": lambda belief: ""}, "describe_belief() gives 1 text"),
    ({"describe_belief": lambda belief: belief["mood"]}, "describing goals and beliefs in words raised"),
    ({"folder": Path("nowhere")}, "there is no nowhere/sentences.json"),
    ({"partner_meaning": means(parts=("sing",))}, "the partner has no words for sing (angry)"),
    ({"partner_meaning": means(tone="jolly")}, "the partner has no words for affirm (jolly)"),
    ({"partner_meaning": means(slots={})}, "a slot stays open in the partner's words of correct/day"),
    ({"partner_meaning": confused}, "partner_meaning() means something else where it is given a dict: affirm"),
    ({"agent_meaning": agent_means(parts=("sing",))}, "the agent has no words for sing"),
    ({"agent_meaning": agent_means(slots={})}, "a slot stays open in the agent's words of confirm/day"),
    ({"agent_meaning": agent_means(act="greet")}, "agent_meaning() gives acts as others: ask_day as greet"),
    ({"parse": lambda act, part, slots, said: None}, "parse() is the inverse of partner_meaning()"),
    ({"find_slots": lambda text: ({}, text)}, "found by find_slots() and written by parse() means something else"),
]


@pytest.fixture(scope="module")
def turns():
    return play(RESTAURANT, 100, 20)


@pytest.mark.parametrize(("fields", "words_"), WORDS, ids=[words for _, words in WORDS])
def test_words_for_all_that_happens_are_checked(fields, words_, turns):
    assert words_ in found(words.check_words, changed(**fields), turns)


SENTENCES = [
    (lambda s: s.pop("situations"), "sentences.json lacks situations"),
    (lambda s: s["nlu"]["partner"].pop("bye"), "NLU has no paraphrases of the partner's bye"),
    (lambda s: s["nlu"]["agent"].update(book=[]), "NLU has no paraphrases of the agent's book"),
    (lambda s: s["agent"].update(sing=["La."]), "the agent's sentences have parts of no act: sing"),
    (lambda s: s["nlu"].update(out_of_domain=[]), "nothing under nlu/out_of_domain"),
    (lambda s: s["situations"].pop("thank"), "no situation is given for thank"),
    (lambda s: s["partner"]["thank"].clear(), "the partner has no words for thank"),
]


@pytest.mark.parametrize(("change", "words_"), SENTENCES, ids=[words for _, words in SENTENCES])
def test_sentences_and_nlu_data_are_checked(change, words_, turns, tmp_path):
    sentences = json.loads((RESTAURANT.folder / "sentences.json").read_text(encoding="utf-8"))
    change(sentences)
    (tmp_path / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    assert words_ in found(words.check_words, changed(folder=tmp_path), turns)


def test_all_problems_of_a_scenario_are_told_at_once():
    scenario = broken("embed", shift(1))
    object.__setattr__(scenario, "instructions", lambda: "")
    with pytest.raises(NonConforming) as raised:
        check_scenario(scenario)
    assert isinstance(raised.value, AssertionError)
    assert isinstance(raised.value, ChatGymError)
    told = str(raised.value)
    assert told.startswith(
        "the scenario 'restaurant' doesn't keep to `chatgym.scenarios.Scenario`; 2 problems:\n- `embed"
    )
    assert told.endswith("Say all that an agent has to know before it begins: a language model reads it.")


HEARD = [
    (lambda said, belief: Meaning("thank", ("thank",)), "differs from partner_meaning()"),
    (lambda said, belief: dataclasses.replace(RESTAURANT.heard_meaning(said, belief), unsure=("no/part",)),
     "has parts without sentences: no/part"),
]  # fmt: skip


@pytest.mark.parametrize(("heard_meaning", "told"), HEARD, ids=[told for _, told in HEARD])
def test_the_words_for_what_was_heard_are_checked(heard_meaning, told):
    assert found(words._heard, RESTAURANT) == ""
    assert told in found(words._heard, changed(heard_meaning=heard_meaning))
