"""LoRA adapters (Hu et al. 2021, eq. 3): W + (alpha / r) · B · A for some of a model's weights.

An adapter is merged into the weights when a model is opened: reading it needs only safetensors, and generating costs no
more than without it. The files are those of peft: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chatgym.errors import Corrupted
from chatgym.storage import atomic
from chatgym.storage.utf8 import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def merge(model: Any, folder: Path, plain: dict[str, torch.Tensor] | None = None) -> None:
    """Add an adapter to a model's weights, in place. The sum is computed in float32, whatever the weights' dtype.

    Args:
        model: A causal language model of transformers.
        folder: The adapter's folder.
        plain: Give a dictionary, empty at first, to exchange adapters: it maps modules' names to their weights
            float[out, in] without any adapter, is updated, and the adapter replaces the one before.

    Raises:
        Corrupted: The adapter can't be read, or belongs to another model; then nothing was changed.
    """
    scale, matrices = _read(folder)
    weights = {}
    for name, (a, b) in matrices.items():
        try:
            weights[name] = weight = model.get_submodule(name).weight
        except AttributeError as error:
            raise Corrupted(f"{folder} is an adapter to another model: this one has no {name}") from error
        shape = (b.shape[0], a.shape[1])
        if shape != weight.shape or b.shape[1] != a.shape[0]:
            raise Corrupted(f"{folder} is an adapter to another model: {name} is {tuple(weight.shape)} in this one")
    with torch.no_grad():
        for name, before in (plain or {}).items():
            model.get_submodule(name).weight.copy_(before)
        for name, (a, b) in matrices.items():
            weight = weights[name]
            if plain is not None and name not in plain:
                plain[name] = weight.clone()
            delta = scale * (b.float() @ a.float())  # (out, r) @ (r, in)
            weight.copy_(weight.float() + delta.to(weight.device))


def pack(source: Path, target: Path) -> None:
    """Write an adapter of peft in float16, which is half as large, with the settings that `merge` needs.

    Raises:
        Corrupted: `source` holds no LoRA adapter.
    """
    _read(source)
    config = read_json(source / CONFIG)
    kept = {name: config[name] for name in ("peft_type", "task_type", "r", "lora_alpha")}
    kept["target_modules"] = sorted(config["target_modules"])
    halved = {name: tensor.half().contiguous() for name, tensor in load_file(source / WEIGHTS).items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(halved, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    atomic.share(target)


def _read(folder: Path) -> tuple[float, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return alpha / r, and each module's A, float[r, in], and B, float[out, r], by the module's name."""
    try:
        config = read_json(folder / CONFIG)
        tensors = load_file(folder / WEIGHTS)
        if config["peft_type"] != "LORA" or config.get("use_rslora") or config.get("use_dora"):
            raise Corrupted(
                f"{folder} is no plain LoRA adapter, and no other kind can be merged; train one with peft's LoraConfig"
            )
        scale = float(config["lora_alpha"]) / int(config["r"])
        names = [name.removeprefix(_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A)]
        pairs = {name: (tensors[f"{_PREFIX}{name}{_A}"], tensors[f"{_PREFIX}{name}{_B}"]) for name in names}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, Corrupted):
            raise
        raise Corrupted(f"{folder} holds no adapter that can be read ({error}); `chatgym voice` makes one") from error
    if not pairs or len(pairs) * 2 != len(tensors):
        raise Corrupted(
            f"{folder} holds other weights than pairs of LoRA's A and B; train only target_modules of linear layers"
        )
    return scale, pairs
