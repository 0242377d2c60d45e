"""Supervised fine-tuning (SFT) on conversations, the first step of RLHF (Ouyang et al. 2022).

A run folder holds ``config.json`` (all settings), ``conversations.jsonl`` (if an agent held the conversations),
``base/`` (the tokenizer of a new model), ``metrics.jsonl`` (one line a step), ``checkpoint/`` (until the training
ends), and at the end ``model/``, for ``llm="hf:FOLDER/model"`` and `chatgym serve`; `chatgym sft` adds ``report.json``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.errors import Corrupted, InvalidValue
from chatgym.finetuning import dialogues, models, tiny
from chatgym.finetuning.dialogues import Dialogue
from chatgym.finetuning.epochs import rows_of_step
from chatgym.finetuning.loop import METRICS, Loop, Optimization, load_weights, read_metrics
from chatgym.finetuning.models import Lora, WordLoss
from chatgym.finetuning.packing import Rows, pack
from chatgym.storage import atomic, model_store
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json, valid

FORMAT, VERSION = "chatgym-sft", 1

Progress = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Settings:
    """Settings of a run, beside those of the optimizer.

    Attributes:
        model: A stored model's name or a folder; empty for a new, small model.
        data: A file of conversations, see `chatgym.finetuning.dialogues.read`; empty for ``conversations.jsonl``.
        data_sha256: SHA-256 of that file.
        epochs: How often each conversation is seen.
        length: Tokens of a row.
        validation: Share of the conversations that is held out for measuring perplexity.
        evaluations: How often perplexity is measured after the first step.
        lora: Rank of LoRA; 0 trains all weights.
        gradient_checkpointing: Whether to recompute activations instead of storing them.
        seed: Seed of everything random.
    """

    model: str
    data: str
    data_sha256: str
    epochs: float = 3.0
    length: int = 512
    validation: float = 0.05
    evaluations: int = 5
    lora: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0


class SFT:
    """A run of supervised fine-tuning.

    Attributes:
        folder: The run folder.
        settings, optimization: The run's settings, see `prepare`.
    """

    def __init__(self, folder: Path, settings: Settings, optimization: Optimization) -> None:
        """Make a run without checks; use `prepare` or `open`."""
        self.folder, self.settings, self.optimization = folder, settings, optimization

    @classmethod
    def prepare(
        cls,
        folder: Path,
        settings: Settings,
        optimization: Optimization,
        *,
        said: Sequence[Dialogue] = (),
        about: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> SFT:
        """Begin a run in a folder.

        Args:
            folder: A new or empty folder, or one with a run to overwrite.
            settings: The settings; ``data_sha256`` is computed.
            optimization: Settings of the optimizer.
            said: The conversations, if ``settings.data`` is empty.
            about: Where the conversations come from, for the record.
            overwrite: Whether to replace a run in the folder.

        Raises:
            InvalidValue: The folder holds something else, or a name isn't in UTF-8.
        """
        folder = given(folder)
        for name in (settings.data, settings.model):
            if name != valid(name):
                raise InvalidValue(f"the name {valid(name)!r} isn't in UTF-8, so no record can hold it; rename it")
        check_free(folder, overwrite)
        with atomic.disk_space(folder, "free some, or name another folder (--run)"):
            atomic.recover_folder(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)

            def fill(new: Path) -> None:
                if not settings.data:
                    dialogues.write(new / "conversations.jsonl", said)
                data = given(settings.data) if settings.data else new / "conversations.jsonl"
                if not settings.model:
                    (new / "base").mkdir()
                    texts = (message["content"] for one in dialogues.read(data) for message in one)
                    tiny.save_tokenizer(texts, new / "base")
                complete = dataclasses.replace(settings, data_sha256=model_store.sha256(data))
                record = {"format": FORMAT, "version": VERSION, "from": dict(about or {}),
                          "settings": dataclasses.asdict(complete),
                          "optimization": dataclasses.asdict(optimization)}  # fmt: skip
                (new / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

            atomic.replace_folder(folder, fill)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> SFT:
        """Open the run in a folder.

        Raises:
            InvalidValue: The folder holds no run, or its data changed.
            Corrupted: Its configuration can't be read.
        """
        folder = given(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise InvalidValue(f"{folder} holds no fine-tuning: there is no {path}; `chatgym sft` makes one")
        try:
            config = read_json(path)
            if (config["format"], config["version"]) != (FORMAT, VERSION):
                raise InvalidValue(f"{folder} is no fine-tuning of this ChatGym: {path} is something else's")
            run = cls(folder, Settings(**config["settings"]), Optimization(**config["optimization"]))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InvalidValue):
                raise
            raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error
        if not run.data.is_file() or model_store.sha256(run.data) != run.settings.data_sha256:
            raise InvalidValue(f"{run.data} isn't what the training began with; restore it, or train again")
        return run

    @property
    def data(self) -> Path:
        """The file of conversations."""
        return given(self.settings.data) if self.settings.data else self.folder / "conversations.jsonl"

    @property
    def model(self) -> Path:
        """Folder of the trained model; it exists once the training has ended."""
        return self.folder / "model"

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint; it exists until the training has ended."""
        return self.folder / "checkpoint"

    def metrics(self) -> list[dict[str, float]]:
        """Return the lines of ``metrics.jsonl``, without one that was cut off."""
        return read_metrics(self.folder)

    def train(self, progress: Callable[[int, int], Progress | None] | None = None) -> None:
        """Train, from the last checkpoint if there is one; all processes have to call it.

        Args:
            progress: Called once with the steps done and all steps; returns a function that is called after each step
                with the steps done and the step's metrics.

        Raises:
            KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
        """
        if self.model.is_dir():
            return
        atomic.recover_folder(self.checkpoint)
        training, held_out = self._rows()
        module, loop = self._loop(training)
        report = progress(loop.steps, loop.total_steps) if progress and loop.rank == 0 else None
        lines = [line for line in self.metrics() if line["step"] <= loop.steps]
        if loop.steps == 0:
            lines = [{"step": 0, "perplexity": self._perplexity(loop, held_out)}]
        if loop.rank == 0:
            atomic.write_text(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        every = max(1, math.ceil(loop.total_steps / self.settings.evaluations))

        def step() -> None:
            line = self._step(loop, training)
            if loop.steps % every == 0 or loop.steps == loop.total_steps:
                line["perplexity"] = self._perplexity(loop, held_out)
            if loop.rank == 0:
                with self._writing():
                    atomic.append_text(self.folder / METRICS, json.dumps(line) + "\n")
            if report is not None:
                report(loop.steps, line)

        loop.run(step, lambda: self._save_checkpoint(loop), every)
        self._finish(loop, module)

    def parts(self) -> tuple[list[Dialogue], list[Dialogue]]:
        """Return the conversations that are learned, and those that are held out.

        Raises:
            InvalidValue: There is only one.
        """
        said = dialogues.read(self.data)
        apart = max(1, round(self.settings.validation * len(said)))
        if len(said) <= apart:
            raise InvalidValue(f"{self.data} holds {len(said)} conversation; it takes two, one of them for validation")
        order = np.random.Generator(np.random.Philox(key=[self.settings.seed, 0])).permutation(len(said))
        return [said[i] for i in np.sort(order[apart:])], [said[i] for i in order[:apart]]

    def _rows(self) -> tuple[Rows, Rows]:
        """Return training rows and validation rows; each conversation is in one of them."""
        tokenizer = self._tokenizer()
        return tuple(pack(part, tokenizer, self.settings.length) for part in self.parts())  # type: ignore[return-value]

    def _base(self) -> Path:
        return models.folder_of(self.settings.model) if self.settings.model else self.folder / "base"

    def _tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(str(self._base()))

    def _loop(self, rows: Rows) -> tuple[WordLoss, Loop]:
        """Make the model and its `Loop`, from the last checkpoint if there is one."""
        settings = self.settings
        model = models.make(
            self._base(), scratch_seed=None if settings.model else settings.seed,
            lora=Lora(settings.lora) if settings.lora else None, seed=settings.seed,
        )  # fmt: skip
        if settings.length > model.config.max_position_embeddings:
            raise InvalidValue(
                f"--length {settings.length} is more than the model's context of {model.config.max_position_embeddings}"
            )
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module = WordLoss(model)
        resumed = self.checkpoint.is_dir()
        if resumed:
            load_weights(module, self.checkpoint)
        total = max(1, int(settings.epochs * len(rows) / self.optimization.batch))
        loop = Loop(module, self.optimization, total)
        if resumed:
            loop.restore(self.checkpoint, self._batches(loop, rows, self._picked(rows, 0)))
        return module, loop

    def _batches(self, loop: Loop, rows: Rows, picked: npt.NDArray[np.int64]) -> list[dict[str, torch.Tensor]]:
        """Return this process's share of the rows `picked`, int64[batch], one batch a pass, see `batch_of`."""
        share = picked[loop.rank :: loop.world]
        return [batch_of(rows, part, loop.device) for part in np.split(share, loop.passes)]

    def _picked(self, rows: Rows, step: int) -> npt.NDArray[np.int64]:
        """Return the indices of a step's rows, int64[batch]."""
        return rows_of_step(len(rows), step, self.optimization.batch, self.settings.seed)

    def _step(self, loop: Loop, rows: Rows) -> dict[str, float]:
        """Take one step; returns its metrics."""
        picked = self._picked(rows, loop.steps)
        tokens = int(rows.learned[picked].sum())
        done = loop.step(self._batches(loop, rows, picked), tokens)
        return {"step": loop.steps, **done, "tokens": tokens}

    def _perplexity(self, loop: Loop, rows: Rows) -> float:
        """Return the perplexity of validation rows: exp of the mean loss of a learned token."""
        size = max(1, self.optimization.micro_batch)
        count = math.ceil(len(rows) / (size * loop.world)) * size * loop.world
        share = np.arange(count)[loop.rank :: loop.world]
        batches = [batch_of(rows, part, loop.device) for part in share.reshape(-1, size)]
        return math.exp(loop.measure(batches) / int(rows.learned.sum()))

    def _save_checkpoint(self, loop: Loop) -> None:
        """Write a checkpoint; all processes have to call it, and the first one writes."""
        with self._writing():
            loop.checkpoint(self.checkpoint)

    def _finish(self, loop: Loop, module: WordLoss) -> None:
        """Write the trained model, and delete the checkpoint."""
        with loop.gathered(), self._writing():
            if loop.rank == 0:
                model = module.model.to("cpu", torch.float32)
                atomic.replace_folder(self.model, lambda new: models.save(model, self._base(), new))
        if loop.rank == 0 and self.checkpoint.is_dir():
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def _writing(self) -> Any:
        """Return a context manager that turns a full disk into an error with the remedy."""
        return atomic.disk_space(self.folder, f"free some, then go on with `{self.resume_command()}`")

    def resume_command(self) -> str:
        """Return the command that continues the run."""
        return f"chatgym sft --run {shlex.quote(str(self.folder))} --resume"


def default_rate(model: str, lora: int) -> float:
    """Return the default learning rate for a model (empty: a new one) and a rank of LoRA (0: all weights)."""
    return 3e-3 if not model else 5e-4 if lora else 5e-5


def batch_of(rows: Rows, picked: Sequence[int] | npt.NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    """Return a batch of rows for `WordLoss.forward`.

    Args:
        rows: All rows.
        picked: int64[B], indices of rows; from an index past the last row, nothing is learned.
        device: Device of the tensors.

    Returns:
        ``ids`` and ``positions`` int64[B, T], ``learned`` bool[B, T], and ``mask`` bool[B, 1, T, T]: whether the first
        token attends to the second, which is the same one or an earlier one of its conversation.
    """
    picked = np.asarray(picked)
    known = np.minimum(picked, len(rows) - 1)
    longest = max(1, int((rows.documents[known] >= 0).sum(1).max()))
    ids, learned, documents, positions = (
        torch.from_numpy(array[known, :longest]) for array in (rows.ids, rows.learned, rows.documents, rows.positions)
    )
    learned = learned & torch.from_numpy(picked < len(rows))[:, None]
    before = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (documents[:, :, None] == documents[:, None, :]) & before
    made = {"ids": ids.long(), "positions": positions.long(), "learned": learned, "mask": mask[:, None]}
    return {name: tensor.to(device) for name, tensor in made.items()}


def check_free(folder: Path, overwrite: bool) -> None:
    """Check that a run can begin in a folder.

    Raises:
        InvalidValue: The folder holds something else, or a run and `overwrite` is false.
    """
    if (folder / "config.json").is_file():
        if not overwrite:
            raise InvalidValue(
                f"{folder} already holds a run; go on with it (--resume), replace it (--overwrite), or name another "
                "folder (--run)"
            )
        try:
            SFT.open(folder)
        except Corrupted:
            return
        except InvalidValue as error:
            if "something else's" in str(error):
                raise
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidValue(f"{folder} isn't empty and holds no fine-tuning; name another folder (--run)")
