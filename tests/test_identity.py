"""The digests of code are the same under every Python, and what earlier versions recorded is recognised."""

import copy
import dataclasses
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chatgym
from chatgym.dynamics import identity, rng, room
from chatgym.dynamics.identity import SUPERSEDED, code_digest, differences, same_simulator
from chatgym.dynamics.room import loops_digest
from chatgym.envs.task import Task
from chatgym.errors import ReplayMismatch
from chatgym.scenarios import find_scenario
from chatgym.scenarios.customer_service import belief, customer

DATA = Path(__file__).parent / "data"
SCENARIOS = ("customer_service", "education", "social")
GOLDEN = {
    "customer_service": "a5235d14408ba1476ccca5d9aadbfdb7d11fc2798f4757c3cc65f0e3d15a1117",
    "customer_service-v1": "6d58cad7732d9e927ed6e1e9e2abb09b80d7cac320592ec7ebafbdc6be619bd2",
    "education": "22feeedb594daf4db2ae5420b3321bccaca286239d277c8d1817f6bcb6426bdb",
    "education-v1": "ff22657b0ca7a8c7f5a71f0bd49fb0bd1e07259be5c1a6921ba4c88b2f68c10a",
    "social": "067fc9ae66fafe42013fdfd626f40290d349ea616ec9c3cd2ddc6560cf766be2",
    "social-v1": "fffede3936b8d9077cd6d8e40db4c25108d97c5368c0ebb1bd83fa232b329218",
    "loops": "73e0be070f0bba1e89573a2cab0719337fabe123b80fa2ce728d5e97dd8f03f0",
}
RECORDED = {
    "customer_service": "e716ff7c085686414e2ed98f71140bc2945007d8f81d7d2538397662f0d300d5",
    "education": "a6ffe063443ec05581f62feed84c41a55d6a9ea1a0152676f94759911764d95f",
    "social": "cb5f4a2301afbaab6072bfc085c422be15acd777ba39ed11f0f99e3dff3ce4c1",
}
"""``identity["sha256"]`` of each scenario while scenario, error model and reward had one hash."""
TRICKY = '''
"""Doc."""
import numpy as np
from a.b import c as d, e
def f(x: int, *rest: str, flag: bool = None, **more) -> str:
    """Doc."""
    empty = [], {}, (), "", None, {**more, "k": None}, 1e400, 0x1F, 1_000, b"\\xff", u"\\u00e9\\u0378"
    a = f"{x}" "" f"b{x!r:>{rest[0]}}c" "d" f"{x=}" f"{{}}" f"{x:}" f"{x:%d.%m}{'n'}"
    match x:
        case {"k": [1, *_], **others} if flag: return lambda y, /, *, z=None: (yield)
    with (open("a") as one, open("b")): pass
    return a
class C(list, metaclass=type):
    field: int = 3
    other: "str"
    async def g(self): return [i async for i in self if i]
'''


def interpreters():
    """Yield the interpreters of other Pythons, from PATH and from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(10, 14):
        found = [shutil.which(f"python3.{minor}"), *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))]
        for path in filter(None, found):  # pyenv's shims stand on PATH for versions that aren't chosen, too
            if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                yield pytest.param(path, id=f"3.{minor}")
                break


@pytest.mark.parametrize("python", list(interpreters()))
def test_every_python_gives_code_the_same_digest(python, tmp_path):
    (tmp_path / "tricky.py").write_text(TRICKY, encoding="utf-8")
    everything = [*sorted(Path(chatgym.__file__).parent.rglob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    for files in [[tmp_path / "tricky.py"], everything]:
        done = subprocess.run([python, identity.__file__, *files], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == code_digest(*(path.read_text(encoding="utf-8") for path in files))


def test_the_digests_of_the_scenarios_and_loops_are_these():
    digests = {name: find_scenario(name).digest for name in GOLDEN if name != "loops"}
    assert {**digests, "loops": loops_digest()} == GOLDEN


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Doc."""', '"""Otherwise."""'),
        ("import numpy as np\n", ""),
        ("from a.b import", "from other.place import"),
        ("c as d, e", "e, c as d"),
        ("x: int", "x"),
        ("1_000", "1000"),
        ("return a\n", "return a  # at last\n"),
        ("\ndef f", "\n\n\n# why\ndef f"),
        ('"" f"b', 'f"b'),
    ],
)
def test_a_digest_is_blind_to(before, after):
    assert before in TRICKY
    assert code_digest(TRICKY.replace(before, after)) == code_digest(TRICKY)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c as d", "c2 as d"),
        ("flag: bool = None", "flag: bool = False"),
        ("flag: bool = None", "flag: bool"),
        ("1_000", "1_000.0"),
        ("{**more,", "{None: more,"),
        ("{x!r:", "{x!s:"),
        ('"d"', '"e"'),
        ("%d.%m", "%d-%m"),
        ("x, *rest", "x, rest"),
        ("y, /, *", "y, *"),
        ("field: int", "field: float"),
        ("field: int = 3", "field: int = 4"),
        ("if i]", "if not i]"),
        ("    return a\n", ""),
        ("async def g", "async def h"),
    ],
)
def test_a_digest_sees(before, after):
    code = TRICKY.replace("x: int, *rest: str", "x, *rest")
    assert before in code
    assert code_digest(code.replace(before, after, 1)) != code_digest(code)


@pytest.mark.parametrize("trace", sorted(DATA.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_trace_of_version_1_is_replayed_where_the_same_acts_give_the_same_conversation(trace):
    if trace.stem == "customer_service" or trace.stem.endswith("-v1"):
        assert chatgym.replay(trace).conversations in (1, 2)
    else:  # other questions and rewards then; and words of a language model were understood by another NLU
        with pytest.raises(ReplayMismatch, match=r"another simulator .*sha256 .*, here .* install the version"):
            chatgym.replay(trace)


def test_a_trace_of_the_belief_of_an_earlier_version_is_refused_by_its_version(tmp_path):
    lines = (DATA / "customer_service.jsonl").read_text().replace('"observation":"text"', '"observation":"belief"', 1)
    assert '"observation":"belief"' in lines
    (tmp_path / "t.jsonl").write_text(lines)
    with pytest.raises(ReplayMismatch, match="install the version"):
        chatgym.replay(tmp_path / "t.jsonl")


def test_superseded_digests_belong_to_code_that_is_here():
    """If this fails for a change that can't alter a conversation, put the new digest in the old one's place."""
    assert set(SUPERSEDED) == {digest for name, digest in GOLDEN.items() if name not in SCENARIOS}


def recorded_by(version, here):
    """What an earlier version recorded for the identity of version 1: one hash in the places of three."""
    earlier = copy.deepcopy(here)
    for part in ("scenario", "simulator", "error_model", "reward"):
        now = here["content"] if part != "simulator" else here[part]["sha256"]
        earlier[part]["sha256"] = SUPERSEDED[now][version]
    return earlier


@pytest.mark.parametrize("version", range(4))
def test_an_earlier_identity_is_the_same_simulator_only_with_the_same_arguments(version):
    here = Task("customer_service-v1").identity()
    earlier = recorded_by(version, here)
    recorded = identity.identity_digest(earlier)
    assert recorded != here["sha256"]
    assert same_simulator(recorded, here)
    assert same_simulator(recorded, here, same_belief=True) == (version == 3)
    assert not same_simulator(recorded, Task("customer_service").identity())
    assert not same_simulator(recorded, Task("customer_service-v1", {"max_turns": 7}).identity())
    assert not same_simulator(recorded, Task("social-v1").identity())
    assert differences(earlier, Task("customer_service-v1", {"max_turns": 7}).identity()) == "max_turns 20, here 7"
    earlier["scenario"]["sha256"] = "0" * 64
    assert not same_simulator(identity.identity_digest(earlier), here)
    assert differences(earlier, here).startswith("scenario sha256 000000000000, here ")


@pytest.mark.parametrize(("name", "recorded"), RECORDED.items())
def test_what_was_recorded_with_one_hash_for_all_parts_is_recognised(name, recorded):
    assert same_simulator(recorded, Task(f"{name}-v1").identity())
    assert not same_simulator(recorded, Task(name).identity())


def test_scenario_error_model_and_reward_have_each_its_own_hash():
    scenario = find_scenario("customer_service")
    here, own = scenario.digests, {}
    assert len({*here.values(), scenario.digest}) == 4
    cheaper = {"reward_terms": {**scenario.reward_terms, "time": 0.01}}
    for changed in (cheaper, {"understand": scenario.hear}, {"expert": scenario.mask}, {"max_turns": 7}):
        there = dataclasses.replace(scenario, **changed).digests
        own[next(iter(changed))] = {part for part in here if here[part] != there[part]}
    assert own == {
        "reward_terms": {"reward"}, "understand": {"error_model"}, "expert": {"scenario"}, "max_turns": set(),
    }  # fmt: skip


def test_a_rate_of_the_error_channel_is_the_error_models_and_a_chance_of_the_partner_is_not(monkeypatch):
    def changed(module, name):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 0.123)
            return {part for part, digest in scenario.digests.items() if digest != here[part]}

    scenario = find_scenario("customer_service")
    here = scenario.digests
    assert changed(belief, "P_LOW_IF_WRONG") == {"scenario", "error_model"}  # `respond` hears by it
    assert changed(customer, "P_COMPLAINS") == {"scenario"}


def test_the_module_needs_nothing_but_the_standard_library(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["identity.py", rng.__file__, room.__file__])
    for name in [one for one in sys.modules if one.startswith(("chatgym", "numpy", "numba"))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "code_digest" in runpy.run_path(identity.__file__)


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    import json

    from chatgym.errors import InvalidValue
    from chatgym.training import Run, resume, train

    run = train("qlearning", tmp_path / "run", task=Task("customer_service-v1"), total_steps=200, conversations=20)
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    recorded = json.loads((DATA / "customer_service.jsonl").read_text().splitlines()[0])["identity"]["sha256"]
    earlier = {**config, "scenario": "customer_service"}  # then the newest version, so it was named without
    path.write_text(json.dumps({**earlier, "identity": {**config["identity"], "sha256": recorded}}))
    assert Run.open(run.folder).task.scenario == "customer_service-v1"
    assert resume(run.folder, total_steps=400).config["total_steps"] == 400
    path.write_text(json.dumps({**config, "identity": {**config["identity"], "sha256": "0" * 64}}))
    with pytest.raises(InvalidValue, match=r"another simulator .*sha256 000000000000, here"):
        resume(run.folder, total_steps=600)
    reward = {**config["identity"]["reward"], "sha256": "1" * 64}
    changed = {**config["identity"], "reward": reward, "sha256": "0" * 64}
    path.write_text(json.dumps({**config, "identity": changed}))
    with pytest.raises(InvalidValue, match=r"simulator \(reward sha256 111111111111, here \w{12}\); .*train again"):
        resume(run.folder, total_steps=600)


def test_a_run_records_the_identity_of_the_interface_that_its_agent_uses(tmp_path):
    from chatgym.training import Run, prepare
    from chatgym.training.run import find_agent

    for name in ("qlearning", "dqn", "ppo"):
        run, requires = prepare(name, tmp_path / name, total_steps=100), find_agent(name).requires
        recorded = run.config["identity"]
        assert (recorded["action"], recorded["observation"]) == (requires.action, requires.observation)
        assert [recorded[key] is None for key in ("nlu", "words")] == [name != "ppo"] * 2
        assert recorded == run.task.identity(requires)
        run.check_simulator("")
    # Version 1 recorded acts and beliefs for every agent.
    run = prepare("dqn", tmp_path / "first", total_steps=100, task=Task("customer_service-v1"))
    earlier = recorded_by(3, run.task.identity())
    earlier["sha256"] = identity.identity_digest(earlier)
    Run(run.folder, {**run.config, "identity": earlier}).check_simulator("")


def test_a_trace_of_changed_code_is_refused(monkeypatch):
    monkeypatch.setattr(identity, "SUPERSEDED", {})
    with pytest.raises(ReplayMismatch, match="another simulator"):
        chatgym.replay(DATA / "customer_service.jsonl")
