"""Two functions have one digest if they do the same, whatever they call, close over or read; kernels are kept by it."""

import copy
import dataclasses
import functools
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numba as nb
import numpy as np
import pytest
from numba import experimental, extending
from test_identity import interpreters

import chatgym
from chatgym.dynamics import room as rooms
from chatgym.dynamics.content import bytecode_digest, source_digest
from chatgym.dynamics.nb import CodeCache
from chatgym.dynamics.room import ChatRoom, kernels
from chatgym.envs.llm_simulator import llm_simulator_digest
from chatgym.errors import InvalidValue
from chatgym.scenarios import find_scenario
from chatgym.scenarios.social import SCENARIO, belief, person, policy

CODE = '''
"""Doc."""
import math
from collections import namedtuple
from enum import IntEnum
LIMIT = 3
TABLE = (1.0, 2.0)
Point = namedtuple("Point", "x y")
ORIGIN = Point(0, 1)
class Mood(IntEnum):
    GOOD = 1
class Scale:
    factor = 2
    def apply(self, x):
        return x * self.factor
def deepest(x):
    return math.floor(x) + Mood.GOOD
def helper(x, by=1):
    """Doc."""
    return deepest(x) * by if x > LIMIT else TABLE[0] + ORIGIN.y
def closing(share):
    return lambda x: share * x
closed = closing(5)
def even(n: int) -> bool:
    return n == 0 or odd(n - 1)
def odd(n):
    return n != 0 and even(n - 1)
def entry(x):
    text = "unread"
    return helper(x) + closed(x) + sum(LIMIT * each for each in [x]) + Scale().apply(x) + even(4)
def unread():
    return 7
'''
SEEN = [
    ("LIMIT = 3", "LIMIT = 4"), ("LIMIT = 3", "LIMIT = 3.0"), ("(1.0, 2.0)", "(1.0, 2.5)"),
    ("(1.0, 2.0)", "[1.0, 2.0]"),
    ("Point(0, 1)", "Point(0, 2)"), ("GOOD = 1", "GOOD = 2"), ("factor = 2", "factor = 3"), ("x * self", "x + self"),
    ("math.floor", "math.ceil"), ("by=1", "by=2"), ("x > LIMIT", "x >= LIMIT"), ("closing(5)", "closing(6)"),
    ("share * x", "share + x"), ("n != 0", "n != 1"), ("LIMIT * each", "LIMIT + each"), ('"unread"', '"read"'),
]  # fmt: skip
UNSEEN = [
    ('"""Doc."""', '"""Otherwise."""'), ("def unread():\n    return 7", "def unread():\n    return 8"),
    ("LIMIT = 3\n", "LIMIT = 3  # at most\n"), ("n: int) -> bool", "n)"), ("math\n", "math, re\n"),
]  # fmt: skip


def entry(tmp_path, code=CODE, name="made"):
    """Import code, and return its function ``entry``."""
    path = tmp_path / f"{name}{abs(hash(code))}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.entry


@pytest.mark.parametrize("digest", [source_digest, bytecode_digest])
@pytest.mark.parametrize(("before", "after"), SEEN, ids=range(len(SEEN)))
def test_a_digest_sees_every_change_of_what_is_called_closed_over_or_read(digest, before, after, tmp_path):
    assert before in CODE
    assert digest(entry(tmp_path)) != digest(entry(tmp_path, CODE.replace(before, after)))


@pytest.mark.parametrize("digest", [source_digest, bytecode_digest])
@pytest.mark.parametrize(("before", "after"), UNSEEN, ids=range(len(UNSEEN)))
def test_a_digest_is_blind_to_words_about_the_code_and_to_what_is_not_read(digest, before, after, tmp_path):
    assert before in CODE
    assert digest(entry(tmp_path)) == digest(entry(tmp_path, CODE.replace(before, after)))


@pytest.mark.parametrize("python", list(interpreters()))
def test_every_python_gives_functions_the_same_digest(python, tmp_path):
    here = entry(tmp_path)
    script = f"""
import importlib.util, sys, types
for name in ("chatgym", "chatgym.dynamics"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(Path(chatgym.__file__).parent.parent)!r} + "/" + name.replace(".", "/")]
from chatgym.dynamics.content import source_digest
spec = importlib.util.spec_from_file_location("made", {here.__code__.co_filename!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(source_digest(module.entry))
"""
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == source_digest(here)


def test_functions_without_source_and_from_a_changed_file_are_told_apart_by_bytecode(tmp_path):
    made = [eval(text, {}) for text in ("lambda x: x + 1", "lambda x: x + 2", "lambda x: x + 1")]
    assert source_digest(made[0]) == source_digest(made[2]) != source_digest(made[1])
    first, second = lambda x: x + 1, lambda x: x + 2  # on one line
    assert source_digest(first) != source_digest(second)
    function = entry(tmp_path)
    path = Path(function.__code__.co_filename)
    path.write_text(path.read_text().replace("return helper(x) +", "return helper(x) -"))
    edited = path.with_name("edited.py")
    edited.write_text(path.read_text())
    assert source_digest(function) != source_digest(entry(tmp_path, edited.read_text(), "edited"))


def test_arrays_dtypes_options_and_wrapped_functions_count():
    def over(value):
        return lambda: value

    values = [
        np.zeros(3), np.zeros(3, np.float32), np.zeros((3, 1)), np.ones(3), np.float32(0), np.dtype("i4"),
        np.dtype((np.record, [("a", "i4")])), np.dtype((np.record, [("b", "i4")])), nb.njit(even),
        nb.njit(fastmath=True)(even), nb.njit("boolean(int64)")(even), nb.njit(odd), functools.partial(even, 1),
        functools.partial(even, 2), even, np.add, np.subtract, {"a": 1}, {1, 2}, {"a"}.add, {"b"}.add,
        re.compile("a"), re.compile("b"),
    ]  # fmt: skip
    assert len({source_digest(over(value)) for value in values}) == len(values)
    assert source_digest(over(np.arange(3))) == source_digest(over(np.arange(3)))


def even(n):
    return n % 2 == 0


def odd(n):
    return n % 2 == 1


IN_NUMBA = {
    "overload": "def v(x): pass\n@extending.overload(v)\ndef over(x):\n    return lambda x: VALUE",
    "array of a class": "class v:\n    TABLE = np.array([VALUE])",
    "function of a class": "class v:\n    add = staticmethod(nb.njit(lambda x: VALUE))",
    "compiled class": "@experimental.jitclass([('a', nb.int64)])\nclass v:\n    def __init__(self): self.a = VALUE",
    "intrinsic": "@extending.intrinsic\ndef v(context, x):\n    return nb.int64(x), lambda *_: VALUE",
}


@pytest.mark.parametrize("digest", [source_digest, bytecode_digest])
@pytest.mark.parametrize("made", IN_NUMBA)
def test_what_numba_compiles_into_a_function_counts(digest, made):
    def of(value):
        scope = {"nb": nb, "np": np, "extending": extending, "experimental": experimental}
        exec(f"{IN_NUMBA[made]}\n@nb.njit\ndef f(x): return v".replace("VALUE", str(value)), scope)
        return digest(scope["f"])

    assert of(1) == of(1) != of(2)


def test_a_stencil_is_refused():
    stencil = nb.stencil(lambda a: a[0])
    with pytest.raises(InvalidValue, match=r"StencilFunc object .* has no content"):
        source_digest(nb.njit(lambda a: stencil(a)))


def test_what_has_no_content_is_refused():
    with open(__file__) as file, pytest.raises(InvalidValue, match="which has no content to identify it by"):
        source_digest(lambda: file)


@nb.njit
def closes(belief):
    return policy.CLOSE


@nb.njit(cache=True)
def closes_and_is_kept(belief):
    return policy.CLOSE


def test_a_function_that_numba_keeps_is_kept_by_content_too():
    rooms.content_of(dataclasses.replace(SCENARIO, expert=closes_and_is_kept))
    assert type(closes_and_is_kept._cache) is CodeCache
    assert closes_and_is_kept._cache._digest == bytecode_digest(closes_and_is_kept.py_func)


def acts(scenario, turns=3):
    """Return the expert's acts in three turns."""
    room, taken = ChatRoom(scenario, 50), []
    room.begin(keys=np.arange(50, dtype=np.uint64))
    for _ in range(turns):
        taken.append(room.expert_acts())
        room.step(taken[-1], room.outcomes == 0)
    return taken


def test_a_replaced_expert_is_run_and_named_and_the_built_in_one_stays():
    before = acts(SCENARIO)
    changed = dataclasses.replace(SCENARIO, expert=closes)
    assert (acts(changed, 1)[0] == policy.CLOSE).all()
    assert np.array_equal(acts(SCENARIO), before)
    assert changed.digest != SCENARIO.digest


def test_a_helper_that_is_replaced_after_it_was_compiled_is_compiled_anew(monkeypatch):
    def comforted(scenario):
        room = ChatRoom(scenario, 9)
        room.begin(keys=np.arange(9, dtype=np.uint64))
        room.belief["sure"], room.belief["wants"], room.belief["turn"] = 3, 2, 5
        return room.expert_acts()

    before = comforted(SCENARIO)
    with monkeypatch.context() as patch:
        patch.setattr(belief, "next_comfort", closes)
        assert (comforted(dataclasses.replace(SCENARIO)) == policy.CLOSE).all()
    assert np.array_equal(comforted(SCENARIO), before)
    assert np.array_equal(comforted(dataclasses.replace(SCENARIO)), before)
    assert (before != policy.CLOSE).all()


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (belief, "next_comfort", closes),
        (belief, "SOOTHES", policy.SOOTHES + 1),
        (person, "P_TAKES", 0.5),
        (person, "CLEAR_RELIEF", 0.9),
    ],
    ids=["helper", "table", "constant", "another constant"],
)
def test_a_changed_helper_table_or_constant_makes_another_scenario(module, name, value, monkeypatch):
    env = gym.make("ChatEnv-v0", scenario="social", llm="template").unwrapped
    whole, source, kernel = SCENARIO.digest, env.identity()["scenario"]["sha256"], rooms.content_of(SCENARIO)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        assert SCENARIO.digest != whole
        assert SCENARIO.digests["scenario"] != source
        assert rooms.content_of(SCENARIO) != kernel
        assert kernels(SCENARIO) is not env.room._kernels
        with pytest.raises(InvalidValue, match="make the environment again"):
            env.identity()
    assert kernels(SCENARIO) is env.room._kernels
    assert env.identity()["scenario"]["sha256"] == source


def test_a_pickled_scenario_is_the_same_scenario():
    copied = pickle.loads(pickle.dumps(SCENARIO))
    assert copied is not SCENARIO
    assert copied.digest == SCENARIO.digest
    assert kernels(copied) is kernels(SCENARIO)
    assert copy.deepcopy(SCENARIO) is SCENARIO
    assert "digest" not in SCENARIO.__getstate__()


OTHER_PROCESS = """
import dataclasses, pickle, sys
import numba as nb
import numpy as np
from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios.social import SCENARIO, belief, policy

@nb.njit
def closes(belief):
    return policy.CLOSE

scenario = pickle.load(open(sys.argv[2], "rb")) if len(sys.argv) > 2 else SCENARIO
if sys.argv[1] == "expert":
    scenario = dataclasses.replace(scenario, expert=closes)
elif sys.argv[1] == "helper":
    belief.next_comfort = closes
elif sys.argv[1] == "table":
    policy.SOOTHES[:] = 0
room = ChatRoom(scenario, 50)
room.begin(keys=np.arange(50, dtype=np.uint64))
room.belief["sure"], room.belief["wants"], room.belief["turn"] = 3, 2, 5
print(scenario.digest, *room.expert_acts())
"""


def said(*arguments):
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, *arguments], capture_output=True, text=True, check=True)
    digest, *taken = done.stdout.split()
    return digest, taken


def test_no_process_reads_what_another_one_compiled_of_something_else(tmp_path):
    first = said("")
    others = [said(change) for change in ("expert", "helper", "table")]
    assert [set(taken) for _, taken in others[:2]] == [{str(policy.CLOSE)}] * 2
    assert len({str(each) for each in (first, *others)}) == len({digest for digest, _ in (first, *others)}) == 4
    assert said("") == first
    (tmp_path / "scenario.pickle").write_bytes(pickle.dumps(SCENARIO))
    assert said("", str(tmp_path / "scenario.pickle")) == first


def test_a_change_of_a_model_played_partner_makes_another_one():
    played = find_scenario("social").llm_partner
    assert llm_simulator_digest(played) != llm_simulator_digest(dataclasses.replace(played, leave=lambda *_: 1))


PLUGIN_PROCESS = """
import numpy as np
from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import find_scenario

scenario = find_scenario("restaurant")
room = ChatRoom(scenario, 200)
room.begin(keys=np.arange(200, dtype=np.uint64))
for _ in range(4):
    room.step(room.expert_acts(), room.outcomes == 0)
print(scenario.digest, int(room.said["slots"].sum()), int(room.belief["sure"].sum()))
"""
GUEST = """
import numba as nb
from chatgym.dynamics.rng import draw

SHARE = 0.3

@nb.njit
def tells_more(key, turn, purpose):
    return draw(key, turn, purpose) < SHARE
"""


def test_an_edit_of_a_plugin_s_second_file_is_run_and_named(tmp_path):
    site, package = tmp_path / "site", tmp_path / "site" / "chatgym_restaurant"
    shutil.copytree(Path(__file__).parent.parent / "examples" / "restaurant" / "chatgym_restaurant", package)
    (site / "chatgym_restaurant-1.0.dist-info").mkdir()
    for name, text in (
        ("METADATA", "Metadata-Version: 2.1\nName: chatgym-restaurant\nVersion: 1.0\n"),
        ("entry_points.txt", "[chatgym]\nrestaurant = chatgym_restaurant.plugin\n"),
    ):
        (site / "chatgym_restaurant-1.0.dist-info" / name).write_text(text)
    first = (package / "__init__.py").read_text(encoding="utf-8")
    moved = first.replace("draw(key, turn, D_MORE) < 0.3", "tells_more(key, turn, D_MORE)")
    moved = moved.replace("\nAGENT_ACTS", "\nfrom chatgym_restaurant.guest import tells_more\n\nAGENT_ACTS", 1)
    assert moved.count("tells_more") == 2
    (package / "__init__.py").write_text(moved, encoding="utf-8")

    def played(guest):
        (package / "guest.py").write_text(guest)
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        process = [sys.executable, "-B", "-c", PLUGIN_PROCESS]  # no bytecode: its dates are whole seconds
        return subprocess.run(process, capture_output=True, text=True, check=True, env=environment).stdout.split()

    before, after = played(GUEST), played(GUEST.replace("< SHARE", "> SHARE"))
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert played(GUEST) == before
