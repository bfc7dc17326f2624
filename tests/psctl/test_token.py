import pytest

from protocol.auth import Role, parse_tokens
from psctl import cli


def test_it_prints_a_token_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token"]) == 0
    tokens = parse_tokens(capsys.readouterr().out)
    assert [token.role for token in tokens] == [Role.ADMIN, Role.WORKER]  # psctl shows the first
    assert cli.main(["token"]) == 0
    assert not set(tokens) & set(parse_tokens(capsys.readouterr().out)), "each is a new one"


@pytest.mark.parametrize("role", list(Role))
def test_it_prints_one_for_a_role(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "--role", role.value]) == 0
    (token,) = parse_tokens(capsys.readouterr().out)
    assert token.role is role
