import logging
import os
from pathlib import Path

import pytest

from protocol.auth import Role, Token
from protocol.credentials import Access, Credentials
from protocol.errors import BadRequest
from protocol.tls import TLS
from tests.certificates import Authority

OLD, NEW = "the-former-token", "the-token-after-it"


def write(file: Path, *lines: str, mode: int = 0o600) -> Path:
    """Write a file as editors and Kubernetes do: anew, and then in the place of the former one."""
    partial = file.with_name("partial")
    partial.write_text("\n".join(lines))
    partial.chmod(mode)
    partial.replace(file)
    return file


def test_a_client_uses_the_first_token_and_a_server_the_first_of_an_admin(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens", "worker:" + OLD, "admin:" + NEW)
    credentials = Credentials(Access(file))
    assert credentials.token == Token(Role.WORKER, OLD)
    assert credentials.servers_token == Token(Role.ADMIN, NEW)
    assert Credentials(Access(write(file, "worker:" + OLD))).servers_token == Token(Role.WORKER, OLD)
    assert (Credentials().token, Credentials().servers_token, Credentials().tokens) == (None, None, ())


def test_tokens_are_read_again_when_the_file_has_changed(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens", OLD)
    credentials = Credentials(Access(file))
    write(file, NEW)
    assert credentials.tokens == (Token(Role.ADMIN, OLD),)
    credentials.look()
    assert credentials.tokens == (Token(Role.ADMIN, NEW),)


@pytest.mark.parametrize("content", ["", "short", None], ids=["empty", "short", "gone"])
def test_a_file_that_has_become_unusable_changes_nothing(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "tokens", OLD)
    credentials = Credentials(Access(file))
    if content is None:
        file.unlink()
    else:
        write(file, content)
    for _ in range(3):
        credentials.look()
    assert credentials.tokens == (Token(Role.ADMIN, OLD),)
    (said,) = [record.getMessage() for record in caplog.records]  # once
    assert "stays in use" in said
    assert f"token-file={file}" in said
    write(file, NEW)
    credentials.look()
    assert credentials.tokens == (Token(Role.ADMIN, NEW),)


def test_all_is_read_again_on_demand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    credentials = Credentials(Access(write(tmp_path / "tokens", OLD)))
    credentials.look()
    assert not caplog.records
    credentials.look(anyway=True)
    assert "read again" in caplog.text


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_anybody_may_read_is_warned_of(
    tmp_path: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Credentials(Access(write(tmp_path / "tokens", OLD, mode=mode)))
    assert ("chmod" in caplog.text) == warns
    assert OLD not in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00" * 9, b"too short"])
def test_a_file_that_cannot_be_used_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(BadRequest) as caught:
        Credentials(Access(file))
    assert (caught.value.field, caught.value.value) == ("token-file", str(file))


# --- certificates


def test_certificates_are_made_anew_when_their_files_have_changed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("server")
    credentials = Credentials(Access(tls=files), serving=True)
    before, dialling = credentials.serving, credentials.dialling
    credentials.look()
    assert (credentials.serving, credentials.dialling) == (before, dialling)
    authority.issue("server")
    credentials.look()
    assert before is not None
    assert credentials.serving is not None
    assert credentials.serving.channel != before.channel
    assert credentials.dialling is not dialling


def test_a_certificate_that_is_half_replaced_waits_for_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Authority(tmp_path).issue("server")
    credentials = Credentials(Access(tls=files), serving=True)
    before = credentials.serving
    other = Authority(tmp_path / "elsewhere").issue("server")
    assert files.cert is not None
    assert files.key is not None
    assert other.cert is not None
    assert other.key is not None
    os.replace(other.cert, files.cert)
    credentials.look()
    assert credentials.serving is before
    assert "stays in use" in caplog.text
    os.replace(other.key, files.key)
    credentials.look()
    assert credentials.serving is not before


@pytest.mark.parametrize("which", ["ca", "cert", "key"])
@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----"])
def test_files_that_are_no_certificates(tmp_path: Path, which: str, content: str | None) -> None:
    files = Authority(tmp_path).issue("server")
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content)
    wrong = TLS(**{name: getattr(files, name) for name in ("ca", "cert", "key")} | {which: bad})
    with pytest.raises(BadRequest) as caught:
        Credentials(Access(tls=wrong), serving=True)
    assert caught.value.field == f"tls-{which}" or (content is not None and caught.value.field == "tls-cert")
    assert bad.name in str(caught.value)


def test_who_asks_others_for_proof(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("server")
    assert Access(tmp_path / "tokens").authenticates
    assert Access(tls=files).authenticates
    assert not Access(tls=TLS(cert=files.cert, key=files.key)).authenticates
    assert not Access().authenticates
