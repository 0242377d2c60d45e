"""Logs beside the metrics, and comparisons with intervals."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from typer.testing import CliRunner

from chatgym.agent import Interface
from chatgym.cli.app import app
from chatgym.cli.compare import _notes
from chatgym.envs.codecs import Spoken
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue, Unavailable
from chatgym.evaluation import Comparison, Competitor, TrainedRun, compare, curves_of, evaluate
from chatgym.evaluation.comparison import ComparedAgent
from chatgym.evaluation.comparison_plot import comparison_figure, draw_comparison
from chatgym.evaluation.curves_plot import curves_figure
from chatgym.evaluation.evaluation import Evaluation
from chatgym.evaluation.intervals import RESAMPLES, bootstrap_mean, iqm, percentiles, resampled_means
from chatgym.evaluation.references import Scale, _known, references
from chatgym.training import Run, logs, resume, train
from chatgym.training.run import find_agent

STEPS = 64 * 100
EVERY = 64 * 25
ARGUMENTS = {"total_steps": STEPS, "evaluate_every": EVERY, "conversations": 20, "settings": {"num_envs": 64}}
BOTH = ["csv", "tensorboard"]


@pytest.fixture
def chatgym(tmp_path, monkeypatch):
    """Run a command in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="chatgym")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of short runs: two that differ in their seed, one with another setting, one of another scenario."""
    folder = tmp_path_factory.mktemp("runs")
    small = {**ARGUMENTS, "evaluate_every": STEPS}
    train("qlearning", folder / "first", **small, seed=1)
    train("qlearning", folder / "second", **small, seed=2)
    train("qlearning", folder / "slow", **{**small, "settings": {"num_envs": 64, "learning_rate": 0.1}})
    train("qlearning", folder / "social", task=Task("social"), **small, seed=1)
    return folder


# -- Logs ----------------------------------------------------------------------------------------------------------


def numbers(line):
    """A line of metrics as the logs should have it, written out by hand."""
    row = {"turns": line["turns"], "seconds": line["seconds"]}
    for name in ("success_rate", "mean_return", "score"):
        row |= {name: line[name]["value"], f"{name}/low": line[name]["low"], f"{name}/high": line[name]["high"]}
    return row | {f"training/{name}": value for name, value in line["training"].items()}


def check_logs(folder):
    """Check that CSV and TensorBoard's files have each line of metrics.jsonl once, and nothing else."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [numbers(line) for line in Run.open(folder).metrics()]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    assert rows == lines
    (file,) = (folder / "tensorboard").iterdir()  # of the runs before none is left
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    assert set(events.Tags()["scalars"]) == {name for line in lines for name in line} - {"turns"}
    for tag in events.Tags()["scalars"]:
        expected = [(line["turns"], pytest.approx(line[tag], rel=1e-6, abs=1e-12)) for line in lines if tag in line]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
    walls, seconds = zip(*((e.wall_time, e.value) for e in events.Scalars("seconds")), strict=True)
    assert np.diff(walls) == pytest.approx(np.diff(seconds), abs=1e-3)  # the time axis is that of the training
    return [line["turns"] for line in lines]


def whole(turns):
    """Whether these are the turns of all evaluations of a training that nothing disturbed."""
    return len(turns) == 5 and turns[0] == 0 and turns == sorted(set(turns)) and turns[-1] >= STEPS


def test_the_logs_say_what_the_metrics_say(tmp_path):
    run = train("qlearning", tmp_path / "run", **ARGUMENTS, log=BOTH)
    turns = check_logs(run.folder)
    assert whole(turns)
    assert run.config["log"] == BOTH
    longer = resume(run.folder, total_steps=STEPS + EVERY)
    assert check_logs(run.folder) == [*turns, longer.turns]


def test_a_run_without_logs_has_none_and_one_from_before_there_were_any_goes_on(runs, tmp_path):
    assert not {path.name for path in (runs / "first").iterdir()} & {"metrics.csv", "tensorboard"}
    run = train("qlearning", tmp_path / "run", **ARGUMENTS)
    config = json.loads((run.folder / "config.json").read_text())
    del config["log"]
    (run.folder / "config.json").write_text(json.dumps(config))
    assert resume(run.folder, total_steps=STEPS + EVERY).log == []


def fill(folder):
    """Fill the file system of a folder."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


KILLED = """
import json, os, signal, sys
from chatgym.storage import atomic
from chatgym.training import logs, train
how, at, calls = sys.argv[3], int(sys.argv[4]), 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def dying(function, after):
    def call(*arguments):
        global calls
        calls += 1
        if calls == at and not after:
            die()
        function(*arguments)
        if calls == at:
            die()
    return call
progress = lambda turns, metrics: None
if how == "while it trains":
    progress = dying(progress, True)
if how == "after a line":
    atomic.append_text = dying(atomic.append_text, True)
if how == "before the logs":
    logs.Logs.write = dying(logs.Logs.write, False)
if how == "between the logs":
    logs.Logs._write_events = dying(logs.Logs._write_events, False)
train("qlearning", sys.argv[1], **json.loads(sys.argv[2]), log=["csv", "tensorboard"], progress=progress)
"""


@pytest.mark.parametrize(
    ("how", "at"),
    [("while it trains", 60), ("after a line", 3), ("before the logs", 5), ("between the logs", 3)],
)
def test_a_kill_neither_doubles_a_row_nor_loses_one(tmp_path, how, at):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), json.dumps(ARGUMENTS), how, str(at)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "transcripts.jsonl").exists()  # it wasn't at its end
    resume(tmp_path / "run")
    assert whole(check_logs(tmp_path / "run"))


def test_what_was_logged_is_on_disk_while_the_training_goes_on_and_after_an_exception(tmp_path):
    def progress(turns, metrics):
        if turns >= 2 * EVERY + 64:
            assert len(check_logs(tmp_path / "run")) == 3
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train("qlearning", tmp_path / "run", **ARGUMENTS, log="csv,tensorboard", progress=progress)
    resume(tmp_path / "run")
    assert whole(check_logs(tmp_path / "run"))


def test_whoever_watches_forgets_the_old_files_when_a_run_goes_on(tmp_path):
    """Between the new file and the old one's removal there are both; a reader of the folder sees each turn once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("qlearning", tmp_path / "run", **ARGUMENTS, log="tensorboard")
    (old,) = (run.folder / "tensorboard").iterdir()
    content = old.read_bytes()
    resume(run.folder)
    (run.folder / "tensorboard" / "events.out.tfevents.0000000000.old").write_bytes(content)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert whole([event.step for event in events.Scalars("score")])


def test_a_new_run_in_the_place_of_another_has_none_of_its_logs(tmp_path):
    train("qlearning", tmp_path / "run", **ARGUMENTS, log=BOTH)
    train("qlearning", tmp_path / "run", **ARGUMENTS, overwrite=True)
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"metrics.csv", "tensorboard"}


def test_an_unknown_format_and_a_missing_package_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(InvalidValue, match=r"unknown log format 'tensorbord'.*Did you mean 'tensorboard'"):
        train("qlearning", tmp_path / "run", **ARGUMENTS, log=["csv", "tensorbord"])
    run = train("qlearning", tmp_path / "there", **ARGUMENTS, log="tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)  # as if its import failed
    with pytest.raises(Unavailable, match=r"`pip install 'chatgym\[tensorboard\]'`, or log as csv"):
        train("qlearning", tmp_path / "run", **ARGUMENTS, log=BOTH)
    with pytest.raises(Unavailable, match="needs the package"):
        resume(run.folder, total_steps=2 * STEPS)
    assert not (tmp_path / "run").exists()
    assert train("qlearning", tmp_path / "run", **ARGUMENTS, log="csv").log == ["csv"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_disk_that_fills_up_under_the_event_file_is_one_clear_error_and_the_run_goes_on(disk, at):
    """The checkpoint is written by then; at the first evaluation nothing but the events is left to write."""
    run, log = disk / "run", logs.Logs.write

    def full(self, lines):
        if len(lines) == at:
            fill(disk)
        log(self, lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs.Logs, "write", full)
        with pytest.raises(Unavailable, match=r"no space left on the disk of .*go on with `chatgym train"):
            train("qlearning", run, **ARGUMENTS, log="tensorboard")
        assert len(Run.open(run).metrics()) >= at
        with pytest.raises(Unavailable, match=r"no space left on the disk of .*go on with `chatgym train"):
            resume(run)
    (disk / "filler").unlink()
    resume(run)
    (run / "metrics.csv").write_text(logs._csv(Run.open(run).metrics()))
    assert whole(check_logs(run))
    assert not [thread for thread in threading.enumerate() if "tensorboard" in type(thread).__module__]


def test_the_command_logs_as_it_is_told_and_resume_goes_on_with_it(chatgym):
    small = ("--steps", 3200, "--num-envs", 64, "--conversations", 20)
    code, out, err = chatgym("train", "qlearning", *small, "--log", "csv", "--log", "tensorboard,csv")
    assert (code, err) == (0, "")
    assert "metrics.csv, tensorboard, curve.png" in out
    assert Run.open("runs/qlearning").log == BOTH
    code, _, err = chatgym("train", "qlearning", "--resume", "--log", "csv")
    assert code == 2
    assert "leave out --log" in err
    assert chatgym("train", "qlearning", "--resume", "--steps", 6400)[0] == 0
    assert check_logs(Run.open("runs/qlearning").folder)[-1] >= 6400


# -- Intervals -----------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert iqm(np.array([9.0, 1.0, 4.0, 2.0])) == 3.0
    assert iqm(np.array([100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -100.0])) == 2.5
    assert iqm(np.array([0.0, 1.0, 5.0])) == 2.0  # of fewer than four: of all
    rows = np.random.default_rng(0).normal(size=(5, 10))
    plain = [sum(sorted(row)[2:8]) / 6 for row in rows.tolist()]
    assert iqm(rows) == pytest.approx(plain)


def test_resampled_means_are_those_of_drawn_rows():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 2))
    means = resampled_means(values)
    assert means.shape == (1 + RESAMPLES, 2)
    assert means[0] == pytest.approx(values.mean(0))
    plain = bootstrap_mean(values[:, 0])
    found = percentiles(means[:, 0])
    width = plain.high - plain.low
    assert (found.low, found.high) == (
        pytest.approx(plain.low, abs=0.05 * width),
        pytest.approx(plain.high, abs=0.05 * width),
    )
    assert resampled_means(np.hstack([values, values]))[:, :2] == pytest.approx(resampled_means(values))


FOUND = dataclasses.replace(references(Task()), ignorant_scored=0.0, expert_scored=100.0)


def held(returns):
    """An evaluation with these returns, which are scores, too."""
    returns = np.asarray(returns, np.float64)
    outcomes = np.where(returns > 0, "resolved", "hung_up").astype(object)
    scale = Scale(FOUND, np.zeros(len(returns)), np.full(len(returns), 100.0), 9.0, Task())
    return Evaluation(returns, outcomes, np.full(len(returns), 5), 0, "resolved", {}, scale)


def compared(*sides):
    """A comparison of sides, each float64[R, N], of one task."""
    made = [
        ComparedAgent(str(k), ("",) * len(side), {"customer_service": [held(run) for run in side]})
        for k, side in enumerate(sides)
    ]
    return Comparison(made, {"customer_service": Task()}, len(sides[0][0]), 0)


def test_the_estimates_are_those_of_the_plain_formulas():
    one, other = np.random.default_rng(0).normal(50, 30, (2, 5, 40)).round(-1)
    other = other[:3]
    found = compared(one, other)
    scores = one.mean(1)
    assert found.mean[0].value == pytest.approx(one.mean())
    assert found.iqm[0].value == pytest.approx(np.sort(scores)[1:4].mean())
    assert found.success_rate[0].value == pytest.approx((one > 0).mean())
    assert found.difference[1].value == pytest.approx(other.mean() - one.mean())
    assert found.success_difference[1].value == pytest.approx((other > 0).mean() - (one > 0).mean())
    wins = [(b[i] > a[i]) + 0.5 * (b[i] == a[i]) for a in one for b in other for i in range(40)]
    assert found.improvement[1][0].value == pytest.approx(np.mean(wins))
    assert found.improvement[0][1].value == pytest.approx(1 - np.mean(wins))
    assert found.improvement[0][0] is None
    assert (found.difference[0].low, found.difference[0].high) == (0, 0)
    for interval in (*found.mean, *found.iqm, *found.success_rate, found.difference[1], found.improvement[0][1]):
        assert interval.low < interval.value < interval.high


def test_the_bootstrap_draws_runs_and_conversations():
    """Against a plain loop over resamples."""
    scores = np.random.default_rng(1).normal(50, 10, (6, 30)) + np.random.default_rng(2).normal(0, 5, (6, 1))
    generator, means, middles = np.random.default_rng(3), [], []
    for _ in range(4000):
        drawn = scores[generator.integers(0, 6, 6)][:, generator.integers(0, 30, 30)].mean(1)
        means.append(drawn.mean())
        middles.append(np.sort(drawn)[1:5].mean())
    found = compared(scores)
    for interval, plain in ((found.mean[0], means), (found.iqm[0], middles)):
        low, high = np.quantile(plain, [0.025, 0.975])
        assert (interval.low, interval.high) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))


def test_strata_are_drawn_each_for_itself():
    """Two tasks, in each of which all runs are alike: then no interval is wider than nothing."""
    sides = [ComparedAgent("a", ("",) * 6, {"easy": [held([90.0] * 9)] * 3, "hard": [held([10.0] * 9)] * 3})]
    found = Comparison(sides, {"easy": Task(), "hard": Task("social")}, 9, 0)
    assert dataclasses.astuple(found.mean[0]) == pytest.approx((50.0, 50.0, 50.0))
    assert dataclasses.astuple(found.iqm[0]) == pytest.approx((50.0, 50.0, 50.0))


@pytest.mark.parametrize(("runs", "spread"), [(1, 0.0), (10, 8.0)])
def test_an_interval_of_95_percent_covers_the_truth_about_so_often(runs, spread):
    generator, covered, trials = np.random.default_rng(0), 0, 150
    for _ in range(trials):
        partners, trainings = generator.normal(0, 10, 60), generator.normal(50, spread, (runs, 1))
        (interval,) = compared(trainings + partners + generator.normal(0, 15, (runs, 60))).mean
        covered += interval.low <= 50 <= interval.high
    assert 0.88 <= covered / trials <= 0.99


def test_the_paired_difference_is_narrower_than_the_unpaired():
    task = Task()
    expert = find_agent("expert")(task.find_scenario(), seed=1)
    one, two = (Competitor(name, expert, task, {"agent": name}) for name in ("expert", "again"))
    same = compare([one, two], conversations=200).difference[1]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    scores = np.random.default_rng(0).normal(50, 30, 200)  # of the partners: some are harder than others
    better = scores + np.random.default_rng(1).normal(2, 3, 200)
    paired = compared(scores[None], better[None]).difference[1]
    unpaired = percentiles(resampled_means(better[:, None], 1)[:, 0] - resampled_means(scores[:, None], 2)[:, 0])
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)
    assert unpaired.low < 0 < paired.low


# -- Comparing -----------------------------------------------------------------------------------------------------


def test_a_comparison_holds_the_conversations_of_an_evaluation(runs):
    run = Run.open(runs / "first")
    expert = find_agent("expert")(run.task.find_scenario())
    found = compare(
        [
            Competitor("first", run.agent(), run.task, run.config),
            Competitor("expert", expert, run.task, {"agent": "expert"}),
        ],
        conversations=80,
    )
    for side, agent in zip(found.agents, (run.agent(), expert), strict=True):
        result = evaluate(agent, run.task, conversations=80)
        assert np.array_equal(side.runs["customer_service"][0].returns, result.returns)
        assert sum(side.outcomes("customer_service").values()) == pytest.approx(1.0)
    assert found.mean[1].value == pytest.approx(result.score.value)
    assert found.difference[1].value == pytest.approx(found.mean[1].value - found.mean[0].value)


def test_two_seeds_are_one_agent_and_another_setting_is_another(chatgym, runs):
    names = [runs / name for name in ("first", "second", "slow")]
    code, out, err = chatgym("evaluate", "--compare", *names, "expert", "--conversations", 50)
    assert (code, err) == (0, "")
    for text in ("qlearning (2 seeds)", str(runs / "slow"), "expert", "against qlearning (2 seeds)", "IQM",
                 "better conversations than", "hung_up",
 "50 conversations of customer_service"):  # fmt: skip
        assert text in out
    assert f"training is missing for qlearning (2 seeds), {runs / 'slow'}: train at least three seeds" in out
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = chatgym(
        "evaluate", "--compare", *names, "expert", "--conversations", 50, "--json", "--picture", "p.png"
    )
    figures = json.loads(out)
    assert figures["without_training_variance"] == ["qlearning (2 seeds)", str(runs / "slow")]
    assert figures["provenance"][str(runs / "second")]["training_seed"] == 2
    assert figures["provenance"]["expert"]["run"] is None
    assert [len(agent["runs"]) for agent in figures["agents"]] == [2, 1, 1]
    assert figures["agents"][0]["runs"] == [str(name) for name in names[:2]]
    best = figures["agents"][2]
    assert best["difference"]["low"] > 0
    assert best["difference"]["value"] == pytest.approx(
        best["score"]["mean"]["value"] - figures["agents"][0]["score"]["mean"]["value"]
    )
    assert figures["probability_of_improvement"][2][0]["low"] > 0.5
    assert sum(best["outcomes"]["customer_service"].values()) == pytest.approx(1.0)
    assert Path("p.png").exists()


def test_an_agent_of_two_scenarios_is_compared_over_both(chatgym, runs):
    code, out, err = chatgym(
        "evaluate", "--compare", runs / "first", runs / "social", "random", "--conversations", 30, "--json"
    )
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert [set(agent["outcomes"]) for agent in figures["agents"]] == [{"customer_service", "social"}] * 2
    assert len(figures["agents"][1]["runs"]) == 2


def test_a_run_of_another_simulator_is_refused_unless_one_asks_for_it(chatgym, runs, tmp_path):
    old = Path(shutil.copytree(runs / "first", tmp_path / "old"))
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    config["identity"]["scenario"]["sha256"] = config["identity"]["sha256"] = "0" * 64
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for args in ((old,), ("--compare", old, "expert")):
        code, out, err = chatgym("evaluate", *args, "--conversations", 5)
        assert (code, out) == (2, "")
        assert "old was trained with another simulator (scenario sha256 000000000000, here " in err
        assert "(--other-simulator)" in err
        assert chatgym("evaluate", *args, "--conversations", 5, "--other-simulator")[0] == 0
    assert chatgym("evaluate", runs / "first", "--conversations", 5, "--error-rate", "0.2")[0] == 0


def test_a_comparison_says_how_its_agents_act_and_observe(chatgym, runs, monkeypatch):
    _, out, _ = chatgym("evaluate", "--compare", runs / "first", "expert", "--conversations", 5)
    assert "act, discrete; expert: act, belief" in " ".join(out.split())
    assert "mishears nothing" not in out
    _, out, _ = chatgym("evaluate", "--compare", runs / "first", "random", "--conversations", 5)
    assert "interfaces differ" not in out


class Farewell:
    """Says goodbye at once, in words."""

    requires = Interface("text", "text")

    def act(self, observations, **how):
        return [Spoken("Goodbye.", Task().find_scenario().agent_acts.index("close"))] * len(observations)


def test_an_agent_of_acts_and_one_of_words_are_compared_and_both_interfaces_named():
    agents = {"plain": find_agent("expert")(Task().find_scenario()), "worded": Farewell()}
    found = compare([Competitor(name, agent, Task(), {"agent": name}) for name, agent in agents.items()],
                    conversations=2)  # fmt: skip
    figures = found.to_json()
    assert [one["interface"]["observation"] for one in figures["agents"]] == ["belief", "text"]
    assert figures["agents"][1]["interface"]["words"]["engine"] == "template"
    assert "words" not in figures["tasks"]["customer_service"]
    assert "worded: text, text\nwho observes words mishears nothing" in _notes(found)


def test_a_copy_of_a_run_is_no_further_seed(runs):
    run = Run.open(runs / "first")
    competitors = [Competitor(name, run.agent(), run.task, run.config) for name in ("original", "copy")]
    assert [side.label for side in compare(competitors, conversations=20).agents] == ["original", "copy"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--compare", "first", "social", "slow"), "aren't in the same tasks"),
        (("--compare", "slow", "social"), "set what differs for all of them (--error-rate, --max-turns)"),
        (("--compare", "first", "second", "social"), "name as many runs for every task"),
        (("--compare", "first"), "at least two runs or agents, such as first and expert"),
        (("--compare", "first", "./first"), "first is named twice"),
        (("--compare", "first", "empty"), "empty holds no run"),
        (("--compare", "first", "frist"), "unknown agent or run folder 'frist'"),
        (("--compare", "first", "qlearning"), "run `chatgym train qlearning`"),
        (("--compare", "first", "expert", "--scenario", "social"), "knows nothing of 'social'"),
        (("--compare", "first", "expert", "--picture", "nowhere/p.png"), "make it first"),
        (("--compare", "first", "expert", "--picture", "p.jpg"), "end its name with .png, .pdf or .svg"),
        (("--compare", "first", "expert", "--picture", "p"), "end its name with .png, .pdf or .svg"),
        (("--compare", "first", "expert", "--trace", "t.jsonl"), "leave out --partner"),
        (("first", "expert"), "chatgym evaluate --compare first expert"),
        (("first", "--picture", "p.png"), "only a comparison takes several, and --picture"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line_that_names_the_remedy(chatgym, runs, monkeypatch, args, named):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir(exist_ok=True)
    code, out, err = chatgym("evaluate", *args, "--conversations", "5")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert named in err
    assert not (runs / "compare.png").exists()


def test_three_seeds_hold_the_variance_of_training(runs):
    first, expert = Run.open(runs / "first"), find_agent("expert")(Task().find_scenario())
    seeds = [Competitor(str(seed), first.agent(), first.task, {**first.config, "seed": seed}) for seed in range(3)]
    found = compare([*seeds, Competitor("expert", expert, first.task, {"agent": "expert"})], conversations=20)
    assert found.without_variance == found.to_json()["without_training_variance"] == []
    assert [name for name, _, _ in found.agents[0].evaluations()] == ["0", "1", "2"]
    assert compare(seeds[:2], conversations=20).without_variance == ["qlearning (2 seeds)"]


def test_a_task_where_random_is_as_good_as_the_expert_has_no_score(monkeypatch):
    task = Task(arguments={"max_turns": 3})
    flat = dataclasses.replace(references(Task()), ignorant_scored=0.5, expert_scored=0.5)
    identity = task.identity()["sha256"]
    monkeypatch.setitem(_known, identity, dataclasses.replace(flat, identity=identity))
    agents = [find_agent(name)(task.find_scenario()) for name in ("random", "expert")]
    with pytest.raises(InvalidValue, match=r"customer_service has no score: .* mean scored return 0.500 .*--max-turns"):
        compare([Competitor(str(k), agent, task, {"agent": str(k)}) for k, agent in enumerate(agents)], conversations=5)


@pytest.mark.parametrize(("sides", "seeds"), [(1, 2), (2, 1), (6, 4)])
def test_nothing_in_the_picture_overlaps(sides, seeds):
    found = compared(*np.random.default_rng(0).normal(50, 30, (sides, seeds, 20)))
    for number, side in enumerate(found.agents):
        object.__setattr__(side, "label", f"an agent with a name that is rather long, number {number} ({seeds} seeds)")
    figure = comparison_figure(found)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    unseen = [  # ticks beyond the ends of an axis are there and not drawn
        label
        for axes in figure.axes
        for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if not axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in unseen]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert sum("rather long" in text.replace("\n", " ") for text, _ in boxes) == (3 if sides > 1 else 2) * sides
    for (one, box), (other, another) in itertools.combinations(boxes, 2):
        assert not box.overlaps(another), (one, other)
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text


def test_the_bars_are_the_shares_of_outcomes():
    found = compared([[1.0] * 15 + [-1.0] * 5], [[1.0] * 4 + [-1.0] * 16])
    bars = [patch for patch in comparison_figure(found).axes[-1].patches if isinstance(patch, Rectangle)]
    assert [patch.get_width() for patch in bars] == pytest.approx([75, 20, 25, 80])
    assert [patch.get_x() for patch in bars] == pytest.approx([0, 0, 75, 20])


# -- Pictures and curves -------------------------------------------------------------------------------------------


def test_a_picture_is_what_its_suffix_says_and_the_same_every_time(tmp_path):
    found = compared(*np.random.default_rng(0).normal(50, 30, (2, 3, 20)))
    for suffix, begins in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")):
        one, other = (tmp_path / f"{name}{suffix}" for name in "ab")
        draw_comparison(found, one)
        draw_comparison(found, other)
        assert one.read_bytes().startswith(begins)
        assert one.read_bytes() == other.read_bytes()
    document = (tmp_path / "a.pdf").read_bytes()
    assert b"/Subtype /CIDFontType2" in document  # TrueType, embedded
    assert b"/FontFile2" in document
    assert b"/Type3" not in document
    assert b"CreationDate" not in document
    assert b"<dc:date>" not in (tmp_path / "a.SVG").read_bytes()
    with pytest.raises(InvalidValue, match=r"\.png, \.pdf or \.svg"):
        draw_comparison(found, tmp_path / "a.gif")


def run_of(seed, rates, turns=(0, 100, 200), scenario="customer_service", **config):
    """A run whose evaluations had these success rates; the score is twice the percentage."""
    lines = [
        {"turns": when, "mean_return": {"value": 0.0}, "success_rate": {"value": rate}, "score": {"value": 200 * rate}}
        for when, rate in zip(turns, rates, strict=True)
    ]
    about = {"agent": "a", "seed": seed, "settings": {}, "identity": Task(scenario).identity(), **config}
    return TrainedRun(f"{scenario}-{seed}", Task(scenario), about, lines)


def test_a_curve_is_the_interquartile_mean_over_runs_with_its_bootstrap_band():
    rates = np.random.default_rng(0).random((9, 3))
    (curve,) = curves_of([run_of(seed, row) for seed, row in enumerate(rates.tolist())])
    assert (curve.label, curve.task, len(curve.runs)) == ("a (9 seeds)", "customer_service", 9)
    assert curve.turns.tolist() == [0, 100, 200]
    found = curve.bands["success_rate"]
    assert found.value == pytest.approx(np.sort(rates, 0)[2:7].mean(0))
    assert curve.bands["score"].value == pytest.approx(200 * found.value)
    generator = np.random.default_rng(3)
    drawn = np.array([np.sort(rates[generator.integers(0, 9, 9)], 0)[2:7].mean(0) for _ in range(20_000)])
    low, high = np.quantile(drawn, [0.025, 0.975], 0)
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    (mean,) = curves_of(curve.runs, "mean")
    assert mean.bands["success_rate"].value == pytest.approx(rates.mean(0))


def test_runs_that_were_evaluated_at_other_turns_meet_where_all_have_been():
    sparse, dense = run_of(0, (0.0, 0.5), (0, 100)), run_of(1, (0.2, 0.4, 0.6, 0.8), (0, 50, 90, 130))
    (curve,) = curves_of([dense, sparse], "mean")
    assert curve.turns.tolist() == [0, 100]
    assert curve.values["success_rate"] == pytest.approx(np.array([[0.2, 0.65], [0.0, 0.5]]))


def test_runs_of_other_settings_or_scenarios_are_other_curves_and_a_single_one_has_no_band():
    runs = [run_of(0, (0, 0, 1)), run_of(1, (0, 0, 1)), run_of(0, (0, 1, 1), settings={"x": 1})]
    curves = curves_of([*runs, run_of(0, (0, 1, 1), scenario="social")])
    assert [(len(one.runs), one.task, one.lacks_variance) for one in curves] == [
        (2, "customer_service", True), (1, "social", True), (1, "customer_service", True)
    ]  # fmt: skip
    assert curves[0].label == curves[1].label != curves[2].label
    assert curves[2].bands["score"].low is None
    other = run_of(3, (0, 0, 1), identity={**Task().identity(), "max_turns": 7})
    with pytest.raises(InvalidValue, match="different simulators of customer_service"):
        curves_of([runs[0], other])


def test_the_curves_of_runs_are_drawn_success_first_and_written_as_csv(chatgym, runs):
    names = [runs / name for name in ("first", "second", "slow", "social")]
    code, out, err = chatgym("curve", *names, "--picture", "c.svg", "--csv", "c.csv", "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert [one["scenario"] for one in figures["curves"]] == ["customer_service", "social", "customer_service"]
    metrics = [Run.open(name).metrics() for name in names]
    ends = [one["success_rate"]["value"][-1] for one in figures["curves"]]
    assert ends[1:] == pytest.approx([metrics[3][-1]["success_rate"]["value"], metrics[2][-1]["success_rate"]["value"]])
    with Path("c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(one["turns"]) for one in figures["curves"])
    assert float(rows[-1]["success_rate"]) == pytest.approx(ends[2])
    assert rows[-1]["success_rate_low"] == ""
    opened = map(Run.open, names)
    curves = curves_of([TrainedRun(str(run.folder), run.task, run.config, run.metrics()) for run in opened])
    figure = curves_figure(curves)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["success rate [%]", "", "normalised score", ""]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["customer_service", "social"]
    text = chatgym("curve", *names, "--picture", "d.png")[1]
    assert text.index("success rate") < text.index("score")
    assert "variance of training is missing" in text
    assert chatgym("curve", names[0], "--picture", "d.gif")[0] == 2
    assert "named twice" in chatgym("curve", names[0], names[0], "--picture", "e.png")[2]
