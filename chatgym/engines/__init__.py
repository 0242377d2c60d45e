"""What turns prompts into text: the `Engine` protocol, and the engine for the name that a user gave."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from chatgym.errors import InvalidValue, Unavailable, unknown

DEFAULT_MODEL = "smollm2-135m-partner"
"""The model that words the partner: SmolLM2 with the voice of `chatgym.voice`."""
PLAIN_MODEL = "smollm2-135m"
"""SmolLM2 as it is."""
UNKNOWN_TOKEN = -1
"""Stands in `Completion.tokens` for a token whose id a server doesn't tell."""


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: The continuation, without the stop string.
        tokens: Every token sampled, that of the end of the text and those of the stop string included.
        logprobs: Log-probability of each token under the distribution it was sampled from (after temperature and
            top-p), or None when not asked for, or when a server gives none.
        finish_reason: ``"stop"`` (end of text or a stop string) or ``"length"`` (`max_new_tokens` reached).
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str


class Engine(Protocol):
    """A language model that is given prompts, knowing nothing of conversations."""

    @property
    def identity(self) -> str:
        """Name and revision of the model: what completions are stored under."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue each prompt; the same prompt may stand there many times, with different seeds."""
        ...

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of each continuation's tokens after its prompt, at temperature 1."""
        ...

    def close(self) -> None:
        """Let go of the model's memory."""
        ...


def check_sampling(
    prompts: Sequence[str], max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int] | None
) -> None:
    """Check the arguments of `Engine.generate`.

    Raises:
        InvalidValue: A number is out of its range, or there aren't as many seeds as prompts.
    """
    if max_new_tokens < 1 or not temperature >= 0.0 or not 0.0 < top_p <= 1.0:
        raise InvalidValue(
            "generate needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not "
            f"{max_new_tokens}, {temperature}, {top_p}"
        )
    check_each("seeds", seeds, prompts)


def check_each(what: str, given: Sequence[object] | None, prompts: Sequence[str]) -> None:
    """Check that there is one of something for each prompt, if it is given at all.

    Raises:
        InvalidValue: There are more or fewer.
    """
    if given is not None and len(given) != len(prompts):
        raise InvalidValue(f"got {len(given)} {what} for {len(prompts)} prompts; give one each")


class LazyEngine:
    """An engine that is opened at its first `generate` or `score`; its identity is known before."""

    def __init__(self, identity: str, opener: Callable[[], Engine]) -> None:
        self.identity = identity
        self._open = opener
        self._engine: Engine | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    def opened(self) -> Engine:
        """Return the engine, opened now if it wasn't."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        """Continue each prompt, as `Engine.generate`."""
        return self.opened().generate(prompts, **sampling) if prompts else []

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of continuations, as `Engine.score`."""
        return self.opened().score(prompts, continuations) if prompts else []

    def close(self) -> None:
        """Let go of the model's memory; the next use opens it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def make_engine(llm: str | Engine) -> Engine | None:
    """Make the engine that `llm` names; no model is loaded before it is used.

    Args:
        llm: ``"template"`` (no model), ``"smollm2-135m-partner"`` (SmolLM2 with a partner's voice) and
            ``"smollm2-135m"`` (SmolLM2 as it is), both by DeepSpeed on CUDA, else by transformers;
            ``"hf:ID-or-folder"``, ``"deepspeed:ID-or-folder"``, ``"openai:URL#MODEL"`` (any compatible server),
            ``"record:FILE,LLM"`` and ``"recorded:FILE"`` (see `chatgym.engines.recorded`), ``"name:spec"`` of an
            engine that a plugin registered, or an `Engine`, which is returned as it is.

    Returns:
        The engine; None for ``"template"``.

    Raises:
        InvalidValue: Unknown `llm`, a folder without a model in safetensors, no URL, no record.
        Unavailable: The model isn't here and can't be fetched, or what its engine needs isn't installed.
    """
    if not isinstance(llm, str):
        if callable(getattr(llm, "generate", None)) and callable(getattr(llm, "score", None)):
            return llm
        raise unknown("llm", llm, _allowed(()), "An Engine has `generate` and `score`.")
    if llm == "template":
        return None
    if llm in (DEFAULT_MODEL, PLAIN_MODEL):
        return _stored(llm)
    kind, colon, spec = llm.partition(":")
    if spec and kind in BUILT_IN:
        return BUILT_IN[kind](spec)
    from chatgym import plugins

    engines = plugins.load().engines
    if colon and kind in engines:
        engine: Engine = engines[kind](spec)
        return engine
    raise unknown("llm", llm, _allowed(engines))


def _allowed(plugged: Sequence[str] | Any) -> list[str]:
    forms = ["hf:ID-or-folder", "deepspeed:ID-or-folder", "openai:URL#MODEL", "record:FILE,LLM", "recorded:FILE"]
    return ["template", DEFAULT_MODEL, PLAIN_MODEL, *forms, *(f"{name}:..." for name in plugged)]


def _stored(name: str) -> Engine:
    """Return the engine of a model that comes with ChatGym, the voice's adapter merged into the base model."""
    from chatgym import store

    folder = store.path(PLAIN_MODEL)
    revision = store.revision(PLAIN_MODEL)[:12]
    if name == PLAIN_MODEL:
        return _lazy(folder, f"{name}@{revision}", _where_it_pays)
    from chatgym.voice import ADAPTER

    identity = f"{name}@{revision}+{_digest(sorted(ADAPTER.glob('*.safetensors')))[:12]}"
    return _lazy(folder, identity, lambda folder, identity: _where_it_pays(folder, identity, ADAPTER))


def _where_it_pays(folder: Path, identity: str, adapter: Path | None = None) -> Engine:
    """Open a model by DeepSpeed on CUDA, where it is installed, else by transformers."""
    import torch

    opener = _deepspeed if torch.cuda.is_available() and find_spec("deepspeed") else _transformers
    return opener(folder, identity, adapter)


def _transformers(folder: Path, identity: str, adapter: Path | None = None) -> Engine:
    from chatgym.engines.transformers import TransformersEngine

    return TransformersEngine(folder, identity=identity, adapter=adapter)


def _deepspeed(folder: Path, identity: str, adapter: Path | None = None) -> Engine:
    from chatgym.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(folder, identity=identity, adapter=adapter)


def _openai(spec: str) -> Engine:
    from chatgym.engines.openai import OpenAIEngine

    url, _, model = spec.partition("#")
    return OpenAIEngine(url, model)


def _record(spec: str) -> Engine:
    from chatgym.engines.recorded import RecordedEngine

    file, _, llm = spec.partition(",")
    engine = make_engine(llm) if file and llm else None
    if engine is None:
        raise InvalidValue(f"llm 'record:{spec}' names nothing to record; write 'record:FILE,LLM', a model for LLM")
    return RecordedEngine(file, engine)


def _recorded(spec: str) -> Engine:
    from chatgym.engines.recorded import RecordedEngine

    return RecordedEngine(spec)


def _folder(spec: str, opener: Callable[[Path, str], Engine] = _transformers) -> Engine:
    """Return the engine of a model in a folder or on the hub."""
    return _lazy(*find_model(spec), opener)


def find_model(spec: str) -> tuple[Path, str]:
    """Find a model: a folder that exists, or one that the hub has, which is fetched.

    Returns:
        Its folder, and its identity: name and revision.

    Raises:
        InvalidValue: There is no such folder, or no model in safetensors in it.
        Unavailable: The hub's can't be fetched.
    """
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if not _is_hub_id(spec):
            raise InvalidValue(f"model {spec!r} names no folder; give a folder that exists or a hub id, 'owner/name'")
        folder = _from_hub(spec)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise InvalidValue(
            f"folder {str(folder)!r} holds no model that can be read: it needs config.json and *.safetensors "
            "(pickled weights are never loaded); save it with `model.save_pretrained(folder)`"
        )
    name = spec if folder != Path(spec).expanduser() else folder.resolve().name
    return folder, f"{name}@{_digest(weights)[:12]}"


def _is_hub_id(spec: str) -> bool:
    parts = spec.split("/")
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and os.sep not in spec[:1]


def _from_hub(hub_id: str) -> Path:
    """Fetch a model's safetensors, configuration and tokenizer; nothing that could hold code or a pickle."""
    from huggingface_hub import snapshot_download

    from chatgym import store

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
                local_files_only=store.offline(),
            )
        )
    except (OSError, ValueError) as error:  # unreachable, offline, unknown or gated
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(
            f"model {hub_id!r} could not be fetched from the hub ({reason}); check the id and the network, or download "
            "it elsewhere and pass its folder: llm='hf:/path/to/folder'"
        ) from error


def _digest(weights: Sequence[Path]) -> str:
    from chatgym import store

    return hashlib.sha256("".join(store.sha256(path) for path in weights).encode()).hexdigest()


def _lazy(folder: Path, identity: str, opener: Callable[[Path, str], Engine]) -> Engine:
    return LazyEngine(identity, lambda: opener(folder, identity))


BUILT_IN: dict[str, Callable[[str], Engine]] = {
    "hf": _folder,
    "deepspeed": lambda spec: _folder(spec, _deepspeed),
    "openai": _openai,
    "record": _record,
    "recorded": _recorded,
}
"""What makes the engine of ``"kind:spec"``, beside those of plugins."""
