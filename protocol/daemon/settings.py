"""Flags, environment variables and TOML files, read alike by every command.

A flag beats its environment variable (``PSSERVER_PORT``), which beats the key of the file given with
``--config``, which beats the default.
"""

from __future__ import annotations

import argparse
import io
import ipaddress
import re
import textwrap
import tomllib
from fractions import Fraction
from typing import Any, Final, TextIO

import configargparse

import protocol
from protocol.addresses import split_address
from protocol.errors import BadRequest
from protocol.fields import check_name

__all__ = [
    "address",
    "duration",
    "is_loopback",
    "job_name",
    "log_flags",
    "new_parser",
    "port",
    "size",
]

_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_PROGRAMS: Final = ("psserver", "psworker", "psctl")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ELSEWHERE: Final = (
    "Each flag is also read from the environment (--some-flag from {prefix}_SOME_FLAG) and from the "
    "[{table}] table of the --config file. A flag beats the environment beats the file."
)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Say every default that says something, and leave the lines of examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, "", [], False):
            return action.help or ""
        return str(super()._get_help_string(action))


class _Tables(configargparse.TomlConfigParser):  # type: ignore[misc]
    """A TOML file holds the tables of all commands and nothing else: a slip is not passed over."""

    def parse(self, stream: TextIO) -> dict[str, Any]:
        text = stream.read()
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise configargparse.ConfigFileParserException(f"--config is not TOML: {error}") from error
        for name, value in document.items():
            if name not in _PROGRAMS or not isinstance(value, dict):
                tables = ", ".join(f"[{program}]" for program in _PROGRAMS)
                raise configargparse.ConfigFileParserException(
                    f"--config: {name!r} is not one of the tables {tables}; settings go into these"
                )
        found: dict[str, Any] = super().parse(io.StringIO(text))
        return found


def new_parser(
    program: str, description: str, *, command: str = "", examples: str = ""
) -> configargparse.ArgParser:
    """Return a parser with ``--version`` and ``--config`` whose flags are also read elsewhere.

    A ``command`` of a program that has several has its own table in the file; ``examples`` end the help.
    """
    table = f"{program}.{command}" if command else program
    parser = configargparse.ArgParser(
        prog=f"{program} {command}".rstrip(),
        description=description,
        auto_env_var_prefix=f"{program.upper()}_",
        add_env_var_help=False,
        add_config_file_help=False,
        config_file_parser_class=_Tables([table]),
        formatter_class=_Help,
        allow_abbrev=False,
        epilog=examples + textwrap.fill(_ELSEWHERE.format(prefix=program.upper(), table=table), 80),
    )
    parser.add_argument("--version", action="version", version=f"{program} {protocol.__version__}")
    parser.add_argument("--config", is_config_file=True, metavar="FILE", help="TOML file with settings")
    return parser


def log_flags(parser: configargparse.ArgParser) -> None:
    """Add ``--log-format`` and ``--log-level``."""
    parser.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="form of the log lines on standard error",
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="least severity logged",
    )


def duration(text: str) -> float:
    """Return the seconds that ``500ms``, ``5s``, ``2m`` or ``1h`` say."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 500ms, 5s or 2m")
    return float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> int:
    """Return the bytes that ``64KiB``, ``1GiB`` or ``4096`` say."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 64KiB, 16MiB or 1GiB")
    return int(Fraction(match[1]) * _UNITS[match[2] or ""])


def port(text: str) -> int:
    """Return a TCP port, 0 to 65535."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write a number from 0 to 65535")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; IPv6 hosts are written ``[::1]:7070``."""
    try:
        return split_address(text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; {error.message}") from error


def job_name(text: str) -> str:
    """Return a name that jobs and workers may have."""
    try:
        check_name(text, "name")
    except BadRequest as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no name; {error.message}") from error
    return text


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
