"""The flags that say which token and certificates a command has, the same for all of them."""

from __future__ import annotations

import argparse

import configargparse

from protocol.credentials import Access, Credentials
from protocol.errors import BadRequest
from protocol.tls import TLS

__all__ = ["access_flags", "access_from", "credentials_from"]


def access_flags(parser: configargparse.ArgParser, *, server: bool = False) -> None:
    """Add ``--token-file``, ``--tls-cert``, ``--tls-key`` and ``--tls-ca``."""
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="tokens, a line each: ROLE:TOKEN (worker, admin) or TOKEN (an admin's); "
        + ("those who connect have to know one of them" if server else "the first is used"),
    )
    parser.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="this server's certificate (PEM): speak TLS, and nothing else"
        if server
        else "a certificate (PEM), for servers that ask for one",
    )
    parser.add_argument("--tls-key", metavar="FILE", help="the key of --tls-cert (PEM)")
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="take only clients with a certificate that this CA (PEM) has signed"
        if server
        else "speak TLS with servers whose certificate this CA (PEM) has signed",
    )


def access_from(options: argparse.Namespace, *, server: bool = False) -> Access:
    """Return what the flags say.

    Raises:
        BadRequest: one of them needs another one.
    """
    tls = TLS(options.tls_ca, options.tls_cert, options.tls_key)
    if not tls.files():
        return Access(options.token_file)
    if (tls.cert is None) != (tls.key is None):
        given, missing = ("--tls-key", "--tls-cert") if tls.cert is None else ("--tls-cert", "--tls-key")
        raise BadRequest(f"it goes with {missing}", field=given, value=str(tls.cert or tls.key))
    if server and tls.cert is None:
        raise BadRequest("it goes with --tls-cert and --tls-key", field="--tls-ca", value=str(tls.ca))
    if not server and tls.ca is None:
        raise BadRequest(
            "it goes with --tls-ca: which servers are to be believed", field="--tls-cert", value=str(tls.cert)
        )
    return Access(options.token_file, tls)


def credentials_from(options: argparse.Namespace) -> Credentials:
    """Return what a command that connects to a server proves who it is with.

    Raises:
        BadRequest: a flag needs another one, or a file cannot be used.
    """
    return Credentials(access_from(options))
