import json
import os

import pytest

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from launcher.errors import KeysUnusable
from launcher.signing.keys import ALGORITHMS, KeySet, SigningKey


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o644)
    return path


def public_pem(key):
    return key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestGood:
    def test_key_set(self, tmp_path, algorithm):
        """
        A key is found by its name and the algorithm it is for, and not otherwise.
        """
        key = SigningKey.generate("ci", algorithm)
        keys = KeySet.load(
            written(tmp_path / "keys.json", json.dumps({"keys": [key.jwk]}))
        )
        (other,) = set(ALGORITHMS) - {algorithm}

        assert "ci" == keys.find("ci", algorithm).kid
        assert [None] * 5 == [
            keys.find("ci", other),
            keys.find("ci", "HS256"),
            keys.find("ci", "none"),
            keys.find("another", algorithm),
            keys.find(None, algorithm),
        ]

    def test_pem(self, tmp_path, algorithm):
        """
        A public key in PEM has no name, so the name in a token does not matter.
        """
        key = SigningKey.generate("", algorithm)
        keys = KeySet.load(written(tmp_path / "key.pem", key.public_pem))

        assert (
            keys.find(None, algorithm) is keys.find("whatever", algorithm) is not None
        )

    def test_private_key_comes_back(self, tmp_path, algorithm):
        """
        What was written as PEM is the same key when read.
        """
        key = SigningKey.generate("ci", algorithm)
        path = written(tmp_path / "private.pem", key.pem)

        assert key.jwk == SigningKey.load(path, "ci").jwk

    def test_never_printed(self, algorithm):
        """
        The private half is not in the repr, nor in what is published.
        """
        key = SigningKey.generate("ci", algorithm)

        assert "key=" not in repr(key)
        assert "d" not in key.jwk


def test_foreign_keys_are_passed_over(tmp_path):
    """
    A set that also serves other purposes can be used as it is.
    """
    key = SigningKey.generate("ci", "EdDSA")
    foreign = [
        {"kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB"},
        {"kty": "oct", "kid": "ci", "k": "AAAA"},
        {**key.jwk, "kid": "encryption", "use": "enc"},
        {**key.jwk, "kid": "for-signing-only", "key_ops": ["sign"]},
        {**key.jwk, "kid": "confused", "alg": "HS256"},
    ]
    path = written(tmp_path / "keys.json", json.dumps({"keys": [*foreign, key.jwk]}))
    keys = KeySet.load(path)

    assert "ci" == keys.find("ci", "EdDSA").kid
    assert [None] * 4 == [
        keys.find(kid, "EdDSA")
        for kid in ("rsa", "encryption", "for-signing-only", "confused")
    ]


ED = SigningKey.generate("ci", "EdDSA")
P384 = ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "neither PEM nor"),
        (b"\xff\xfe", "neither PEM nor"),
        ("[]", "neither PEM nor"),
        ("null", "neither PEM nor"),
        ('{"keys": 1}', "neither PEM nor"),
        ('{"keys": [1]}', "neither PEM nor"),
        ('{"keys": []}', "holds no"),
        (json.dumps({"keys": [{**ED.jwk, "kid": 7}]}), "neither PEM nor"),
        (json.dumps({"keys": [{**ED.jwk, "x": "AA"}]}), "malformed"),
        (json.dumps({"keys": [ED.jwk, ED.jwk]}), "different kid"),
        (json.dumps({"keys": [{**ED.jwk, "d": "AAAA"}]}), "private key"),
        (ED.pem, "private key"),
        (public_pem(P384), "neither an Ed25519 nor a P-256"),
        (public_pem(RSA), "neither an Ed25519 nor a P-256"),
        (
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "not a public key",
        ),
        (b" " * (2 << 20), "too large"),
    ],
)
def test_unusable(tmp_path, content, complaint):
    """
    A file without a key of use is refused with a sentence.
    """
    with pytest.raises(KeysUnusable, match=complaint):
        KeySet.load(written(tmp_path / "keys", content))


def test_missing(tmp_path):
    """
    No file is no keys, and never means that everything is valid.
    """
    with pytest.raises(KeysUnusable, match="cannot be read"):
        KeySet.load(tmp_path / "absent")


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_writable_by_others(tmp_path, mode):
    """
    Whoever can add a key can sign, so nobody else may write the file.
    """
    path = written(tmp_path / "keys.json", json.dumps({"keys": [ED.jwk]}))
    os.chmod(path, mode)

    with pytest.raises(KeysUnusable, match="chmod go-w"):
        KeySet.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        ED.public_pem,
        P384.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        ),
        RSA.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        ),
    ],
)
def test_not_a_signing_key(tmp_path, content):
    """
    What cannot sign is refused by name.
    """
    with pytest.raises(
        KeysUnusable, match="not a private key in PEM without a password"
    ):
        SigningKey.load(written(tmp_path / "key.pem", content))
