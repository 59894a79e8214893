"""A launcher that nobody will accept ends at once, and says why."""

import base64
import os
import signal
import subprocess
import sys
import textwrap

from types import SimpleNamespace

import pytest


from controlplane.site import database
from given import eventually
from support.hearts import Watching
from support.pool_keys import KEY, OTHER_KEY, request

from launcher import bootstrap
from launcher.controlplane import authority as authorities
from launcher.controlplane import pool_tokens
from launcher.settings import Settings
from launcher.wire.messages import Proof


BASE64 = base64.b64encode(KEY.pem()).decode()


@pytest.fixture(name="made")
def _made(tmp_path):
    """Makes pool tokens for a control plane that is not running."""

    def make(folder=tmp_path, endpoint="https://127.0.0.1:1", **given):
        folder.mkdir(exist_ok=True)
        wanted = pool_tokens.Request(
            pool="default", endpoint=endpoint, csr=request(folder), **given
        )
        return pool_tokens.create(database(folder), None, wanted).token

    return make


def run(folder, *, code="", **variables):
    """The daemon as a process: exit code and log."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SPACELIFT_")
    }
    command = ["-c", code] if code else ["-m", "launcher"]
    done = subprocess.run(
        [sys.executable, *command, "run"],
        env={
            **environment,
            "SPACELIFT_LAUNCHER_STATE_DIR": str(folder / "state"),
            "DOCKER_HOST": "tcp://127.0.0.1:1",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def openssl(*arguments, given=None):
    return subprocess.run(
        ["openssl", *arguments], input=given, capture_output=True, check=True
    ).stdout


NO_ENGINE = 4
BAD_INPUT = {
    "no token": (lambda token: ("", BASE64), 2, "SPACELIFT_TOKEN: required"),
    "no key": (lambda token: (token, ""), 2, "SPACELIFT_POOL_PRIVATE_KEY: required"),
    "a truncated token": (
        lambda token: (token[:-30], BASE64),
        9,
        "not a whole worker pool token",
    ),
    "a key of 1024 bits": (
        lambda token: (token, base64.b64encode(openssl("genrsa", "1024")).decode()),
        10,
        "the pool's key has 1024 bits; at least 3072 are needed",
    ),
    "DER where PEM is wanted": (
        lambda token: (
            token,
            base64.b64encode(
                openssl("pkey", "-outform", "DER", given=KEY.pem())
            ).decode(),
        ),
        10,
        "is in DER; PEM is wanted",
    ),
    "the key of another pool": (
        lambda token: (token, base64.b64encode(OTHER_KEY.pem()).decode()),
        11,
        "is not the key that SPACELIFT_TOKEN was made for",
    ),
    # Understood: what stops it is the engine that it looks for next.
    "base64 with line breaks": (
        lambda token: (
            "\n".join(textwrap.wrap(token, 76)),
            "\n".join(textwrap.wrap(BASE64, 76)),
        ),
        NO_ENGINE,
        "no container engine answers",
    ),
}


@pytest.mark.parametrize(
    ("given", "code", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT
)
def test_bad_input_has_a_sentence_and_a_code(tmp_path, made, given, code, sentence):
    """Each mistake is told apart from the others, and no secret is repeated."""
    token, key = given(made())
    ended, log = run(tmp_path, SPACELIFT_TOKEN=token, SPACELIFT_POOL_PRIVATE_KEY=key)
    assert code == ended, log
    assert sentence in log
    for secret in filter(None, (token, key)):
        assert secret not in log


def test_http_is_warned_of(tmp_path, made):
    """A launcher that speaks without TLS, to this very machine, says so."""
    token = made(endpoint="http://127.0.0.1:1", proof=Proof.SIGNATURE)
    code, log = run(tmp_path, SPACELIFT_TOKEN=token, SPACELIFT_POOL_PRIVATE_KEY=BASE64)
    assert NO_ENGINE == code
    assert "endpoint.without_tls" in log


def test_an_expired_certificate(tmp_path, made, monkeypatch):
    """A token that is too old says how to get a new one."""
    monkeypatch.setattr(authorities, "POOL_DAYS", -1 / 1440)
    code, log = run(tmp_path, SPACELIFT_TOKEN=made(), SPACELIFT_POOL_PRIVATE_KEY=BASE64)
    assert 12 == code
    assert "the worker pool's certificate expired on" in log
    assert "make a new token with `spacelift-launcher pool create`" in log


LATE = """
import datetime, sys, time
class Late(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(hours=1)
real = time.time
time.time = lambda: real() - 3600
datetime.datetime = Late
from launcher.cli import main
main()
"""


def test_a_clock_that_is_an_hour_behind_a_fresh_token(tmp_path, made):
    """It is the clock that is called wrong, not the token."""
    code, log = run(
        tmp_path, code=LATE, SPACELIFT_TOKEN=made(), SPACELIFT_POOL_PRIVATE_KEY=BASE64
    )
    assert 13 == code
    assert "this machine's clock says" in log
    assert "set the clock" in log


NO_COMPILER = """
import wasmtime
def refuse(*_):
    raise AssertionError("it was compiled")
wasmtime.Module.__init__ = refuse
from launcher.cli import main
main()
"""


@pytest.mark.services
def test_a_policy_is_compiled_once(tmp_path, made):
    """A launcher that has started here before needs no compiler for its policy."""
    policy = tmp_path / "policy.rego"
    policy.write_text("package spacelift\nsample := true\n")
    given = {
        "SPACELIFT_TOKEN": made(),
        "SPACELIFT_POOL_PRIVATE_KEY": BASE64,
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(policy),
    }
    before, _ = run(tmp_path, **given)

    code, log = run(tmp_path, code=NO_COMPILER, **given)

    assert (NO_ENGINE, NO_ENGINE) == (before, code)
    assert "policy.loaded" in log
    assert "machine_code" not in log


@pytest.fixture(name="_signals")
def _kept_signals():
    """The handlers of the process, which a launcher replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_every_thread_beside_the_runs_is_watched(tmp_path, made, monkeypatch):
    """In the order in which a launcher starts them, none is left out."""
    heart, wanted = Watching(), {"main", "spot", "certificate", "reaper", "images"}
    engine = SimpleNamespace(
        data=None,
        close=lambda: None,
        ping=lambda: None,
        found=lambda: (),
        leftovers=list,
        collect_images=lambda _: None,
    )

    def work(_):
        eventually(lambda: wanted <= set(heart.beats), "a thread is not watched")

    monkeypatch.setattr(bootstrap, "Heart", lambda: heart)
    monkeypatch.setattr(bootstrap, "connect", lambda *_, **__: None)
    monkeypatch.setattr(bootstrap, "DockerEngine", lambda *_, **__: engine)
    monkeypatch.setattr(bootstrap.Worker, "run", work)
    environment = {
        "SPACELIFT_TOKEN": made(),
        "SPACELIFT_POOL_PRIVATE_KEY": BASE64,
        "SPACELIFT_LAUNCHER_STATE_DIR": str(tmp_path / "state"),
        "SPACELIFT_LAUNCHER_LISTEN": "127.0.0.1:0",
        "SPACELIFT_LAUNCHER_SPOT_NOTICES": "on",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1",
    }

    assert 0 == bootstrap.run_launcher(
        Settings.from_environ(environment), {"PATH": os.environ["PATH"]}
    )

    assert wanted == set(heart.beats)


def test_secrets_leave_the_environment(tmp_path):
    """Not even the kernel's copy of the environment holds them any more."""
    code = """
import os, subprocess, sys
from launcher.process_environment import forget
forget(("SPACELIFT_TOKEN", "SPACELIFT_POOL_PRIVATE_KEY"))
print(open("/proc/self/environ").read())
print(subprocess.run(["env"], capture_output=True, text=True).stdout)
print(dict(os.environ))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "SPACELIFT_TOKEN": "hunter2-token",
            "SPACELIFT_POOL_PRIVATE_KEY": "hunter2-key" * 300,
            "KEPT": "untouched",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("untouched") == 3
    assert "hunter2" not in done.stdout
