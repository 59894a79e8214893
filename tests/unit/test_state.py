import os

import pytest

from launcher.errors import StateDirectoryUnusable
from launcher.state import held
from ulid import ULID


@pytest.fixture
def root(tmp_path):
    return tmp_path / "a" / "state"


def test_the_directory_is_made_for_its_owner_only(root):
    """What is missing is made, and nobody else may look inside."""
    with held(root) as state:
        assert 0o700 == root.stat().st_mode & 0o777
        assert 0o700 == state.scratch.stat().st_mode & 0o777
        for name in ("lock", "instance"):
            assert 0o600 == (root / name).stat().st_mode & 0o777


def test_files_are_private_in_a_directory_that_is_not(root):
    """In a directory that others may read, the files are still the owner's."""
    root.mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    try:
        with held(root) as state:
            assert 0o700 == state.scratch.stat().st_mode & 0o777
            for name in ("lock", "instance"):
                assert 0o600 == (root / name).stat().st_mode & 0o777
    finally:
        os.umask(before)


def test_the_identity_survives_a_restart(root):
    """A launcher is the same one after a restart."""
    with held(root) as first:
        pass
    with held(root) as second:
        assert first.instance == second.instance
    assert str(ULID.from_str(first.instance)) == first.instance


def test_a_start_that_was_cut_short_leaves_no_half_identity(root):
    """What a first start left half written is not taken for an identity."""
    root.mkdir(parents=True)
    (root / "instance.new").write_text("01HALF")
    with held(root) as state:
        assert 26 == len(state.instance)
        assert not (root / "instance.new").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"nonsense", b"\xff\xfe", b"0" * 27, b"U" * 26]
)
def test_a_damaged_identity_is_said_so(root, content):
    """An identity that cannot be read is not replaced behind the operator's back."""
    root.mkdir(parents=True)
    (root / "instance").write_bytes(content)
    with pytest.raises(StateDirectoryUnusable, match="remove it"), held(root):
        pass
    assert content == (root / "instance").read_bytes()


def test_two_launchers_do_not_share_a_directory(root):
    """The second launcher is refused, and may come when the first one is gone."""
    with held(root):
        with (
            pytest.raises(StateDirectoryUnusable, match="another launcher"),
            held(root),
        ):
            pass
        with (
            pytest.raises(StateDirectoryUnusable, match="another launcher"),
            held(root),
        ):
            pass
    with held(root):
        pass


def test_the_scratch_directory_is_emptied_at_the_start(root):
    """What was left behind in the middle of a job is removed."""
    with held(root) as state:
        (state.scratch / "deep/er").mkdir(parents=True)
        (state.scratch / "deep/er/secret").write_text("x")
    with held(root) as state:
        assert [] == list(state.scratch.iterdir())


def test_others_keep_their_scratch(root):
    """A launcher that is refused touches nothing of the one that is there."""
    with held(root) as state:
        (state.scratch / "of-a-job").touch()
        with pytest.raises(StateDirectoryUnusable), held(root):
            pass
        assert (state.scratch / "of-a-job").exists()


@pytest.mark.parametrize("name", ["", "lock", "instance", "scratch"])
def test_what_cannot_be_used_is_named(root, name):
    """A file where there should be none, and the like, ends in an error with the path."""
    obstacle = root / name
    obstacle.parent.mkdir(parents=True)
    if name in ("", "scratch"):
        obstacle.write_text("in the way")
    else:
        obstacle.mkdir()
    with pytest.raises(StateDirectoryUnusable, match=str(root)), held(root):
        pass


def test_errors_of_the_daemon_stay_what_they_are(root):
    """What goes wrong while the directory is held is not blamed on it."""
    with pytest.raises(FileNotFoundError), held(root):
        raise FileNotFoundError("of somebody else")
    with held(root):
        pass
