import re
import ssl
from pathlib import Path

import pytest

from protocol.errors import BadRequest
from protocol.tls import TLS, client_context, reason_of, server_context, unauthenticated
from tests.certificates import Authority


def shaken(client: TLS, server: TLS, host: str = "localhost") -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let two ends shake hands in memory, and return them."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client_context(client).wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server_context(server).context.wrap_bio(to_server, to_client, server_side=True)
    shaking = [ours, theirs, ours, theirs]
    for end in shaking:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    with pytest.raises(ssl.SSLWantReadError):  # an alert of the server's would come out here
        ours.read(1)
    return ours, theirs


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


def test_both_ends_show_certificates_of_one_authority(authority: Authority) -> None:
    server = authority.issue("server")
    ours, theirs = shaken(authority.issue("client"), server)
    assert ours.version() == "TLSv1.3"
    shown = theirs.getpeercert()
    assert shown is not None
    assert shown["subject"] == ((("commonName", "client"),),)
    seen = ours.getpeercert(binary_form=True)
    assert seen is not None
    import hashlib

    assert server_context(server).channel == hashlib.sha256(seen).digest()


def test_the_client_may_stay_unknown_where_the_server_has_no_ca(authority: Authority) -> None:
    files = authority.issue("server")
    shaken(TLS(ca=files.ca), TLS(cert=files.cert, key=files.key))


@pytest.mark.parametrize("hosts", [("10.0.0.1",), ("example.org",), ("ocalhost", "local"), ()])
def test_the_certificate_has_to_name_the_host(authority: Authority, hosts: tuple[str, ...]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shaken(authority.issue("client"), authority.issue("misnamed", hosts))
    assert "localhost" in str(unauthenticated(caught.value, server=False, host="localhost"))
    assert reason_of(caught.value) == "certificate"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "a.example.org"])
def test_names_and_addresses(authority: Authority, host: str) -> None:
    shaken(
        authority.issue("client"),
        authority.issue("named", ["127.0.0.1", "localhost", "::1", "*.example.org"]),
        host,
    )


def test_a_server_of_another_authority(authority: Authority, other: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shaken(authority.issue("client"), other.issue("server"))
    error = unauthenticated(caught.value, server=False, host="localhost")
    assert (error.field, error.value) == ("tls", "certificate")
    assert "--tls-ca" in str(error)


def test_a_client_of_another_authority(authority: Authority, other: Authority) -> None:
    theirs = other.issue("client")
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shaken(TLS(authority.file, theirs.cert, theirs.key), authority.issue("server"))
    assert "client's certificate" in str(unauthenticated(caught.value, server=True))


def test_a_certificate_that_is_over(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shaken(authority.issue("client"), authority.issue("old", days=-1))


def test_a_client_without_a_certificate(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError) as caught:
        shaken(TLS(authority.file), authority.issue("server"))
    assert "not one of --tls-ca" in str(unauthenticated(caught.value, server=True))


def test_nothing_older_than_tls_1_3(authority: Authority) -> None:
    files = authority.issue("server")
    old = client_context(files)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = old.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = server_context(files).context.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL") as caught:
        theirs.do_handshake()
    assert reason_of(caught.value) == "tls"


def test_a_key_with_a_password_is_not_asked_for(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    files, key = authority.issue("server"), tmp_path / "locked.key"
    locked = serialization.BestAvailableEncryption(b"secret")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form, locked))
    with pytest.raises(BadRequest, match="without a password"):
        server_context(TLS(cert=files.cert, key=key))


@pytest.mark.parametrize("given", [("ca",), ("ca", "cert"), ("ca", "key"), ()])
def test_a_server_needs_a_certificate_and_its_key(authority: Authority, given: tuple[str, ...]) -> None:
    files = authority.issue("server")
    with pytest.raises(BadRequest, match=re.escape("--tls-cert and --tls-key")):
        server_context(TLS(**{name: getattr(files, name) for name in given}))


@pytest.mark.parametrize("given", [("ca", "cert"), ("ca", "key")])
def test_a_client_s_certificate_and_key_go_together(authority: Authority, given: tuple[str, ...]) -> None:
    files = authority.issue("client")
    with pytest.raises(BadRequest, match="go together"):
        client_context(TLS(**{name: getattr(files, name) for name in given}))


def test_without_a_ca_a_client_believes_whom_the_system_does() -> None:
    assert client_context(TLS()).verify_mode is ssl.CERT_REQUIRED
