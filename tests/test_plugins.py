"""Plugins are really built, installed with pip and found by their entry points, each time in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from chatgym.engines import choose
from chatgym.plugins import RESERVED
from chatgym.rewards import choose as rewards_choose

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
            from bandit_plugin import Bandit

            register("random", object)
            register("other", Bandit)
    """,
    "syntax": "def register_agents(register):\n    register('x', (",
    "far": "import broken_syntax",
    "deep": """
        def broken():
            return {}["no such key"]

        broken()
    """,
    "undecorated": """
        def register_agents(register):
            register("never", object)
    """,
    "argumentless": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_scenarios():
            pass
    """,
    "renamed": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_agents(registry):
            registry("never", object)
    """,
    "hookless": "def register_agent(register): pass",
    "wrong_things": """
        from chatgym.hookspecs import hookimpl

        @hookimpl
        def register_agents(register):
            register("thing", object)
            register("late", "broken_wrong_things:hookimpl")

        @hookimpl
        def register_scenarios(register):
            register("no_scenario", {"acts": 3})
            register("late_scenario", "broken_wrong_things:hookimpl")

        @hookimpl
        def register_engines(register):
            register("hf", print)
            register("openai", print)
            register("a:b", print)
            register("not_callable", 3)

        @hookimpl
        def register_reward_models(register):
            register("judge", print)
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


def call(code, *folders, **environment):
    """Run Python code in a process that sees the plugins in `folders`; return exit status, stdout and stderr."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    kept = {name: value for name, value in os.environ.items() if name != "CHATGYM_LOAD_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, "PYTHONPATH": path, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def run(code, *folders, **environment):
    """Run Python code as `call` does, and return what it printed."""
    status, said, wrong = call(code, *folders, **environment)
    assert status == 0, wrong
    return said


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


def test_broken_plugins_are_reported_with_the_error_and_its_place_and_add_nothing(all_loaded, broken):
    failures = dict(all_loaded["failures"])
    for plugin, reason in {
        "at_import": ("ValueError: first line and the second", 1), "at_exit": ("SystemExit: 3", 1),
        "in_hook": ("KeyError: 'somewhere'", 10), "deep": ("KeyError: 'no such key'", 3),
    }.items():  # fmt: skip
        said, line = reason
        assert failures[f"x_{plugin}"] == f"{said} ({broken / f'broken_{plugin}.py'}, line {line})"
    for plugin in ("x_syntax", "x_far"):
        assert failures[plugin] == f"SyntaxError: '(' was never closed ({broken / 'broken_syntax.py'}, line 2)"
    assert failures["x_missing"] == "ModuleNotFoundError: No module named 'module_that_is_not_there'"
    assert "unknown hook 'register_agent'" in failures["x_misspelt"]
    assert "Did you mean 'register_agents'?" in failures["x_misspelt"]
    assert not {"half", "never"} & set(all_loaded["agents"])
    assert not {"x_at_import", "x_at_exit", "x_in_hook", "x_missing", "x_misspelt"} & set(all_loaded["plugins"])


def test_a_clashing_name_stays_with_the_first_and_both_plugins_are_named(all_loaded):
    clash = dict(all_loaded["failures"])["a_clashing"]
    assert clash == (
        "agent 'random' is already registered by plugin 'chatgym_agents', which stays; uninstall or rename one"
    )
    assert "chatgym_agents.scripted.Random" in all_loaded["random"]
    assert all_loaded["sources"]["other"] == "a_clashing"


def test_a_hook_that_would_never_be_called_is_reported(all_loaded):
    failures = dict(all_loaded["failures"])
    assert failures["x_undecorated"] == (
        "register_agents is never called: decorate it with @hookimpl from chatgym.hookspecs"
    )
    assert failures["x_argumentless"] == (
        "register_scenarios gets nothing to register with: write `def register_scenarios(register):`"
    )
    assert "Argument(s) {'registry'} are declared in the hookimpl but can not be found" in failures["x_renamed"]
    assert failures["x_hookless"] == (
        "broken_hookless has no hook; write one of register_agents, register_scenarios, register_engines, "
        "register_reward_models, decorated with @hookimpl"
    )


def test_what_can_never_be_used_is_reported_and_not_listed(all_loaded):
    said = [reason for plugin, reason in all_loaded["failures"] if plugin == "x_wrong_things"]
    assert said == [
        "agent 'thing' is no agent: it lacks `requires`, `Config`, `learn`, `act`, `save`, `load`; write what "
        "`chatgym.agent.Agent` says",
        "scenario 'no_scenario' is no `chatgym.scenarios.Scenario` but {'acts': 3}; register one",
        "engine 'hf' would never be used: hf:... means something already; rename it",
        "engine 'openai' would never be used: openai:... means something already; rename it",
        "engine 'a:b' can't be named on a command line; use letters, digits and _.+- only",
        "engine 'not_callable' can't be called: it is 3; register a function of the text after 'NAME:'",
        "reward model 'judge' would never be used: judge:... means something already; rename it",
    ]


def test_the_names_that_mean_something_already_are_all_reserved():
    assert set(choose.BUILT_IN) == RESERVED["engines"]
    assert set(rewards_choose._MAKERS) == RESERVED["reward_models"]


MAIN = "import sys; from chatgym.cli import main; sys.argv[1:] = {arguments!r}; main()"


def test_the_command_plugins_fails_if_one_is_broken(good, broken):
    code, said, _ = call(MAIN.format(arguments=["plugins", "--json"]), good, broken)
    listed = json.loads(said)
    assert code == 1
    assert {"bandit", "qlearning", "customer_service"} <= {one["name"] for one in listed["entries"]}
    reasons = {(one["plugin"], one["reason"].partition(" ")[0]) for one in listed["failures"]}
    assert {("bandit", "'absent'"), ("x_wrong_things", "'late'"), ("x_wrong_things", "'late_scenario'")} <= reasons
    assert not {"absent", "late", "late_scenario"} & {one["name"] for one in listed["entries"]}
    assert call(MAIN.format(arguments=["plugins"]), CHATGYM_LOAD_PLUGINS="")[0] == 0


def test_a_scenario_that_is_none_breaks_no_other(good, broken):
    code, said, _ = call(MAIN.format(arguments=["scenarios", "--json"]), good, broken)
    listed = {one["name"]: one for one in json.loads(said)}
    assert code == 0
    assert listed["customer_service"]["version"] == 2
    assert "is no `chatgym.scenarios.Scenario`" in listed["late_scenario"]["description"]
    code, _, said = call(MAIN.format(arguments=["evaluate", "exprt"]), good, broken)
    assert code == 2
    assert "Did you mean 'expert'?" in said


def test_one_warning_names_all_that_failed_and_nothing_else_is_hurt(all_loaded):
    (warning,) = all_loaded["warnings"]
    names = sorted(["a_clashing", "x_missing", *(f"x_{name}" for name in BROKEN if name != "clashing")])
    assert warning == f"plugins with a problem: {', '.join(names)}; `chatgym plugins` says which"
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


FAILING = """
from bandit_plugin import Bandit
from chatgym.hookspecs import hookimpl


def explode(turns):
    if turns >= 1000:
        return 1 / (turns - turns)


class Failing(Bandit):
    def learn(self, make_envs, total_steps, callback):
        def tell(turns, metrics):
            callback(turns, metrics)
            explode(turns)

        super().learn(make_envs, total_steps, tell)




@hookimpl
def register_agents(register):
    register("failing", Failing)


@hookimpl
def register_scenarios(register):
    import dataclasses

    from chatgym.scenarios.customer_service import SCENARIO

    register("shop", dataclasses.replace(SCENARIO, name="shop", earlier=()))
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return install(tmp_path_factory, "chatgym-failing", {"failing_plugin": FAILING}, {"failing": "failing_plugin"})


def chatgym(folder, arguments, *plugged):
    """Run the command line in a folder."""
    return call(f"import os; os.chdir({str(folder)!r}); " + MAIN.format(arguments=arguments.split()), *plugged)


def test_an_exception_in_an_agent_names_agent_plugin_checkpoint_and_how_to_go_on(good, failing, tmp_path):
    plugin = shutil.copytree(failing, tmp_path / "plugin")
    file = plugin / "failing_plugin.py"
    options = "--conversations 20 --evaluate-every 500"
    code, said, wrong = chatgym(tmp_path, f"train failing {options}", good, plugin)
    assert (code, said) == (1, "")
    *trace, error = wrong.splitlines()
    assert error == (
        "Error: the agent 'failing' of plugin 'failing' (chatgym-failing 1.2) failed with ZeroDivisionError: division "
        f"by zero ({file}, line 8); the last checkpoint, runs/failing/model, is after 1,000 turns; mend the agent, "
        "then go on with `chatgym train failing --run runs/failing --resume`"
    )
    assert trace[0] == "Traceback in the agent's code:"
    assert [line for line in trace if line.startswith("  File")][-1] == f'  File "{file}", line 8, in explode'
    assert trace[-1] == "ZeroDivisionError: division by zero"
    assert len(trace) < 16
    file.write_text(file.read_text().replace("(turns - turns)", "turns"))
    code, said, wrong = chatgym(tmp_path, "train failing --run runs/failing --resume", good, plugin)
    assert (code, wrong) == (0, "Resumed at turn 1,000 of 2,000\n")
    assert "2,000 turns" in said
    file.write_text(f"{file.read_text()}\nFailing.act = lambda self, *seen, **how: 1 / 0\n")
    for arguments in ("evaluate runs/failing --conversations 5", "sft --teacher runs/failing --from-scratch tiny"):
        code, said, wrong = chatgym(tmp_path, arguments, good, plugin)
        assert (code, said) == (1, "")
        assert wrong.count("\n") < 12
        assert wrong.endswith(
            "Error: the agent 'failing' of plugin 'failing' (chatgym-failing 1.2) failed with ZeroDivisionError: "
            f"division by zero ({file}, line {len(file.read_text().splitlines())}); mend the agent\n"
        )


def test_a_run_whose_plugin_is_gone_names_the_plugin(good, failing, tmp_path):
    for arguments in ("train bandit", "train qlearning --steps 2000 --scenario shop"):
        assert chatgym(tmp_path, f"{arguments} --conversations 20", good, failing)[0] == 0
    bandit, shop = (
        f"runs/{run} needs the {what} of the plugin chatgym-{name} 1.2, which isn't loaded here; install it, such as "
        f"by `pip install chatgym-{name}==1.2`, or let `chatgym plugins` say why"
        for run, what, name in (("bandit", "agent 'bandit'", "bandit"), ("qlearning", "scenario 'shop'", "failing"))
    )
    for arguments, told in {
        "train bandit --resume": bandit,
        "train --config runs/bandit/config.json --run again": bandit,
        "evaluate runs/bandit": bandit,
        "evaluate runs/qlearning": shop,
        "train qlearning --resume --steps 9000": shop,
    }.items():
        code, said, wrong = chatgym(tmp_path, arguments)
        assert (code, said) == (1, "")
        assert told in wrong
