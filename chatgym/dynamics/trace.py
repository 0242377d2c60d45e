"""Traces: the JSON lines in which conversations are recorded, with a SHA-256 as their seal.

The first line is a header (format, version, identity of the environment, which includes its arguments). Each
conversation has a ``start`` line with its key and a ``turn`` line per agent turn; ``words`` lines hold the banks of
wordings that a language model made, so that a replay needs no model. The last line is the SHA-256 of all before it.
`chatgym.envs.replay` records and replays them; `chatgym.envs.replay.start_record` and ``turn_record`` list the fields.

Version 2 has `ACCOUNT`, what was heard and believed, and why a conversation failed. Version 1 is read, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from chatgym.errors import Corrupted, InvalidValue, ReplayMismatch
from chatgym.storage.paths import given
from chatgym.storage.utf8 import parsed, read_text, valid

FORMAT = "chatgym-trace"
VERSION = 2
READS = (1, VERSION)
ACCOUNT = frozenset({
    "seed", "understood", "heard_act", "garbled", "belief", "heard_right", "expert_act", "goal", "failure", "misheard",
})  # fmt: skip
"""Fields of `start` and `turn` lines that version 1 doesn't have."""


def encode_line(record: dict[str, Any]) -> str:
    """Return a line of JSON with sorted keys; lone surrogates are replaced."""
    return valid(json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))) + "\n"


def encode_observation(observation: Any) -> int | str:
    """Return an observation as JSON: numbers and texts unchanged, arrays as SHA-256 of their bytes."""
    if isinstance(observation, (int, np.integer)):
        return int(observation)
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        observation = np.concatenate([np.ascontiguousarray(observation[name]).ravel() for name in sorted(observation)])
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(observation).tobytes()).hexdigest()


class TraceWriter:
    """Writes a trace line by line; `close` appends its SHA-256.

    Use it as a context manager: after an error in the block the trace has no SHA-256 and is refused as unfinished. Or
    call `close` when everything is written, and only then.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        """Begin a trace of an environment with this identity (``env.unwrapped.identity()``)."""
        self.path = given(path)
        self._file: IO[str] = self.path.open("w", encoding="utf-8", newline="\n")
        self._digest = hashlib.sha256()
        self._banks: set[str] = set()
        self.write({"type": "header", "format": FORMAT, "version": VERSION, "identity": identity})

    def words(self, banks: dict[str, list[str]]) -> None:
        """Write the banks of wordings (``speaker.used``) that aren't in the trace yet."""
        for bank in sorted(set(banks) - self._banks):
            self._banks.add(bank)
            self.write({"type": "words", "bank": bank, "wordings": banks[bank]})

    def write(self, record: dict[str, Any]) -> None:
        """Write one line, see `start_record` and `turn_record`."""
        line = encode_line(record)
        self._digest.update(line.encode())
        self._file.write(line)

    def close(self) -> None:
        """Append the SHA-256 of all lines and close the file."""
        if not self._file.closed:
            self._file.write(encode_line({"type": "end", "sha256": self._digest.hexdigest()}))
            self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:  # no end line: what an error cut off isn't a whole trace
            self._file.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """Read a trace's lines, and check that it is complete.

    Raises:
        InvalidValue: It is no trace, or one of another version.
        Corrupted: It is unfinished, or a line isn't JSON.
    """
    try:
        # Not splitlines: it splits at characters that stand unescaped in what people write.
        lines = [line for line in read_text(given(path)).split("\n") if line]
    except UnicodeDecodeError:
        raise InvalidValue(f"{path} is no ChatGym trace: it isn't text") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parsed(line))
        except ValueError as error:
            raise Corrupted(f"{path}, line {number} is not JSON: {getattr(error, 'msg', error)}") from None
    header = records[0] if records and isinstance(records[0], dict) else {}
    if header.get("format") != FORMAT:
        raise InvalidValue(f"{path} is no ChatGym trace; `chatgym evaluate ... --trace FILE` writes one")
    if header.get("version") not in READS:
        reads = " and ".join(map(str, READS))
        raise InvalidValue(f"{path} is a trace of version {header.get('version')}; this ChatGym reads {reads}")
    kinds = [record.get("type") if isinstance(record, dict) else None for record in records]
    if kinds[-1] != "end":
        raise Corrupted(
            f"{path} is unfinished: it has no end line, its recording was cut off or failed; record it again"
        )
    for number, kind in enumerate(kinds[1:-1], 2):
        if kind not in ("words", "start", "turn"):
            raise Corrupted(f"{path}, line {number} is no line of a conversation, but of type {kind!r}")
    return records


def check_seal(path: str | Path, records: Sequence[dict[str, Any]]) -> str:
    """Return the SHA-256 of a trace's lines, as `read` returned them.

    Raises:
        ReplayMismatch: It isn't the one in the last line.
    """
    digest = hashlib.sha256()
    for record in records[:-1]:
        digest.update(encode_line(record).encode())
    if digest.hexdigest() != records[-1].get("sha256"):
        raise ReplayMismatch(f"{path}: its SHA-256 doesn't match its lines: the file was changed; record it again")
    return digest.hexdigest()
