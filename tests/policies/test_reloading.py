import os
import threading

from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.adapters.policies.loading import follow
from launcher.adapters.policies.reloading import ReloadingPolicy
from launcher.errors import PolicyUnusable
from launcher.policy import Evaluation
from launcher.settings import PolicySettings


class Fixed:
    """
    A policy that denies for one reason.
    """

    def __init__(self, reason):
        self.reason = reason
        self.facts = {}
        self.closed = False

    def evaluate(self, document):
        return Evaluation.of({"deny": [self.reason]})

    def close(self):
        self.closed = True


@pytest.fixture
def path(tmp_path):
    """
    A file with a reason in it, or with something that is none.
    """
    path = tmp_path / "policy"
    path.write_text("one")
    return path


@pytest.fixture
def policy(path):
    """
    A policy that follows that file.
    """

    def load():
        if path.read_text() == "broken":
            raise PolicyUnusable("no policy")
        if path.read_text() == "crash":
            raise RuntimeError
        return Fixed(path.read_text())

    return ReloadingPolicy(path, load)


def reason(policy):
    return policy.evaluate({}).deny[0]


def test_a_change_counts_at_once(policy, path):
    """
    The evaluation after a change is done by the new version.
    """
    assert "one" == reason(policy)

    path.write_text("another")

    assert "another" == reason(policy)
    assert None is policy.trouble()


def test_a_replaced_file(policy, path):
    """
    A file of the same size and age that took the place of another is noticed.
    """
    status = path.stat()
    new = path.with_name("new")
    new.write_text("two")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)

    assert "two" == reason(policy)


@pytest.mark.parametrize("content", ["broken", "crash", None])
def test_a_broken_version(policy, path, content):
    """
    The last good version stays in use, and everybody who asks can see that.
    """
    if content is None:
        path.unlink()
    else:
        path.write_text(content)

    assert ["one", "one"] == [reason(policy), reason(policy)]
    assert policy.trouble().endswith("; the last good version stays in use")

    path.write_text("good again")

    assert "good again" == reason(policy)
    assert None is policy.trouble()


def test_nobody_has_to_run(policy, path):
    """
    Whoever asks for trouble learns of a broken version before any run meets it.
    """
    assert None is policy.trouble()

    path.write_text("broken")

    assert "no policy; the last good version stays in use" == policy.trouble()


def test_by_hand(path):
    """
    A hang-up loads even what has not changed, since the data behind may have.
    """
    loads = []

    def load():
        loads.append(path)
        return Fixed("one")

    policy = ReloadingPolicy(path, load)
    policy.reload()

    assert [path, path] == loads


def test_the_old_one_is_given_up(path):
    """
    A version that has been replaced is closed.
    """
    made = []

    def load():
        made.append(Fixed(path.read_text()))
        return made[-1]

    policy = ReloadingPolicy(path, load)
    path.write_text("another")
    reason(policy)

    assert [True, False] == [each.closed for each in made]


def test_threads_load_once(path):
    """
    A change that several threads notice is loaded once.
    """
    loads = []

    def load():
        loads.append(threading.get_ident())
        return Fixed(path.read_text())

    policy = ReloadingPolicy(path, load)
    path.write_text("another")
    with ThreadPoolExecutor(8) as pool:
        reasons = set(pool.map(lambda _: reason(policy), range(64)))

    assert {"another"} == reasons
    assert 2 == len(loads)


@pytest.mark.services
def test_with_opa(tmp_path):
    """
    A real policy follows its directory, and survives a syntax error in it.
    """
    root = tmp_path / "policy"
    root.mkdir()
    (root / "a.rego").write_text('package spacelift\ndeny contains "one"\n')
    policy = follow(PolicySettings(path=root), root, tmp_path, secret=b"k" * 32)
    assert "one" == reason(policy)

    (root / "b.rego").write_text('package spacelift\ndeny contains "more"\n')
    assert ("more", "one") == policy.evaluate({}).deny

    (root / "b.rego").write_text("package spacelift\n:=\n")
    assert ("more", "one") == policy.evaluate({}).deny
    assert f"{root}/b.rego:2: unexpected assign token" in policy.trouble()
