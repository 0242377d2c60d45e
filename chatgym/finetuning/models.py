"""What is trained: a causal language model by name, perhaps with LoRA, and the loss of its words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatgym.engines.transformers import quiet_loading
from chatgym.errors import InvalidValue, Unavailable
from chatgym.finetuning import tiny
from chatgym.storage import model_store

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al. 2021): W + (alpha / rank) · B · A, of which only B and A are trained.

    Attributes:
        rank: Rows of A.
        alpha: The scale; twice the rank when None.
    """

    rank: int
    alpha: int | None = None


def folder_of(model: str) -> Path:
    """Return the folder of a model to train: a stored model's name, or a folder ("hf:" may stand before it).

    Raises:
        InvalidValue: There is no such model.
    """
    if model in model_store.MODELS:
        return model_store.path(model)
    folder = Path(model.removeprefix("hf:")).expanduser()
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InvalidValue(
            f"--model {model}: neither a stored model ({', '.join(model_store.MODELS)}) nor a folder with config.json "
            "and *.safetensors, as `save_pretrained` writes them"
        )
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a causal language model to train; never pickled weights, never code of the model's own."""
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)


def with_lora(model: Any, lora: Lora, seed: int, task: str = "CAUSAL_LM") -> Any:
    """Put LoRA's matrices into a model and freeze the rest; returns peft's model.

    Args:
        model: Which.
        lora: Of which size.
        seed: Of A; B is zero.
        task: peft's name for what the model does; ``"SEQ_CLS"`` trains the head, too.

    Raises:
        Unavailable: peft isn't installed.
        InvalidValue: The model has no layer of a known name.
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
        warnings.simplefilter("ignore", FutureWarning)  # of peft's way to ask a model something
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise InvalidValue(f"this model can't be trained by LoRA ({error}); leave out --lora") from error


class WordLoss(torch.nn.Module):
    """A causal language model that returns the loss of some of the tokens.

    The logits, by far the largest tensor, are made of those positions only whose next token counts.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of -log p of the learned tokens, a float32 scalar.

        Args:
            rows: A batch as `batch_of` makes it.
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
    """Write a trained model into an existing folder so that ``llm="hf:FOLDER"`` and `chatgym serve` take it.

    Args:
        model: The model, on the CPU; peft's is merged, and its adapter written into ``adapter/`` beside.
        tokenizer_from: Folder with the tokenizer.
        folder: Where to write.
    """
    from transformers import AutoTokenizer

    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's own, with nothing filled in
        model = model.merge_and_unload()
    with quiet_loading():
        model.save_pretrained(folder, max_shard_size="1TB")
    AutoTokenizer.from_pretrained(tokenizer_from, trust_remote_code=False).save_pretrained(folder)


def make(source: Path, *, scratch_seed: int | None, lora: Lora | None, seed: int) -> Any:
    """Make the model of a training: from a folder, or new for the tokenizer in it."""
    model = load(source) if scratch_seed is None else tiny.make_model(source, scratch_seed)
    return model if lora is None else with_lora(model, lora, seed)
