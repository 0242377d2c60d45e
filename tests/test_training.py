import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from chatgym import plugins
from chatgym.dynamics.rng import SPLITS, split_of
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue, Unavailable
from chatgym.evaluation import converse, evaluate, references
from chatgym.evaluation.intervals import bootstrap_mean, wilson
from chatgym.evaluation.references import Scale
from chatgym.evaluation.rollouts import run_conversations
from chatgym.storage import atomic
from chatgym.training import Run, repeat, resume, train
from chatgym.training.run import find_agent, versions
from chatgym.training.trainer import VALIDATION_SEED

SETTINGS = {"num_envs": 64}
STEPS = 64 * 100
EVERY = 64 * 25


def about(turns):
    """A step takes a turn in most of the 64 conversations, and begins the next one in those that had ended."""
    return pytest.approx(turns, abs=64)


ARGUMENTS = {"total_steps": STEPS, "evaluate_every": EVERY, "conversations": 20, "settings": SETTINGS, "seed": 7}


def content(folder):
    """All files of a run but the lock, the times taken out of the metrics."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop(".lock", None)
    lines = [json.loads(line) for line in files["metrics.jsonl"].decode().splitlines()]
    files["metrics.jsonl"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train("qlearning", folder, **ARGUMENTS)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run."""
    return Run.open(shutil.copytree(finished, tmp_path / "run"))


# -- What a run leaves -----------------------------------------------------------------------------------------


def test_a_run_leaves_all_that_is_needed_to_look_at_it_and_to_repeat_it(finished):
    run = Run.open(finished)
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "model", "best", "curve.png", "transcripts.jsonl",
    }  # fmt: skip
    config = run.config
    assert (config["agent"], config["seed"], config["total_steps"], config["scenario"]) == (
        "qlearning", 7, STEPS, "customer_service",
    )  # fmt: skip
    assert config["settings"]["num_envs"] == 64
    assert config["settings"]["learning_rate"] == 0.5  # a default is written, too
    assert {"python", "chatgym", "gymnasium", "numpy", "numba", "plugin", "torch", "transformers"} <= set(
        config["versions"]
    )
    assert config["versions"]["torch"] == metadata.version("torch")
    assert "stable-baselines3" not in config["versions"]
    assert versions("dqn")["stable-baselines3"] == metadata.version("stable-baselines3")
    assert config["identity"]["sha256"] == run.task.identity()["sha256"]
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_of_metrics_is_written_at_the_beginning_and_at_each_evaluation(finished):
    lines = Run.open(finished).metrics()
    assert [line["turns"] for line in lines] == about([0, EVERY, 2 * EVERY, 3 * EVERY, STEPS])
    for line in lines:
        for name in ("success_rate", "mean_return", "score"):
            assert line[name]["low"] <= line[name]["value"] <= line[name]["high"]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_the_last_line_of_metrics_is_of_the_model_that_is_left(finished):
    run = Run.open(finished)
    result = evaluate(run.agent(), run.task, conversations=20, seed=VALIDATION_SEED, split="validation")
    assert run.metrics()[-1]["mean_return"] == dataclasses.asdict(result.mean_return)
    assert run.turns == run.agent().turns == about(STEPS)


def test_the_transcripts_are_the_same_customers_before_and_after(finished):
    transcripts = Run.open(finished).transcripts()
    before, after = transcripts[:5], transcripts[5:]
    assert [one["seed"] for one in before] == [one["seed"] for one in after]
    assert {one["trained_for"] for one in before} == {0}
    assert {one["trained_for"] for one in after} == {Run.open(finished).turns}
    for one, other in zip(before, after, strict=True):
        assert one["turns"][0] == other["turns"][0]
        assert one["turns"][-1]["text"] == other["turns"][-1]["text"]  # the goal
        assert one["turns"][-1]["act"] == one["outcome"]
    run = Run.open(finished)
    agent = run.new_agent()
    env = run.task.make_env(agent.requires)
    as_training_began = converse(agent, env, VALIDATION_SEED, split="validation", deterministic=False)
    assert split_of(env.key) == "validation"
    assert before[0] == {"trained_for": 0, **as_training_began}


def test_the_same_seed_gives_the_same_run_and_another_one_another_model(finished, tmp_path):
    train("qlearning", tmp_path / "again", **ARGUMENTS)
    assert content(tmp_path / "again") == content(finished)
    train("qlearning", tmp_path / "other", **{**ARGUMENTS, "seed": 8})
    assert content(tmp_path / "other")["model/tables.npz"] != content(finished)["model/tables.npz"]


def test_progress_is_told_after_each_iteration(tmp_path):
    told = []
    train("qlearning", tmp_path / "run", **ARGUMENTS, progress=lambda turns, metrics: told.append((turns, metrics)))
    turns = np.array([turns for turns, _ in told])
    assert turns[0] == 64
    assert turns[-2] < STEPS <= turns[-1]
    assert (np.diff(turns) > 0).all()
    assert (np.diff(turns) <= 64).all()
    assert set(told[0][1]) == {"mean_return", "success_rate", "epsilon"}


# -- Interruptions ---------------------------------------------------------------------------------------------

INTERRUPTED = """
import json, os, signal, sys, time
from chatgym.training import Run, train
from chatgym.evaluation.rollouts import run_conversations
from chatgym.storage import atomic
steps, how = 0, sys.argv[3]
def progress(turns, metrics):
    global steps
    steps += 1
    if steps == int(sys.argv[4]):
        os.kill(os.getpid(), getattr(signal, how))
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if how == "in the folders":  # 3: the second checkpoint's old model is away; 4: the new one is there; 5: so for best/
    rename, renames = os.rename, []
    def counted(*arguments):
        renames.append(rename(*arguments))
        if len(renames) == int(sys.argv[4]):  # the first checkpoint has nothing to put away
            die()
    os.rename, progress = counted, None
if how == "before the folders":  # the metrics have a line more than the model
    append, lines = atomic.append_text, []
    def counted(path, text):
        append(path, text)
        lines.append(text)
        if len(lines) == int(sys.argv[4]):
            die()
    atomic.append_text, progress = counted, None
if how == "in a line":
    append, lines = atomic.append_text, []
    def counted(path, text):
        lines.append(text)
        if len(lines) == 3:
            append(path, text[:40])
            die()
        append(path, text)
    atomic.append_text, progress = counted, None
train("qlearning", sys.argv[1], **json.loads(sys.argv[2]), progress=progress)
"""


def interrupt(folder, how, step=0):
    command = [sys.executable, "-c", INTERRUPTED, str(folder), json.dumps(ARGUMENTS), how, str(step)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("how", "step"),
    [
        ("SIGKILL", 60),
        ("SIGKILL", 1),
        ("before the folders", 1),
        ("before the folders", 3),
        ("in the folders", 1),
        ("in the folders", 3),
        ("in the folders", 4),
        ("in the folders", 5),
        ("in a line", 0),
    ],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(finished, tmp_path, how, step):
    killed = interrupt(tmp_path / "run", how, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = Run.open(tmp_path / "run")
    assert run.turns < STEPS
    if (how, step) != ("before the folders", 1):  # there it has no model yet
        run.agent()  # can be used as it is
    resume(tmp_path / "run")
    assert content(tmp_path / "run") == content(finished)


def test_a_run_that_was_stopped_by_ctrl_c_is_saved_where_it_was_and_ends_as_if_it_had_not_been(finished, tmp_path):
    stopped = interrupt(tmp_path / "run", "SIGINT", 60)
    assert stopped.returncode != 0
    assert stopped.stderr.rstrip().endswith("KeyboardInterrupt")
    run = Run.open(tmp_path / "run")
    assert run.turns > 51 * 64  # nothing is lost, though the last evaluation was at 50 * 64 turns
    assert (run.folder / "curve.png").exists()
    resume(tmp_path / "run")
    assert content(tmp_path / "run") == content(finished)


def test_resuming_a_finished_run_changes_nothing_and_more_steps_make_it_longer(finished, run):
    assert content(resume(run.folder).folder) == content(finished)
    longer = resume(run.folder, total_steps=STEPS + EVERY)
    assert longer.turns == about(STEPS + EVERY)
    assert Run.open(run.folder).config["total_steps"] == STEPS + EVERY
    lines = longer.metrics()
    assert [line["turns"] for line in lines][-2:] == about([STEPS, STEPS + EVERY])
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)  # of all sessions
    with pytest.raises(InvalidValue, match="total_steps is a number from 1 on, not 0"):
        resume(run.folder, total_steps=0)


def test_a_finished_run_is_left_as_it_is_and_one_that_was_killed_just_before_is_finished(finished, run, monkeypatch):
    monkeypatch.setattr(find_agent("qlearning"), "learn", None)  # nothing is to be learned
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"}
    assert resume(run.folder).finished
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.undo()
    about = json.loads((run.model / "checkpoint.json").read_text())
    del about["finished"]
    (run.model / "checkpoint.json").write_text(json.dumps(about))
    for name in ("curve.png", "transcripts.jsonl"):
        (run.folder / name).unlink()
    assert not run.finished
    assert resume(run.folder).finished
    assert content(run.folder) == content(finished)


# -- The best checkpoint ---------------------------------------------------------------------------------------


def measured(run, checkpoint):
    agent = run.agent(checkpoint)
    result = evaluate(agent, run.task, conversations=20, seed=VALIDATION_SEED, split="validation", references=False)
    return agent.turns, result.success_rate.value, result.mean_return.value


def test_the_best_checkpoint_is_that_of_the_best_evaluation(finished):
    run = Run.open(finished)
    ranked = [(line["success_rate"]["value"], line["mean_return"]["value"]) for line in run.metrics()]
    best = run.metrics()[ranked.index(max(ranked))]
    assert run.best() == best
    assert measured(run, "best") == (best["turns"], *max(ranked))
    assert measured(run, "last") == (run.turns, *ranked[-1])
    with pytest.raises(InvalidValue, match=r"unknown checkpoint 'bes'.*Did you mean 'best'"):
        run.agent("bes")


def line(turns, success, mean):
    return {"turns": turns, "success_rate": {"value": success}, "mean_return": {"value": mean}}


def test_success_counts_before_return_and_the_first_of_equals_is_kept(tmp_path):
    run = Run.create(tmp_path / "run", {"agent": "qlearning"})
    agent = find_agent("qlearning")(Task().find_scenario())
    kept = []
    for turns, success, mean in ((0, 0.1, -1.0), (1, 0.1, -1.5), (2, 0.2, -2.0), (3, 0.2, -2.0), (4, 0.2, -1.9)):
        run.checkpoint(agent, turns, line(turns, success, mean))
        kept.append(json.loads((run.folder / "best" / "checkpoint.json").read_text())["turns"])
    assert kept == [0, 0, 2, 2, 4]
    run.checkpoint(agent, 5)  # after Ctrl-C: it has no evaluation
    assert json.loads((run.folder / "best" / "checkpoint.json").read_text())["turns"] == 4


def test_a_run_without_its_best_checkpoint_says_so(run):
    shutil.rmtree(run.folder / "best")
    with pytest.raises(InvalidValue, match=r"no best checkpoint: .* take the last one"):
        run.agent("best")
    longer = resume(run.folder, total_steps=STEPS + 64)
    assert (run.folder / "best").exists() == (longer.best()["turns"] == longer.turns)  # only if the last one is better


def test_a_damaged_best_checkpoint_is_reported_and_the_last_is_not_touched_by_it(run):
    assert (run.folder / "best" / "tables.npz").stat().st_size
    flip(run.folder / "best" / "tables.npz")
    with pytest.raises(Corrupted, match=r"best/tables.npz isn't as it was saved"):
        run.agent("best")
    run.agent()


def test_a_run_of_another_simulator_is_not_gone_on_with(run):
    config = json.loads((run.folder / "config.json").read_text())
    config["arguments"]["error_rate"] = 0.2
    (run.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidValue, match=r"was trained with another simulator .*train again"):
        resume(run.folder)


# -- Curricula -------------------------------------------------------------------------------------------------


def harder(turns):
    return {"error_rate": 0.5 * min(turns / STEPS, 1.0), "max_turns": 6 if turns < 2 * EVERY else 12}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a run with a curriculum; not to be changed."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    train("qlearning", folder, **ARGUMENTS, curriculum=harder)
    return folder


def test_a_curriculum_changes_the_conversations_before_each_iteration(tmp_path, monkeypatch):
    learner, seen = find_agent("qlearning"), []
    learn = learner.learn

    def watched(self, make_envs, total_steps, callback):
        def told(turns, metrics):
            callback(turns, metrics)
            seen.append((turns, made[-1].room.error_rate, made[-1].room.max_turns))

        made = []
        learn(self, lambda *args, **more: made.append(make_envs(*args, **more)) or made[-1], total_steps, told)

    monkeypatch.setattr(learner, "learn", watched)
    run = train("qlearning", tmp_path / "run", **ARGUMENTS, curriculum=harder)
    assert len(seen) > 100
    assert all((rate, most) == tuple(harder(turns).values()) for turns, rate, most in seen)
    assert [line["curriculum"] for line in run.metrics()] == [harder(line["turns"]) for line in run.metrics()]
    assert run.config["curriculum"]["function"] == "harder"
    assert run.config["curriculum"]["values"][1] == {"turns": EVERY, **harder(EVERY)}


def test_a_curriculum_changes_what_is_learned_but_not_the_evaluations(finished, taught):
    run = Run.open(taught)
    assert content(taught)["model/tables.npz"] != content(finished)["model/tables.npz"]
    result = evaluate(run.agent(), Task(), conversations=20, seed=VALIDATION_SEED, split="validation")
    assert run.metrics()[-1]["mean_return"] == dataclasses.asdict(result.mean_return)


def test_a_curriculum_that_gives_the_task_s_own_arguments_changes_nothing(finished, tmp_path):
    train("qlearning", tmp_path / "run", **ARGUMENTS, curriculum=lambda turns: {"error_rate": 0.1} if turns else {})
    assert content(tmp_path / "run")["model/tables.npz"] == content(finished)["model/tables.npz"]


@pytest.mark.parametrize("after", [EVERY - 64, 3 * EVERY - 640])
def test_a_killed_run_with_a_curriculum_ends_as_if_it_had_not_been(taught, tmp_path, after):
    def kill(turns, metrics):
        if turns > after:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train("qlearning", tmp_path / "run", **ARGUMENTS, curriculum=harder, progress=kill)
    with pytest.raises(
        InvalidValue, match=r"with a curriculum, the function harder; .*resume\(.*, curriculum=harder\)`"
    ):
        resume(tmp_path / "run")
    with pytest.raises(InvalidValue, match=r"gives \{\} after 0 turns, the run's harder gave \{'error_rate': 0.0"):
        resume(tmp_path / "run", curriculum=lambda turns: {})
    resume(tmp_path / "run", curriculum=harder)
    assert content(tmp_path / "run") == content(taught)
    assert resume(tmp_path / "run").finished  # needs no curriculum any more


def test_a_longer_run_goes_on_with_its_curriculum_and_a_plain_one_with_none(taught, run, tmp_path):
    longer = resume(shutil.copytree(taught, tmp_path / "taught"), total_steps=STEPS + EVERY, curriculum=harder)
    assert longer.config["curriculum"]["values"][-1]["turns"] == STEPS + EVERY
    with pytest.raises(InvalidValue, match="begun without a curriculum"):
        resume(run.folder, total_steps=STEPS + EVERY, curriculum=harder)


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (None, "returns a dict of error_rate or max_turns, not None"),
        ({"error_rat": 0.1}, "Did you mean 'error_rate'"),
        ({"error_rate": 2}, "error_rate 2 after 0 turns; it is a probability"),
        ({"error_rate": "much"}, "it is a probability"),
        ({"max_turns": 21}, "a whole number from 1 to the task's, 20"),
        ({"max_turns": 2.5}, "a whole number"),
        ({"max_turns": True}, "a whole number"),
    ],
)
def test_what_no_curriculum_gives_is_refused_before_anything_is_written(tmp_path, gives, words):
    with pytest.raises(InvalidValue, match=words):
        train("qlearning", tmp_path / "run", **ARGUMENTS, curriculum=lambda turns: gives)
    assert not (tmp_path / "run").exists()


# -- Repeating a run -------------------------------------------------------------------------------------------


def test_a_repeated_run_is_the_same(finished, taught, tmp_path):
    elsewhere = shutil.copy(finished / "config.json", tmp_path / "theirs.json")
    repeat(elsewhere, tmp_path / "again")
    assert content(tmp_path / "again") == content(finished)
    with pytest.raises(InvalidValue, match=r"names a curriculum, .*repeat\(.*, FOLDER, curriculum=harder\)"):
        repeat(taught, tmp_path / "taught")
    with pytest.raises(InvalidValue, match=r"had no curriculum"):
        repeat(finished, tmp_path / "taught", curriculum=harder)
    repeat(taught, tmp_path / "taught", curriculum=harder)
    assert content(tmp_path / "taught") == content(taught)


@pytest.mark.parametrize("lengthened_after", [STEPS, 2 * EVERY + 640])
def test_a_run_that_was_lengthened_is_repeated_so(tmp_path, lengthened_after):
    def stop(turns, metrics):
        if turns >= lengthened_after and turns < STEPS:
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(KeyboardInterrupt):
        train("qlearning", tmp_path / "run", **ARGUMENTS, progress=stop)
    done = Run.open(tmp_path / "run").turns
    assert done == about(lengthened_after)
    run = resume(tmp_path / "run", total_steps=STEPS + EVERY)
    assert run.config["stages"] == [{"total_steps": STEPS, "until": done}]
    repeat(tmp_path / "run", tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "run")
    at_once = train("qlearning", tmp_path / "at once", **{**ARGUMENTS, "total_steps": STEPS + EVERY})
    assert content(at_once.folder)["model/tables.npz"] != content(run.folder)["model/tables.npz"]  # ε falls otherwise


def test_a_run_of_other_versions_is_repeated_with_a_warning_and_of_another_simulator_not(finished, tmp_path):
    config = json.loads((finished / "config.json").read_text())

    def given(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        return tmp_path / "config.json"

    small = {"total_steps": 64, "versions": {**config["versions"], "numpy": "1.0"}}
    small["settings"] = {name: value for name, value in config["settings"].items() if name != "double"}
    with pytest.warns(UserWarning, match=r"numpy 1.0 there, .* here; double unknown there, False here"):
        repeat(given(**small), tmp_path / "other versions")
    identity = {**config["identity"], "sha256": "0" * 64, "error_model": {}}
    with pytest.raises(InvalidValue, match=r"another simulator \(error model differ\).*install .*\(chatgym 0"):
        repeat(given(identity=identity), tmp_path / "refused")
    with pytest.raises(InvalidValue, match=r"another simulator \(validation seeds differ\)"):
        repeat(given(validation_seed=5), tmp_path / "refused")
    with pytest.raises(Corrupted, match=r"config.json can't be repeated: its seed is '3'; restore the file"):
        repeat(given(seed="3"), tmp_path / "refused")
    with pytest.raises(InvalidValue, match="unknown agent 'theirs'"):
        repeat(given(agent="theirs"), tmp_path / "refused")
    with pytest.raises(InvalidValue, match="'os:system': code, which a file mustn't choose"):
        repeat(given(arguments={"reward": "os:system"}), tmp_path / "refused")
    with pytest.raises(InvalidValue, match="unknown setting 'gone'"):
        repeat(given(settings={"gone": 1}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


# -- Folders that are taken or damaged -------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused_unless_it_is_to_be_replaced(run):
    before = content(run.folder)
    with pytest.raises(InvalidValue, match=r"already holds a run; go on with it \(--resume\), replace it"):
        train("qlearning", run.folder, **ARGUMENTS)
    with pytest.raises(InvalidValue, match="already holds a run"):
        Run.create(run.folder, run.config)
    assert content(run.folder) == before
    (run.folder / "notes.txt").write_text("mine")
    replaced = train("qlearning", run.folder, **{**ARGUMENTS, "total_steps": EVERY}, overwrite=True)
    assert replaced.turns == about(EVERY)
    assert (run.folder / "notes.txt").read_text() == "mine"


def test_two_processes_do_not_train_in_the_same_folder(run):
    from filelock import FileLock

    with FileLock(run.folder / ".lock"), pytest.raises(Unavailable, match="another process is training in"):
        resume(run.folder)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(InvalidValue, match="isn't empty and holds no run; name another folder"):
            train("qlearning", tmp_path, **ARGUMENTS, overwrite=overwrite)
    with pytest.raises(InvalidValue, match=r"is a file; name a folder"):
        train("qlearning", tmp_path / "thesis.txt", **ARGUMENTS)
    (tmp_path / "config.json").write_text('{"name": "something else"}')
    with pytest.raises(InvalidValue, match="is something else's"):
        train("qlearning", tmp_path, **ARGUMENTS, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "thesis.txt"]


def test_a_folder_in_which_a_run_was_killed_at_its_very_beginning_can_be_used(tmp_path):
    for name in (".lock", ".new-config.json"):
        (tmp_path / name).write_text("")
    assert train("qlearning", tmp_path, **{**ARGUMENTS, "total_steps": 64}).turns == 64


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["agent.json", "tables.npz", "training.npz", "checkpoint.json"])
@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
def test_a_damaged_model_is_reported_with_the_remedy(run, name, damage):
    damage(run.model / name)
    before = content(run.folder)
    for use in (run.agent, lambda: resume(run.folder)):
        with pytest.raises(Corrupted, match=r"restore it or train again \(--overwrite\)"):
            use()
    assert content(run.folder) == before


@pytest.mark.parametrize(
    "damage",
    [cut, lambda path: path.write_text("[1]"), lambda path: path.write_text('{"format": "chatgym-run", "version": 1}')],
)
def test_a_damaged_configuration_is_reported_with_the_remedy(run, damage):
    damage(run.folder / "config.json")
    with pytest.raises(Corrupted, match="train again, into another folder"):
        resume(run.folder)


@pytest.mark.parametrize("line", [b'{"turns": 1', b"17", b'{"turn": 3}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "transcripts.jsonl"])
def test_a_damaged_line_is_reported_with_the_remedy(run, name, line):
    path = run.folder / name
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(Corrupted, match=rf"{name} can't be read .*restore it or train again \(--overwrite\)"):
        run.metrics() if name == "metrics.jsonl" else run.transcripts()


def test_a_folder_without_a_run_or_without_a_model_says_what_to_do(run, tmp_path):
    with pytest.raises(InvalidValue, match=r"holds no run.*`chatgym train` makes one"):
        resume(tmp_path / "nothing")
    shutil.rmtree(run.model)
    with pytest.raises(InvalidValue, match="has no model yet; go on with the training: `chatgym train qlearning"):
        run.agent()
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(InvalidValue, match="is a run of version 2; this ChatGym reads 1"):
        resume(run.folder)


@pytest.mark.parametrize(
    ("agent", "arguments", "words"),
    [
        ("qlerning", {}, "unknown agent 'qlerning'.*Did you mean 'qlearning'"),
        ("random", {}, "learns nothing; measure it with `chatgym evaluate random`"),
        (
            "qlearning",
            {"settings": {"learning_rat": 0.1}},
            "unknown setting 'learning_rat'.*Did you mean 'learning_rate'",
        ),
        ("qlearning", {"settings": {"learning_rate": 1.5}}, "learning_rate is 1.5; allowed is 0.0 to 1.0"),
        ("qlearning", {"settings": {"num_envs": 1.5}}, "num_envs is of type int, not 1.5"),
        ("qlearning", {"total_steps": 0}, "total_steps is a number from 1 on, not 0"),
        ("qlearning", {"conversations": 0}, "conversations is a number from 1 on, not 0"),
        ("qlearning", {"seed": -1}, "seed is a number from 0 to 4294967295, not -1"),
        ("qlearning", {"seed": 2**32}, "seed is a number from 0 to 4294967295"),
        ("qlearning", {"task": Task("customer_servic")}, "Did you mean 'customer_service'"),
        ("qlearning", {"task": Task(arguments={"error_rate": 2})}, "error_rate is a probability"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, agent, arguments, words):
    with pytest.raises(InvalidValue, match=words):
        train(agent, tmp_path / "run", **{**ARGUMENTS, **arguments})
    assert not (tmp_path / "run").exists()


# -- Full disks ------------------------------------------------------------------------------------------------


def fill(folder):
    """Write until nothing goes any more."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_the_run_can_be_resumed(finished, tmp_path, disk):
    """Tables of 6,018 states take 1.4 MB: the disk of 6 MB holds the best, old and new checkpoint, but no more."""
    told = []

    def progress(turns, metrics):
        told.append(turns)
        if turns > EVERY + 64:
            fill(disk)

    with pytest.raises(Unavailable, match=r"no space left on the disk of .*free some, then go on with `chatgym train"):
        train("qlearning", disk / "run", **ARGUMENTS, progress=progress)
    assert told[-1] == about(2 * EVERY)
    run = Run.open(disk / "run")
    assert run.turns == run.agent().turns == about(EVERY)
    assert [line["turns"] for line in run.metrics()] == about([0, EVERY, 2 * EVERY][: len(run.metrics())])
    with pytest.raises(Unavailable, match="no space left"):
        resume(disk / "run")
    assert Run.open(disk / "run").agent().turns == about(EVERY)
    (disk / "filler").unlink()
    resume(disk / "run")
    assert content(disk / "run") == content(finished)


def test_a_full_disk_at_the_beginning_is_reported_with_the_remedy(disk):
    fill(disk)
    with pytest.raises(Unavailable, match=r"no space left on the disk of .*name another folder"):
        train("qlearning", disk / "run", **ARGUMENTS)


def test_a_line_that_does_not_fit_on_the_disk_is_not_begun(small_disk):
    path, before = small_disk / "metrics.jsonl", "x" * 4000 + "\n"
    path.write_text(before)
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic.append_text(path, "y" * 1000 + "\n")  # of which 95 bytes fit
    assert path.read_text() == before


def test_a_full_disk_is_recognised_by_whatever_reports_it(tmp_path):
    def raised_as_its_own():
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise ValueError("the archive isn't complete")

    def raised_as_text():
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    def raised_for_another_reason():
        raise OSError(13, "Permission denied")

    for write in (raised_as_its_own, raised_as_text):
        with pytest.raises(Unavailable, match="clean up"), atomic.disk_space(tmp_path, "clean up"):
            write()
    with pytest.raises(OSError, match="Permission denied"), atomic.disk_space(tmp_path, "clean up"):
        raised_for_another_reason()


# -- Writing in one step ---------------------------------------------------------------------------------------


def test_a_file_that_could_not_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        atomic.write_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_that_could_not_be_written_stays_as_it_was(tmp_path):
    folder = tmp_path / "model"
    atomic.replace_folder(folder, lambda new: (new / "a").write_text("old"))

    def fail(new):
        (new / "a").write_text("half")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        atomic.replace_folder(folder, fail)
    assert (folder / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]
    atomic.replace_folder(folder, lambda new: (new / "b").write_text("new"))
    assert os.listdir(folder) == ["b"]
    assert os.listdir(tmp_path) == ["model"]


# -- Evaluation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agents():
    task = Task()
    return {name: find_agent(name)(task.find_scenario(), seed=1) for name in ("random", "expert")}


@pytest.mark.parametrize("name", ["random", "expert"])
def test_a_conversation_ends_the_same_however_many_are_evaluated(agents, name):
    def held(conversations):
        agent = find_agent(name)(Task().find_scenario(), seed=1)
        return evaluate(agent, conversations=conversations, references=False)

    many, few = held(4200), held(70)  # 4,200: more than fit side by side
    assert np.array_equal(many.returns[:70], few.returns)
    assert np.array_equal(many.outcomes[:70], few.outcomes)
    assert np.array_equal(many.turns[:70], few.turns)
    assert len(many.returns) == 4200
    if name == "expert":
        late = evaluate(agents[name], conversations=100, seed=few.seed + 4100, references=False)
        assert np.array_equal(many.returns[4100:], late.returns)


def test_training_validation_test_and_references_hold_other_conversations_with_the_same_seeds(agents):
    keys = {}
    for split in SPLITS:
        envs = Task().make_envs(agents["expert"].requires, 500)
        run_conversations(agents["expert"], envs, 0, split=split)
        assert set(split_of(envs.room.keys)) == {split}
        keys[split] = envs.room.keys.tolist()
    assert len({key for each in keys.values() for key in each}) == 2000
    assert evaluate(agents["expert"], conversations=3, references=False).split == "test"


def test_an_agent_that_asks_for_test_conversations_is_not_trained_in_them(tmp_path, monkeypatch):
    class Cheat(find_agent("qlearning")):
        def learn(self, make_envs, total_steps, callback):
            make_envs(4).reset(seed=0, options={"split": "test"})

    agents = plugins.load().agents
    monkeypatch.setitem(agents._things, "cheat", Cheat)
    monkeypatch.setitem(agents.sources, "cheat", agents.sources["qlearning"])
    with pytest.raises(InvalidValue, match="for conversations of the split 'train' only, not test"):
        train("cheat", tmp_path / "run", **ARGUMENTS)


def test_an_evaluation_agrees_with_one_conversation_after_the_other(agents):
    task = Task()
    result = evaluate(agents["expert"], task, conversations=8, references=False)
    env = task.make_env(agents["expert"].requires)
    for i in range(8):
        one = converse(agents["expert"], env, result.seed + i)
        assert split_of(env.key) == one["split"] == result.split == "test"
        assert (one["outcome"], one["return"]) == (result.outcomes[i], pytest.approx(result.returns[i]))
        assert sum(turn["role"] == "agent" for turn in one["turns"]) == result.turns[i]


def test_the_ends_of_the_scale_are_where_they_should_be(agents):
    random, expert = (evaluate(agents[name], conversations=4000) for name in ("random", "expert"))
    assert random.success_rate.high < 0.15
    assert 0.75 < expert.success_rate.low < expert.success_rate.high < 0.95
    found = references(Task())
    assert found.scenario == "customer_service"
    assert random.score.high < 0.0  # there are better acts than random ones
    assert dataclasses.astuple(expert.score) == pytest.approx((100.0, 100.0, 100.0))  # by definition
    constant = find_agent("constant")
    ignorant = constant(Task().find_scenario(), constant.Config(act=found.ignorant))
    assert dataclasses.astuple(evaluate(ignorant, conversations=1000).score) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    assert (found.random_success, found.expert_success) == (
        pytest.approx(random.success_rate.value, abs=0.02), pytest.approx(expert.success_rate.value, abs=0.02),
    )  # fmt: skip


def test_another_error_rate_has_references_of_its_own():
    noisy = Task(arguments={"error_rate": 0.3})
    assert references(noisy).identity != references(Task()).identity
    assert references(noisy).error_rate == 0.3
    assert references(noisy).expert_return < references(Task()).expert_return


def test_the_figures_are_those_of_the_conversations(agents):
    result = evaluate(agents["random"], conversations=300)
    figures = result.to_json()
    assert figures["conversations"] == 300
    assert figures["mean_return"]["value"] == pytest.approx(result.returns.mean())
    assert figures["success_rate"]["value"] == np.mean(result.outcomes == "resolved")
    assert sum(figures["outcomes"].values()) == 300
    assert figures["score"]["low"] < figures["score"]["value"] < figures["score"]["high"]
    json.dumps(figures)


@pytest.mark.parametrize("scenario", ["customer_service", "education", "social"])
def test_no_act_taken_all_the_time_scores_above_3(scenario):
    constant, task = find_agent("constant"), Task(scenario)
    for act in task.find_scenario().agent_acts:
        agent = constant(task.find_scenario(), constant.Config(act=act))
        assert evaluate(agent, task, conversations=1000).score.value <= 3.0


@pytest.mark.parametrize("scenario", ["customer_service", "education", "social"])
def test_giving_up_is_worth_less_than_an_honest_attempt_that_fails(scenario, agents):
    task = Task(scenario)
    expert = evaluate(find_agent("expert")(task.find_scenario()), task, conversations=4000, references=False)
    constant = find_agent("constant")
    for act in {"customer_service": ("close", "escalate"), "education": ("end",), "social": ("close",)}[scenario]:
        agent = constant(task.find_scenario(), constant.Config(act=act))
        quits = evaluate(agent, task, conversations=1000, references=False)
        assert (quits.turns == 1).all()
        assert quits.returns.mean() < expert.returns[expert.outcomes != expert.success].mean()


class Staller:
    """The expert, but in place of what would end the conversation it takes the best two acts to stall, in turn."""

    def __init__(self, scenario, acts):
        self.expert, self.scenario, self.acts = find_agent("expert")(scenario), scenario, acts
        self.requires, self.turn = self.expert.requires, 0

    def act(self, observations, **more):
        acts = np.array(self.expert.act(observations, **more))
        names, self.turn = self.scenario.agent_acts, self.turn + 1
        final = [k for k, name in enumerate(names) if name in ("close", "end", "escalate") or name.startswith("offer")]
        acts[np.isin(acts, final)] = names.index(self.acts[self.turn % 2])
        return acts


@pytest.mark.parametrize(
    ("scenario", "acts"),
    [
        ("customer_service", ("apologise", "check_satisfaction")), ("education", ("ask_hard", "ask_hard")),
        ("social", ("ask_advice", "check_feeling")),
    ],
)  # fmt: skip
def test_an_agent_that_gathers_everything_and_then_stalls_scores_nothing(scenario, acts):
    task = Task(scenario)
    stalled = evaluate(Staller(task.find_scenario(), acts), task, conversations=1000)
    assert (stalled.outcomes == "truncated").mean() > 0.35
    assert not (stalled.outcomes == stalled.success).any()
    assert stalled.score.value < 3.0
    cut = stalled.outcomes == "truncated"
    assert np.array_equal(stalled.scored[~cut], stalled.returns[~cut])
    assert (stalled.scored[cut] <= stalled.returns[cut] - 1.0).all()


def test_a_score_compares_the_returns_in_the_same_conversations():
    found = dataclasses.replace(references(Task()), ignorant_scored=-1.0, expert_scored=1.0)
    generator = np.random.default_rng(0)
    ignorant, expert = generator.normal(-1, 0.3, 500), generator.normal(1, 0.3, 500)
    scale = Scale(found, ignorant, expert, 9.0, Task())
    halfway = scale.score((ignorant + expert) / 2)
    assert dataclasses.astuple(halfway) == pytest.approx((50.0, 50.0, 50.0))
    unpaired = scale.score(generator.permutation((ignorant + expert) / 2))
    assert unpaired.high - unpaired.low > 1.0
    few = Scale(found, ignorant[:3], ignorant[:3], 9.0, Task())
    assert few.score(expert[:3]) is None
    assert "--conversations" in few.why_no_score


@pytest.mark.parametrize(
    ("ignorant", "expert", "successes"),
    [(-0.15, -0.02, (0.0, 0.0)), (-1.0, -0.95, (0.01, 0.2)), (-0.2, -0.8, (0.0, 0.2)), (0.1, 0.6, (0.5, 0.5))],
)
def test_there_is_no_score_where_the_expert_is_not_clearly_better(ignorant, expert, successes):
    found = dataclasses.replace(
        references(Task()), ignorant_scored=ignorant, expert_scored=expert, ignorant_success=successes[0],
        expert_success=successes[1],
    )  # fmt: skip
    scale = Scale(found, np.full(9, ignorant), np.full(9, expert), 9.0, Task())
    assert scale.score(np.zeros(9)) is None
    assert f"{ignorant:.3f}" in scale.why_no_score
    assert "--max-turns" in scale.why_no_score


def test_a_training_with_one_turn_a_conversation_has_no_score_but_all_else(tmp_path):
    task = Task(arguments={"max_turns": 1})
    small = {**ARGUMENTS, "total_steps": 64 * 8, "evaluate_every": 64 * 4}
    run = train("qlearning", tmp_path / "run", task=task, **small, log=["csv", "tensorboard"])
    lines = run.metrics()
    assert [line["score"] for line in lines] == [None] * len(lines)
    assert all(line["mean_return"]["low"] <= line["mean_return"]["value"] for line in lines)
    assert (run.folder / "curve.png").exists()
    assert "score" not in (run.folder / "metrics.csv").read_text()
    assert evaluate(run.agent(), task, conversations=20).to_json()["score"] is None


def test_without_references_there_is_no_score(agents):
    result = evaluate(agents["random"], conversations=10, references=False)
    assert result.to_json()["score"] is None
    with pytest.raises(InvalidValue, match="evaluate with references=True"):
        _ = result.score
    with pytest.raises(InvalidValue, match="at least one conversation, not 0"):
        evaluate(agents["random"], conversations=0)


def test_progress_counts_the_conversations_that_ended(agents):
    seen = []
    evaluate(agents["expert"], conversations=4200, references=False, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 4200


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)  # fmt: skip
def test_wilsons_interval_has_its_known_values(successes, n, low, high):
    """The last two are of Newcombe (1998), table I, method 3."""
    interval = wilson(successes, n)
    assert interval.value == successes / n
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("n", [1, 3, 29, 500, 1000, 2_000_000])
def test_the_interval_of_a_share_never_leaves_0_to_1(n):
    """Rounding gave 3e-18 for none of 500, and a little less than 1 for all of them."""
    assert (wilson(0, n).low, wilson(n, n).high) == (0.0, 1.0)
    for successes in {0, 0.5, n // 2, n - 0.5, n}:
        found = wilson(successes, n)
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_the_bootstrap_interval_is_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(1).normal(2.0, 3.0, 4000)
    interval, half = bootstrap_mean(values), 1.96 * values.std() / 4000**0.5
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert bootstrap_mean(values) == interval
    assert bootstrap_mean(np.array([1.5])) == type(interval)(1.5, 1.5, 1.5)


def test_what_an_agent_reports_is_written_as_json_that_others_read(tmp_path, monkeypatch):
    class Numbers(find_agent("qlearning")):
        def learn(self, make_envs, total_steps, callback):
            def tell(turns, metrics):
                callback(np.int64(turns), {"loss": np.float32(0.5), "lost": float("nan"), "far": np.float64("inf")})

            super().learn(make_envs, total_steps, tell)

    agents = plugins.load().agents
    monkeypatch.setitem(agents._things, "numbers", Numbers)
    monkeypatch.setitem(agents.sources, "numbers", agents.sources["qlearning"])
    task = Task(arguments={"error_rate": np.float32(0.5), "reward_weights": {"time": np.float64(0.25)}})
    seed, every = np.int64(3), np.int64(EVERY)
    run = train("numbers", tmp_path / "run", **{**ARGUMENTS, "seed": seed, "evaluate_every": every}, task=task)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    training = [json.loads(line, parse_constant=refuse)["training"] for line in lines]
    assert training[1] == {"loss": 0.5, "lost": None, "far": None}
    assert run.config["arguments"] == {"error_rate": 0.5, "reward_weights": {"time": 0.25}}
    assert json.loads((run.folder / "model" / "checkpoint.json").read_text())["turns"] == run.turns


def test_a_metric_that_is_no_number_is_refused_with_the_agent_s_name(tmp_path, monkeypatch):
    class Wordy(find_agent("qlearning")):
        def learn(self, make_envs, total_steps, callback):
            callback(64, {"mood": "good"})

    agents = plugins.load().agents
    monkeypatch.setitem(agents._things, "wordy", Wordy)
    monkeypatch.setitem(agents.sources, "wordy", agents.sources["qlearning"])
    with pytest.raises(InvalidValue, match="the agent 'wordy' tells its callback the metric 'mood' = 'good'; a metric"):
        train("wordy", tmp_path / "run", **ARGUMENTS)
