"""A CA and a certificate for this machine, made as docs/security.md says."""

import subprocess
from pathlib import Path

from protocol.tls import TLS

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_certificates(directory: Path) -> TLS:
    """Return a certificate that both ends can show, made with the command openssl, which must be there."""
    ca, cert, key, request, names = (
        directory / name for name in ("ca.pem", "cert.pem", "key.pem", "request.pem", "names")
    )
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl("req", "-x509", *_KEY, "-subj", "/CN=benchmark CA", "-keyout", directory / "ca.key", "-out", ca)
    _openssl("req", *_KEY, "-subj", "/CN=benchmark", "-keyout", key, "-out", request)
    signed = ("-CA", ca, "-CAkey", directory / "ca.key", "-extfile", names, "-days", "30")
    _openssl("x509", "-req", "-in", request, *signed, "-out", cert)
    return TLS(ca, cert, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
