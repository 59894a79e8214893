"""Secrets at rest."""

import stat

import pytest

from launcher.controlplane.keys import (
    hash_secret,
    load_keyring,
    secret_matches,
)
from launcher.errors import StoreUnusable


def test_what_is_sealed_opens_for_its_purpose_only(tmp_path):
    """A sealed value cannot be read, changed, or used in another place."""
    keyring = load_keyring(tmp_path / "key")
    sealed = keyring.seal(b"hunter2", "stack:a")
    assert b"hunter2" not in sealed
    assert load_keyring(tmp_path / "key").open(sealed, "stack:a") == b"hunter2"
    for damaged, purpose in [
        (sealed, "stack:b"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), "stack:a"),
        (b"", "stack:a"),
    ]:
        with pytest.raises(StoreUnusable):
            keyring.open(damaged, purpose)


def test_the_key_file_is_private(tmp_path):
    """It is made with mode 0600, and refused when others may read it."""
    path = tmp_path / "key"
    load_keyring(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(StoreUnusable, match="0600"):
        load_keyring(path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100])
def test_a_damaged_key_file_is_refused(tmp_path, content):
    """A key is never made up in place of a damaged one."""
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(StoreUnusable):
        load_keyring(path)


def test_a_secret_is_hashed_with_salt():
    """The same secret never has the same hash, and still matches."""
    first, second = hash_secret("hunter2"), hash_secret("hunter2")
    assert first != second
    assert "hunter2" not in first
    assert secret_matches("hunter2", first)
    assert not secret_matches("hunter3", first)
    assert not secret_matches("hunter2", None)
