"""What was made of policies and kept: which entries are believed."""

import pytest

from structlog.testing import capture_logs

from launcher.adapters.policies.cache import PolicyCache


SECRET = b"k" * 32
KEY, TOOL, CONTENT = "0" * 64, "1" * 16, b"facts\nwasm"


@pytest.fixture
def entry(tmp_path):
    """What was kept here."""
    PolicyCache(tmp_path / "cache", SECRET).put(KEY, TOOL, CONTENT)
    (path,) = (tmp_path / "cache").iterdir()
    return path


def kept(path, *, secret=SECRET, **more):
    return PolicyCache(path.parent, secret, **more)


def test_what_was_kept(entry):
    """It is found by what it was made of, whichever tool is there."""
    with capture_logs() as logs:
        assert CONTENT == kept(entry).get(KEY, TOOL)
        assert CONTENT == kept(entry).get(KEY)
        assert kept(entry).get(KEY, "2" * 16) is None
        assert kept(entry).get("2" * 64) is None
    assert [] == logs


def renamed(place, value):
    def tamper(path):
        parts = path.name.split(".")
        parts[place] = value
        path.rename(path.with_name(".".join(parts)))

    return tamper


def shifted(path):
    """The first bytes of the content, as if they were of the tool's name."""
    renamed(1, f"{TOOL}\nfacts")(path)
    (path,) = path.parent.iterdir()
    path.write_bytes(b"wasm")


@pytest.mark.parametrize(
    "tamper",
    [
        renamed(0, "2" * 64),
        renamed(1, "2" * 16),
        renamed(1, "1"),
        renamed(2, "0" * 64),
        renamed(2, ""),
        renamed(2, "\udcff\u00e9"),
        renamed(3, "machine"),
        shifted,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(CONTENT + b"\0"),
    ],
    ids=[
        *("key", "tool", "shorter tool", "MAC", "no MAC", "no letters"),
        *("suffix", "shifted", "empty", "longer"),
    ],
)
def test_what_was_tampered_with(entry, tamper):
    """Content that was not kept under this very name is not used, and said."""
    tamper(entry)
    (path,) = entry.parent.iterdir()
    key, _, _, suffix = path.name.split(".")

    with capture_logs() as logs:
        assert kept(path, suffix=suffix).get(key) is None

    assert ["policy_cache.entry_ignored"] == [each["event"] for each in logs]


def test_another_secret(entry):
    """What another launcher has kept is nothing."""
    assert kept(entry, secret=b"x" * 32).get(KEY, TOOL) is None


def test_beside_what_was_tampered_with(entry):
    """Something doubtful that is newer does not hide what is not."""
    (entry.with_name(f"{KEY}.{TOOL}.{'0' * 64}.wasm")).write_bytes(b"newer")
    assert CONTENT == kept(entry).get(KEY, TOOL)
