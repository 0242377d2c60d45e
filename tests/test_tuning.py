"""Tuning: real studies over a toy agent whose value is known, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import optuna
import pytest
from chatgym_agents.dqn import DQN
from chatgym_agents.qlearning import QLearning
from test_cli import Chatgym, chatgym
from typer.testing import CliRunner

from chatgym import plugins
from chatgym.agent import Interface, Range, setting
from chatgym.cli.app import app
from chatgym.errors import AgentFailed, Corrupted, InvalidValue, Unavailable
from chatgym.training import Run, study_storage, tuning
from chatgym.training.search_space import grid, points, search_space
from chatgym.training.study import Plan, best_settings, finished
from chatgym.training.study_plot import MEASURES, mean_values
from chatgym.training.tuning import PLACE, tune

__all__ = ["chatgym"]  # a fixture


class Toy:
    """Closes at once in a share of the conversations that is least where x is 0.3 and y is 2: known best settings."""

    requires: ClassVar[Interface] = Interface(action="act", observation="discrete")
    default_steps: ClassVar[int] = 100
    pause: ClassVar[float] = 0.0
    trained: ClassVar[list[tuple[float, int, int]]] = []

    @dataclass(frozen=True)
    class Config:
        """What is tuned."""

        x: float = setting(0.1, "best at 0.3", low=0.0, high=1.0, tune=Range(0.0, 1.0, points=11))
        y: int = setting(1, "best at 2", low=0, high=9, tune=(1, 2, 3))
        style: Literal["plain", "ornate"] = setting("plain", "no matter")
        bold: bool = setting(True, "no matter")
        free: float = setting(0.5, "not tuned by itself")

    def __init__(self, scenario: Any, config: Any = None, *, seed: int = 0) -> None:
        self.scenario, self.config, self.seed = scenario, config or self.Config(), seed

    def learn(self, make_envs: Any, total_steps: int, callback: Any) -> None:
        """Report in ten steps."""
        self.trained.append((self.config.x, self.config.y, self.seed))
        for turns in range(total_steps // 10, total_steps + 1, total_steps // 10):
            time.sleep(self.pause)
            callback(turns, {})

    def act(self, observations: Any, *, deterministic: bool = True, action_masks: Any = None) -> Any:
        """Close after a greeting, or at once: the mean return falls linearly with the distance from the best."""
        badness = min(1.0, abs(self.config.x - 0.3) + 0.1 * abs(self.config.y - 2))
        acts = np.full(len(observations), self.scenario.agent_acts.index("close"))
        acts[: int(badness * len(acts))] = self.scenario.agent_acts.index("greet")
        return acts

    def save(self, folder: Path) -> None:
        """Write the configuration."""
        (folder / "agent.json").write_text(json.dumps([self.config.x, self.config.y]))

    @classmethod
    def load(cls, folder: Path) -> Toy:
        """Read it."""
        x, y = json.loads((folder / "agent.json").read_text())
        return cls(None, cls.Config(x=x, y=y))


def register(registry: plugins.Registry) -> None:
    registry.plugins["toys"] = "toys 1.0"
    registry._add("agents", "toy", Toy, "toys")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toy."""
    known = plugins.load()
    changed = plugins.Registry(plugins=dict(known.plugins))
    for kind in plugins.KINDS:
        for name, source in getattr(known, kind).sources.items():
            changed._add(kind, name, getattr(known, kind)[name], source)
    register(changed)
    monkeypatch.setattr(plugins, "load", lambda: changed)
    monkeypatch.setattr(Toy, "trained", [])


def plan(method: str = "grid", params: tuple[str, ...] = ("x=0.1,0.3,0.5", "y"), **more: Any) -> Plan:
    return Plan("toy", search_space(Toy.Config, params), method=method, steps=100, conversations=40, **more)


def places(study: optuna.Study) -> list[int]:
    return sorted(trial.user_attrs[PLACE] for trial in study.get_trials(states=tuning.DONE))


# -- The space ---------------------------------------------------------------------------------------------------------


def test_the_space_is_what_the_config_declares() -> None:
    assert search_space(Toy.Config) == {"x": Range(0.0, 1.0, points=11), "y": (1, 2, 3)}
    assert {"learning_rate", "discount_factor", "double"} <= search_space(QLearning.Config).keys()
    assert {"learning_rate", "discount_factor", "n_steps"} <= search_space(DQN.Config).keys()


def test_params_name_settings_values_and_ranges() -> None:
    space = search_space(Toy.Config, ("y", "x=0.1,1", "free=1e-4:1e-2:log", "style=ornate,plain", "bold=true,false"))
    assert space == {
        "y": (1, 2, 3), "x": (0.1, 1.0), "free": Range(1e-4, 1e-2, log=True), "style": ("ornate", "plain"),
        "bold": (True, False),
    }  # fmt: skip
    assert search_space(Toy.Config, ("y=1:4",)) == {"y": Range(1, 4)}
    assert all(type(value) is int for value in points(search_space(Toy.Config, ("y=1:4",))["y"]))


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("z=1", "unknown setting 'z'"), ("free", "free declares no range"), ("x=a", "of type float, not 'a'"),
        ("x=0.5,2", "x is 2.0; allowed is 0.0 to 1.0"), ("y=1.5", "of type int"), ("bold=yes", "true or false"),
        ("style=loud", "one of plain, ornate"), ("x=0.5:0.1", "is no range"), ("free=0:1:log", "is no range"),
        ("x=0:1:2", "is no range"), ("x=0:3", "x is 3.0; allowed"),
    ],
)  # fmt: skip
def test_what_can_not_be_tuned_so_is_refused(param: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        search_space(Toy.Config, (param,))


def test_a_config_that_declares_nothing_needs_params() -> None:
    @dataclass(frozen=True)
    class Plain:
        x: float = 0.5

    with pytest.raises(InvalidValue, match="--param name=1,2,3"):
        search_space(Plain)
    assert search_space(Plain, ("x=1,2",)) == {"x": (1.0, 2.0)}


def test_a_grid_has_every_combination_and_a_range_its_points() -> None:
    assert grid({"a": (1, 2), "b": ("u", "v")}) == [
        {"a": 1, "b": "u"}, {"a": 1, "b": "v"}, {"a": 2, "b": "u"}, {"a": 2, "b": "v"},
    ]  # fmt: skip
    assert points(Range(0.0, 1.0, points=5)) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert points(Range(1e-4, 1e-1, log=True, points=4)) == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1))
    assert points(Range(1, 3, points=9)) == (1, 2, 3)
    with pytest.raises(InvalidValue, match="2,401 points"):
        grid(dict.fromkeys("abcd", tuple(range(7))))


# -- Studies -----------------------------------------------------------------------------------------------------------


def test_a_grid_tries_each_point_once_and_finds_the_best(tmp_path: Path) -> None:
    study = tune(plan(), tmp_path / "study")
    assert places(study) == list(range(9))
    assert Counter(Toy.trained) == Counter({(x, y, 0): 1 for x in (0.1, 0.3, 0.5) for y in (1, 2, 3)})
    assert finished(study)[0].params == {"x": 0.3, "y": 2}
    best = json.loads((tmp_path / "study" / "best.json").read_text())
    assert (best["settings"], best["mean_return"]) == ({"x": 0.3, "y": 2}, study.best_value)
    assert (best["scenario"], best["arguments"], best["steps"], best["seeds"]) == ("customer_service", {}, 100, [0])
    rows = list(csv.DictReader((tmp_path / "study" / "trials.csv").open()))
    assert len(rows) == 9
    assert max(rows, key=lambda row: float(row["trial_mean_return"]))["x"] == "0.3"
    assert (tmp_path / "study" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_heat_map_shows_each_point_where_it_belongs(tmp_path: Path) -> None:
    lopsided = plan(params=("x=0.1,0.3,0.6", "y=1,2,4"))
    study = tune(lopsided, tmp_path / "study")
    shares, table = (mean_values(study, lopsided, ["x", "y"], measure) for measure in MEASURES)
    assert table.shape == (3, 3)
    assert np.unravel_index(table.argmax(), table.shape) == (1, 1)
    for trial in study.trials:
        at = (1, 2, 4).index(trial.params["y"]), (0.1, 0.3, 0.6).index(trial.params["x"])
        assert (table[at], shares[at]) == (trial.value, 100 * trial.user_attrs["success_rate"])


def test_a_trial_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    tune(plan(params=("x=0.2,0.3",), seeds=(4, 5)), tmp_path / "study")
    assert sorted(Toy.trained) == [(0.2, 1, 4), (0.2, 1, 5), (0.3, 1, 4), (0.3, 1, 5)]


def test_the_table_of_trials_has_a_row_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = Toy.act

    def by_seed(self: Toy, observations: Any, **how: Any) -> Any:
        return act(self, observations, **how) if self.seed == 4 else np.zeros(len(observations), int)

    monkeypatch.setattr(Toy, "act", by_seed)
    study = tune(plan(params=("x=0.2,0.3",), seeds=(4, 5)), tmp_path / "study")
    rows = list(csv.DictReader((tmp_path / "study" / "trials.csv").open()))
    assert [(row["x"], row["seed"], row["turns"]) for row in rows] == [
        ("0.2", "4", "100"), ("0.2", "5", "100"), ("0.3", "4", "100"), ("0.3", "5", "100"),
    ]  # fmt: skip
    for trial in study.trials:
        one, other = (row for row in rows if int(row["trial"]) == trial.number)
        returns = [float(row["mean_return"]) for row in (one, other)]
        assert returns[0] != returns[1]
        assert sum(returns) / 2 == pytest.approx(trial.value)
        assert {float(row["trial_mean_return"]) for row in (one, other)} == {trial.value}
    best = json.loads((tmp_path / "study" / "best.json").read_text())
    assert [result["seed"] for result in best["results"]] == best["seeds"] == [4, 5]


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_random_and_tpe_stay_in_the_range_and_come_near_the_best(tmp_path: Path, method: str) -> None:
    study = tune(plan(method, ("x", "y=0:4")), tmp_path / "study", trials=24)
    assert places(study) == list(range(24))
    assert all(0.0 <= x <= 1.0 and 0 <= y <= 4 for x, y, _ in Toy.trained)
    assert len({x for x, _, _ in Toy.trained}) == 24
    assert abs(finished(study)[0].params["x"] - 0.3) < 0.15
    assert (tmp_path / "study" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_bad_trials_are_ended_early_and_a_grid_s_are_not(tmp_path: Path) -> None:
    study = tune(plan("random", ("x",)), tmp_path / "study", trials=20)
    states = Counter(trial.state.name for trial in study.trials)
    assert states["PRUNED"] > 3
    assert states["PRUNED"] + states["COMPLETE"] == 20
    median = np.median([trial.value for trial in finished(study)])
    worst = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert all(max(trial.intermediate_values.values()) < median for trial in worst)
    rows = {int(row["trial"]): row for row in csv.DictReader((tmp_path / "study" / "trials.csv").open())}
    for trial in worst:
        row = rows[trial.number]
        assert (row["state"], row["trial_mean_return"]) == ("pruned", "")
        assert float(row["mean_return"]) == list(trial.intermediate_values.values())[-1]
        assert 20 <= int(row["turns"]) < 100
    whole = tune(plan(), tmp_path / "grid")
    assert {trial.state.name for trial in whole.trials} == {"COMPLETE"}
    assert not any(trial.intermediate_values for trial in whole.trials)  # nor are they evaluated on the way


def test_random_draws_the_same_for_a_seed(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study = tune(plan("random", ("x",), seed=seed), tmp_path / name, trials=4)
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0] == drawn[1] != drawn[2]


def test_more_trials_lengthen_a_study_and_the_same_number_adds_none(tmp_path: Path) -> None:
    tune(plan("random", ("x",)), tmp_path / "study", trials=3)
    assert places(tune(plan("random", ("x",)), tmp_path / "study", trials=3)) == [0, 1, 2]
    assert len(Toy.trained) == 3
    assert places(tune(plan("random", ("x",)), tmp_path / "study", trials=5)) == [0, 1, 2, 3, 4]


def test_another_plan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    tune(plan(params=("x=0.1,0.3",)), tmp_path / "study")
    with pytest.raises(InvalidValue, match=r"space is .* there .* here; name another study"):
        tune(plan(params=("x=0.1,0.5",)), tmp_path / "study")
    with pytest.raises(InvalidValue, match=r"holds the study 'study', not 'other'; name another folder"):
        tune(plan(params=("x=0.1,0.5",)), tmp_path / "study", name="other")


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_an_interrupted_study_is_kept_and_goes_on(tmp_path: Path, method: str) -> None:
    def interrupt(turns: int, metrics: Any) -> None:
        if turns > 450:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(plan(method), tmp_path / "study", trials=9, progress=interrupt)
    assert best_settings(tmp_path / "study", "toy")
    begun = len(Toy.trained)
    assert 5 <= begun < 9
    study = tune(plan(method), tmp_path / "study", trials=9)
    assert places(study) == list(range(9))
    assert len(Toy.trained) == 10  # the interrupted one twice


def test_a_failing_agent_is_an_error_and_its_trial_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Toy.learn

    def fail(self: Toy, *args: Any) -> None:
        if self.config.x == 0.5:
            raise RuntimeError("out of words")
        learn(self, *args)

    monkeypatch.setattr(Toy, "learn", fail)
    with pytest.raises(RuntimeError, match="out of words"):
        tune(plan(params=("x=0.1,0.5,0.3",)), tmp_path / "study")
    monkeypatch.setattr(Toy, "learn", learn)
    assert places(tune(plan(params=("x=0.1,0.5,0.3",)), tmp_path / "study")) == [0, 1, 2]


def test_a_trial_that_another_process_took_for_dead_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, url = Toy.learn, f"sqlite:///{tmp_path / 'study' / 'study.db'}"
    stood_still = []

    def slow(self: Toy, *args: Any) -> None:
        learn(self, *args)
        if self.config.x == 0.3 and not stood_still:
            stood_still.append(True)
            study = optuna.load_study(study_name=optuna.get_all_study_names(url)[0], storage=url)
            (running,) = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
            study._storage.set_trial_state_values(running._trial_id, optuna.trial.TrialState.FAIL)

    monkeypatch.setattr(Toy, "learn", slow)
    study = tune(plan(params=("x=0.1,0.3,0.5",)), tmp_path / "study")
    assert stood_still
    assert places(study) == [0, 1, 2]
    assert len(Toy.trained) == 4


def test_nothing_is_logged_and_optuna_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    tune(plan(params=("x=0.1,0.3",)), tmp_path / "study")
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


# -- Several processes -------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
sys.path.insert(0, {tests!r})
import test_tuning
from pathlib import Path
from chatgym import plugins
from chatgym.training import study_storage, tuning
test_tuning.register(plugins.load())
study_storage.HEARTBEAT_SECONDS, study_storage.GRACE_SECONDS = 1, {grace}
test_tuning.Toy.pause = {pause}
plan = test_tuning.plan({method!r}, ("x=0.1,0.3,0.5,0.7", "y=1:4"))
study = tuning.tune(plan, Path({folder!r}), trials=12, name="shared", storage={url!r})
print(sum(map(len, [test_tuning.Toy.trained])), test_tuning.places(study))
"""


def worker(
    folder: Path, url: str | None, method: str = "random", pause: float = 0.02, grace: int = 30
) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)  # a short grace only where a process dies: a loaded machine may stand still
    code = WORKER.format(tests=tests, folder=str(folder), url=url, method=method, pause=pause, grace=grace)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)


def both(one: subprocess.Popen[str], other: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait for two processes, check that together they did each place once, and return how many trials each did."""
    counts = []
    for process in (one, other):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err == ""
        count, _, done = out.partition(" ")
        assert json.loads(done) == list(range(12))
        counts.append(int(count))
    return counts[0], counts[1]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own for as long as the tests take, with a password; the URL of an empty database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL isn't installed: there is no initdb")
    pytest.importorskip("psycopg", reason="the extra 'postgres' isn't installed")
    as_user: list[str] = []
    folder = Path(tmp_path_factory.mktemp("postgres"))
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        if subprocess.run(["id", "postgres"], capture_output=True).returncode != 0 or not shutil.which("runuser"):
            pytest.skip("PostgreSQL doesn't run as root, and there is no user postgres to run it as")
        as_user = ["runuser", "-u", "postgres", "--"]
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="chatgym-postgres-"))  # pytest's folders are root's alone
        shutil.chown(folder, "postgres")
    data, secret = folder / "data", folder / "secret"
    secret.write_text("s3cret\n")
    if as_user:
        shutil.chown(secret, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setup = ["-D", str(data), "-U", "tuner", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8"]
    control = [*as_user, str(Path(initdb).with_name("pg_ctl")), "-D", str(data), "-w"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([*as_user, initdb, *setup], **quiet)
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg://tuner:s3cret@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_processes_share_a_study_on_postgresql(postgres: str, tmp_path: Path) -> None:
    counts = both(worker(tmp_path / "one", postgres), worker(tmp_path / "other", postgres))
    assert sum(counts) == 12
    assert min(counts) >= 1
    for folder in (tmp_path / "one", tmp_path / "other"):
        assert "s3cret" not in "".join(path.read_text() for path in folder.glob("*.[jc]s*"))
        names = {path.name for path in folder.iterdir()} - {".lock"}
        assert names == {"study.json", "best.json", "trials.csv", "study.png"}
    assert json.loads((tmp_path / "one" / "best.json").read_text()) == json.loads(
        (tmp_path / "other" / "best.json").read_text()
    )


def test_two_processes_share_a_study_on_sqlite(tmp_path: Path) -> None:
    counts = both(worker(tmp_path / "study", None), worker(tmp_path / "study", None))
    assert sum(counts) == 12
    assert min(counts) >= 1


def test_what_a_killed_process_had_begun_is_taken_up_by_the_next(tmp_path: Path) -> None:
    killed = worker(tmp_path / "study", None, pause=0.1, grace=3)
    url, states = f"sqlite:///{tmp_path / 'study' / 'study.db'}", Counter[str]()
    for _ in range(1200):
        if (tmp_path / "study" / "best.json").exists():
            study = optuna.load_study(study_name="shared", storage=url)
            states = Counter(trial.state.name for trial in study.trials)
            if states["RUNNING"] and not states["WAITING"]:  # the last one, so that nothing else comes before it
                break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert states["RUNNING"] == 1
    assert states["COMPLETE"] + states["PRUNED"] == 11
    out, err = worker(tmp_path / "study", None, pause=0.0, grace=3).communicate(timeout=120)
    assert err == ""
    assert json.loads(out.partition(" ")[2]) == list(range(12))
    assert int(out.partition(" ")[0]) == 1


def test_a_password_is_in_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(study_storage, "ATTEMPTS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://me:s3cret@127.0.0.1:{port}/x?password=s3cret"
    with pytest.raises(Unavailable, match="check that the server runs") as caught:
        tune(plan(), tmp_path / "study", storage=url)
    assert "s3cret" not in str(caught.value)
    assert "me:***@127.0.0.1" in str(caught.value)
    assert caught.value.__suppress_context__
    for wrong in ("nothing of the kind s3cret", "a://me:x@y:s3cret@h/x", "a://me:x@s3cret@h/x", "a://me/s3cret:x@h/x"):
        with pytest.raises(InvalidValue, match="SQLAlchemy URL") as refused:
            tune(plan(), tmp_path / "study", storage=wrong)
        assert "s3cret" not in str(refused.value)
    with pytest.raises(Unavailable, match="needs the driver"):
        tune(plan(), tmp_path / "study", storage="postgresql+pg8000://me:s3cret@127.0.0.1/x")


# -- The command -------------------------------------------------------------------------------------------------------


def test_tune_prints_the_best_and_train_uses_them(chatgym: Chatgym, tmp_path: Path) -> None:
    said = chatgym(
        "tune", "toy", "--method", "grid", "--steps", 100, "--conversations", 40, "--param", "x=0.1,0.3,0.5",
        "--param", "y=1,2",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["success", "rate", "mean", "return", "x", "y"]
    assert rows[2][-2:] == ["0.3", "2"]
    assert "6 trials of 100 turns" in said.out
    assert "chatgym train toy --from-study studies/toy" in said.out
    trained = chatgym("train", "toy", "--from-study", "studies/toy", "--steps", 100, "--conversations", 20)
    assert trained.code == 0
    settings = Run.open("runs/toy").config["settings"]
    assert (settings["x"], settings["y"], settings["free"]) == (0.3, 2, 0.5)
    assert chatgym("train", "toy", "--from-study", "studies/toy", "--steps", 100, "--overwrite", "--y", 3).code == 0
    assert Run.open("runs/toy").config["settings"]["y"] == 3
    assert Run.open("runs/toy").config["settings"]["x"] == 0.3


ELSEWHERE = (
    "--scenario", "social", "--error-rate", 0.3, "--max-turns", 12, "--reward-weight", "time=0.05",
)  # fmt: skip


def test_training_from_a_study_is_in_the_study_s_task(chatgym: Chatgym, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "act", lambda self, observations, **how: np.zeros(len(observations), int))
    small = ("--steps", 100, "--conversations", 20)
    assert chatgym("tune", "toy", "--method", "grid", "--param", "x=0.2,0.3", *small, *ELSEWHERE).code == 0
    train = ("train", "toy", "--from-study", "studies/toy", *small)
    assert chatgym(*train).code == 0
    config = Run.open("runs/toy").config
    arguments = {"error_rate": 0.3, "max_turns": 12, "reward_weights": {"time": 0.05}}
    assert (config["scenario"], config["arguments"]) == ("social", arguments)
    best = json.loads(Path("studies/toy/best.json").read_text())
    assert (best["scenario"], best["arguments"], best["steps"]) == ("social", arguments, 100)
    said = chatgym(*train, "--overwrite", *ELSEWHERE, "--reward-weight", "outcome=1")  # says the same
    assert (said.code, said.err) == (0, "")
    for option, value in (("--scenario", "education"), ("--error-rate", 0.1), ("--reward-weight", "time=0.02")):
        said = chatgym(*train, "--run", "other", option, value)
        assert said.code == 2
        assert "studies/toy has" in said.err
        assert f", not {value}: leave out {option}, or" in said.err
    assert not Path("other").exists()


def test_a_study_of_another_simulator_gives_its_settings_with_a_warning(chatgym: Chatgym) -> None:
    assert chatgym("tune", "toy", "--method", "grid", "--param", "x=0.3", "--conversations", 20).code == 0
    study = json.loads(Path("studies/toy/study.json").read_text())
    Path("studies/toy/study.json").write_text(json.dumps({**study, "identity": "0" * 64}))
    said = chatgym("train", "toy", "--from-study", "studies/toy", "--steps", 100, "--conversations", 20)
    assert said.code == 0
    assert "was tuned in another version of customer_service" in said.err
    del study["scenario"]
    Path("studies/toy/study.json").write_text(json.dumps(study))
    said = chatgym("train", "toy", "--from-study", "studies/toy", "--overwrite")
    assert (said.code, "lacks its task" in said.err) == (1, True)


def test_the_documented_grid_over_learning_rate_and_discount_factor_works(chatgym: Chatgym) -> None:
    said = chatgym(
        "tune", "qlearning", "--method", "grid", "--steps", 10_000, "--conversations", 20,
        "--param", "learning_rate=0.1,0.5", "--param", "discount_factor=0.9,1.0", "--study", "first",
    )  # fmt: skip
    assert said.code == 0
    assert best_settings("studies/first", "qlearning").keys() == {"learning_rate", "discount_factor"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("tune", "toy", "--param", "x=2"), "allowed is 0.0 to 1.0"),
        (("tune", "expert"), "nothing to tune"),
        (("tune", "nobody"), "unknown agent"),
        (("tune", "toy", "--reward-weight", "tim=1"), "Did you mean 'time'?"),
        (("tune", "toy", "--reward-weight", "time=much"), "write it as time=0.5"),
        (("train", "toy", "--reward-weight", "time=1", "--reward-weight", "time=2"), "names time twice"),
        (("train", "toy", "--reward-weight", "reward_model=1"), "unknown reward term 'reward_model'"),
        (("train", "toy", "--from-study", "nowhere"), "holds no study"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_is_right(
    chatgym: Chatgym, args: tuple[object, ...], words: str
) -> None:
    said = chatgym(*args)
    assert (said.code, said.out) == (2, "")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_a_study_of_another_agent_or_none_or_a_damaged_one_is_not_trained_from(tmp_path: Path) -> None:
    tune(plan(params=("x=0.1,0.3",)), tmp_path / "study")
    with pytest.raises(InvalidValue, match="tuned toy, not qlearning"):
        best_settings(tmp_path / "study", "qlearning")
    (tmp_path / "study" / "best.json").write_text("{")
    with pytest.raises(Corrupted, match="can't be read"):
        best_settings(tmp_path / "study", "toy")
    (tmp_path / "study" / "best.json").unlink()
    with pytest.raises(InvalidValue, match="no trial"):
        best_settings(tmp_path / "study", "toy")
    (tmp_path / "study" / "study.json").write_text('{"format": "other"}')
    with pytest.raises(InvalidValue, match="something else's"):
        best_settings(tmp_path / "study", "toy")


def test_ctrl_c_keeps_the_study_and_says_how_to_go_on(chatgym: Chatgym, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Toy, "learn", interrupted)
    said = chatgym("tune", "toy", "--trials", 3)
    assert said.code == 130
    assert said.err == "Interrupted; the study in studies/toy is kept, the same command goes on\n"


def test_the_url_of_a_storage_may_come_from_the_environment(
    chatgym: Chatgym, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGYM_STORAGE", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert chatgym("tune", "toy", "--method", "grid", "--steps", 100, "--param", "x=0.3").code == 0
    assert (tmp_path / "elsewhere.db").exists()
    assert not Path("studies/toy/study.db").exists()


def test_help_needs_no_optuna() -> None:
    code = (
        "import sys\nfrom chatgym.cli.app import app\n"
        "try:\n    app(['tune', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'optuna', 'torch', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert "--from-study" in CliRunner().invoke(app, ["train", "qlearning", "--help"]).output


def test_an_exception_in_an_agent_names_it_and_what_it_was_tried_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(self: Toy, make_envs: Any, total_steps: int, callback: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Toy, "learn", learn)
    with pytest.raises(
        AgentFailed, match=r"the agent 'toy' of plugin 'toys' \(toys 1.0\) failed with RuntimeError: no"
    ) as one:
        tune(Plan("toy", {"y": (7,)}, method="grid", steps=10), tmp_path / "study")
    assert "it had y 7, in trial 0; mend it, then the same command goes on" in str(one.value)
    assert isinstance(one.value.__cause__, RuntimeError)
