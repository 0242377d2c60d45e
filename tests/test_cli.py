"""The command line: real commands over real runs of a few steps."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import pytest
from chatgym_agents.ppo import PPO
from chatgym_agents.qlearning import QLearning
from typer.testing import CliRunner

from chatgym import __version__, plugins
from chatgym.agent import setting
from chatgym.cli import SPINS, partner, terminal
from chatgym.cli.app import app
from chatgym.cli.evaluate import SEED
from chatgym.cli.play import find_acts
from chatgym.cli.show import WIDTH
from chatgym.cli.train import agent_command
from chatgym.dynamics import trace
from chatgym.engines import Completion
from chatgym.envs.task import Task
from chatgym.errors import Unavailable
from chatgym.evaluation import evaluate, evaluation, references, rollouts
from chatgym.evaluation.audit_policies import ending_acts
from chatgym.evaluation.recorder import Recorder
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.storage import model_store
from chatgym.training import Run
from chatgym.words.nlu import NLU, Understanding, nlu_of

SMALL = ("--steps", "20000", "--num-envs", "200", "--conversations", "40")
COMMAND = [sys.executable, "-c", "from chatgym.cli import main; main()"]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class Chatgym(Protocol):
    def __call__(self, *args: object, typed: str | None = None) -> Said: ...


@pytest.fixture
def chatgym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chatgym:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object, typed: str | None = None) -> Said:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=typed, prog_name="chatgym")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert CliRunner().invoke(app, ["train", "qlearning", "--run", str(folder), *SMALL]).exit_code == 0
    return folder


class Odd(QLearning):
    """An agent with a setting of each type."""

    default_steps: ClassVar[int] = 4000

    @dataclass(frozen=True)
    class Config(QLearning.Config):
        bold: bool = setting(True, "whether it dares")
        style: Literal["plain", "ornate"] = setting("plain", "how it talks")
        motto: str = setting("", "[red]what it says[/red]")
        limit: int | None = setting(None, "where it stops", low=1)
        seed: int = setting(5, "a name that the command has too")
        help: int = setting(2, "a name that every command has")
        json: Literal["yes", "no"] | None = setting(None, "a name that an option has and a parameter hasn't")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> plugins.Registry:
    """A registry that can be changed, with one more plugin and its agent."""
    known = plugins.load()
    changed = plugins.Registry(plugins={**known.plugins, "odd": "odd-agents 1.0"})
    for kind in plugins.KINDS:
        for name, source in getattr(known, kind).sources.items():
            changed._add(kind, name, getattr(known, kind)[name], source)
    changed._add("agents", "odd", Odd, "odd")
    monkeypatch.setattr(plugins, "load", lambda: changed)
    return changed


@pytest.fixture
def real_nlu() -> NLU:
    """NLU with its encoder in memory; without network and model there is none."""
    nlu = nlu_of(SCENARIO)
    try:
        nlu.understand(["hello"])
    except Unavailable as error:
        pytest.skip(str(error))
    return nlu


# -- Help and errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["train", "qlearning", "--help"], ["plugins"]])
def test_help_imports_no_torch(args: list[str]) -> None:
    code = (
        "import sys\nfrom chatgym.cli.app import app\n"
        f"try:\n    app({args!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
@pytest.mark.parametrize(("given", "spins"), [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_threads_of_torch_do_not_keep_a_core_from_others(given: dict[str, str], spins: str) -> None:
    code = (
        "import sys\nfrom chatgym.cli import main\nsys.argv = ['chatgym', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    import torch"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given, check=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ).stderr  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


def test_the_version_is_printed(chatgym: Chatgym) -> None:
    assert chatgym("--version").out == f"chatgym {__version__}\n"


def test_every_command_says_what_it_does(chatgym: Chatgym) -> None:
    lines = chatgym("--help").out.partition("Commands:")[2].splitlines()
    listed = [line.split()[0] for line in lines if line[2:3].strip()]
    commands = ["train", "evaluate", "play", "replay", "scenarios", "plugins", "pull"]
    assert [word for word in listed if word in commands] == commands
    for command in commands:
        assert len(chatgym(command, "--help").out.splitlines()) > 5


def test_train_help_lists_the_agents_and_imports_none(
    chatgym: Chatgym, registry: plugins.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry._add("agents", "broken", "no_such_module:Agent", "odd")
    said = chatgym("train", "--help")
    assert said.code == 0
    for line in ("qlearning  from chatgym", "broken     from odd-agents 1.0"):
        assert line in said.out
    assert chatgym("train", "broken").code == 1


def test_an_agent_s_settings_are_its_options(chatgym: Chatgym) -> None:
    text = " ".join(chatgym("train", "qlearning", "--help").out.split())
    for field in dataclasses.fields(QLearning.Config):
        assert f"--{field.name.replace('_', '-')} " in text
        assert field.metadata["help"][2:] in text
    assert "[default: 0.05; 0.0<=x<=1.0]" in text
    assert "--double / --no-double" in text


def test_options_of_each_type_reach_the_agent(chatgym: Chatgym, registry: plugins.Registry) -> None:
    text = chatgym("train", "odd", "--help").out
    assert "[red]what it says[/red]" in text
    options = ("--no-bold", "--style", "ornate", "--motto", "[b]hm[/b]", "--limit", 3, "--agent-seed", 8, "--seed", 9,
               "--agent-help", 4, "--agent-json", "no")  # fmt: skip
    assert chatgym("train", "odd", "--num-envs", 100, "--conversations", 20, *options).code == 0
    config = Run.open("runs/odd").config
    settings = config["settings"]
    assert config["seed"] == 9
    assert {name: settings[name] for name in ("bold", "style", "motto", "limit", "seed", "help", "json")} == {
        "bold": False, "style": "ornate", "motto": "[b]hm[/b]", "limit": 3, "seed": 8, "help": 4, "json": "no",
    }  # fmt: skip
    assert chatgym("train", "odd", "--style", "zzz").code == 2


@pytest.mark.parametrize("agent", [Odd, PPO])
def test_no_option_of_a_command_is_declared_twice(agent: Any) -> None:
    flags = [flag for one in agent_command("odd", agent).params for flag in (*one.opts, *one.secondary_opts)]
    assert len(flags) == len({"--help", *flags}) - 1


class Listing(QLearning):
    """An agent with a setting that no option can be made of."""

    @dataclass(frozen=True)
    class Config(QLearning.Config):
        layers: tuple[int, ...] = setting((64, 64), "sizes of the layers")


@pytest.mark.parametrize("args", [("train",), ("train", "--help"), ("tune",)])
def test_a_setting_that_can_t_be_an_option_is_refused_before_anything_begins(
    chatgym: Chatgym, registry: plugins.Registry, args: tuple[str, ...]
) -> None:
    registry._add("agents", "listing", Listing, "odd")
    said = chatgym(args[0], "listing", *args[1:])
    assert (said.code, said.out) == (2, "")
    assert "Listing.Config in test_cli is wrong: the setting `layers` is of type tuple[int, ...]. An option" in said.err
    assert "write several values as one str and split it" in said.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("train", "qlerning"), "Did you mean 'qlearning'?"),
        (("train", "random"), "chatgym evaluate random"),
        (("train", "qlearning", "--scenario", "customers"), "`chatgym scenarios` lists them"),
        (("evaluate", "exprt"), "Did you mean 'expert'?"),
        (("evaluate", "qlearning"), "chatgym train qlearning"),
        (("evaluate", "[red]x[/red]"), "'[red]x[/red]'"),
        (("evaluate", "expert", "--trace", "nowhere/t.jsonl"), "make it first"),
        (("evaluate", "expert", "--llm", "gpt"), "'template'"),
        (("play", "--as-partner"), "chatgym play RUN --as-partner"),
        (("play", "--scenario", "chess"), "unknown scenario 'chess'"),
        (("scenarios", "chess"), "'customer_service'"),
        (("pull", "gpt"), "'smollm2-135m'"),
        (("evaluate", "expert", "--reward-weight", "reward_model=1"), "known: 'mood', 'outcome'"),
        (("evaluate", "expert", "--reward-weight", "time=inf"), "finite number"),
        (("play", "--reward-weight", "tim=0"), "Did you mean 'time'?"),
        (("pull", "--check", "--force"), "choose one"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_remedy(chatgym: Chatgym, args: tuple[str, ...], named: str) -> None:
    said = chatgym(*args)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert named in said.err


def test_a_setting_out_of_range_is_refused(chatgym: Chatgym) -> None:
    said = chatgym("train", "qlearning", "--epsilon-start", "2")
    assert said.code == 2
    assert "--epsilon-start" in said.err
    assert not Path("runs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "scenarios"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "scenarios", "customer_service"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()


# -- train -------------------------------------------------------------------------------------------------------------


def test_training_leaves_a_run_folder_and_says_what_came_of_it(chatgym: Chatgym) -> None:
    said = chatgym("train", "qlearning", *SMALL, "--error-rate", "0.2", "--max-turns", "15", "--learning-rate", "0.4")
    assert (said.code, said.err) == (0, "")  # quiet: there is no terminal
    run = Run.open("runs/qlearning")
    assert {path.name for path in run.folder.iterdir()} >= {"config.json", "metrics.jsonl", "model", "curve.png"}
    assert run.config["arguments"] == {"error_rate": 0.2, "max_turns": 15}
    assert run.config["settings"]["learning_rate"] == 0.4
    assert run.config["settings"]["epsilon_end"] == 0.05
    last = run.metrics()[-1]
    for text in (
        "success rate",
        "mean return",
        "score",
        "95 % interval",
        "runs/qlearning",
        "chatgym evaluate runs/qlear",
    ):
        assert text in said.out
    score = f"{last['score']['value']:.1f} {last['score']['low']:.1f} to {last['score']['high']:.1f}"
    assert score in " ".join(said.out.split())


def test_a_second_run_into_the_same_folder_is_refused(chatgym: Chatgym, trained: Path) -> None:
    before = (trained / "config.json").read_bytes()
    said = chatgym("train", "qlearning", "--run", trained, *SMALL)
    assert said.code == 2
    assert "--resume" in said.err
    assert "--overwrite" in said.err
    assert (trained / "config.json").read_bytes() == before


def test_overwrite_replaces_a_run_and_resume_makes_it_longer(chatgym: Chatgym) -> None:
    assert chatgym("train", "qlearning", "--run", "r", *SMALL).code == 0
    assert chatgym("train", "qlearning", "--run", "r", *SMALL, "--seed", "1", "--overwrite").code == 0
    assert Run.open("r").config["seed"] == 1
    said = chatgym("train", "qlearning", "--run", "r", "--resume", "--steps", "30000")
    assert said.code == 0
    turns = Run.open("r").turns
    assert 30_000 <= turns < 30_000 + 1024
    assert f"{turns:,} turns" in said.out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("train", "qlearning", "--resume", "--seed", "3", "--double"), "leave out --seed, --double"),
        (("train", "qlearning", "--resume", "--steps", "10"), "turns already"),
        (("train", "odd", "--resume"), "chatgym train qlearning"),
    ],
)
def test_resume_changes_nothing_but_the_length(
    chatgym: Chatgym, registry: plugins.Registry, trained: Path, args: tuple[str, ...], named: str
) -> None:
    said = chatgym(*args, "--run", trained)
    assert said.code == 2
    assert named in said.err


def test_a_configuration_repeats_its_run(chatgym: Chatgym) -> None:
    assert chatgym("train", "qlearning", *SMALL, "--seed", "3", "--reward-weight", "time=0.03", "--double").code == 0
    said = chatgym("train", "--config", "runs/qlearning/config.json", "--run", "again", "--double", "--seed", 3)
    assert (said.code, said.err) == (0, "")
    first, again = Run.open("runs/qlearning"), Run.open("again")
    assert again.config == first.config
    untimed = [[{**line, "seconds": 0} for line in run.metrics()] for run in (first, again)]
    assert untimed[0] == untimed[1]
    assert (again.model / "tables.npz").read_bytes() == (first.model / "tables.npz").read_bytes()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--seed", "3"), "has --seed 0, not 3: leave out --seed, or train without --config"),
        (("--steps", "5", "--no-double", "--num-envs", "9"), "--steps 20000, not 5; --num-envs 200, not 9"),
        (("--scenario", "social", "--error-rate", "0.3"), "--scenario customer_service, not social; --error-rate 0.1"),
        (
            ("--reward-weight", "time=9", "--log", "csv"),
            f"time={SCENARIO.reward_terms['time']:g}, not time=9; --log none, not csv",
        ),
        (("--from-study", "s"), "leave out one"),
        (("--resume",), "leave out --config"),
        ((), "name another folder"),
    ],
)
def test_a_configuration_is_repeated_as_it_is(
    chatgym: Chatgym, trained: Path, args: tuple[str, ...], named: str
) -> None:
    said = chatgym("train", "--config", trained / "config.json", "--run", "again" if args else trained, *args)
    assert said.code == 2
    assert named in said.err
    assert not Path("again").exists()
    assert "trains qlearning, not dqn" in chatgym("train", "dqn", "--config", trained).err
    assert chatgym("train", "--config=nowhere/config.json").err.count("\n") == 1


def test_resuming_a_finished_run_prints_its_result_again(chatgym: Chatgym) -> None:
    first = chatgym("train", "qlearning", *SMALL)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    again = chatgym("train", "qlearning", "--resume")
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert chatgym("train", "qlearning", "--resume", "--steps", 20000, "--json").code == 0  # no more than it has
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    config = json.loads(Path("runs/qlearning/config.json").read_text())
    config["identity"]["sha256"] = "0" * 64
    Path("runs/qlearning/config.json").write_text(json.dumps(config))
    assert chatgym("train", "qlearning", "--resume").code == 0  # also where it couldn't be trained further
    assert chatgym("train", "qlearning", "--resume", "--steps", 30000).code == 2


def test_the_best_checkpoint_is_shown_and_measured(chatgym: Chatgym) -> None:
    said = chatgym("train", "qlearning", *SMALL, "--seed", "3")
    run = Run.open("runs/qlearning")
    best = run.best()
    assert best is not None
    assert f"Best checkpoint: after {best['turns']:,} turns" in said.out
    validation = ("--seed", run.config["validation_seed"], "--conversations", "40", "--json")
    for name, line in (("best", best), ("last", run.metrics()[-1])):
        found = json.loads(chatgym("evaluate", run.folder, "--checkpoint", name, *validation).out)
        assert found["agent"]["trained_turns"] == line["turns"]
        agent, seed = run.agent(name), run.config["validation_seed"]
        again = evaluate(agent, run.task, conversations=40, seed=seed, split="validation")
        assert dataclasses.asdict(again.mean_return) == line["mean_return"]
    found = json.loads(chatgym("evaluate", "--compare", run.folder, "expert", "--checkpoint", "best", *validation).out)
    assert found["provenance"]["runs/qlearning"]["trained_turns"] == best["turns"]
    assert "has no checkpoints" in chatgym("evaluate", "expert", "--checkpoint", "best").err


def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(tmp_path: Path, chatgym: Chatgym) -> None:
    run = tmp_path / "run"
    args = ["train", "qlearning", "--run", str(run), "--num-envs", "200", "--conversations", "40"]
    process = subprocess.Popen(
        [*COMMAND, *args, "--steps", str(10**12)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (run / "model").is_dir():  # until it trains
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == b""
    command = f"chatgym train qlearning --run {run} --resume"
    assert err.decode() == f"Interrupted; go on with `{command}`\n"
    more = Run.open(run).turns + 2000
    said = chatgym(*command.split()[1:], "--steps", more)
    assert said.code == 0
    assert Run.open(run).turns >= more


def test_on_a_terminal_a_bar_shows_speed_success_and_time_left(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if child == 0:
        environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
        args = ["train", "qlearning", "--run", str(tmp_path / "run"), "--steps", "60000", "--conversations", "40"]
        os.execve(sys.executable, [*COMMAND, *args], environment)
    shown = b""
    with contextlib.suppress(OSError):  # the child's end
        while data := os.read(terminal, 65536):
            shown += data
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for text in ("of 60,000 turns", "turns/s", "success ", "ETA"):
        assert text in shown.decode()


# -- evaluate and replay -----------------------------------------------------------------------------------------------


def test_evaluate_prints_what_evaluate_computes(chatgym: Chatgym, trained: Path) -> None:
    said = chatgym("evaluate", trained, "--conversations", 60, "--json")
    run = Run.open(trained)
    expected = evaluate(run.agent(), run.task, conversations=60).to_json()
    assert expected == {name: json.loads(said.out)[name] for name in expected}
    table = chatgym("evaluate", trained, "--conversations", 60).out
    figures = json.loads(said.out)
    assert f"{100 * figures['success_rate']['value']:.1f} %" in table
    assert f"{figures['score']['low']:.1f} to {figures['score']['high']:.1f}" in table
    for outcome, count in figures["outcomes"].items():
        assert any(line.split()[:2] == [outcome, str(count)] for line in table.splitlines())
    for cause, count in figures["failures"].items():
        assert any(line.split()[:1] == [cause] and str(count) in line.split() for line in table.splitlines())


def test_evaluate_can_let_an_agent_act_as_in_training(chatgym: Chatgym, trained: Path) -> None:
    run = Run.open(trained)
    best, sampled = (
        json.loads(chatgym("evaluate", trained, "--conversations", 60, "--json", *more).out)
        for more in ((), ("--sampled",))
    )
    expected = evaluate(run.agent(), run.task, conversations=60, deterministic=False).to_json()
    assert expected == {name: sampled[name] for name in expected} != {name: best[name] for name in expected}
    assert (sampled["sampled"], best["sampled"]) == (True, False)
    assert "--sampled" in chatgym("evaluate", "--compare", trained, "expert", "--sampled").err


def test_a_result_names_all_that_determines_it(chatgym: Chatgym, trained: Path) -> None:
    subprocess.run("git init -q . && git -c user.name=a -c user.email=b commit -q --allow-empty -m c", shell=True)
    line = ("evaluate", trained, "--conversations", 20, "--out", "there")
    printed = json.loads(chatgym(*line, "--json").out)
    first = Path("there/result.json").read_bytes()
    assert json.loads(first) == printed
    assert chatgym(*line).code == 0  # the same evaluation again
    assert Path("there/result.json").read_bytes() == first  # no date in it
    run, agent = Run.open(trained), printed["agent"]
    assert (agent["name"], agent["run"], agent["training_seed"]) == ("qlearning", str(trained), 0)
    assert (agent["settings"], agent["trained_turns"]) == (run.config["settings"], run.turns)
    assert agent["versions"]["training"] == run.config["versions"]
    assert agent["versions"]["evaluation"]["chatgym"] == __version__
    assert (printed["scenario"], printed["conversations"], printed["seed"]) == ("customer_service", 20, SEED)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert printed["commit"] == {"hash": head, "changed": False}
    scripted = json.loads(chatgym("evaluate", "expert", "--conversations", 2, "--json").out)["agent"]
    assert (scripted["name"], scripted["run"], scripted["training_seed"]) == ("expert", None, None)


def test_the_table_of_returns_has_a_line_for_each_conversation(chatgym: Chatgym, trained: Path) -> None:
    chatgym("evaluate", trained, "--conversations", 30, "--returns", "one.csv")
    chatgym("evaluate", "--compare", trained, "expert", "--conversations", 30, "--returns", "all.csv")
    one, both = (list(csv.DictReader(Path(name).read_text().splitlines())) for name in ("one.csv", "all.csv"))
    run = Run.open(trained)
    found = evaluate(run.agent(), run.task, conversations=30)
    assert [float(row["return"]) for row in one] == found.returns.tolist()
    assert [row["outcome"] for row in one] == found.outcomes.tolist()
    assert [int(row["seed"]) for row in one] == [SEED + number for number in range(30)]
    assert [int(row["turns"]) for row in one] == found.turns.tolist()
    assert sum(int(row["success"]) for row in one) == round(30 * found.success_rate.value)
    assert both[:30] == one
    assert {row["run"] for row in both[30:]} == {"expert"}
    assert len(both) == 60


FEW = ("--conversations", 5)


@pytest.mark.parametrize(
    ("line", "files"),
    [
        (("evaluate", "expert", *FEW, "--trace", "t.jsonl"), ("t.jsonl",)),
        (("evaluate", "expert", *FEW, "--returns", "r.csv"), ("r.csv",)),
        (("evaluate", "expert", *FEW, "--seed", 7, "--out", "there"), ("there/result.json", "there/transcripts.jsonl")),
        (("evaluate", "expert", *FEW, "--out", "there"), ("there/transcripts.jsonl",)),
        (("evaluate", "--compare", "expert", "random", *FEW), ("compare.png",)),
        (("evaluate", "--compare", "expert", "random", *FEW, "--picture", "c.pdf"), ("c.pdf",)),
        (("audit", "social", *FEW, "--worded", 0), ("audits/social/audit.json",)),
        (("reward", "pairs", "--conversations", 20, "--out", "pairs.jsonl"), ("pairs.jsonl",)),
        (("curve", "RUN"), ("curve.png",)),
        (("curve", "RUN", "--csv", "c.csv"), ("c.csv",)),
    ],
)
def test_nothing_that_is_there_is_replaced_unasked(
    chatgym: Chatgym, trained: Path, line: tuple[object, ...], files: tuple[str, ...]
) -> None:
    line = tuple(trained if word == "RUN" else word for word in line)
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    said = chatgym(*line)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--overwrite" in said.err
    assert files[0].rpartition("/")[0] in said.err
    assert all(Path(file).read_text() == "{}" for file in files)
    assert chatgym(*line, "--overwrite").code == 0
    assert all(Path(file).read_bytes() != b"{}" for file in files)


def test_the_transcripts_of_a_training_are_not_replaced_by_those_of_an_evaluation(
    chatgym: Chatgym, trained: Path
) -> None:
    before = (trained / "transcripts.jsonl").read_bytes()
    assert chatgym("evaluate", trained, *FEW, "--out", trained).code == 2
    assert (trained / "transcripts.jsonl").read_bytes() == before
    assert chatgym("evaluate", trained, *FEW, "--out", "there").code == 0
    said = chatgym("evaluate", trained, *FEW, "--error-rate", "0.3", "--out", "there")
    assert (said.code, "it differs in: error_rate (0.3, there 0.1), simulator" in said.err) == (2, True)


def test_the_default_seed_is_that_of_evaluations() -> None:
    assert SEED == evaluation.EVALUATION_SEED


def test_evaluate_can_change_the_error_rate_but_not_the_scenario(chatgym: Chatgym, trained: Path) -> None:
    said = chatgym("evaluate", trained, "--conversations", 20, "--error-rate", "0.0", "--json")
    assert json.loads(said.out)["identity"]["error_model"]["rate"] == 0.0
    assert chatgym("evaluate", trained, "--scenario", "chess").code == 2


def test_a_weight_of_a_reward_term_is_changed_on_the_command_line(chatgym: Chatgym, trained: Path) -> None:
    def figures(*more: object) -> Any:
        said = chatgym("evaluate", trained, "--conversations", "60", "--json", *more)
        return json.loads(said.out)

    plain, free = figures(), figures("--reward-weight", "time=0")
    assert free["mean_return"]["value"] == pytest.approx(
        plain["mean_return"]["value"] + SCENARIO.reward_terms["time"] * plain["mean_turns"]
    )
    assert free["identity"]["reward"]["weights"] == {**plain["identity"]["reward"]["weights"], "time": 0.0}
    small = ("--steps", "2000", "--num-envs", "200", "--conversations", "40")
    assert chatgym("train", "qlearning", *small, "--reward-weight", "time=0", "--reward-weight", "mood=1").code == 0
    assert Run.open("runs/qlearning").config["arguments"]["reward_weights"] == {"time": 0.0, "mood": 1.0}
    said = chatgym("evaluate", "runs/qlearning", "--conversations", "60", "--reward-weight", "mood=0")
    assert "reward weights 0 for time and 0 for mood" in said.out  # the run's other weights stay
    paid = chatgym("play", "--seed", "7", "--reward-weight", "time=100", typed="greet\nq\n")
    assert float(paid.out.split("greet, reward ")[1].split()[0].rstrip(")")) < -90
    assert chatgym("play", trained, "--as-partner", "--reward-weight", "time=1").code == 2


@pytest.mark.parametrize("agent", ["random", "expert"])
def test_a_trace_holds_the_conversations_evaluated_and_replays(
    chatgym: Chatgym, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    for module in (evaluation, rollouts):  # several chunks
        monkeypatch.setattr(module, "ROWS", 3)
    said = chatgym("evaluate", agent, "--conversations", 7, "--trace", "t.jsonl", "--json")
    figures = json.loads(said.out)
    lines = [json.loads(line) for line in Path("t.jsonl").read_text(encoding="utf-8").splitlines()]
    turns = [line for line in lines if line["type"] == "turn"]
    assert sum(line["reward"] for line in turns) / 7 == pytest.approx(figures["mean_return"]["value"])
    outcomes = [line["outcome"] for line in turns if "outcome" in line]
    assert {name: outcomes.count(name) for name in outcomes} == figures["outcomes"]
    again = chatgym("replay", "t.jsonl")
    assert again.code == 0
    assert f"7 conversations, {len(turns)} turns" in again.out
    assert f"SHA-256 {lines[-1]['sha256']}" in again.out


class Parrot:
    """An engine that always says the same."""

    identity = "parrot@1"

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        return [Completion(" Hello, is anybody there?", (), None, "stop") for _ in prompts]

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        return [[0.0] for _ in prompts]

    def close(self) -> None:
        pass


def test_with_a_model_the_words_are_reported_and_replay_without_it(
    chatgym: Chatgym, registry: plugins.Registry, real_nlu: NLU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path / "cache"))
    registry._add("engines", "parrot", lambda spec: Parrot(), "odd")
    said = chatgym("evaluate", "expert", "--conversations", 3, "--llm", "parrot:x", "--trace", "t.jsonl")
    assert said.code == 0
    rows = {line.split()[0]: line.split()[1] for line in said.out.splitlines() if len(line.split()) in (2, 3)}
    assert int(rows["candidates"]) > 0
    assert 0.0 < float(rows["accepted"]) < 100.0  # it greets well, and nothing else
    assert int(rows["greet"]) == 1
    del registry.engines._things["parrot"]
    assert chatgym("replay", "t.jsonl").code == 0
    figures = json.loads(chatgym("evaluate", "expert", "--conversations", 3, "--json").out)
    assert "wording" not in figures


def test_show_lists_conversations_and_explains_one(chatgym: Chatgym) -> None:
    made = ("evaluate", "expert", "--conversations", 60, "--error-rate", 0.3, "--trace", "t.jsonl", "--json")
    figures = json.loads(chatgym(*made).out)
    listed = json.loads(chatgym("show", "t.jsonl", "--json").out)["conversations"]
    assert len(listed) == 60
    assert sum(one["return"] for one in listed) / 60 == pytest.approx(figures["mean_return"]["value"])
    for cause, count in figures["failures"].items():
        chosen = json.loads(chatgym("show", "t.jsonl", "--cause", cause, "--json").out)["conversations"]
        assert len(chosen) == count > 0
        number = chosen[0]["number"]
        said, one = chatgym("show", "t.jsonl", number), json.loads(chatgym("show", "t.jsonl", number, "--json").out)
        assert (said.code, "\x1b" in said.out) == (0, False)
        assert max(map(len, said.out.splitlines())) <= WIDTH
        words = " ".join(said.out.split())
        for text in (f"seed {chosen[0]['seed']}", one["goal"], f"outcome {one['outcome']}", f"{cause} {one['why']}"):
            assert text in words
        garbled = [turn for turn in one["turns"] if turn["garbled"]]
        assert len(garbled) == chosen[0]["garbled"] == said.out.count("\n    garbled") - (cause == "garbled")
        assert all(turn["text"] in words and turn["agent_text"] in words for turn in one["turns"])
    failed = chatgym("show", "t.jsonl", "--failed").out
    assert f"{sum(figures['failures'].values())} of 60 conversations" in failed


def test_show_puts_the_experts_act_beside_the_agents(chatgym: Chatgym, trained: Path) -> None:
    assert "10 of 10 conversations" in chatgym("show", trained).out
    one = json.loads(chatgym("show", trained, 2, "--json").out)
    unlike = [turn for turn in one["turns"][1:] if turn["agent_act"] != turn["expert_act"]]
    said = chatgym("show", trained, 2).out
    assert unlike
    assert all(f"expert    {turn['expert_act']} instead of {turn['agent_act']}" in said for turn in unlike)
    assert "time -0.02" in said


def test_show_reads_files_from_before_beliefs_were_recorded(chatgym: Chatgym, trained: Path) -> None:
    chatgym("evaluate", "expert", "--conversations", 5, "--trace", "t.jsonl")
    lines = [json.loads(line) for line in Path("t.jsonl").read_text(encoding="utf-8").splitlines()][:-1]
    lines[0]["version"] = 1
    old = [{name: value for name, value in line.items() if name not in trace.ACCOUNT} for line in lines]
    for identity, known in ((lines[0]["identity"]["sha256"], True), ("0" * 64, False)):
        old[0]["identity"]["sha256"] = identity
        text = "".join(map(trace.encode_line, old))
        seal = {"type": "end", "sha256": hashlib.sha256(text.encode()).hexdigest()}
        Path("old.jsonl").write_text(text + trace.encode_line(seal), encoding="utf-8")
        assert ("believes" in chatgym("show", "old.jsonl", 1).out) == known
        assert ("Beliefs are missing" in chatgym("show", "old.jsonl", 1).out) != known
        assert ("another simulator" in chatgym("show", "old.jsonl", "--failed").err) != known
    keys = {"role", "act", "text", "reward"}
    transcripts = [json.loads(line) for line in (trained / "transcripts.jsonl").read_text("utf-8").splitlines()]
    for one in transcripts:
        one["turns"] = [{name: value for name, value in turn.items() if name in keys} for turn in one["turns"]]
    Path("transcripts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in transcripts), encoding="utf-8")
    assert "Beliefs are missing" in chatgym("show", ".", 1).out


def test_show_says_what_it_cannot_show(chatgym: Chatgym) -> None:
    chatgym("evaluate", "expert", "--conversations", 2, "--trace", "t.jsonl")
    Path("bad.jsonl").write_text('{"turns": []}\n', encoding="utf-8")
    Path("changed.jsonl").write_text(Path("t.jsonl").read_text("utf-8").replace("-0.02", "-0.03", 1), encoding="utf-8")
    for call, code, words in (
        (("nowhere.jsonl",), 2, "--trace FILE"), ((".",), 2, "--out FOLDER"), (("t.jsonl", 3), 2, "from 1 to 2"),
        (("t.jsonl", 1, "--failed"), 2, "leave them out"), (("t.jsonl", "--cause", "luck"), 2, "'patience'"),
        (("t.jsonl", "--outcome", "reslved"), 2, "Did you mean 'resolved'?"), (("bad.jsonl",), 1, "line 1"),
        (("changed.jsonl",), 1, "the file was changed"),
    ):  # fmt: skip
        said = chatgym("show", *call)
        assert (said.code, said.out) == (code, "")
        assert words in said.err


def test_a_changed_trace_is_an_error(chatgym: Chatgym) -> None:
    said = chatgym("evaluate", "expert", "--conversations", 2, "--trace", "t.jsonl")
    assert "chatgym replay t.jsonl" in said.out
    trace = Path("t.jsonl")
    trace.write_text(trace.read_text(encoding="utf-8").replace('"reward":-0.02', '"reward":-0.03', 1), encoding="utf-8")
    said = chatgym("replay", "t.jsonl")
    assert (said.code, said.out) == (1, "")
    assert "reward is -0.03, the replay gave -0.02" in said.err


def test_what_is_no_trace_is_refused(chatgym: Chatgym, trained: Path) -> None:
    for path in (trained / "transcripts.jsonl", trained / "curve.png"):
        said = chatgym("replay", path)
        assert said.code == 2
        assert "is no ChatGym trace" in said.err
    assert chatgym("replay", "nowhere.jsonl").code == 2


def test_a_recorder_gives_each_conversation_its_own_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "ROWS", 2)
    import numpy as np

    class Counting:
        requires: Any = None

        def act(self, observations: Any) -> Any:
            return observations

    recorder: Any = Recorder(Counting())  # type: ignore[arg-type]
    for call in ([1, 10], [2, 20], [0, 30], [100]):
        recorder.act(np.array(call))
    assert list(recorder.conversations(np.array([2, 3, 1]))) == [1, 2, 10, 20, 30, 100]


# -- play --------------------------------------------------------------------------------------------------------------


def test_acts_are_found_by_number_name_and_beginning() -> None:
    acts = ("ask", "ask_topic", "ask_date", "close")
    assert find_acts("3", acts) == [3]
    assert find_acts("ask", acts) == [0]
    assert find_acts("ask_", acts) == [1, 2]
    assert find_acts("Ask Date", acts) == [2]
    assert find_acts("4", acts) == find_acts("x", acts) == find_acts("", acts) == []


def test_a_person_plays_a_conversation_to_its_end(chatgym: Chatgym) -> None:
    said = chatgym("play", "--seed", 4, typed="?\nask\nnonsense\n2\nclo\n")
    assert said.code == 0
    assert "ask_topic, ask_reference" in said.out
    assert "There is no act 'nonsense'" in said.out
    assert "check_satisfaction   (makes no sense now)" in said.out
    assert "(ask_reference, reward -0.0" in said.out
    assert "Outcome: abandoned" in said.out
    assert "in 2 turns" in said.out
    assert "had in mind: " in said.out
    assert chatgym("play", "--seed", 4, typed="?\nask\nnonsense\n2\nclo\n").out == said.out


@pytest.mark.parametrize(
    ("scenario", "typed", "heard"),
    [
        ("customer_service", "hi, what can i do for you", "heard  ask_topic: "),
        ("customer_service", "so your number is 123456, right?", "heard  confirm: about reference"),
        ("education", "what do you wanna learn today", "heard  ask_goal: "),
        ("social", "whats troubling you?", "heard  ask_problem: "),
        ("education", "bananas are great in the summer", "heard  nothing that was understood"),
    ],
)
def test_who_plays_in_their_own_words_is_told_what_was_heard(
    chatgym: Chatgym, scenario: str, typed: str, heard: str
) -> None:
    said = chatgym("play", "--scenario", scenario, "--action", "text", "--seed", 3, typed=f"?\n\n{typed}\nq\n")
    assert said.code == 0
    assert typed in said.out
    assert heard in said.out


def test_the_question_that_a_tutor_really_asked_is_shown(chatgym: Chatgym) -> None:
    typed = "what do you wanna learn today\nan easy one: what is 7 times 8?\nq\n"
    said = chatgym("play", "--scenario", "education", "--action", "text", "--seed", 3, typed=typed)
    asked = said.out.split("heard  ask_easy: ")[1].splitlines()[0]
    assert "?" in asked
    assert "7 times 8" not in asked


@pytest.mark.parametrize("typed", ["1\n", "1\nq\n", ""])
def test_leaving_early_is_polite(chatgym: Chatgym, typed: str) -> None:
    said = chatgym("play", typed=typed)
    assert said.code == 0
    assert "You left before the end" in said.out
    assert "Outcome" not in said.out
    assert "had in mind" not in said.out


def test_ctrl_c_while_playing_ends_with_130(chatgym: Chatgym, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert chatgym("play").code == 130


class Scripted:
    """NLU that knows a few lines."""

    LINES: ClassVar[dict[str, Understanding]] = {
        "hello": Understanding("greet", "greet", {}, 0.9),
        "my parcel is late": Understanding("state_problem", "state_problem/late_delivery", {}, 0.9),
        "482913": Understanding("inform", "inform/reference", {"reference": 482913}, 0.8),
        "this is a disgrace": Understanding("complain", "complain", {}, 0.9),
        "bye": Understanding("bye", "bye", {}, 0.9),
    }

    def understand(self, texts: list[str]) -> list[Understanding]:
        return [self.LINES.get(text, Understanding("unclear", "", {}, 0.1)) for text in texts]


@pytest.fixture
def expert_run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose agent is the expert, so that its answers are known."""
    expert = plugins.load().agents["expert"](SCENARIO)
    monkeypatch.setattr(Run, "agent", lambda self: expert)
    monkeypatch.setattr(partner, "nlu_of", lambda scenario: Scripted())
    return trained


def test_as_partner_the_agent_answers_to_what_was_understood(chatgym: Chatgym, expert_run: Path) -> None:
    said = chatgym("play", expert_run, "--as-partner", typed="hello\nmy parcel is late\n482913\nbye\n")
    assert said.code == 0
    acts = [line.rpartition("(")[2] for line in said.out.splitlines() if line.startswith("    agent")]
    assert acts == ["greet)", "ask_reference)", "ask_date)"]  # it knew nothing before it was told
    assert "understood: inform/reference, reference 482913 (80%)" in said.out
    assert "You left after 3 turns" in said.out


def test_as_partner_what_is_unclear_is_asked_again_and_changes_nothing(chatgym: Chatgym, expert_run: Path) -> None:
    said = chatgym("play", expert_run, "--as-partner", typed="blub\nmy parcel is late\n")
    assert partner.ASK_AGAIN in said.out
    assert "(ask_reference)" in said.out
    assert said.out.rstrip().endswith("You left.")


def test_as_partner_the_agent_remembers_what_it_said(chatgym: Chatgym, expert_run: Path) -> None:
    said = chatgym("play", expert_run, "--as-partner", typed="my parcel is late\nthis is a disgrace\n482913\n")
    acts = [line.rpartition("(")[2] for line in said.out.splitlines() if line.startswith("    agent")]
    assert acts == ["ask_reference)", "apologise)", "ask_date)"]  # one apology, for one complaint


def test_as_partner_a_conversation_ends_when_the_agent_ends_it() -> None:
    ends = [act for act, last in zip(SCENARIO.agent_acts, ending_acts(SCENARIO), strict=True) if last]
    assert ends == ["escalate", "close"]


def test_as_partner_words_are_understood_by_the_real_nlu(chatgym: Chatgym, trained: Path, real_nlu: NLU) -> None:
    said = chatgym("play", trained, "--as-partner", typed="hello\nMy order number is 482913.\nq\n")
    assert "understood: greet" in said.out
    assert "understood: inform/reference, reference 482913" in said.out


def test_as_partner_other_words_than_one_s_own_are_refused(chatgym: Chatgym, trained: Path) -> None:
    assert chatgym("play", trained, "--as-partner", "--llm", "smollm2-135m").code == 2


# -- plugins, scenarios, pull ------------------------------------------------------------------------------------------


def test_plugins_lists_things_with_their_plugin_and_failures_with_the_reason(
    chatgym: Chatgym, registry: plugins.Registry
) -> None:
    registry.failures.append(("sad", "ImportError: [red]no module[/red]"))
    said = chatgym("plugins")
    assert (said.code, said.err) == (1, "")
    rows = [line.split() for line in said.out.splitlines()]
    assert ["agent", "odd", "odd", "odd-agents", "1.0"] in rows
    assert ["scenario", "customer_service", "chatgym_agents", "chatgym", __version__] in rows
    assert "ImportError: [red]no module[/red]" in said.out


def test_scenarios_lists_them_and_shows_one(chatgym: Chatgym) -> None:
    assert SCENARIO.description in chatgym("scenarios").out
    text = " ".join(chatgym("scenarios", "customer_service").out.split())
    for one in (*SCENARIO.agent_acts, *SCENARIO.user_acts, *SCENARIO.outcomes, *SCENARIO.reward_terms):
        assert one in text
    found = references(Task())
    assert f"expert {100 * found.expert_success:.1f} % {found.expert_return:.3f} 100.0" in text


def test_a_scenario_that_can_t_be_imported_is_listed_with_the_reason(
    chatgym: Chatgym, registry: plugins.Registry
) -> None:
    registry._add("scenarios", "moon", "no_such_module:MOON", "odd")
    said = chatgym("scenarios")
    assert said.code == 0
    assert "can't be imported" in said.out


def test_measure_stores_references_of_this_simulator(
    chatgym: Chatgym, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "references.json"
    monkeypatch.setattr(sys.modules["chatgym.evaluation.references"], "_path", lambda task: stored)
    said = chatgym("scenarios", "customer_service", "--measure")
    assert said.code == 0
    assert str(stored) in said.out
    found = json.loads(stored.read_text(encoding="utf-8"))
    assert found["identity"] == Task().identity()["sha256"]
    assert f"{found['expert_return']:.3f}" in said.out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, offline."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CHATGYM_CACHE", str(folder))
    monkeypatch.setenv("CHATGYM_OFFLINE", "1")
    return folder


def _put_model(cache: Path, name: str, size: int) -> Path:
    folder = cache / "models" / name
    folder.mkdir(parents=True)
    weights = folder / model_store.WEIGHTS
    weights.write_bytes(bytes(size))
    files = {model_store.WEIGHTS: {"size": size, "sha256": model_store.sha256(weights)}}
    manifest = {"wheel_sha256": model_store.MODELS[name].sha256, "files": files}
    (folder / model_store.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return weights


def test_pull_prints_folder_and_size_of_what_is_here(chatgym: Chatgym, cache: Path) -> None:
    weights = _put_model(cache, "all-minilm-l6-v2", 3_000_000)
    for args, last in (((), str(weights.parent)), (("--check",), "as unpacked")):
        said = chatgym("pull", "all-minilm-l6-v2", *args)
        assert said.code == 0
        assert "3 MB" in said.out
        assert said.out.rstrip().endswith(last)


def test_check_finds_a_changed_byte(chatgym: Chatgym, cache: Path) -> None:
    weights = _put_model(cache, "all-minilm-l6-v2", 1000)
    weights.write_bytes(bytes(999) + b"x")
    assert chatgym("pull", "all-minilm-l6-v2").code == 0  # which looks at sizes only
    said = chatgym("pull", "all-minilm-l6-v2", "--check")
    assert (said.code, said.out) == (1, "")
    assert "chatgym pull --force all-minilm-l6-v2" in said.err


def test_pull_goes_on_with_the_other_models_and_fails_in_the_end(chatgym: Chatgym, cache: Path) -> None:
    _put_model(cache, "all-minilm-l6-v2", 1000)
    said = chatgym("pull")
    assert said.code == 1
    assert "all-minilm-l6-v2" in said.out
    assert "CHATGYM_OFFLINE" in said.err
    assert said.err.count("\n") == 1


def test_without_a_terminal_progress_is_a_line_a_minute_of_the_first_process(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.01)

    def shown(done):
        with terminal.progress_bar("ppo", 5000, "turns", done) as progress:
            progress(2500, {"iteration": 3.0, "reference_kl": 0.0125})
            time.sleep(0.2)
        return capsys.readouterr().err.splitlines()

    lines = shown(0)
    assert len(lines) > 1
    assert set(lines) == {"ppo: 2,500 of 5,000 turns after 0:00 h, about 0:00 h left, iteration 3, reference_kl 0.0125"}
    first, *_ = shown(1200)
    assert first == "Resumed at turn 1,200 of 5,000"
    monkeypatch.setenv("RANK", "1")
    assert shown(1200) == []
