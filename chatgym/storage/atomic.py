"""Atomic writes: after a kill at any moment, a file or folder has its old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from chatgym.errors import Unavailable
from chatgym.storage.utf8 import valid

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def disk_space(path: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk in the block into `Unavailable`, which names `path` and the remedy."""
    try:
        yield
    except Exception as error:  # of any type: libraries raise their own, or fail again while closing a file
        if not _no_space(error):
            raise
        raise Unavailable(f"no space left on the disk of {path}; {remedy}") from error


def _no_space(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, means a full disk."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__context__
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; lone surrogates are replaced."""
    write_file(path, lambda temporary: temporary.write_text(valid(text), encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path of the same suffix beside `path`, sync the file, and rename it to `path`."""
    temporary = path.with_name(f".new-{path.name}")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append text to a file as UTF-8, see `append_bytes`."""
    append_bytes(path, valid(text).encode())


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file; if it can't be done wholly, nothing is appended."""
    with path.open("ab", buffering=0) as file:  # a buffer would write its rest when the file is closed
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a new, empty folder, and replace `folder` by it.

    Its files may be read by whom the folder may be: some libraries write files that only their owner can read.
    """
    new, old = folder.with_name(f".new-{folder.name}"), folder.with_name(f".old-{folder.name}")
    recover_folder(folder)
    try:
        new.mkdir()
        write(new)
        share(new)
        for path in new.rglob("*"):
            sync(path)
        sync(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def share(folder: Path) -> None:
    """Give the files in a folder the permissions of new files here; safetensors lets the owner alone read its own."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def copy_folder(folder: Path, new: Path) -> None:
    """Copy the content of a folder into an empty one, by hard links where the disk has them, which take no space.

    For folders whose files are only ever replaced, never written into: those of `replace_folder`.
    """
    shutil.copytree(folder, new, copy_function=_link, dirs_exist_ok=True)


def _link(path: str, new: str) -> None:
    """Link a file, or copy it where the disk has no hard links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copy2(path, new)


def recover_folder(folder: Path) -> None:
    """Clean up after a killed `replace_folder`: restore the old folder unless the new one is in place."""
    new, old = folder.with_name(f".new-{folder.name}"), folder.with_name(f".old-{folder.name}")
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def sync(path: Path) -> None:
    """Write a file or folder from the system's cache to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows can't open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
