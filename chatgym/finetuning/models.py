"""The model to train: a causal language model by name, with or without LoRA, and its loss."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatgym.engines.transformers import check_vocabulary, load_tokenizer, quiet_loading
from chatgym.errors import Corrupted, InvalidValue, Unavailable
from chatgym.finetuning import tiny
from chatgym.storage import atomic, model_store
from chatgym.storage.paths import given

SMALL = 10_000_000
"""A model with fewer weights is small: it needs higher learning rates."""

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA (Hu et al. 2021): W + (alpha / rank) · B · A, with only A and B trained.

    Attributes:
        rank: Rows of A.
        alpha: Scale; twice the rank when None.
    """

    rank: int
    alpha: int | None = None


def folder_of(model: str) -> Path:
    """Return the folder of a model to train, given as a stored model's name or a folder, with or without "hf:".

    Raises:
        InvalidValue: There is no such model.
    """
    if model in model_store.MODELS:
        return model_store.path(model)
    folder = given(model.removeprefix("hf:"))
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InvalidValue(
            f"--model {model}: neither a stored model ({', '.join(model_store.MODELS)}) nor a folder with config.json "
            "and *.safetensors, as `save_pretrained` writes them"
        )
    return folder


def is_small(folder: Path) -> bool:
    """Return whether the model in a folder has fewer than `SMALL` weights, by the headers of its files."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise Corrupted(f"{path} can't be read ({error}); write the model there again") from error
    return count < SMALL


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a causal language model to train, only from safetensors, without running code of the folder.

    Raises:
        InvalidValue: The folder holds no tokenizer, or one with a token that the model has no embedding for.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    with quiet_loading():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    check_vocabulary(tokenizer, model, folder)
    return model


def with_lora(model: Any, lora: Lora, seed: int, task: str = "CAUSAL_LM") -> Any:
    """Add LoRA's matrices to a model and freeze the other weights; returns peft's model.

    Args:
        model: The model.
        lora: Settings of LoRA.
        seed: Seed of A; B begins at 0.
        task: peft's name of the model's task; with ``"SEQ_CLS"`` the head is trained, too.

    Raises:
        Unavailable: peft isn't installed.
        InvalidValue: The model has none of the layers `ATTENTION_AND_MLP`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise Unavailable("--lora needs peft: pip install 'chatgym[lora]'") from error
    config = LoraConfig(
        r=lora.rank, lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha, lora_dropout=0.0,
        target_modules=ATTENTION_AND_MLP, task_type=task,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own calls
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise InvalidValue(f"this model can't be trained by LoRA ({error}); leave out --lora") from error


class WordLoss(torch.nn.Module):
    """A causal language model that returns the summed loss of the learned tokens.

    Logits, by far the largest tensor, are computed only where the next token is learned.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of -log p over the learned tokens, a float32 scalar.

        Args:
            rows: A batch: ``ids`` and ``positions`` int64[B, T], ``learned`` bool[B, T], ``mask`` bool[B, 1, T, T], see
                `chatgym.finetuning.sft.batch_of`.
        """
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        trunk = getattr(causal, causal.base_model_prefix)
        hidden = trunk(
            rows["ids"], attention_mask=rows["mask"], position_ids=rows["positions"], use_cache=False
        ).last_hidden_state  # (B, T, H)
        learned = rows["learned"][:, 1:]  # (B, T - 1)
        logits = causal.get_output_embeddings()(hidden[:, :-1][learned]).float()  # (n, V)
        return torch.nn.functional.cross_entropy(logits, rows["ids"][:, 1:][learned], reduction="sum")


def save(model: Any, tokenizer_from: Path, folder: Path) -> None:
    """Write a trained model into an existing folder, for ``llm="hf:FOLDER"`` and `chatgym serve`.

    Args:
        model: The model, on the CPU. An adapter of peft is merged, and also written into ``adapter/``.
        tokenizer_from: Folder with the tokenizer.
        folder: The folder to write to.
    """
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's own, with nothing filled in
        model = model.merge_and_unload()
    with quiet_loading():
        model.save_pretrained(folder, max_shard_size="1TB")
    save_tokenizer(load_tokenizer(tokenizer_from), model, folder)
    atomic.share(folder)


def save_tokenizer(tokenizer: Any, model: Any, folder: Path) -> None:
    """Write a model's tokenizer, with the length of the model's context and a template that marks replies."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    if tokenizer.chat_template:
        tokenizer.chat_template = tiny.with_generation(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)


def make(source: Path, *, scratch_seed: int | None, lora: Lora | None, seed: int) -> Any:
    """Return the model to train: loaded from a folder, or a new one for the folder's tokenizer.

    Args:
        source: The folder.
        scratch_seed: Seed of a new model's weights; None loads the folder's model.
        lora: Settings of LoRA; None trains all weights.
        seed: Seed of LoRA's matrices.
    """
    model = load(source) if scratch_seed is None else tiny.make_model(source, scratch_seed)
    return model if lora is None else with_lora(model, lora, seed)
