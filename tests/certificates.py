"""Certificates for tests: authorities, and what they sign, as PEM files."""

import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.tls import TLS, Serving, client_context, server_context

HOSTS = ("127.0.0.1", "localhost")


class Authority:
    """Signs certificates, and writes all that it makes into a directory, which need not exist yet."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        public = self._key.public_key()
        builder = _builder(self._name, self._name, public).add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )

    def issue(self, name: str, hosts: Sequence[str] = HOSTS, *, days: int = 30) -> TLS:
        """Return a certificate for these hosts, its key and this authority; below 0 ``days`` it is over."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(name), self._name, key.public_key(), days)
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_host, hosts))), False)
        cert, private = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        cert.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return TLS(self.file, cert, private)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int = 30
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer,
        subject,
        key,
        x509.random_serial_number(),
        now - timedelta(days=60),
        now + timedelta(days=days),
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@cache
def ready_made() -> tuple[Serving, ssl.SSLContext]:
    """Return what a server and a client speak TLS with that both show certificates of one authority."""
    with tempfile.TemporaryDirectory() as directory:
        files = Authority(Path(directory)).issue("both")
        return server_context(files), client_context(files)
