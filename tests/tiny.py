"""A language model of random weights that loads in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatgym.engines.transformers import TransformersEngine


def save_tiny_model(folder: Path, context: int = 256) -> Path:
    """Save one, with the default model's tokenizer."""
    from transformers import AutoTokenizer

    from chatgym.storage import model_store

    return save_model_for(AutoTokenizer.from_pretrained(model_store.path("smollm2-135m")), folder, context)


def save_model_for(tokenizer, folder: Path, context: int = 256) -> Path:
    """Save a tokenizer, and a model of random weights for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, bos_token_id=0, eos_token_id=tokenizer.eos_token_id, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def llama_like(prepend: str = "first", template: str | None = None):
    """Return a tokenizer as Llama 2's: "▁" for spaces, bytes for unknown characters, and a token that begins a text.

    Args:
        prepend: ``"normalizer"``, or where a space is put before: ``"first"``, ``"always"``, ``"never"``.
        template: The chat template.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    control, single = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    scheme = "always" if prepend == "normalizer" else prepend
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    said = [
        "I feel great today, and you?",
        "The capital of France is Paris.",
        "All solved, thanks! <s> </s> [INST]",
    ] * 3
    made.train_from_iterator(said, trainers.BpeTrainer(vocab_size=500, special_tokens=[*control, *single],
                                                       show_progress=False))  # fmt: skip
    state = json.loads(made.to_str())
    if prepend == "normalizer":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        state |= {"normalizer": json.loads(normalizers.Sequence(steps).__getstate__()), "pre_tokenizer": None}
    state["added_tokens"] = state["added_tokens"][: len(control)]  # the bytes are ordinary tokens
    made = Tokenizer.from_str(json.dumps(state))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def tiny_engine(folder: Path) -> TransformersEngine:
    """Load it in float32, in which texts don't depend on the rows beside them."""
    import torch

    from chatgym.engines.transformers import TransformersEngine

    return TransformersEngine(folder, identity="tiny", dtype=torch.float32)
