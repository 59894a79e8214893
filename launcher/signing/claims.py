"""What a signature says about a run, and whether a run is as it says."""

from __future__ import annotations

import hashlib

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import msgspec

from launcher.wire.jobs import Hooks, Phase, RunType


HOOKS = tuple(sorted(Hooks.__struct_fields__))

Hash = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")]
Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class Claims(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """
    The signed payload.

    A claim that nobody here understands might restrict what is allowed, so a
    payload with one is refused.
    """

    jti: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{16,128}$")]
    """The nonce: belongs to the first run that presents it."""
    iat: int
    exp: int
    """Seconds since 1970, as in every JWT."""
    stack: Name
    commit: Hash
    run_type: RunType
    phase: Phase
    """The one phase this signature is for: an apply needs another than its plan."""
    hooks: Digest
    """`hooks_digest` of all eleven lists."""
    account: Name | None = None
    image: Digest | None = None
    """Digest of the image, where the signer knows it."""
    run: Name | None = None
    """The run's id.  Nobody knows it before the trigger; an apply must name it."""
    command: str | None = None
    """What a task runs; a task must name it."""
    also: dict[str, Any] | None = None
    """Anything else of the input that must be so: JSON Pointers and values."""
    iss: str | None = None
    """Who signed, for people."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a policy's input that signatures are about."""

    run: str
    run_type: RunType
    phase: Phase
    account: str
    stack: str
    commit: str
    command: str
    image: str
    hooks: str
    metadata: list[str]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """
        Read the input of a policy; what is missing in it is not made up.

        Raises:
            ValueError: it is not such an input, or contradicts itself.
        """
        parts = msgspec.convert(document, _Document)
        static, run = parts.static_run_environment, parts.run
        for name, here, there in (
            ("run", run.id, static["run_ulid"]),
            ("run type", run.type, static["run_type"]),
            ("commit", run.commit.hash, static["commit_sha"]),
            ("command", run.command, static["command"]),
        ):
            if here != there:
                raise ValueError(f"the input names two values for the {name}")
        lists = {name: static[name] for name in HOOKS}
        return msgspec.convert(
            {
                "run": run.id,
                "run_type": run.type,
                "phase": parts.phase,
                "account": static["account_name"],
                "stack": static["stack_slug"],
                "commit": run.commit.hash,
                "command": run.command,
                "image": parts.docker_image_digest,
                "hooks": hooks_digest(msgspec.convert(lists, _Hooks)),
                "metadata": run.user_provided_metadata,
            },
            cls,
        )


_Hooks = dict[str, list[str] | None]


class _Commit(msgspec.Struct):
    hash: str


class _Run(msgspec.Struct):
    id: str
    type: RunType
    command: str
    commit: _Commit
    user_provided_metadata: list[str]


class _Document(msgspec.Struct):
    phase: Phase
    docker_image_digest: str
    run: _Run
    static_run_environment: dict[str, Any]


def hooks_digest(hooks: Mapping[str, Sequence[str] | None]) -> str:
    """
    Digest of all hooks, the same in Python, Rego and a shell.

    SHA-256 of lines without a last newline: list, index, SHA-256 of the command,
    with lists by name.  Lists that are absent, null or empty are the same.
    """
    unknown = hooks.keys() - set(HOOKS)
    if unknown:
        raise ValueError(f"there is no hook {min(unknown)}")
    lines = [
        f"{name} {index} {_sha256(command)}"
        for name in HOOKS
        for index, command in enumerate(hooks.get(name) or ())
    ]
    return "sha256:" + _sha256("\n".join(lines))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    claims: Claims, subject: Subject, document: Mapping[str, Any]
) -> Iterator[str]:
    """What of the run is not as signed, a clause each; no values that may be secret."""
    for name, signed, found in (
        ("stack", claims.stack, subject.stack),
        ("commit", claims.commit, subject.commit),
        ("run type", claims.run_type, subject.run_type),
        ("phase", claims.phase, subject.phase),
    ):
        if signed != found:
            yield f"it is for the {name} {signed}, not {found}"
    for differs, sentence in (
        (claims.hooks != subject.hooks, "the hooks are not the signed ones"),
        (_not(claims.account, subject.account), "it is for another account"),
        (_not(claims.image, subject.image), "the image is not the signed one"),
        (_not(claims.run, subject.run), "it is for another run"),
        (
            claims.run is None and subject.phase is Phase.APPLY,
            "it does not name the run, as the signature for an apply must",
        ),
        # A task whose command was not signed would be a licence for every command.
        (
            (claims.command or "") != subject.command,
            "the command is not the signed one",
        ),
    ):
        if differs:
            yield sentence
    for pointer, signed in sorted((claims.also or {}).items()):
        try:
            same = _equal(signed, _at(document, pointer))
        except (LookupError, ValueError):
            same = False
        if not same:
            yield f"{pointer} is not as signed"


def _not(claimed: str | None, found: str) -> bool:
    return claimed not in (None, found)


def _at(document: object, pointer: str) -> object:
    """RFC 6901."""
    if pointer and not pointer.startswith("/"):
        raise ValueError("not a JSON Pointer")
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        match document:
            case Mapping():
                document = document[key]
            case list() if key.isdecimal():
                document = document[int(key)]
            case _:
                raise LookupError(pointer)
    return document


def _equal(one: object, other: object) -> bool:
    """As JSON, where true is not 1."""
    return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(
        other, order="sorted"
    )
