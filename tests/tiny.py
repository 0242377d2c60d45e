"""A language model of random weights that loads in no time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatgym.engines.transformers import TransformersEngine


def save_tiny_model(folder: Path, context: int = 256) -> Path:
    """Save one, with the default model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from chatgym.storage import model_store

    tokenizer = AutoTokenizer.from_pretrained(model_store.path("smollm2-135m"))
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, bos_token_id=0, eos_token_id=tokenizer.eos_token_id, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def tiny_engine(folder: Path) -> TransformersEngine:
    """Load it in float32, in which texts don't depend on the rows beside them."""
    import torch

    from chatgym.engines.transformers import TransformersEngine

    return TransformersEngine(folder, identity="tiny", dtype=torch.float32)
