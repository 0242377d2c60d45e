"""`check_scenario` names place and remedy of what breaks a scenario's compiled functions, and isn't broken by it."""

import dataclasses
import importlib
import itertools
import shutil
import sys
from pathlib import Path

import numba as nb
import numpy as np
import pytest

from chatgym.dynamics import room
from chatgym.dynamics.content import bytecode_digest
from chatgym.scenarios import find_scenario
from chatgym.testing import NonConforming, check_scenario
from chatgym.testing.bounds import check_bounds
from chatgym.testing.copies import CheckedCopies, Copies, plain_records, plain_room
from chatgym.testing.draws import check_draws
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import mixed_policy, room_of

RESTAURANT = Path(__file__).parent.parent / "examples" / "restaurant" / "chatgym_restaurant"
names = (f"broken_restaurant_{number}" for number in itertools.count())


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Return a function that makes the restaurant with other source: its scenario, and the changed lines' places."""

    def make(*changes):
        name = next(names)
        folder = tmp_path / name
        shutil.copytree(RESTAURANT, folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = (folder / "__init__.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        (folder / "__init__.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        lines = source.splitlines()
        return (
            importlib.import_module(name).SCENARIO,
            lambda text: f"{name}/__init__.py, line {next(i for i, line in enumerate(lines, 1) if text in line)}",
        )

    yield make
    for name in [name for name in sys.modules if name.startswith("broken_restaurant_")]:
        del sys.modules[name]


def problems(scenario):
    with pytest.raises(NonConforming) as raised:
        check_scenario(scenario)
    return raised.value.problems


def test_an_embedding_that_is_too_small_is_no_crash(changed):
    for size, line, place in ((28, "out[28] = belief.booked", 28), (22, "out[15 + 4 * slot", 23)):
        scenario, place_of = changed(("embedding_size=29", f"embedding_size={size}"))
        (problem,) = problems(scenario)
        assert problem.startswith(
            f"`embed` raised IndexError: index {place} is out of bounds for axis 0 with size {size}"
        )
        assert place_of(line) in problem
        assert (
            f"declare the array larger, or keep the index below its size. `out` has `embedding_size` places, {size}."
            in problem
        )


def test_a_reward_term_too_few_is_told(changed):
    scenario, place_of = changed(('{"outcome": 1.0, "time": 0.02}', '{"outcome": 1.0}'))
    (problem,) = problems(scenario)
    assert problem.startswith("`respond` raised IndexError: index 1 is out of bounds for axis 0 with size 1")
    assert place_of("terms[1] = -1.0") in problem
    assert "`terms` has a place for each of `measured` (or else `reward_terms`), 1: outcome." in problem


UNCOMPILABLE = [
    (
        "left = hidden.patience - turn",
        "left = hidden.reservd - turn",
        "KeyError: 'reservd'",
        "are declared in `hidden`",
    ),
    ("hidden.patience = 8 +", "hidden.patiense = 8 +", "KeyError: 'patiense'", "Did you mean 'patience'?"),
    (
        "left = hidden.patience - turn",
        'left = hidden.patience - "turn"',
        "sub(int8, Literal[str](turn))",
        "the type of",
    ),
    ("left = hidden.patience - turn", "left = hidden.patience - trun", "name 'trun' is not defined", "the type of"),
]


@pytest.mark.parametrize(("old", "new", "said", "remedy"), UNCOMPILABLE, ids=[said for *_, said, _ in UNCOMPILABLE])
def test_what_numba_can_not_compile_is_told_with_its_line(changed, old, new, said, remedy):
    scenario, place_of = changed((old, new))
    (problem,) = problems(scenario)
    assert said in problem
    assert f"({place_of(new)}: `{new}" in problem
    assert remedy in problem


def test_a_function_that_returns_nothing_is_told_by_its_name(changed):
    scenario, _ = changed(("    return outcome\n\n\n@nb.njit\ndef hear", "\n\n@nb.njit\ndef hear"))
    (problem,) = problems(scenario)
    assert problem.startswith("`respond` raised TypingError: ")
    assert "and return one type" in problem


def test_a_function_that_is_not_compiled_is_told(changed):
    scenario, _ = changed(("@nb.njit\ndef hear", "def hear"))
    assert problems(scenario) == ["`hear` isn't compiled. Decorate it with numba.njit."]


@nb.njit
def misled(act, belief, clear, hidden, astray):
    return hidden.goal[act] == 0  # act 6, of 3 slots


def test_what_only_a_person_or_an_evaluation_calls_is_checked_too(changed):
    scenario, place_of = changed(("belief.turn, belief, said, 0.0)", "belief.sure[3], belief, said, 0.0)"))
    for each, name, place in (
        (scenario, "hear", place_of("sure[3]")),
        (dataclasses.replace(changed()[0], misled=misled), "misled", Path(__file__).name),
    ):
        findings = Findings("it", "Scenario")
        assert not check_bounds(findings, each)
        assert findings.problems[0].startswith(f"`{name}` raised IndexError: index")
        assert place in findings.problems[0]


def test_a_parse_that_zeroes_values_and_wrong_purposes_are_told_together(changed):
    scenario, place_of = changed(
        ('said["value"][slot] = slots[name]', 'said["value"][slot] = 0'),
        ("(10 * k for k in range(7))", "(*range(6), 1000)"),
        ("draw(key, turn, D_MORE) < 0.3", "draw(key, turn, D_TONE) < 0.3"),
    )
    told = problems(scenario)
    assert len(told) == 3
    assert (
        "{'day': 'Friday'} to inform/day {'day': 'Monday'}" in told[0] or "to correct/day {'day': 'Monday'}" in told[0]
    )
    assert "parse() is the inverse of partner_meaning(): let it write the act" in told[0]
    assert f"draws have purposes below 0 or from 1000 on: D_TONE = 1000 ({place_of('D_TONE) < 0.3')})" in told[1]
    assert "Number them from 0 to 999" in told[1]
    assert f"1 is D_GOAL + 1 ({place_of('D_GOAL + slot')}) and D_PATIENCE ({place_of('D_PATIENCE, 5')})" in told[2]
    assert "Give every draw a purpose of its own, and room for what is added to it." in told[2]


def test_draws_are_told_apart_by_their_constants(changed):
    def told(*changes):
        findings = Findings("it", "Scenario")
        check_draws(findings, changed(*changes)[0])
        return findings.problems

    assert told(("draw(key, turn, D_SURE + slot)", "draw(key, turn, D_ERROR + slot)")) == []  # one number, on purpose
    outside, shared = told(
        ("draw(key, turn, D_MORE)", "draw(key, turn, 70)"),
        ("draw(key, turn, D_ERROR + slot)", "draw(key, turn, 70)"),
        ("draw(key, turn, D_SURE + slot)", "draw(key, turn, -1)"),
    )
    assert "draws have purposes below 0 or from 1000 on: -1 = -1 (" in outside
    assert ": 70 is 70 (" in shared


SIZES = np.array([8, 7, 5])


@nb.njit
def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)


@nb.njit("int64(int64)")
def stated(n):
    return SIZES[n] + room.rng.randint(np.uint64(n), 0, 0, 1)


PAIR = (stated, deep)
ADDED = 3


@nb.njit
def whole(n):
    def inner(k):
        return k + ADDED

    return inner(n) + PAIR[1](n) + stated(n)


def test_copies_do_the_same_and_check_what_they_call():
    for copies in (Copies(), CheckedCopies()):
        copy = copies.copy(whole, "whole")
        assert [int(copy(n)) for n in range(3)] == [whole(n) for n in range(3)] == [11, 12, 12]
        assert copies.files == {__file__}
        with pytest.raises(IndexError):
            copy(3)
    assert bytecode_digest(CheckedCopies().copy(whole, "whole")) != bytecode_digest(whole)


@pytest.mark.parametrize("name", ["customer_service", "education", "social"])
def test_plain_python_plays_as_compiled_code_does(name):
    scenario = find_scenario(name)
    plain = Copies().of_scenario(scenario)
    compiled, policy = room_of(scenario, 12, error_rate=0.4), mixed_policy(scenario, 3)
    compiled.begin()
    for _ in range(8):
        twin, acts, going = plain_room(plain, compiled), policy(compiled), compiled.outcomes == 0
        with np.errstate(all="ignore"):
            assert twin.embedding().tobytes() == compiled.embedding().tobytes()
            assert twin.discrete().tolist() == compiled.discrete().tolist()
            assert twin.expert_acts().tolist() == compiled.expert_acts().tolist()
            twin.step(acts, going)
        compiled.step(acts, going)
        assert all(array.tobytes() == compiled.dump()[part].tobytes() for part, array in twin.dump().items())


def test_records_for_plain_python_are_read_wide_and_cut_off_where_they_are_written():
    record = plain_records(np.zeros(1, np.dtype((np.record, [("few", "i1"), ("many", "u1", (2,))]))))[0]
    record.few = 100
    assert record.few + record["few"] == 200
    record.few = 300
    record.many[1] = 257
    assert (record.few, record.many[1], record.many[:].tolist()) == (44, 1, [0, 1])
