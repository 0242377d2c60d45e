"""Optimizer steps of a module under DeepSpeed: the optimizer, the learning rate schedule and exact checkpoints.

The caller chooses the batches; the module returns a loss summed over its rows. A step is the same on one process and on
several, with every ZeRO stage (Rajbhandari et al. 2020): it uses the gradient of the loss summed over all rows of all
processes, divided by a number that the caller gives.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chatgym.engines.transformers import pick_device
from chatgym.errors import Corrupted, InvalidValue
from chatgym.finetuning.distributed import anywhere, initialize, processes, rank
from chatgym.storage import atomic, interrupts
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json, read_lines

BETAS, EPSILON = (0.9, 0.95), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
WEIGHTS, STATES = "weights.safetensors", "moments.safetensors"
METRICS = "metrics.jsonl"
"""File of a training, with a line a step."""


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer, AdamW (Loshchilov & Hutter 2019), with linear warmup and cosine decay.

    Attributes:
        batch: Rows of a step, over all processes.
        micro_batch: The most rows of a forward pass in one process.
        learning_rate: The highest learning rate.
        warmup: Share of the steps in which the learning rate rises.
        floor: Final learning rate as a share of the highest; 1 keeps it constant.
        weight_decay: AdamW's weight decay.
        clip: Largest norm of a step's gradient.
        zero: ZeRO stage, 0 to 3.
        bf16: Whether to compute in bfloat16; the optimizer's weights stay float32.
        deepspeed: Further settings, as in DeepSpeed's JSON file.
    """

    batch: int = 16
    micro_batch: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.05
    floor: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    zero: int = 1
    bf16: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


def micro_batch_of(settings: Optimization, world: int) -> int:
    """Return the rows of a forward pass: the largest allowed divisor of a process's share of a batch.

    Raises:
        InvalidValue: `world` processes can't share a batch equally.
    """
    if settings.batch % world:
        raise InvalidValue(f"--batch {settings.batch} can't be shared by {world} processes; choose a multiple of that")
    share = settings.batch // world
    return max(n for n in range(1, min(settings.micro_batch, share) + 1) if share % n == 0)


def read_deepspeed(path: Path | None) -> dict[str, Any]:
    """Return the settings in a DeepSpeed JSON file; empty without a file.

    Raises:
        InvalidValue: The file can't be read, or holds no JSON object.
    """
    if path is None:
        return {}
    try:
        found = read_json(given(path))
    except (OSError, ValueError) as error:
        raise InvalidValue(f"--deepspeed {path} can't be read ({error}); name a file of JSON") from error
    if not isinstance(found, dict):
        raise InvalidValue(f"--deepspeed {path} holds no JSON object; write the settings as {{...}}")
    return found


def deepspeed_config(settings: Optimization, world: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration: that of the settings, and what the user's file adds.

    Raises:
        InvalidValue: The file contradicts the settings, or sets what ChatGym sets itself.
    """
    micro = micro_batch_of(settings, world)
    # With bfloat16 DeepSpeed keeps float32 weights for the optimizer from stage 1 on.
    stage = max(settings.zero, 1) if settings.bf16 else settings.zero
    ours: dict[str, Any] = {
        "train_batch_size": settings.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": settings.batch // world // micro,
        "gradient_clipping": settings.clip,
        "bf16": {"enabled": settings.bf16},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    for name in ("optimizer", "scheduler", "fp16"):
        if name in settings.deepspeed:
            raise InvalidValue(
                f"the DeepSpeed file sets {name!r}, which is made from the options here (--learning-rate, --bf16 ...); "
                "leave it out of the file"
            )
    return _merged(ours, settings.deepspeed, "")


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `ours` with the keys that `theirs` adds; `where` is the path of both, for the message."""
    merged = dict(ours)
    for name, value in theirs.items():
        mine = ours.get(name)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(mine, value, f"{where}{name}.")
        elif name not in ours:
            merged[name] = value
        elif value not in (mine, "auto"):
            raise InvalidValue(
                f"the DeepSpeed file sets {where}{name} to {value!r}, the options say {mine!r}; make them agree, or "
                'write "auto" in the file'
            )
    return merged


class Loop:
    """A module under training.

    Attributes:
        module: A `torch.nn.Module` that returns the loss summed over the rows of a batch.
        rank, world: This process's rank, and the number of processes.
        steps: Number of steps taken.
    """

    def __init__(self, module: torch.nn.Module, settings: Optimization, total_steps: int) -> None:
        """Put a module under DeepSpeed.

        Args:
            module: The module, on the CPU in float32, equal in all processes.
            settings: Settings of the optimizer.
            total_steps: Steps of the learning rate schedule.

        Raises:
            Unavailable: DeepSpeed isn't installed.
            InvalidValue: See `deepspeed_config`.
        """
        self.settings, self.total_steps, self.steps = settings, total_steps, 0
        self.rank, self.world = rank(), processes()
        config = deepspeed_config(settings, self.world)
        self.passes: int = config["gradient_accumulation_steps"]
        self.device = pick_device()
        parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in parameters]
        # One parameter group: DeepSpeed finds the moments of the first one only.
        optimizer = torch.optim.AdamW(
            [p for _, p in parameters], lr=settings.learning_rate, betas=BETAS, eps=EPSILON,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        with quiet():
            deepspeed = initialize()
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=config, dist_init_required=False
            )
        self.module: Any = self.engine.module

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        settings = self.settings
        rising = max(1, round(settings.warmup * self.total_steps))
        if step < rising:
            return settings.learning_rate * (step + 1) / rising
        over = (step - rising) / max(1, self.total_steps - rising)
        risen = 0.5 * (1 + math.cos(math.pi * min(over, 1.0)))
        return settings.learning_rate * (settings.floor + (1 - settings.floor) * risen)

    def step(self, batches: Sequence[Any], weight: float) -> dict[str, float]:
        """Take one step of the optimizer.

        Args:
            batches: The module's arguments, one for each of `passes`: this process's share of the step.
            weight: Divisor of the loss summed over all processes, such as the number of tokens.

        Returns:
            ``loss`` (divided by `weight`), ``learning_rate`` and, from ZeRO 1 on, ``grad_norm`` (before clipping).
        """
        rate = self.learning_rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        self.engine.train()
        with quiet():
            for batch in batches:
                loss = self.engine(batch)
                total += loss.detach()
                # DeepSpeed divides by the passes, and averages over the processes.
                self.engine.backward(loss * (self.passes * self.world / weight))
                self.engine.step()
        self.steps += 1
        done = {"loss": self.sum(total) / weight, "learning_rate": rate}
        norm = self.engine.get_global_grad_norm()
        return done if norm is None else {**done, "grad_norm": float(norm)}

    def run(self, step: Callable[[], object], checkpoint: Callable[[], object], every: int) -> None:
        """Take the steps that are left.

        Args:
            step: Takes a step, by `step` of the loop.
            checkpoint: Writes a checkpoint; called every few steps, but not after the last one, and after Ctrl-C.
            every: Steps between two checkpoints.

        Raises:
            KeyboardInterrupt: After Ctrl-C in any process, once a checkpoint is written.
        """
        with interrupts.deferred() as interrupted:
            while self.steps < self.total_steps:
                step()
                stop = anywhere(interrupted())
                if self.steps < self.total_steps and (stop or self.steps % every == 0):
                    checkpoint()
                    if stop:
                        raise KeyboardInterrupt

    @torch.no_grad()
    def measure(self, batches: Sequence[Any]) -> float:
        """Return the loss summed over batches and processes; all processes need the same number of batches."""
        self.engine.eval()
        return self.sum(sum((self.engine(batch).detach() for batch in batches), torch.zeros((), device=self.device)))

    def sum(self, value: torch.Tensor | float) -> float:
        """Return the sum of a number (a scalar of any dtype, or a float) over the processes."""
        total = torch.as_tensor(value, dtype=torch.float64 if self.device.type == "cpu" else torch.float32).clone()
        total = total.to(self.device)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an existing folder; all processes have to call it.

        It holds float32 weights and Adam's moments by name, whatever the number of processes and the ZeRO stage.
        """
        from safetensors.torch import save_file

        weights, moments = self.weights(), {}
        for name, parameter in self._trained():
            for moment in MOMENTS:  # there are none before the first step
                found = self._moment(parameter, moment) if self.steps else torch.zeros_like(weights[name])
                moments[f"{name}/{moment}"] = found.detach().cpu().contiguous().clone()
        if self.rank == 0:
            save_file(weights, folder / WEIGHTS)
            save_file(moments, folder / STATES, metadata={"steps": str(self.steps)})

    def checkpoint(self, folder: Path) -> None:
        """Replace a folder by a checkpoint, atomically; all processes have to call it."""
        if self.rank == 0:
            atomic.replace_folder(folder, self.save)
        else:
            self.save(folder)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained weights by name, float32[...] on the CPU; all processes have to call it."""
        return {name: self._weight(p).detach().cpu().contiguous().clone() for name, p in self._trained()}

    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the trained weights, float32[...] by name, as `weights` returns them; the moments stay.

        All processes have to call it.
        """
        with self.gathered(modified=True):
            for name, parameter in self._trained():
                with torch.no_grad():
                    parameter.copy_(weights[name])
        if self._partitioned:  # DeepSpeed would make the module's weights of the optimizer's at the next step only
            for name, parameter in self._trained():
                self._set(parameter, weights[name], ())

    def restore(self, folder: Path, batches: Sequence[Any]) -> None:
        """Continue from a checkpoint; the module has to be new, with weights by `load_weights`.

        Args:
            folder: The checkpoint.
            batches: Batches of any step. Adam's moments exist only after a first step, so one that changes nothing is
                taken with these.

        Raises:
            Corrupted: A file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        with quiet():
            for batch in batches:
                self.engine.backward(self.engine(batch) * 0.0)
                self.engine.step()
        try:
            with safe_open(folder / STATES, "pt") as file, safe_open(folder / WEIGHTS, "pt") as weights:
                self.steps = int(file.metadata()["steps"])
                for name, parameter in self._trained():
                    self._set(parameter, weights.get_tensor(name), [file.get_tensor(f"{name}/{m}") for m in MOMENTS])
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise Corrupted(f"the checkpoint in {folder} can't be read ({error}); train again (--overwrite)") from error
        for state in self._adam().state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), self.steps)

    @contextlib.contextmanager
    def gathered(self, *, modified: bool = False) -> Iterator[None]:
        """While the block runs, the module has its whole weights, which ZeRO 3 partitions.

        Args:
            modified: Whether the block changes them, in the same way in all processes.
        """
        if self.settings.zero < 3:
            yield
            return
        parameters = list(self.module.parameters())
        with initialize().zero.GatheredParameters(parameters, modifier_rank=0 if modified else None):
            yield

    def _trained(self) -> list[tuple[str, Any]]:
        """Return the trained parameters with their names."""
        parameters = dict(self.module.named_parameters())
        return [(name, parameters[name]) for name in self._names]

    def _adam(self) -> Any:
        """Return the AdamW optimizer itself."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _partitioned(self) -> bool:
        """Whether DeepSpeed keeps the optimizer's weights apart from the module's."""
        return self.optimizer is not self._adam()

    def _weight(self, parameter: Any) -> torch.Tensor:
        """Return a parameter's whole weight, float32[...]."""
        if not self._partitioned:
            return torch.as_tensor(parameter)
        from deepspeed.utils import safe_get_full_fp32_param

        return torch.as_tensor(safe_get_full_fp32_param(parameter))

    def _moment(self, parameter: Any, moment: str) -> torch.Tensor:
        """Return a parameter's whole moment of Adam, one of `MOMENTS`, float32[...]."""
        if not self._partitioned:
            return torch.as_tensor(self._adam().state[parameter][moment])
        from deepspeed.utils import safe_get_full_optimizer_state

        return torch.as_tensor(safe_get_full_optimizer_state(parameter, moment))

    def _set(self, parameter: Any, weight: torch.Tensor, moments: Sequence[torch.Tensor]) -> None:
        """Set a parameter's weight, float32[...], and its moments, float32[...] each, unless `moments` is empty."""
        if not self._partitioned:
            with torch.no_grad():
                parameter.copy_(weight)
            for moment, value in zip(MOMENTS, moments, strict=bool(moments)):
                self._adam().state[parameter][moment].copy_(value)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, weight.to(self.device))
        for moment, value in zip(MOMENTS, moments, strict=bool(moments)):
            safe_set_full_optimizer_state(parameter, value.to(self.device), moment)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of the `METRICS` in a training's folder, without one that was cut off.

    Raises:
        Corrupted: A line can't be read.
    """
    path = folder / METRICS
    try:
        return [dict(line) for line in read_lines(path)]
    except (ValueError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error


def load_weights(module: torch.nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into a module, before making its `Loop`.

    Raises:
        Corrupted: The weights can't be read, or are another module's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = module.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        if found.unexpected_keys:
            raise KeyError(found.unexpected_keys[0])
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise Corrupted(f"the checkpoint in {folder} can't be read ({error}); train again (--overwrite)") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages and warnings of DeepSpeed and torch in the block, but not errors."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
