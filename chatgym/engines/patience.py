"""How long to wait before a request is made again."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

FIRST, LONGEST = 0.5, 30.0
"""Seconds of the first wait, and of the longest one that is our own choice."""


def backoff(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after a number of failed attempts.

    Args:
        attempt: How many failed, 1 or more.
        jitter: 0 to 1; up to half of the wait is left out, so that clients that failed together don't come together.
    """
    doubled: float = FIRST * 2.0 ** min(attempt - 1, 30)
    return min(LONGEST, doubled) * (1.0 - jitter / 2.0)


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3); None when it says nothing.

    Args:
        header: A number of seconds, or an HTTP date.
        now: Seconds since the epoch.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
