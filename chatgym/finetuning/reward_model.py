"""Train the llm kind of reward model: a language model with a scalar head, on preference pairs.

This is the second step of Ouyang et al. 2022 and of DeepSpeed-Chat. The loss is their equation 1, -log
sigmoid(r(chosen) - r(rejected)), with r at a conversation's last token. The model trains by `chatgym.finetuning.loop`,
and is saved as a sequence classifier, which `chatgym.rewards.classifier` and the transformers library load.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatgym.engines.transformers import check_vocabulary, load_tokenizer
from chatgym.errors import InvalidValue
from chatgym.finetuning import models, tiny
from chatgym.finetuning.epochs import rows_of_step
from chatgym.finetuning.loop import METRICS, Loop, Optimization, load_weights, read_metrics
from chatgym.finetuning.models import Lora
from chatgym.rewards.classifier import MOST_TOKENS, encode
from chatgym.rewards.pairs import Pair, read_pairs, write_pairs
from chatgym.rewards.training import digest_of
from chatgym.storage import atomic
from chatgym.storage.utf8 import read_json

SCRATCH = "tiny"
"""Name of a new, small model."""
FORMAT = "chatgym-reward-training-1"
CONFIG, PAIRS, HELD_OUT = "config.json", "pairs.jsonl", "held_out.jsonl"
BASE, CHECKPOINT, MODEL = "base", "checkpoint", "model"
"""Files and folders of a training; ``base`` holds the tokenizer of a new model."""
CHECKPOINTS = 5
"""Checkpoints in a training; so often it is measured on held-out pairs, too."""
MEASURED = 128
"""The most held-out pairs that it is measured on."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training, beside those of the optimizer.

    Attributes:
        model: A stored model's name, a folder, or `SCRATCH`.
        epochs: How often each pair is seen.
        length: The most tokens of a conversation that are read, its last ones.
        lora: Rank of LoRA's matrices, which are trained with the head; 0 trains all weights.
        seed: Seed of everything random.
    """

    model: str = "smollm2-135m"
    epochs: float = 1.0
    length: int = 512
    lora: int = 0
    seed: int = 0


class PairLoss(torch.nn.Module):
    """A sequence classifier with one label that returns the summed loss of pairs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Mapping[str, torch.Tensor], *, odds: bool = False) -> torch.Tensor:
        """Return the sum of -log sigmoid(r(chosen) - r(rejected)), a float32 scalar.

        Args:
            rows: 2 N conversations, the chosen ones first: ``ids`` and ``mask`` int64[2 N, T], padded on the right, and
                ``last`` int64[2 N], the position of the last token.
            odds: Return r(chosen) - r(rejected) instead, float32[N].
        """
        chosen, rejected = self.rewards(rows).chunk(2)
        return chosen - rejected if odds else torch.nn.functional.softplus(rejected - chosen).sum()

    def rewards(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return r at the last token of each of 2 N conversations, float32[2 N]; `rows` as of `forward`."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        trunk = getattr(model, model.base_model_prefix)
        hidden = trunk(rows["ids"], attention_mask=rows["mask"], use_cache=False).last_hidden_state  # (2 N, T, H)
        last = hidden[torch.arange(len(hidden), device=hidden.device), rows["last"]]
        return model.score(last).float()[:, 0]  # type: ignore[no-any-return]


def default_rate(model: str, lora: int) -> float:
    """Return the default learning rate for a model, as of `Settings`, and a rank of LoRA (0: all weights).

    Raises:
        InvalidValue: There is no such model.
    """
    if model == SCRATCH or models.is_small(models.folder_of(model)):
        return 1e-3
    return 3e-4 if lora else 3e-5


def prepare(
    folder: Path,
    pairs: Sequence[Pair],
    settings: Settings,
    optimization: Optimization,
    held_out: Sequence[Pair] = (),
) -> None:
    """Begin a training in a folder, unless it holds the same one, which `train` then continues.

    Args:
        folder: A new folder, or that of a training, which another training replaces.
        pairs: Training pairs; hold some out by `chatgym.rewards.pairs.split`.
        settings: Settings of the training.
        optimization: Settings of the optimizer; a row of a batch is a pair.
        held_out: Pairs to measure on while it trains, at most `MEASURED` of them.

    Raises:
        InvalidValue: The folder holds something else, or there is no such model.
    """
    record = {"format": FORMAT, "settings": asdict(settings), "optimization": asdict(optimization),
              "sha256": digest_of(pairs), "held_out_sha256": digest_of(held_out)}  # fmt: skip
    atomic.recover_folder(folder)
    if folder.exists():
        found = _record(folder)
        if found == record:
            return
        if found.get("format") != FORMAT:
            raise InvalidValue(f"{folder} is in the way, where the training goes; move it, or name another --out")
    if settings.model != SCRATCH:
        models.folder_of(settings.model)

    def fill(new: Path) -> None:
        write_pairs(new / PAIRS, pairs)
        if held_out:
            write_pairs(new / HELD_OUT, held_out)
        if settings.model == SCRATCH:
            (new / BASE).mkdir()
            texts = (one["content"] for pair in pairs for one in (*pair.better, *pair.worse))
            tiny.save_tokenizer(texts, new / BASE)
        (new / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    atomic.replace_folder(folder, fill)


def train(folder: Path, progress: Callable[[int, int, Mapping[str, float]], None] | None = None) -> None:
    """Run the training that `prepare` began, from its last checkpoint, and write the model into ``FOLDER/model``.

    ``FOLDER/metrics.jsonl`` gets a line a step, as of `Loop.step`. The first line, of step 0, and one in each fifth of
    the training have ``held_out_loss`` and ``held_out_accuracy``, too.

    Under a launcher all processes call it, and the first one writes. On one process the same training gives the same
    bytes, interrupted or not. Load the model by ``reward_model="hf:FOLDER/model"``.

    Args:
        folder: Folder of the training.
        progress: Called with the steps done, all steps, and the step's ``loss`` (mean over its pairs).

    Raises:
        InvalidValue: The model can't have such a head, or its context is shorter than ``settings.length``.
        Unavailable: DeepSpeed isn't installed.
        Corrupted: A file is damaged.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
    """
    out, checkpoint = folder / MODEL, folder / CHECKPOINT
    if out.is_dir():
        return
    atomic.recover_folder(checkpoint)
    record = _record(folder)
    settings, optimization = Settings(**record["settings"]), Optimization(**record["optimization"])
    pairs = read_pairs(folder / PAIRS)
    base = folder / BASE if settings.model == SCRATCH else models.folder_of(settings.model)
    tokenizer, model = _tokenizer(base), _model(base, settings)
    check_vocabulary(tokenizer, model, base)
    longest = min(model.config.max_position_embeddings, MOST_TOKENS)
    if settings.length > longest:
        raise InvalidValue(f"--length {settings.length} is more than the {longest} tokens that the model reads")
    model.config.pad_token_id = tokenizer.pad_token_id
    held_out = read_pairs(folder / HELD_OUT)[:MEASURED] if (folder / HELD_OUT).is_file() else []
    learned, tested = (
        [[encode(tokenizer, side, settings.length) for side in (pair.better, pair.worse)] for pair in some]
        for some in (pairs, held_out)
    )

    def share(some: Sequence[Sequence[list[int]]], picked: Any, passes: int) -> list[dict[str, torch.Tensor]]:
        """Return this process's share of the pairs `picked`, int64[n]: a batch of `batch_of` for each pass."""
        parts = np.array_split(picked[loop.rank :: loop.world], passes)
        sides = ([some[i][side] for side in (0, 1) for i in part.tolist()] for part in parts)
        return [batch_of(one, tokenizer.pad_token_id, loop.device) for one in sides]

    def batches(step: int) -> list[dict[str, torch.Tensor]]:
        return share(learned, rows_of_step(len(pairs), step, optimization.batch, settings.seed), loop.passes)

    def measured() -> dict[str, float]:
        if not tested:
            return {}
        each = max(1, len(tested) // loop.world)  # every process measures as many
        picked = np.resize(np.arange(len(tested)), each * loop.world)
        found = _measure(loop, share(tested, picked, math.ceil(each / optimization.micro_batch)))
        return {f"held_out_{name}": total / len(picked) for name, total in found.items()}

    total = max(1, int(settings.epochs * len(pairs) / optimization.batch))
    module = PairLoss(model)
    resumed = checkpoint.is_dir()
    if resumed:
        load_weights(module, checkpoint)
    loop = Loop(module, optimization, total)
    if resumed:
        loop.restore(checkpoint, batches(0))

    every = math.ceil(total / CHECKPOINTS)
    lines = [line for line in read_metrics(folder) if line["step"] <= loop.steps] or [{"step": 0, **measured()}]
    if loop.rank == 0:
        atomic.write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))

    def step() -> None:
        done = loop.step(batches(loop.steps), optimization.batch)
        more = measured() if loop.steps % every == 0 or loop.steps == total else {}
        if loop.rank == 0:
            atomic.append_text(folder / METRICS, json.dumps({"step": loop.steps, **done, **more}) + "\n")
            if progress is not None:
                progress(loop.steps, total, done)

    loop.run(step, lambda: loop.checkpoint(checkpoint), every)
    with loop.gathered():
        if loop.rank == 0:
            atomic.replace_folder(out, lambda new: _save(module.model, base, settings.length, new))


@torch.no_grad()
def _measure(loop: Loop, batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Return ``loss`` and ``accuracy`` summed over the pairs of batches and processes; a tie is half right."""
    loop.engine.eval()
    odds = torch.cat([loop.engine(batch, odds=True) for batch in batches])  # (N,)
    right = (odds > 0) + 0.5 * (odds == 0)
    return {"loss": loop.sum(torch.nn.functional.softplus(-odds).sum()), "accuracy": loop.sum(right.sum())}


def _save(model: Any, base: Path, length: int, folder: Path) -> None:
    """Write a model into a folder as `models.save`, with a tokenizer that pads and reads at most `length` tokens."""
    models.save(model.to("cpu", torch.float32), base, folder)
    tokenizer = _tokenizer(folder)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)


def _record(folder: Path) -> dict[str, Any]:
    """Return a training's record; empty if there is none."""
    try:
        found = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def batch_of(conversations: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return a batch of N conversations, given as token ids.

    Returns:
        ``ids`` and ``mask`` int64[N, T], padded on the right by `pad`, and ``last`` int64[N], the position of the last
        token that isn't `pad`: there transformers' classifiers read, also where a chat template ends with that token.
    """
    lengths = torch.tensor([len(ids) for ids in conversations])
    ids = torch.full((len(conversations), int(lengths.max())), pad)
    for row, tokens in enumerate(conversations):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    last = (torch.arange(ids.shape[1]) * (ids != pad)).argmax(1)
    return {name: one.to(device) for name, one in (("ids", ids), ("mask", mask), ("last", last))}


def _tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder, with a token for padding."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _model(folder: Path, settings: Settings) -> Any:
    """Return the model with a new head; the seed determines the head's weights."""
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification
    from transformers.utils import logging

    from chatgym.engines.transformers import quiet_loading

    with quiet_loading():
        torch.manual_seed(settings.seed)  # `quiet_loading` restores the global state
        if settings.model == SCRATCH:
            shape = tiny.make_model(folder, settings.seed).config
            shape.num_labels = 1
            return LlamaForSequenceClassification(shape)
        shown = logging.get_verbosity()
        logging.set_verbosity_error()  # the report that the head is new
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except ValueError as error:  # an architecture without one
            raise InvalidValue(
                f"--model {settings.model}: it can't be given a head ({error}); choose another"
            ) from error
        finally:
            logging.set_verbosity(shown)
    if not hasattr(model, "score"):
        raise InvalidValue(
            f"--model {settings.model}: it is no causal language model; choose one, such as smollm2-135m"
        )
    if missing := sorted(set(found["missing_keys"]) - {"score.weight"}):
        raise InvalidValue(f"--model {settings.model}: it lacks the weights {missing[0]}; restore its files")
    return models.with_lora(model, Lora(settings.lora), settings.seed, task="SEQ_CLS") if settings.lora else model
