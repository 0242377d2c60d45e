"""The systems part: the networks under DeepSpeed, several processes, checkpoints, and a server that generates."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file

from chatgym.engines import make_engine
from chatgym.engines.adapter import WEIGHTS
from chatgym.engines.openai import OpenAIEngine
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.engines.transformers import pick_device, pick_dtype
from chatgym.errors import Corrupted, InvalidValue, Unavailable
from chatgym.finetuning import models
from chatgym.finetuning.distributed import join
from chatgym.finetuning.loop import Loop, Optimization, load_weights, read_deepspeed
from chatgym.finetuning.models import Lora
from chatgym.storage import atomic, model_store
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json

from .config import Config
from .policy import Packed, Policy, Reference
from .turns import OwnTurns, ServedTurns, Turns

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
STATE = "state.json"
ADVICE = (
    "out of memory ({}); make passes smaller (--micro-batch, --max-length, --batch), keep less (--lora, "
    "--gradient-checkpointing, --bf16), or spread it (--zero 3, offload by --deepspeed FILE)"
)


def load_policy(config: Config, source: Path) -> Policy:
    """Load the model in a folder as a policy that only acts."""
    device = pick_device()
    model = models.load(source, pick_dtype(device) if config.bf16 else torch.float32)
    return Policy(model, config).to(device).eval()


class Systems:
    """The networks of a training and what they run on.

    Attributes:
        policy: The network that learns.
        actor: The network that generates: the policy, or with ZeRO 3, which splits the weights, a copy of it.
        reference: The frozen starting model.
        loop: DeepSpeed around the policy.
        tokenizer: The model's.
        server: Generates in the actor's place, or None.
        state: What the checkpoint's `save` was given, or empty for a new training.
    """

    def __init__(self, config: Config, seed: int, folder: Path | None = None) -> None:
        """Load the networks, with the weights and the optimizer's moments of a checkpoint if `folder` has one.

        Raises:
            InvalidValue: The model isn't there, isn't the one that the training began with, or is too small.
            Corrupted: A file of the checkpoint can't be read.
        """
        self.config, self._seed = config, seed
        self._source = models.folder_of(config.model)
        self._sha256 = "".join(model_store.sha256(path) for path in sorted(self._source.glob("*.safetensors")))
        folder = folder if folder is not None and folder.is_dir() else None
        self.state: dict[str, Any] = {} if folder is None else _read_state(folder / STATE)
        if folder is not None and self.state["model_sha256"] != self._sha256:
            raise InvalidValue(
                f"{self._source} isn't the model that the training began with; restore it, or train again (--overwrite)"
            )
        model = self._model()
        if config.max_length > model.config.max_position_embeddings:
            raise InvalidValue(
                f"max_length {config.max_length} is more than the model's context of "
                f"{model.config.max_position_embeddings}"
            )
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        separate = config.values_from == "separate"
        self.policy = Policy(model, config, separate_critic=separate)
        self.reference = Reference(self.policy)
        self.actor = self.policy
        if config.zero == 3:
            self.actor = Policy(self._model(), config, separate_critic=separate).requires_grad_(False)
        if folder is not None:
            load_weights(self.policy, folder)
        self.loop = Loop(self.policy, optimization_of(config, self.policy), 1)
        dtype = torch.bfloat16 if config.bf16 else torch.float32
        self.reference.to(self.loop.device, dtype)
        if self.actor is not self.policy:
            self.actor.to(self.loop.device, dtype)
        self.server = Server(config.rollout_llm, given(config.rollout_folder)) if config.rollout_llm else None
        self.tokenizer = ChatTokenizer(str(self._source))
        if folder is not None:
            self.loop.restore(folder, [_nothing(self.loop.device) for _ in range(self.loop.passes)])
            self.refresh_actor()

    def turns(self, size: int) -> Turns:
        """Return B empty conversations, to be held by the actor or the server."""
        config = self.config
        if self.server is not None:
            return ServedTurns(self.server.engine, self.tokenizer, size, config.temperature, config.max_new_tokens)
        return OwnTurns(self.actor, self.tokenizer, size)

    def publish(self) -> None:
        """Give the server the adapter as it is now."""
        assert self.server is not None
        with self.loop.gathered():
            if self.loop.rank == 0:
                self.server.publish(self.policy.model)
            if self.loop.world > 1:
                join()

    def refresh_actor(self) -> None:
        """Copy the policy's weights to the actor, where it is a copy."""
        if self.actor is not self.policy:
            with self.loop.gathered():
                self.actor.load_state_dict(self.policy.state_dict())

    def gather(self, share: list[T]) -> list[T]:
        """Return the items of all processes in the order of their numbers; process r has numbers r, r + world, ..."""
        world = self.loop.world
        if world == 1:
            return share
        shares: list[Any] = [None] * world
        torch.distributed.all_gather_object(shares, share)
        everything: list[Any] = [None] * sum(map(len, shares))
        for process, part in enumerate(shares):
            everything[process::world] = part
        return everything

    def save(self, folder: Path, state: dict[str, Any], tensors: dict[str, Tensors]) -> bool:
        """Write the model into an existing folder and a checkpoint into ``training/``; every process has to call it.

        Args:
            folder: Where.
            state: JSON-able, for ``training/state.json``.
            tensors: Further files of the checkpoint by name.

        Returns:
            Whether this process has written.
        """
        inside, loop = folder / "training", self.loop
        if loop.rank == 0:
            inside.mkdir()
        loop.save(inside)
        with loop.gathered():
            weights = {name: tensor.detach().to("cpu", torch.float32, copy=True)
                       for name, tensor in self.policy.model.state_dict().items()}  # fmt: skip
        if loop.rank:
            return False
        text = json.dumps({**state, "model_sha256": self._sha256}, indent=2)
        (inside / STATE).write_text(text + "\n", encoding="utf-8")
        for name, file in tensors.items():
            save_file(file, inside / name)
        model = self._model()
        model.load_state_dict(weights)
        models.save(model, self._source, folder)
        return True

    def _model(self) -> Any:
        """Load the starting model, with new LoRA matrices if asked for."""
        lora = Lora(self.config.lora) if self.config.lora else None
        return models.make(self._source, scratch_seed=None, lora=lora, seed=self._seed)


class Server:
    """A server that generates in the policy's place, such as vLLM or `chatgym serve`.

    It sends back tokens. Their values and log-probabilities are computed by the network that learns, and after each
    iteration the server loads the adapter that was learned.

    Attributes:
        engine: Its client.
        folder: Where it finds the adapter.
    """

    def __init__(self, llm: str, folder: Path) -> None:
        """Name the server; it isn't asked yet.

        Raises:
            InvalidValue: `llm` is no server.
        """
        engine = make_engine(llm)
        if not isinstance(engine, OpenAIEngine):
            raise InvalidValue(f"rollout_llm {llm!r} is no server; write openai:URL#NAME, as `chatgym serve` says it")
        self.engine, self.folder = engine, folder

    def publish(self, model: Any) -> None:
        """Write the adapter of peft's model into the folder, and have the server load it."""
        with atomic.disk_space(self.folder, "free some, or name another folder (--rollout-folder)"):
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / "adapter"
            atomic.replace_folder(new, model.save_pretrained)
            # Named by content: vLLM would reuse what it read with another adapter of the same path.
            target = self.folder / f"adapter-{model_store.sha256(new / WEIGHTS)[:16]}"
            if not target.is_dir():
                new.rename(target)
        self.engine.take_adapter(target)
        for other in {*self.folder.glob("adapter*")} - {target}:
            shutil.rmtree(other, ignore_errors=True)


def optimization_of(config: Config, policy: Policy) -> Optimization:
    """Return how DeepSpeed optimizes the policy; a learning rate of 0 is replaced by one for the model's size."""
    rate = config.learning_rate
    if not rate:
        small = sum(p.numel() for p in policy.model.parameters()) < models.SMALL
        rate = 3e-4 if small else 2e-4 if config.lora else 1e-5
    return Optimization(
        batch=config.batch // config.minibatches, micro_batch=config.micro_batch, learning_rate=rate, warmup=0.0,
        floor=1.0, weight_decay=0.0, clip=config.max_grad_norm, zero=config.zero, bf16=config.bf16,
        deepspeed=read_deepspeed(Path(config.deepspeed) if config.deepspeed else None),
    )  # fmt: skip


def _nothing(device: torch.device) -> dict[str, Any]:
    """Return a batch of one token whose loss is 0, see `Policy.forward`."""
    place = torch.zeros(2, 1, dtype=torch.long)
    packed = Packed(torch.zeros(1, 2, dtype=torch.long), place, place).to(device)
    numbers = dict.fromkeys(("logprobs", "values", "advantages", "returns"), torch.zeros(1, device=device))
    return {"packed": packed, "tokens": torch.zeros(1, dtype=torch.long, device=device), **numbers}


def _read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's ``state.json``."""
    try:
        found = read_json(path)
        return {"iteration": int(found["iteration"]), "kl_coefficient": float(found["kl_coefficient"]),
                "alarm": dict(found["alarm"]), "model_sha256": str(found["model_sha256"])}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a lack of memory into an error that says what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Unavailable(ADVICE.format("of the GPU")) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise Unavailable(ADVICE.format("of this machine")) from error
