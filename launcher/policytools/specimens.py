"""
Inputs of policies, made from jobs by the code that makes them from real ones.

`full` has something in every place and `bare` has nothing where nothing is
allowed, so that between them they show every key with every type.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher import __version__, environment
from launcher.model import Mount, ResolvedImage, ResolvedJob
from launcher.policy_input import policy_input
from launcher.wire.jobs import (
    Commit,
    Hooks,
    Job,
    MountedFile,
    Phase,
    RegistryLogin,
    Run,
    RunState,
    RunType,
    Source,
    Stack,
    Tokens,
    Variable,
    Vendor,
)


Document = dict[str, Any]

_DIGEST = f"sha256:{'5e' * 32}"

FULL = Job(
    id="01JD7F0C8Z0000000000000000",
    phases=(Phase.INITIALIZE, Phase.PLAN),
    run=Run(
        id="01JD7F0C8Y0000000000000000",
        type=RunType.TRACKED,
        state=RunState.PREPARING,
        created_at=1_630_588_655_754_344_000,
        updated_at=1_630_588_656_197_898_500,
        triggered_by="api::01FEGXFB7TWQ2NNF95W7HPRE2E",
        commit=Commit(
            hash="7d629c6c3f3b6da07e28a87727f0586e577d98c1",
            branch="main",
            author="ada",
            message="Update main.tf",
            created_at=1_628_243_895_000_000_000,
        ),
        changes=({"action": "added", "entity": {"address": "null_resource.a"}},),
        user_provided_metadata=("deploy-metadata",),
        targets=("null_resource.a",),
    ),
    stack=Stack(
        slug="testing-spacelift",
        name="Testing Spacelift",
        account_name="acme",
        repository_path="acme/testing-spacelift",
        branch="main",
        labels=("team:a",),
        project_root="infra",
    ),
    source=Source(
        url="https://git.example.com/acme/testing-spacelift.git",
        sparse_paths=("infra",),
        username="acme",
        password="secret",  # noqa: S106
        ssh_key="a key",
        known_hosts=("git.example.com ssh-ed25519 AAAA",),
    ),
    vendor=Vendor(vendor="terraform", tool_version="1.5.7"),
    docker_image="registry.example.com/runner:1",
    hooks=Hooks(**dict.fromkeys(Hooks.__struct_fields__, ("true",))),
    environment=(
        Variable(name="PLAIN", value="plain"),
        Variable(name="TOKEN", value="secret", secret=True),
    ),
    mounted_files=(MountedFile(path="tmp/ca.pem", content=b"a certificate"),),
    registry_logins=(
        RegistryLogin(registry="ghcr.io/acme", username="acme", password="secret"),  # noqa: S106
    ),
    tokens=Tokens(
        api="secret",
        oidc="secret",
        graphql_endpoint="https://control-plane.example.com/graphql",
        refresh_seconds=2400,
    ),
    runtime_config_sha256="",
    notes=(".spacelift/config.yml: line 3: unknown key 'colour' is ignored",),
)

BARE = msgspec.structs.replace(
    FULL,
    run=msgspec.structs.replace(
        FULL.run, changes=(), user_provided_metadata=(), targets=()
    ),
    stack=msgspec.structs.replace(FULL.stack, labels=(), project_root=""),
    docker_image="",
    hooks=Hooks(),
    environment=(),
    mounted_files=(),
    registry_logins=(),
    tokens=Tokens(),
    runtime_config_sha256=None,
    notes=(),
)

MOUNTS = (Mount(source="/srv/cache", target="/mnt/cache", read_only=True),)


def document_of(
    job: Job, *, image: str = "", mounts: tuple[Mount, ...] = ()
) -> Document:
    """What the launcher would ask a policy about the last phase of *job*."""
    reference = image or job.docker_image or "registry.example.com/default:1"
    phase = job.phases[-1]
    document = policy_input(
        ResolvedJob(
            job=job,
            image=ResolvedImage(
                reference=reference,
                digest=_DIGEST,
                runnable=f"{reference.rpartition(':')[0]}@{_DIGEST}",
                local=False,
            ),
        ),
        phase=phase,
        environment=environment.for_phase(phase, job, ()),
        mounts=mounts,
        endpoint="https://control-plane.example.com",
        worker_version=__version__,
    )
    plain: Document = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def full() -> Document:
    return document_of(FULL, mounts=MOUNTS)


def bare() -> Document:
    return document_of(BARE)
