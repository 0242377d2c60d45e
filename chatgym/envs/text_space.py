"""A text space whose observations reach the parent process of gymnasium's `AsyncVectorEnv`.

`AsyncVectorEnv` reads its shared memory once, when it is made, and returns copies of what it read. That does for
arrays, which are views of the memory. Texts are read into a tuple of strings that never changes: before the first
reset, 2,000 times the first character a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from gymnasium.vector.utils import read_from_shared_memory


class ChatText(spaces.Text):
    """`gymnasium.spaces.Text` for observations that may lie in shared memory."""


class _SharedTexts(Sequence[str]):
    """The texts that stand in shared memory now, one a row; a deep copy is a tuple of them."""

    def __init__(self, space: ChatText, memory: Any, rows: int) -> None:
        self._space, self._memory, self._rows = space, memory, rows

    def _read(self) -> tuple[str, ...]:
        read = read_from_shared_memory.dispatch(spaces.Text)
        return tuple(map(str, read(self._space, self._memory, self._rows)))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: Any) -> Any:
        return self._read()[row]

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return self._read()


@read_from_shared_memory.register(ChatText)
def _shared_texts(space: ChatText, shared_memory: Any, n: int = 1) -> _SharedTexts:
    return _SharedTexts(space, shared_memory, n)
