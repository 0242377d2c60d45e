"""Plugins are really built, installed with pip and found by their entry points, each time in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.2"

[project.entry-points.chatgym]
{entry_points}

[tool.setuptools]
py-modules = {modules}
"""

GOOD = """
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from chatgym.agent import Interface, setting
from chatgym.errors import Corrupted
from chatgym.hookspecs import hookimpl


class Bandit:
    '''Learns one act, the best whatever is said.'''

    requires = Interface(action="act", observation="embedding")
    default_steps = 2000

    @dataclass(frozen=True)
    class Config:
        num_envs: int = setting(50, "conversations at once", low=1)

    def __init__(self, scenario, config=None, *, seed=0):
        self.config, self.seed, self.turns = config or self.Config(), seed, 0
        self.totals, self.counts = np.zeros(len(scenario.agent_acts)), np.ones(len(scenario.agent_acts))

    def learn(self, make_envs, total_steps, callback):
        envs = make_envs(self.config.num_envs)
        envs.reset(seed=self.seed)
        generator = np.random.default_rng([self.seed, self.turns])
        while self.turns < total_steps:
            acts = generator.integers(len(self.counts), size=self.config.num_envs)
            rewards = envs.step(acts)[1]
            np.add.at(self.totals, acts, rewards)
            np.add.at(self.counts, acts, 1)
            self.turns += len(acts)
            callback(self.turns, {"best": float((self.totals / self.counts).max())})

    def act(self, observations, *, deterministic=True, action_masks=None):
        values = np.broadcast_to(self.totals / self.counts, action_masks.shape)
        return np.where(action_masks, values, -np.inf).argmax(1)

    def save(self, folder):
        state = [self.seed, self.turns, self.config.num_envs, self.totals.tolist(), self.counts.tolist()]
        (Path(folder) / "bandit.json").write_text(json.dumps(state))

    @classmethod
    def load(cls, folder):
        agent = cls.__new__(cls)
        try:
            agent.seed, agent.turns, envs, totals, counts = json.loads((Path(folder) / "bandit.json").read_text())
        except (OSError, ValueError) as error:
            raise Corrupted(f"{folder}: {error}") from error
        agent.config, agent.totals, agent.counts = cls.Config(envs), np.array(totals), np.array(counts)
        return agent


@hookimpl
def register_agents(register):
    register("bandit", Bandit)
    register("absent", "no_such_module_anywhere:Agent")
"""

BROKEN = {
    "at_import": 'raise ValueError("first line\\nand the second")',
    "at_exit": "raise SystemExit(3)",
    "in_hook": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_agents(register):
            register("half", object)

        @hookimpl
        def register_scenarios(register):
            raise KeyError("somewhere")
    """,
    "misspelt": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_agent(register):
            register("never", object)
    """,
    "clashing": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_agents(register):
            register("random", object)
            register("other", dict)
    """,
}

REPORT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import chatgym
    imported = sorted(sys.modules)
    from chatgym import plugins
    registry = plugins.load()
    plugins.load()
print(json.dumps({
    "imported": imported, "failures": registry.failures, "warnings": [str(one.message) for one in caught],
    "agents": list(registry.agents), "scenarios": list(registry.scenarios), "plugins": registry.plugins,
    "sources": {name: plugin for (kind, name), plugin in registry.sources.items() if kind == "agents"},
    "random": repr(registry.agents["random"]),
}))
"""


def install(tmp_path_factory, name, modules, entry_points):
    """Build a distribution with setuptools and install it with pip into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for module, code in modules.items():
        (source / f"{module}.py").write_text(textwrap.dedent(code))
    lines = "\n".join(f'{entry} = "{module}"' for entry, module in entry_points.items())
    (source / "pyproject.toml").write_text(
        PYPROJECT.format(name=name, entry_points=lines, modules=json.dumps(list(modules)))
    )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return install(tmp_path_factory, "chatgym-bandit", {"bandit_plugin": GOOD}, {"bandit": "bandit_plugin"})


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    modules = {f"broken_{name}": code for name, code in BROKEN.items()}
    entry_points = {f"x_{name}": f"broken_{name}" for name in BROKEN if name != "clashing"}
    entry_points |= {"a_clashing": "broken_clashing", "x_missing": "module_that_is_not_there"}
    return install(tmp_path_factory, "chatgym-broken", modules, entry_points)


def run(code, *folders, **environment):
    """Run Python code in a process that sees the plugins in `folders`, and return what it printed."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    kept = {name: value for name, value in os.environ.items() if name != "CHATGYM_LOAD_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, "PYTHONPATH": path, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(*folders, **environment):
    return json.loads(run(REPORT, *folders, **environment))


@pytest.fixture(scope="module")
def all_loaded(good, broken):
    return report(good, broken)


def test_an_installed_plugin_is_found_by_its_entry_point(all_loaded):
    assert "bandit" in all_loaded["agents"]
    assert all_loaded["plugins"]["bandit"] == "chatgym-bandit 1.2"
    assert all_loaded["sources"]["bandit"] == "bandit"
    assert all_loaded["sources"]["qlearning"] == "chatgym_agents"


def test_importing_chatgym_imports_neither_torch_nor_any_plugin(all_loaded):
    names = {module.partition(".")[0] for module in all_loaded["imported"]}
    assert not names & {"torch", "transformers", "numba", "chatgym_agents", "bandit_plugin", "broken_at_import"}
    assert "gymnasium" in names


def test_broken_plugins_are_reported_with_the_last_line_of_their_traceback_and_add_nothing(all_loaded):
    failures = dict(all_loaded["failures"])
    assert failures["x_at_import"] == "ValueError: first line"
    assert failures["x_at_exit"] == "SystemExit: 3"
    assert failures["x_in_hook"] == "KeyError: 'somewhere'"
    assert failures["x_missing"] == "ModuleNotFoundError: No module named 'module_that_is_not_there'"
    assert "unknown hook 'register_agent'" in failures["x_misspelt"]
    assert "Did you mean 'register_agents'?" in failures["x_misspelt"]
    assert not {"half", "never"} & set(all_loaded["agents"])
    assert not {"x_at_import", "x_at_exit", "x_in_hook", "x_missing", "x_misspelt"} & set(all_loaded["plugins"])


def test_a_clashing_name_stays_with_the_first_and_both_plugins_are_named(all_loaded):
    clash = dict(all_loaded["failures"])["a_clashing"]
    assert clash == (
        "agent 'random' is already registered by plugin 'chatgym_agents', which stays; uninstall or rename one of them"
    )
    assert "chatgym_agents.scripted.Random" in all_loaded["random"]
    assert all_loaded["sources"]["other"] == "a_clashing"


def test_one_warning_names_all_that_failed_and_nothing_else_is_hurt(all_loaded):
    (warning,) = all_loaded["warnings"]
    assert warning == (
        "plugins with a problem: a_clashing, x_at_exit, x_at_import, x_in_hook, x_missing, x_misspelt; "
        "`chatgym plugins` says which"
    )
    assert {"random", "expert", "qlearning", "bandit"} <= set(all_loaded["agents"])
    assert {"customer_service", "education"} <= set(all_loaded["scenarios"])


def test_without_broken_plugins_nothing_is_said(good):
    assert report(good)["failures"] == report(good)["warnings"] == []


def test_an_environment_variable_restricts_which_plugins_are_loaded(good, broken):
    chosen = report(good, broken, CHATGYM_LOAD_PLUGINS="bandit, a_clashing")
    assert set(chosen["plugins"]) == {"chatgym_agents", "bandit", "a_clashing"}
    none = report(good, broken, CHATGYM_LOAD_PLUGINS="")
    assert set(none["plugins"]) == {"chatgym_agents"}
    assert none["failures"] == none["warnings"] == []
    missing = report(good, CHATGYM_LOAD_PLUGINS="bandit,typo")
    assert missing["failures"] == [["typo", "named in CHATGYM_LOAD_PLUGINS, but not installed"]]
    assert "bandit" in missing["agents"]


TRAIN = """
import json, sys
from chatgym.training import Run, resume, train
from chatgym.evaluation import evaluate
folder = sys.argv[1] if len(sys.argv) > 1 else {folder!r}
run = train("bandit", folder, conversations=50, settings={{"num_envs": 20}}, seed=3)
again = evaluate(Run.open(folder).agent(), run.task, conversations=50, references=False)
resume(folder, total_steps=2500)
print(json.dumps([run.config["versions"]["plugin"], run.config["settings"], run.turns, len(again.returns),
                  Run.open(folder).agent().turns]))
"""


def test_an_agent_of_a_plugin_trains_evaluates_and_resumes_like_one_of_ours(good, tmp_path):
    said = run(TRAIN.format(folder=str(tmp_path / "run")), good)
    assert json.loads(said) == ["chatgym-bandit 1.2", {"num_envs": 20}, 2500, 50, 2500]
    assert {"config.json", "metrics.jsonl", "model", "curve.png", "transcripts.jsonl"} <= set(
        os.listdir(tmp_path / "run")
    )


ABSENT = """
from chatgym import Unavailable, plugins
agents = plugins.load().agents
assert "absent" in agents and len(agents) == len(list(agents))
try:
    agents["absent"]
except Unavailable as error:
    print(error)
"""


def test_a_thing_whose_module_is_missing_is_reported_when_it_is_used(good):
    said = run(ABSENT, good)
    assert "'absent' of plugin 'bandit' can't be imported from 'no_such_module_anywhere:Agent'" in said
    assert "install what it needs, or uninstall the plugin" in said


def test_a_plugin_is_gone_once_it_is_uninstalled():
    assert "bandit" not in report()["agents"]
