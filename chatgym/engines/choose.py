"""Make the engine that a user names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chatgym.engines.protocol import Engine, LazyEngine, checked_engine
from chatgym.errors import InvalidValue, Unavailable, unknown
from chatgym.storage.paths import given
from chatgym.storage.utf8 import valid

DEFAULT_MODEL = "smollm2-135m-partner"
"""The model that generates the partner's utterances: SmolLM2 with the adapter below, see `chatgym.words.voice`."""
PLAIN_MODEL = "smollm2-135m"
"""SmolLM2 without the adapter."""
ADAPTER = Path(__file__).parent / DEFAULT_MODEL
"""Folder of the voice: a LoRA adapter to `PLAIN_MODEL`."""

TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Files of which a folder with a tokenizer has one."""


def make_engine(llm: str | Engine) -> Engine | None:
    """Make the engine that `llm` names; its model is loaded at the first use.

    Args:
        llm: ``"template"`` (no model), ``"smollm2-135m-partner"`` (SmolLM2 with a partner's voice) and
            ``"smollm2-135m"`` (SmolLM2 itself), both by DeepSpeed on CUDA, else by transformers;
            ``"hf:ID-or-folder"``, ``"deepspeed:ID-or-folder"``, ``"openai:URL#MODEL"`` (any compatible server),
            ``"record:FILE,LLM"`` and ``"recorded:FILE"`` (see `chatgym.engines.recorded`), ``"name:spec"`` of an
            engine that a plugin registered, or an `Engine`, which is returned as it is.

    Returns:
        The engine, or None for ``"template"``.

    Raises:
        InvalidValue: `llm` is unknown, names a folder without safetensors, no URL, or no record, or is no engine.
        Unavailable: The model can't be fetched, or a package that the engine needs isn't installed.
    """
    if not isinstance(llm, str):
        if callable(getattr(llm, "generate", None)) and callable(getattr(llm, "score", None)):
            return checked_engine(llm, f"the engine {type(llm).__name__}")
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
        return checked_engine(engines[kind](spec), f"what plugin {engines.sources[kind]!r} makes of {llm!r}")
    raise unknown("llm", llm, _allowed(engines))


def _allowed(plugged: Sequence[str] | Any) -> list[str]:
    """Return the forms of `llm` that `make_engine` accepts, with the names that plugins registered."""
    forms = ["hf:ID-or-folder", "deepspeed:ID-or-folder", "openai:URL#MODEL", "record:FILE,LLM", "recorded:FILE"]
    return ["template", DEFAULT_MODEL, PLAIN_MODEL, *forms, *(f"{name}:..." for name in plugged)]


def _stored(name: str) -> Engine:
    """Return the engine of a model that comes with ChatGym, the voice's adapter merged into the base model.

    The model is fetched when the engine is opened: its identity is known without it.
    """
    from chatgym.storage import model_store

    identity = f"{name}@{model_store.MODELS[PLAIN_MODEL].weights[:12]}"
    adapter = ADAPTER if name == DEFAULT_MODEL else None
    if adapter is not None:
        identity += f"+{_digest(sorted(adapter.glob('*.safetensors')))[:12]}"
    return LazyEngine(identity, lambda: _where_it_pays(model_store.path(PLAIN_MODEL), identity, adapter))


def _where_it_pays(folder: Path, identity: str, adapter: Path | None = None) -> Engine:
    """Open a model by DeepSpeed if it is installed and there is a GPU, else by transformers."""
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

    # The file's name may have commas, too: it ends at the first one before what names a model.
    parts = spec.split(",")
    splits = [(",".join(parts[:i]), ",".join(parts[i:])) for i in range(1, len(parts))]
    file, llm = next((one for one in splits if _is_llm(one[1])), splits[0] if splits else (spec, ""))
    engine = make_engine(llm) if file and llm else None
    if engine is None:
        raise InvalidValue(f"llm 'record:{spec}' names nothing to record; write 'record:FILE,LLM', a model for LLM")
    return RecordedEngine(file, engine)


def _is_llm(llm: str) -> bool:
    """Tell whether a text has the form of an llm's name."""
    from chatgym import plugins

    kind, colon, spec = llm.partition(":")
    known = kind in BUILT_IN or kind in plugins.load().engines
    return llm in ("template", DEFAULT_MODEL, PLAIN_MODEL) or bool(colon and spec and known)


def _recorded(spec: str) -> Engine:
    from chatgym.engines.recorded import RecordedEngine

    return RecordedEngine(spec)


def _folder(spec: str, opener: Callable[[Path, str], Engine] = _transformers) -> Engine:
    """Return the engine of a model in a folder or on the Hugging Face hub."""
    return _lazy(*find_model(spec), opener)


def find_model(spec: str) -> tuple[Path, str]:
    """Find a model by folder or hub id; a model on the hub is fetched.

    Returns:
        The model's folder, and its identity: name and revision.

    Raises:
        InvalidValue: There is no such folder, or it holds no safetensors, or no tokenizer.
        Unavailable: The model can't be fetched from the hub.
    """
    if spec != valid(spec):
        raise InvalidValue(f"the name {valid(spec)!r} isn't in UTF-8, so no tokenizer can be read there; rename it")
    folder = given(spec)
    if not folder.is_dir():
        if not _is_hub_id(spec):
            raise InvalidValue(
                f"there is no folder {spec!r} with a model; name a folder that exists, or a hub id, 'owner/name'"
            )
        folder = _from_hub(spec)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise InvalidValue(
            f"folder {str(folder)!r} holds no model that can be read: it needs config.json and *.safetensors "
            "(pickled weights are never loaded); save it with `model.save_pretrained(folder)`"
        )
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise InvalidValue(
            f"folder {str(folder)!r} holds a model without a tokenizer; copy its tokenizer.json and "
            "tokenizer_config.json there, or write them by `tokenizer.save_pretrained(folder)`"
        )
    name = spec if folder != given(spec) else folder.resolve().name
    return folder, f"{name}@{_digest(weights)[:12]}"


def _is_hub_id(spec: str) -> bool:
    parts = spec.split("/")
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and os.sep not in spec[:1]


def _from_hub(hub_id: str) -> Path:
    """Fetch a model's safetensors, configuration and tokenizer, but no file that could hold code or a pickle."""
    from huggingface_hub import constants, snapshot_download

    from chatgym.storage import model_store

    if constants.HF_HUB_CACHE.startswith("~"):  # which would be a folder of that name
        raise Unavailable("this user has no home folder to keep models of the hub in; set HF_HOME to a folder")
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
                local_files_only=model_store.offline(),
            )
        )
    except (OSError, ValueError) as error:  # unreachable, offline, unknown or gated
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(
            f"model {hub_id!r} could not be fetched from the hub ({reason}); check the id and the network, or download "
            "it elsewhere and pass its folder: llm='hf:/path/to/folder'"
        ) from error


def _digest(weights: Sequence[Path]) -> str:
    from chatgym.storage import model_store

    return hashlib.sha256("".join(model_store.sha256(path) for path in weights).encode()).hexdigest()


def _lazy(folder: Path, identity: str, opener: Callable[[Path, str], Engine]) -> Engine:
    return LazyEngine(identity, lambda: opener(folder, identity))


BUILT_IN: dict[str, Callable[[str], Engine]] = {
    "hf": _folder,
    "deepspeed": lambda spec: _folder(spec, _deepspeed),
    "openai": _openai,
    "record": _record,
    "recorded": _recorded,
}
"""Built-in kinds of ``"kind:spec"`` to the functions that make an engine from the spec."""
