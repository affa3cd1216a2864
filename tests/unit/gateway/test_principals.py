"""Who may call: files of principals, the issuer's tokens, answers left beside the store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from lockstep.errors import ConfigError
from lockstep.gate.policy import Policies
from lockstep.gateway.principals import Principal, Principals, new_token, read_principals
from lockstep.gateway.tokens import Issuer
from lockstep.journal.inbox import Answer, Inbox

ISSUER, RESOURCE = "https://login.example", "https://gateway.example/mcp"
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "Field required", id="nobody"),
        pytest.param("[[principal]]\nname = ''", "principal.0.name", id="no name"),
        pytest.param(f"[[principal]]\nname='a'\ntoken='x'\ntoken_sha256='{DIGEST}'", "token", id="a token"),
        pytest.param(f"[[principal]]\nname='a'\ntoken_sha256='{DIGEST}'\n" * 2, "same name", id="twice"),
        pytest.param("=", "not TOML", id="no toml"),
    ],
)
def test_a_file_that_says_less_or_more_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "principals.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_principals(file)


def test_a_token_is_known_by_its_digest_alone() -> None:
    token, digest = new_token()
    known = Principals({digest: Principal(name="ada")})
    assert known.of_token(token) == Principal(name="ada")
    assert known.of_token(digest) is None
    assert known.of_token("") is None


def test_a_rate_fills_again() -> None:
    known, ada = Principals({}), Principal(name="ada", requests_per_minute=6000)
    waits = [known.wait_s(ada) for _ in range(6100)]
    assert waits[:6000] == [0.0] * 6000
    assert 0 <= max(waits) <= 0.01


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def issuer(key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> Issuer:
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [{**public, "kid": "k1", "alg": "ES256", "use": "sig"}]}))
    return Issuer.read(ISSUER, RESOURCE, file)


def signed(key: Any, algorithm: str = "ES256", kid: str = "k1", **changed: Any) -> str:
    claims = {"iss": ISSUER, "aud": RESOURCE, "sub": "ada", "exp": int(time.time()) + 600, **changed}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


def test_a_token_of_the_issuer_is_its_subject(issuer: Issuer, key: ec.EllipticCurvePrivateKey) -> None:
    seen = issuer.verify(signed(key))
    assert seen is not None
    assert (seen.client_id, seen.subject, seen.token) == (f"{ISSUER}#ada", "ada", "")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"aud": "https://other.example/mcp"}, id="for another"),
        pytest.param({"iss": "https://evil.example"}, id="of another"),
        pytest.param({"exp": 1}, id="expired"),
        pytest.param({"exp": None}, id="for ever"),
        pytest.param({"sub": None}, id="nobody's"),
        pytest.param({"sub": ""}, id="of nobody"),
        pytest.param({"sub": "ada\u202e"}, id="of somebody with another face"),
        pytest.param({"sub": "a" * 1000}, id="of somebody without end"),
        pytest.param({"kid": "k2"}, id="unknown key"),
    ],
)
def test_another_token_is_nobodys(issuer: Issuer, key: ec.EllipticCurvePrivateKey, changed: dict[str, Any]) -> None:
    assert issuer.verify(signed(key, **changed)) is None


def test_a_token_signed_otherwise_is_nobodys(issuer: Issuer) -> None:
    assert issuer.verify(signed(ec.generate_private_key(ec.SECP256R1()))) is None
    assert issuer.verify(signed("a secret that is long enough to sign with", "HS256")) is None
    assert issuer.verify("no.token.atall") is None


def test_an_answer_is_left_only_where_somebody_takes_it(tmp_path: Path) -> None:
    answer = Answer(approval="a123", given=True, by="grace")
    assert not Inbox(tmp_path).leave(answer)
    attended = Inbox(tmp_path)
    attended.attend()
    assert Inbox(tmp_path).leave(answer)
    assert not Inbox(tmp_path).leave(Answer(approval="../../x", given=True, by="mallory"))
    (tmp_path / "answers/a9.json").write_text("{")
    (tmp_path / "answers/a8.json").write_text('{"approval": "a7", "given": true, "by": "x"}')
    assert attended.left() == attended.left() == [answer]
    attended.taken(answer)
    assert attended.left() == []
    assert list((tmp_path / "answers").glob("*.json")) == []
    attended.close()
    assert not Inbox(tmp_path).leave(answer)


@pytest.mark.parametrize(
    ("policy", "seen"),
    [
        pytest.param("permit (principal, action, resource);", True, id="all"),
        pytest.param("", False, id="none"),
        pytest.param('permit (principal == User::"eve", action, resource);', False, id="somebody else"),
        pytest.param('permit (principal, action == Action::"look", resource);', False, id="another tool"),
        pytest.param(
            'permit (principal, action, resource);\nforbid (principal, action == Action::"pay", resource);',
            False,
            id="forbidden",
        ),
        pytest.param(
            'permit (principal, action, resource);\n@ask("?") forbid (principal, action, resource);',
            True,
            id="asked",
        ),
        pytest.param(
            "permit (principal, action, resource) when { context.run.steps > 5 };\n"
            "forbid (principal, action, resource) unless { context.run.steps > 9 };",
            True,
            id="under conditions",
        ),
    ],
)
def test_a_tool_is_seen_where_a_call_of_it_might_be_permitted(policy: str, seen: bool) -> None:
    assert Policies.parse({"p": policy}).may_permit("ada", "pay", "clerk") is seen
