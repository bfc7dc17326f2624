"""How many files a process may have open: each connection is one."""

from __future__ import annotations

import resource

__all__ = ["allow_descriptors"]


def allow_descriptors(wanted: int) -> int:
    """Raise the limit of open files as far as ``wanted`` and the system allow; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # some systems allow less than they say
        return soft
    return allowed
