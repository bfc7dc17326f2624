"""The commands of docs/security.md do what it says."""

import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from protocol.tls import TLS, client_context, server_context

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_ca_and_certificates_in_six_lines(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```\n(openssl req -x509.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(commands.splitlines()) == 6
    subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, env=dict(os.environ)
    )
    ca = tmp_path / "ca.pem"
    server, client = (
        TLS(ca, tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("server", "worker")
    )
    for host in ("psserver-0.psserver", "10.0.0.1"):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client_context(client).wrap_bio(to_client, to_server, server_hostname=host)
        theirs = server_context(server).context.wrap_bio(to_server, to_client, server_side=True)
        with pytest.raises(ssl.SSLWantReadError):
            ours.do_handshake()
        with pytest.raises(ssl.SSLWantReadError):
            theirs.do_handshake()
        ours.do_handshake()
        theirs.do_handshake()
