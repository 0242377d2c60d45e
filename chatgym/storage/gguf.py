"""Convert a GGUF file (Llama architecture) to the files that the transformers library loads."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""GGUF's name of a layer to that of the transformers library."""


def convert(packed: Path, weights: str) -> None:
    """Convert a GGUF file; the results are written beside it.

    Args:
        packed: The GGUF file.
        weights: Name of the file for the weights, which are bfloat16.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder, file = packed.parent, packed.name
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for tensor in GGUFReader(packed).tensors:
        *block, layer, kind = tensor.name.split(".")  # such as blk.0.attn_q.weight, or output_norm.weight
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if layer in heads:
            # GGUF interleaves the two halves of a rotated head, transformers has one after the other.
            halves = values.reshape(heads[layer], -1, 2, values.shape[-1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        name = ".".join([*(("model", "layers", block[1]) if block else ()), NAMES[layer], kind])
        tensors[name] = to_bfloat16(values)
    save_bfloat16(tensors, folder / weights)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(folder)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32[...] to the nearest bfloat16, ties to even, as torch does; returns its bits, uint16[...]."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def save_bfloat16(tensors: Mapping[str, npt.NDArray[np.uint16]], path: Path) -> None:
    """Write bfloat16 tensors, given by their bits, uint16[...], as safetensors, whose numpy API has no such type.

    The file is that of `safetensors.torch.save_file`, byte for byte.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": tensors[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].tobytes())
