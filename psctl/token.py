"""``psctl token``: new tokens, as a file for the servers."""

from __future__ import annotations

import argparse
import secrets
from typing import Final

import configargparse

from protocol.auth import Role
from protocol.daemon.exit_codes import ExitCode

__all__ = ["flags", "run"]

_BYTES: Final = 32  # nobody guesses one of 2^256


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl token``."""
    parser.add_argument(
        "--role",
        choices=[role.value for role in Role],
        help="print one token for this role; without it, one for each",
    )


def run(options: argparse.Namespace) -> int:
    """Print fresh tokens, a line each; nothing is sent or kept anywhere."""
    for role in (Role.ADMIN, Role.WORKER):  # who shows the first one of a file may do everything then
        if options.role in (None, role.value):
            print(f"{role}:{secrets.token_urlsafe(_BYTES)}")
    return ExitCode.DONE
