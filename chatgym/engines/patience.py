"""Seconds to wait before a failed request is repeated."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

FIRST, LONGEST = 0.5, 30.0
"""Seconds of the first wait, and of the longest unless the server asks for more."""


def backoff(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after some failed attempts.

    Args:
        attempt: How many attempts failed, 1 or more.
        jitter: From 0 to 1: up to half of the wait is left out, so that clients that failed together come back apart.
    """
    doubled: float = FIRST * 2.0 ** min(attempt - 1, 30)
    return min(LONGEST, doubled) * (1.0 - jitter / 2.0)


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait (RFC 9110, 10.2.3), or None if it states none.

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
