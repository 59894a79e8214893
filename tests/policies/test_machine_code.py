"""Machine code that is kept, and what of it is loaded again."""

import hashlib
import os
import resource

from contextlib import contextmanager

import pytest
import wasmtime

from structlog.testing import capture_logs

from launcher.adapters.policies import machine_code
from launcher.adapters.policies.loading import follow
from launcher.adapters.policies.machine_code import MachineCode, configured
from launcher.sealing.keys import PoolKey
from launcher.settings import PolicySettings


KEY = b"k" * 32


def wasm(number):
    """A module with something to call."""
    return bytes(
        wasmtime.wat2wasm(
            f'(module (func (export "answer") (result i32) (i32.const {number})))'
        )
    )


def answer(folder, *, key=KEY, number=42, engine=None):
    """What the module says that was compiled, or was kept in *folder*."""
    engine = engine or wasmtime.Engine(configured())
    module = MachineCode(folder / "cache", key).module(engine, wasm(number))
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1 << 20)
    return wasmtime.Instance(store, module, []).exports(store)["answer"](store)


@pytest.fixture
def entry(tmp_path):
    """The file that the first start has left."""
    assert 42 == answer(tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    return path


@contextmanager
def without(method):
    """It ends the test to call *method* of a module of wasmtime's."""

    def refuse(*_):
        raise AssertionError(f"{method} was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wasmtime.Module, method, refuse)
        yield


def compiling_nothing():
    """The compiler is not there."""
    return without("__init__")


def loading_nothing():
    """Loading machine code is fatal."""
    return without("deserialize")


def events(logs):
    return [each["event"] for each in logs]


def test_compiled_once(tmp_path, entry):
    """
    The second start needs no compiler, and nothing is said about it.
    """
    before = entry.stat()

    with compiling_nothing(), capture_logs() as logs:
        assert 42 == answer(tmp_path)

    assert [] == logs
    assert [entry] == list(entry.parent.iterdir())
    assert before.st_ino == entry.stat().st_ino


def test_private(entry):
    """
    Nobody else can read or replace what was compiled.
    """
    assert (0o600, 0o700) == (
        entry.stat().st_mode & 0o777,
        entry.parent.stat().st_mode & 0o777,
    )


def test_another_policy(tmp_path, entry):
    """
    What was compiled of one policy is not taken for another.
    """
    with loading_nothing():
        assert 43 == answer(tmp_path, number=43)

    assert 2 == len(list(entry.parent.iterdir()))


def replaced(change):
    """Put another content there, under the name that such a content would have."""

    def tamper(path):
        content = change(path.read_bytes())
        key, tool, _, suffix = path.name.split(".")
        digest = hashlib.sha256(content).hexdigest()
        path.unlink()
        path = path.with_name(f"{key}.{tool}.{digest}.{suffix}")
        path.write_bytes(content)
        path.chmod(0o600)

    return tamper


def of_another_policy(path):
    """The code of another policy of ours, as if it were of this one."""
    other = path.parent.parent / "other"
    answer(other, number=13)
    (theirs,) = (other / "cache").iterdir()
    replaced(lambda _: theirs.read_bytes())(path)


def of_another_version(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "version", lambda _: "0.1")
        answer(path.parent.parent / "old")
    (theirs,) = (path.parent.parent / "old" / "cache").iterdir()
    replaced(lambda _: theirs.read_bytes())(path)


@pytest.mark.parametrize(
    ("tamper", "event"),
    [
        (lambda path: path.write_bytes(b""), "policy_cache.entry_ignored"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "policy_cache.entry_ignored",
        ),
        (lambda path: path.chmod(0o666), "policy_cache.entry_ignored"),
        (lambda path: os.chown(path, 1234, 1234), "policy_cache.entry_ignored"),
        (
            lambda path: path.symlink_to(path.rename(path.with_suffix(".moved"))),
            "policy_cache.entry_ignored",
        ),
        (lambda path: path.parent.chmod(0o777), "policy_cache.not_ours"),
        (replaced(lambda code: code), "policy_cache.entry_ignored"),
        (replaced(lambda code: code[:-100]), "policy_cache.entry_ignored"),
        (replaced(lambda code: code + b"\0"), "policy_cache.entry_ignored"),
        (of_another_policy, "policy_cache.entry_ignored"),
        (of_another_version, "policy_cache.entry_ignored"),
    ],
    ids=[
        *("emptied", "torn", "writable", "owner", "link", "directory"),
        *("a hash for a MAC", "shorter", "longer"),
        *("of another policy", "of another version"),
    ],
)
def test_not_trusted(tmp_path, entry, tamper, event):
    """
    What we did not write for this very policy is never loaded: it is made anew, and said.
    """
    tamper(entry)

    with loading_nothing(), capture_logs() as logs:
        assert 42 == answer(tmp_path)

    assert event in events(logs)


def test_of_another_pool(tmp_path, entry):
    """
    Who does not know the pool's key cannot make us load anything.
    """
    with loading_nothing(), capture_logs() as logs:
        assert 42 == answer(tmp_path, key=b"x" * 32)
    assert ["policy_cache.entry_ignored"] == events(logs)

    with compiling_nothing():
        assert 42 == answer(tmp_path, key=b"x" * 32)


def test_of_another_configuration(tmp_path, entry):
    """
    What wasmtime itself refuses to load is compiled anew, and replaced.
    """
    with capture_logs() as logs:
        assert 42 == answer(tmp_path, engine=wasmtime.Engine())
        assert 42 == answer(tmp_path, engine=wasmtime.Engine())

    assert ["machine_code.unusable"] == events(logs)


def test_a_new_version_compiles_anew(tmp_path, entry, monkeypatch):
    """
    After an update of wasmtime, what the old one made is not even looked at.
    """
    monkeypatch.setattr(machine_code, "version", lambda _: "1000.0")

    with loading_nothing(), capture_logs() as logs:
        assert 42 == answer(tmp_path)

    assert [] == logs


def test_no_directory(tmp_path):
    """
    Where nothing can be kept, policies are compiled each time.
    """
    (tmp_path / "cache").write_text("a file in the way")

    with loading_nothing(), capture_logs() as logs:
        assert [42, 42] == [answer(tmp_path), answer(tmp_path)]

    assert "policy_cache.not_written" in events(logs)


def test_no_room(tmp_path):
    """
    A full disk is no reason not to start, and is not filled with remains.
    """
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        with capture_logs() as logs:
            assert 42 == answer(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    assert ["policy_cache.not_written"] == events(logs)
    assert [] == list((tmp_path / "cache").iterdir())


def test_bounded(tmp_path):
    """
    Code of policies of the past does not pile up, nor take the place of WebAssembly.
    """
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "a.b.c.wasm").write_bytes(b"")
    for number in range(8):
        assert number == answer(tmp_path, number=number)

    kept = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert [*[".machine"] * 4, ".wasm"] == kept


def test_keys_for_purposes():
    """
    What is derived of the pool's key is the same each time, and another for another.
    """
    key = PoolKey.make()
    again = PoolKey.read(key.pem())

    assert key.derived("one") == again.derived("one")
    assert 32 == len(key.derived("one"))
    assert key.derived("one") != key.derived("two")
    assert key.derived("one") != PoolKey.make().derived("one")


@pytest.mark.services
def test_a_policy_of_kept_code(tmp_path):
    """
    A policy means the same, whether it was compiled or kept, after a reload, too.
    """
    path = tmp_path / "policy.rego"
    path.write_text('package spacelift\ndeny contains "no" if input.x\n')

    def loaded():
        return follow(PolicySettings(path=path), path, tmp_path, secret=KEY)

    first = loaded()
    with compiling_nothing():
        second = loaded()
        second.reload()

    assert second.trouble() is None
    for policy in (first, second):
        answers = [policy.evaluate(each).deny for each in ({"x": 1}, {})]
        assert [("no",), ()] == answers


@pytest.mark.services
def test_endless_policies_of_kept_code_end(tmp_path):
    """
    The time limit is in the code that was kept.
    """
    path = tmp_path / "policy.rego"
    path.write_text(
        "package spacelift\n"
        "deny contains sprintf("
        '"%d", [count([1 | numbers.range(1, 3000)[_]; numbers.range(1, 3000)[_]; '
        "numbers.range(1, 3000)[_]])])\n"
    )
    settings = PolicySettings(path=path, timeout=0.2)
    follow(settings, path, tmp_path, secret=KEY)

    with compiling_nothing():
        evaluation = follow(settings, path, tmp_path, secret=KEY).evaluate({})

    assert "longer than 0.2 s" in evaluation.error
