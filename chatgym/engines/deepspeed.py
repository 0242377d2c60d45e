"""An engine on DeepSpeed: tensor parallelism over several processes, and DeepSpeed's kernels on request.

Start the processes by DeepSpeed's launcher, or another one that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
Each process holds a part of the model, so all have to make the same calls in the same order: run the same program with
the same seeds in each, and use the results of the first.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from chatgym.engines.protocol import Completion
from chatgym.engines.transformers import TransformersEngine, pick_device, quiet_loading
from chatgym.errors import Unavailable

PROBE = ("One, two, three, four,", "One, two, three, four,", "Hello")
"""Prompts that are continued with and without the kernels, to compare: equal ones, and ones of two lengths."""


class DeepSpeedEngine(TransformersEngine):
    """A `TransformersEngine` whose model is computed by DeepSpeed.

    Attributes:
        without_kernels: Why the model doesn't use DeepSpeed's kernels; empty if it does.
    """

    def __init__(
        self, folder: str | Path, *, identity: str, dtype: torch.dtype | None = None, adapter: Path | None = None,
        kernels: bool = False,
    ) -> None:  # fmt: skip
        """Load the model.

        Args:
            folder: Configuration, tokenizer and weights, as `save_pretrained` writes them.
            identity: Name and revision of the model.
            dtype: Dtype of the weights; `chatgym.engines.transformers.pick_dtype` when None.
            adapter: Folder of a LoRA adapter to merge into them (`chatgym.engines.adapter`).
            kernels: Whether to try DeepSpeed's own layers (CUDA only; compiling them takes minutes). They manage the
                key-value cache themselves, while rows join and leave our decode loop, and don't support every release
                of transformers; so they are used only if they continue a few prompts as the model itself does.

        Raises:
            Unavailable: DeepSpeed isn't installed.
        """
        import_deepspeed()  # before the weights are loaded
        if pick_device().type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self._inject = False
        super().__init__(folder, identity=identity, dtype=dtype, adapter=adapter)
        self.without_kernels = "not asked for"
        if kernels:
            self._use_kernels(Path(folder))

    def _load_model(self, folder: Path, dtype: torch.dtype) -> Any:
        model = super()._load_model(folder, dtype)
        deepspeed = import_deepspeed()
        # DeepSpeed sets the same global random state in all processes: the caller's is restored.
        with _quiet(), quiet_loading():
            return deepspeed.init_inference(
                model,
                dtype=dtype,
                tensor_parallel={"tp_size": int(os.environ.get("WORLD_SIZE", "1"))},
                replace_with_kernel_inject=self._inject,
                max_out_tokens=model.config.max_position_embeddings,
            ).module.eval()

    def _use_kernels(self, folder: Path) -> None:
        """Let DeepSpeed replace the model's layers, unless `PROBE` is then continued differently."""
        expected = self._continued(PROBE)
        self.model, self._inject = None, True
        try:
            self.model = self._load_model(folder, self.dtype)
            same = self._continued(PROBE) == expected
            self.without_kernels = "" if same else "with them the model continues texts differently"
        except Exception as error:  # of any type: the kernels get layers that they weren't written for
            self.without_kernels = f"{type(error).__name__}: {error}"
        if self.without_kernels:
            self.model, self._inject = None, False
            self.model = self._load_model(folder, self.dtype)

    def _continued(self, prompts: Sequence[str]) -> list[Completion]:
        """Return the likeliest continuations of prompts."""
        return self.generate(prompts, max_new_tokens=6, temperature=0.0)


def import_deepspeed() -> Any:
    """Import DeepSpeed, without printing the lines that it prints.

    Raises:
        Unavailable: It isn't installed, or can't be imported.
    """
    try:
        with _quiet():
            import deepspeed

            if pick_device().type == "cpu":
                # DeepSpeed would compile its own all-reduce for minutes; torch's does as well.
                from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

                deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    except ImportError as error:
        remedy = "pip install deepspeed"
        if sys.platform != "linux":
            remedy = "ChatGym installs it on Linux only: train there, in a container or in WSL; llm='hf:...' needs none"
        raise Unavailable(
            f"training language models and llm='deepspeed:...' need DeepSpeed ({error}); {remedy}"
        ) from error
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what DeepSpeed prints in the block; its later warnings go to stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        yield
    logger: Any = sys.modules["deepspeed"].utils.logger
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is said:
            handler.setStream(sys.__stderr__)
