"""Folders of trained reward models: the model, ``config.json`` (how it was made) and ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatgym.errors import Corrupted, InvalidValue
from chatgym.rewards.encoder import FILE, EncoderRewardModel
from chatgym.storage.utf8 import read_json

FORMAT, VERSION = "chatgym-reward", 1
KINDS = ("encoder", "llm")
MODEL = "model"
"""Subfolder with the weights of the llm kind."""


def check_free(folder: Path, overwrite: bool) -> None:
    """Check that a reward model can be written into a folder.

    Raises:
        InvalidValue: The folder holds something else, or a reward model and `overwrite` is false.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.json").is_file() or _config(folder).get("format") != FORMAT:
        raise InvalidValue(f"{folder} isn't empty and holds no reward model; name another folder (--out)")
    if not overwrite:
        raise InvalidValue(f"{folder} already holds a reward model; replace it (--overwrite) or name another folder")


def write_config(folder: Path, kind: str, about: Mapping[str, Any]) -> None:
    """Write ``config.json``: the kind of model, and how it was made."""
    record = {"format": FORMAT, "version": VERSION, "kind": kind, **about}
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_encoder(folder: Path, model: EncoderRewardModel, about: Mapping[str, Any]) -> None:
    """Write an encoder model with its ``config.json``."""
    write_config(folder, "encoder", about)
    model.save(folder / FILE)


def load(folder: Path) -> Any:
    """Load the reward model in a folder of `chatgym reward train`.

    Raises:
        InvalidValue: The folder holds no reward model, or one of another version.
        Corrupted: A file is damaged.
    """
    if not (folder / "config.json").is_file():
        raise InvalidValue(f"{folder} holds no reward model; `chatgym reward train --out {folder}` makes one")
    config = _config(folder)
    if config.get("format") != FORMAT:
        raise InvalidValue(f"{folder} holds no reward model but something else; a classifier is hf:{folder}")
    if config.get("version") != VERSION or config.get("kind") not in KINDS:
        raise InvalidValue(f"{folder} holds a reward model of another version of ChatGym; train it again with this one")
    if config["kind"] == "encoder":
        return EncoderRewardModel.load(folder / FILE)
    from chatgym.engines import find_model
    from chatgym.rewards.classifier import ClassifierRewardModel

    return ClassifierRewardModel(*find_model(str(folder / MODEL)))


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``; empty if it is no JSON object."""
    path = folder / "config.json"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train the reward model again (--overwrite)") from error
    return found if isinstance(found, dict) else {}
