"""Small things that many tests begin with."""

import threading
import time

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.model import Claim
from launcher.sealing.keys import PoolKey
from launcher.wire.jobs import (
    Commit,
    Hooks,
    Job,
    MountedFile,
    Phase,
    Run,
    RunState,
    RunType,
    Source,
    Stack,
    Variable,
    Vendor,
)


A_KEY = PoolKey.read((Path(__file__).parent / "data/sealed/pool.key").read_bytes())
"""A pool's key that everybody may know."""

PATIENCE = 30.0
"""Seconds after which a condition that should hold is given up."""


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until *condition* is true and return its value; never longer than needed."""
    pause, end = threading.Event(), time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, what or "it never happened"
        pause.wait(0.002)
    return value


def a_job(**changes: Any) -> Job:
    """A job in which every field says something."""
    fields: dict[str, Any] = {
        "id": "01JOB",
        "phases": (Phase.INITIALIZE, Phase.PLAN),
        "run": a_run(),
        "stack": Stack(
            slug="testing-spacelift",
            name="Testing Spacelift",
            account_name="acme",
            repository_path="acme/testing-spacelift",
            branch="main",
            space="production",
            project_root="infra",
            labels=("team:a", "needs-proxy"),
            auto_deploy=False,
            local_preview_enabled=False,
        ),
        "source": Source(
            url="https://git.example/acme/testing-spacelift.git",
            sparse_paths=("infra", "modules/network"),
            username="ada",
            password="source-password",
            ssh_key="a private key of the source",
            known_hosts=("git.example ssh-ed25519 AAAA", "git.example ssh-rsa BBBB"),
        ),
        "vendor": Vendor(
            vendor="terraform",
            typed_config={"use_terragrunt": False, "nested": {"list": [1, "two"]}},
            tool_version="1.5.7",
        ),
        "docker_image": "registry.example/runner:1",
        "hooks": Hooks(
            **{name: (f"echo {name}", "true") for name in Hooks.__struct_fields__}
        ),
        "environment": (
            Variable(name="PLAIN", value="plain-value"),
            Variable(name="TOKEN", value="hunter2-hunter2", secret=True),
        ),
        "mounted_files": (
            MountedFile(path="tmp/ca.pem", content=b"a certificate"),
            MountedFile(path="source/key", content=b"a private key\n", secret=True),
        ),
    }
    return Job(**(fields | changes))


def a_run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "id": "01RUN",
        "type": RunType.TRACKED,
        "state": RunState.PREPARING,
        "created_at": 1_630_588_655_754_344_000,
        "updated_at": 1_630_588_656_197_898_500,
        "triggered_by": "api::01KEY",
        "commit": Commit(
            hash="7d629c6c3f3b6da07e28a87727f0586e577d98c1",
            branch="main",
            author="Ada",
            message="Update main.tf",
            created_at=1_628_243_895_000_000_000,
        ),
        "based_on_local_workspace": False,
        "changes": ({"entity": {"address": "null_resource.a"}, "moved": False},),
        "user_provided_metadata": ("deploy-metadata",),
        "command": "",
    }
    return Run(**(fields | changes))


def a_claim(
    job: Job | None = None, *, lease_seconds: float = 90, renew_seconds: float = 20
) -> Claim:
    return Claim(
        job=job or a_job(),
        token="fencing-token",
        lease_seconds=lease_seconds,
        renew_seconds=renew_seconds,
    )
