"""The run folder: what a training writes, and what it resumes from.

It holds ``config.json`` (everything to repeat the training), ``metrics.jsonl`` (see `Run.lines`),
``model/`` (the agent at the last checkpoint), ``best/`` (the agent at its best evaluation, see `Run.best`),
``curve.png``, ``transcripts.jsonl`` and the logs of `FORMATS`. A checkpoint first appends its metrics, then replaces
the model, then the best one; a resumed run drops lines later than its model, and makes the best one if it is missing.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chatgym import plugins
from chatgym.agent import Agent, Interface, make_config
from chatgym.dynamics.identity import differences, same_simulator
from chatgym.envs.interfaces import WORDS
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue, Unavailable, unknown
from chatgym.scenarios import versioned
from chatgym.storage import atomic
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json, read_lines
from chatgym.training import checkpoint as checkpoints
from chatgym.training.failure import blaming, without_plugin
from chatgym.training.logs import FORMATS

FORMAT = "chatgym-run"
VERSION = 1
RANKED_BY = ("success_rate", "mean_return")
"""Measures by which the best evaluation of a run is chosen, the most important first."""
KEYS = {"agent", "arguments", "conversations", "evaluate_every", "identity", "scenario", "seed", "settings",
        "total_steps", "validation_seed", "version", "versions"}  # fmt: skip
CONTENT = ("metrics.jsonl", *FORMATS.values(), "curve.png", "transcripts.jsonl", "model", ".new-model", ".old-model",
           "best", ".new-best", ".old-best", "config.json")  # fmt: skip
CHECKPOINTS = {"last": "model", "best": "best"}
"""Name of a checkpoint that is kept to its folder."""


class Run:
    """A run folder and its configuration; make one by `create` or `open`.

    Attributes:
        folder: The folder.
        config: Content of ``config.json``.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Refer to a run; reads and writes nothing."""
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> Run:
        """Create a run folder.

        Args:
            folder: A new or empty folder; with `overwrite` also one that holds a run.
            config: Agent, task, seed and so on, see `chatgym.training.prepare`.
            overwrite: Whether to delete the run that is there; files that no run writes are kept.

        Raises:
            InvalidValue: The folder holds something else.
            Unavailable: The disk is full.
        """
        folder = given(folder)
        check_free(folder, overwrite=overwrite)
        for name in CONTENT:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        run = cls(folder, {"format": FORMAT, "version": VERSION, **config})
        with atomic.disk_space(folder, "free some, or name another folder (--run)"):
            folder.mkdir(parents=True, exist_ok=True)
            atomic.write_text(folder / "config.json", json.dumps(run.config, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open the run in a folder.

        Raises:
            InvalidValue: The folder holds no run, or one of another format version.
            Corrupted: Its configuration can't be read.
        """
        folder = given(folder)
        return cls(folder, read_config(folder / "config.json"))

    @property
    def task(self) -> Task:
        """Scenario and arguments of the environment.

        Raises:
            Unavailable: The plugin of the scenario isn't here.
        """
        name, plugin = self.config["scenario"], self.config["versions"].get("scenario_plugin")
        if plugin is not None and name not in plugins.load().scenarios:
            raise without_plugin(self.folder, "scenario", name, plugin)
        recorded = self.config["identity"]
        identity = recorded.get("scenario", {})
        version = identity.get("version") if identity.get("name") == name else None
        arguments = dict(self.config["arguments"])
        if recorded["observation"] in WORDS:  # earlier versions had another default there
            arguments.setdefault("error_rate", recorded["error_model"]["rate"])
        return Task(name if version is None else versioned(name, version), arguments)

    @property
    def log(self) -> list[str]:
        """The formats of its logs; none in a run from before logs existed."""
        return list(self.config.get("log", ()))

    def new_agent(self) -> Agent:
        """Return the untrained agent."""
        made_by = self.agent_class()
        scenario, config = self.task.find_scenario(), make_config(made_by.Config, self.config["settings"])
        with blaming(self.config["agent"], self.how_to_go_on):
            agent: Agent = made_by(scenario, config, seed=self.config["seed"])
        return agent

    def agent_class(self) -> Any:
        """Return the class of the run's agent.

        Raises:
            Unavailable: The plugin that it comes from isn't here.
        """
        name = self.config["agent"]
        if name not in plugins.load().agents:
            raise without_plugin(self.folder, "agent", name, self.config["versions"].get("plugin", ""))
        return find_agent(name)

    def how_to_go_on(self) -> str:
        """Return the last checkpoint and the command that goes on from it, after the agent failed."""
        done = self.turns
        there = f"the last checkpoint, {self.model}, is after {done:,} turns" if done else "no turn was kept yet"
        return f"{there}; mend the agent, then go on with `{self.resume_command()}`"

    def agent(self, checkpoint: str = "last") -> Agent:
        """Return the agent at a checkpoint.

        Args:
            checkpoint: ``"last"``, or ``"best"``: at its best evaluation, see `best`.

        Raises:
            InvalidValue: There is no such checkpoint.
            Corrupted: A file of the checkpoint has changed.
            Unavailable: The agent's plugin isn't here.
            AgentFailed: The agent's own code raised something else.
        """
        made_by, folder = self.agent_class(), self.check(checkpoint)
        with blaming(self.config["agent"], lambda: f"it can't be loaded from {folder}"):
            agent: Agent = made_by.load(folder)
        return agent

    def check(self, checkpoint: str = "last") -> Path:
        """Check that a checkpoint is as it was saved, and return its folder.

        Raises:
            InvalidValue: There is no such checkpoint.
            Corrupted: A file of it has changed.
        """
        if checkpoint not in CHECKPOINTS:
            raise unknown("checkpoint", checkpoint, CHECKPOINTS)
        folder = self._newest(CHECKPOINTS[checkpoint])
        if not folder.is_dir():
            if checkpoint == "best" and self.model.is_dir():
                raise InvalidValue(
                    f"{self.folder} has no best checkpoint: its best evaluation was before such were kept; take the "
                    "last one"
                )
            raise InvalidValue(f"{self.folder} has no model yet; go on with the training: `{self.resume_command()}`")
        checkpoints.check(folder)
        return folder

    @property
    def model(self) -> Path:
        """The folder of the last checkpoint, also after a kill while a new one was replacing it."""
        return self._newest("model")

    def best(self) -> dict[str, Any] | None:
        """Return the line of metrics of the best evaluation, whose agent is in ``best/``; None before the first.

        The best one has the highest success rate, among those the highest mean return, among those the fewest turns.
        These are of the validation conversations, among which it was chosen: they flatter it, so measure it on others.
        """
        return max(self.metrics(), key=lambda line: [line[name]["value"] for name in RANKED_BY], default=None)

    def keep_best(self) -> None:
        """Make ``best/`` of the last checkpoint if that is of the best evaluation and isn't there yet."""
        kept = self.folder / "best"
        atomic.recover_folder(kept)
        best = self.best()
        if best is None or best["turns"] != self.turns:
            return
        if kept.is_dir() and checkpoints.read(kept)["turns"] == self.turns:
            return
        with self.writing():
            atomic.replace_folder(kept, lambda new: atomic.copy_folder(self.model, new))

    def _newest(self, name: str) -> Path:
        """Return the folder of a checkpoint, also after a kill while a new one was replacing it."""
        new, old = self.folder / name, self.folder / f".old-{name}"
        return old if old.is_dir() and not new.is_dir() else new

    def check_simulator(self, remedy: str) -> None:
        """Check that the run was trained in the simulator that is here, as its agent acts and observes in it.

        Raises:
            InvalidValue: It wasn't; the error says what differs, and the `remedy`.
        """
        recorded = self.config["identity"]
        # As recorded, not as the agent's: of all agents, earlier versions recorded the identity of acts and beliefs.
        here = self.task.identity(Interface(recorded["action"], recorded["observation"]))
        if not same_simulator(recorded["sha256"], here):
            raise InvalidValue(
                f"{self.folder} was trained with another simulator ({differences(recorded, here)}); {remedy}, or "
                "install the versions in its config.json"
            )

    def metrics(self) -> list[dict[str, Any]]:
        """Return the evaluations: the lines of ``metrics.jsonl`` that have measures, see `lines`.

        Raises:
            Corrupted: A line isn't JSON.
        """
        return [line for line in self.lines() if "success_rate" in line]

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of ``metrics.jsonl``, without an incomplete last one.

        There is one for each evaluation, with ``success_rate``, ``mean_return`` and ``score``, and, of an agent with
        ``log_iterations``, one for each iteration between them. Each has ``turns``, ``seconds`` and ``training``, the
        agent's own metrics.

        Raises:
            Corrupted: A line isn't JSON.
        """
        return self._read_lines("metrics.jsonl", "turns")

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.writing():
            atomic.append_text(self.folder / "metrics.jsonl", _json_lines([line]))

    def keep_metrics(self, turns: int) -> None:
        """Drop the metrics later than `turns`."""
        kept = [line for line in self.lines() if line["turns"] <= turns]
        with self.writing():
            atomic.write_text(self.folder / "metrics.jsonl", _json_lines(kept))

    @property
    def turns(self) -> int:
        """Turns of training at the last checkpoint; 0 before the first.

        Raises:
            Corrupted: The checkpoint can't be read.
        """
        return int(checkpoints.read(self.model)["turns"]) if self.model.is_dir() else 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: it was trained to its end, with curve and transcripts.

        Raises:
            Corrupted: The checkpoint can't be read.
        """
        return self.model.is_dir() and checkpoints.read(self.model).get("finished", False) is True

    def finish(self) -> None:
        """Record in the last checkpoint that nothing is left to do."""
        with self.writing():
            checkpoints.write(self.model, {**checkpoints.read(self.model), "finished": True})

    def checkpoint(self, agent: Agent, turns: int, line: Mapping[str, Any] | None = None) -> None:
        """Save the agent after `turns` of training, with its line of metrics.

        Raises:
            Unavailable: The disk is full; the checkpoint before is kept.
        """
        with self.writing():
            if line is not None:
                self.note(line)
            atomic.replace_folder(self.folder / "model", lambda model: checkpoints.save(agent, turns, model))
        self.keep_best()

    def stages(self) -> list[tuple[int, int | None]]:
        """Return the stages that are left of the training: total turns, and those after which it was changed.

        A run that was never lengthened has one, which ends with its total: (total turns, None).
        """
        done, earlier = self.turns, self.config.get("stages", ())
        left = [(stage["total_steps"], stage["until"]) for stage in earlier if stage["until"] > done]
        return [*left, (self.config["total_steps"], None)]

    def with_total_steps(self, total_steps: int, **changes: Any) -> Run:
        """Change the run's total turns, and `changes` of its configuration, and return the changed run.

        ``stages`` records the total turns before, since settings such as ε may depend on them.
        """
        if total_steps == self.config["total_steps"]:
            return self
        if done := self.turns:
            earlier = [*self.config.get("stages", ()), {"total_steps": self.config["total_steps"], "until": done}]
            changes["stages"] = earlier
        run = Run(self.folder, {**self.config, "total_steps": total_steps, **changes})
        with self.writing():
            atomic.write_text(self.folder / "config.json", json.dumps(run.config, indent=2) + "\n")
        return run

    def write_transcripts(self, transcripts: Sequence[Mapping[str, Any]]) -> None:
        """Write ``transcripts.jsonl``, one conversation on each line."""
        with self.writing():
            atomic.write_text(self.folder / "transcripts.jsonl", _json_lines(transcripts))

    def transcripts(self) -> list[dict[str, Any]]:
        """Return the conversations of ``transcripts.jsonl``; none if there is no such file yet.

        Raises:
            Corrupted: A line can't be read.
        """
        return self._read_lines("transcripts.jsonl", "turns")

    def _read_lines(self, name: str, key: str) -> list[dict[str, Any]]:
        """Read a file of JSON lines, each an object that has `key`."""
        path = self.folder / name
        try:
            records = read_lines(path)
            for record in records:
                record[key]
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupted(f"{path} can't be read ({error}); restore it or train again (--overwrite)") from error
        return records

    def draw_curve(self) -> Path:
        """Draw ``curve.png`` and return its path."""
        from chatgym.evaluation.learning_curve import draw
        from chatgym.evaluation.references import references

        path, found = self.folder / "curve.png", references(self.task)
        title = f"{self.config['agent']} in {self.config['scenario']}, seed {self.config['seed']}"
        with self.writing():
            atomic.write_file(path, lambda temporary: draw(self.lines(), found, title, temporary))
        return path

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that turns a full disk into an error with the command that resumes the run."""
        return atomic.disk_space(self.folder, f"free some, then go on with `{self.resume_command()}`")

    def resume_command(self) -> str:
        """Return the command that resumes the run, or the Python where it has a curriculum."""
        if curriculum := self.config.get("curriculum"):
            return f"chatgym.training.resume({str(self.folder)!r}, curriculum={curriculum['function']})"
        return f"chatgym train {self.config['agent']} --run {shlex.quote(str(self.folder))} --resume"


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the ``config.json`` of a run, given by its path or by the run folder.

    Raises:
        InvalidValue: There is none, it is something else's, or of another format version.
        Corrupted: It can't be read.
    """
    path = given(path)
    path = path / "config.json" if path.is_dir() else path
    config = read_object(path, "run", "`chatgym train` makes one", "train again, into another folder")
    if config.get("format") != FORMAT:
        raise InvalidValue(f"{path.parent} holds no run: {path} is something else's")
    if config.get("version") != VERSION:
        raise InvalidValue(f"{path.parent} is a run of version {config.get('version')}; this ChatGym reads {VERSION}")
    if missing := ", ".join(sorted(KEYS - config.keys())):
        raise Corrupted(f"{path} lacks {missing}; train again, into another folder")
    return config


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Check that a folder is new or empty, or, with `overwrite`, holds a run.

    Raises:
        InvalidValue: It isn't.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidValue(f"{folder} is a file; name a folder for the run")
    if (folder / "config.json").exists():
        if not overwrite:
            raise InvalidValue(
                f"{folder} already holds a run; go on with it (--resume), replace it (--overwrite), or name another "
                "folder (--run)"
            )
        Run.open(folder)  # refuses a folder whose config.json is something else's
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - {".lock", ".new-config.json"}:
        raise InvalidValue(f"{folder} isn't empty and holds no run; name another folder (--run)")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder, made if needed, against other processes for the block.

    Raises:
        Unavailable: Another process holds the lock, or the disk is full.
    """
    file_lock = FileLock(folder / ".lock", timeout=0)
    try:
        with atomic.disk_space(folder, "free some, or name another folder (--run)"):
            folder.mkdir(parents=True, exist_ok=True)
            file_lock.acquire()
    except Timeout:
        raise Unavailable(f"another process is training in {folder}; wait for it, or stop it") from None
    try:
        yield
    finally:
        file_lock.release()


def find_agent(name: str) -> Any:
    """Return the agent class registered under a name.

    Raises:
        InvalidValue: There is none.
        Unavailable: Its plugin can't be imported.
    """
    agents = plugins.load().agents
    if name not in agents:
        raise unknown("agent", name, agents, "`chatgym plugins` lists what is installed.")
    return agents[name]


LIBRARIES = ("torch", "transformers", "deepspeed")
"""Distributions that any agent may need; those that are installed have their versions recorded, unimported."""


def versions(agent: str, scenario: str = "") -> dict[str, str]:
    """Return the versions of what an agent's training depends on: Python, libraries, and the agent's plugin.

    ``scenario_plugin`` is the plugin of the scenario, if that isn't one of ChatGym's own.
    """
    registry = plugins.load()
    plugin = registry.plugins[registry.agents.sources[agent]]
    found = {name: version(name) for name in ("chatgym", "gymnasium", "numba", "numpy")}
    for name in (*LIBRARIES, *getattr(registry.agents[agent], "packages", ())):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    found["plugin"] = plugin
    if (source := registry.scenarios.sources.get(scenario, plugins.BUILT_IN)) != plugins.BUILT_IN:
        found["scenario_plugin"] = registry.plugins[source]
    return {"python": platform.python_version(), **found}


def read_object(path: Path, what: str, remedy: str, mend: str) -> dict[str, Any]:
    """Read a JSON object, by which a folder is recognised as a run or a study (`what`).

    Raises:
        InvalidValue: There is no such file; the error gives the `remedy`.
        Corrupted: It can't be read; the error says how to `mend` it.
    """
    if not path.exists():
        raise InvalidValue(f"{path.parent} holds no {what}: there is no {path}; {remedy}")
    try:
        return dict(read_json(path).items())
    except (ValueError, AttributeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); {mend}") from error


def _json_lines(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as JSON, one on each line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
