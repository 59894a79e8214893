"""
Image references: what they name, and whether they may be used here.

A reference is read exactly as the container engine reads it, then written out
in full, because an allow-list that reads ``docker.io.evil.org/x`` differently
from the engine is no allow-list.  Three forms the engine would take are refused
on purpose, since a person reads them differently: registries in upper case, a
registry without a repository (``registry.example.com:5000``, which the engine
takes for an image on Docker Hub with the tag ``5000``), and shortened image ids.

Hand `Reference.engine_name` to the engine and never what the job said: an
engine that is given ``dbcc1`` looks for an image id of that beginning, too.
"""

from __future__ import annotations

import dataclasses
import re

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from launcher.ecr import EcrEndpoint
from launcher.errors import ImageNotAllowed, JobInvalid


# The grammar of github.com/distribution/reference, ASCII only.
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-f0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}"

_REFERENCE = re.compile(
    rf"(?P<registry>{_HOST})/(?P<repository>{_REPOSITORY})"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IMAGE_ID = re.compile(r"(?:sha256:)?([a-f0-9]{64})")
_ALGORITHMS = frozenset({"sha256", "sha384", "sha512"})

DOCKER_HUB = "docker.io"
_DOCKER_HUB_ALIAS = "index.docker.io"
_DOCKER_HUB_OTHERS = frozenset({"registry-1.docker.io", "registry.hub.docker.com"})
DOCKER_HUB_HOSTS = _DOCKER_HUB_OTHERS | {DOCKER_HUB, _DOCKER_HUB_ALIAS}
"""Every host name of Docker Hub."""

MAX_NAME = 255
"""Characters of registry and repository together, as engines count them."""

_MAX_TEXT = MAX_NAME + len(":") + 128 + len("@sha512:") + 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A reference in full.  ``str()`` gives the normalised form patterns match."""

    registry: str
    """Host and, if given, port; empty for an image id."""
    repository: str
    tag: str = ""
    """``latest`` when the text had neither tag nor digest."""
    digest: str = ""
    """``sha256:…``; of the image itself when there is no registry."""
    written: str = dataclasses.field(compare=False)
    """As somebody wrote it, for messages."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read *text* as a container engine does.

        Raises:
            JobInvalid: it is not a reference; the message is public.
        """
        if len(text) > _MAX_TEXT:
            raise JobInvalid(f"image {quoted(text)} is not a reference: too long")
        if found := _IMAGE_ID.fullmatch(text):
            return cls(
                registry="", repository="", digest=f"sha256:{found[1]}", written=text
            )
        match = _REFERENCE.fullmatch(_in_full(text))
        if match is None:
            raise JobInvalid(f"image {quoted(text)} is not a reference{_hint(text)}")
        reference = cls(**match.groupdict(default=""), written=text)
        if len(reference.name) > MAX_NAME:
            raise JobInvalid(f"image {quoted(text)} is not a reference: too long")
        if not reference.tag and not reference.digest:
            return dataclasses.replace(reference, tag="latest")
        return reference

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else ""

    @property
    def is_image_id(self) -> bool:
        """True for an image that only the engine's own store knows."""
        return not self.registry

    @property
    def engine_name(self) -> str:
        """What to hand to the engine; a digest leaves no say to the tag."""
        if self.is_image_id:
            return self.digest
        if self.digest:
            return f"{self.name}@{self.digest}"
        return f"{self.name}:{self.tag}"

    def pinned(self, digest: str) -> Self:
        """Return the same image at *digest*, ``sha256:…`` as the engine resolved it."""
        if not re.fullmatch(_DIGEST, digest):
            raise ValueError(f"not a digest: {digest!r}")
        return dataclasses.replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        at = "@" if self.digest and self.registry else ""
        return f"{self.name}{tag}{at}{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """
    One entry of the operator's list: ``registry/repository[:tag][@digest]``.

    - ``*`` stands for any characters of the part it is in, and never reaches
      into another part: ``ghcr.io/acme/*`` takes ``ghcr.io/acme/a/b:1``, and
      ``*.example.com/*`` takes neither ``example.com`` nor ``a.b.example.com``.
    - The registry is spelt out; only labels before its last two may hold ``*``,
      so that no pattern reaches a registry of somebody else.
    - Without tag and digest any tag and digest will do.  With a tag only, the
      tag must decide what runs: ``x:1.*`` does not take ``x:1.0@sha256:…``,
      ``x:1.*@*`` does.  With ``@`` there must be a digest.
    - ``sha256:<image id>`` takes an image of the engine's own store.
    - A ``!`` before it denies, and then the tag alone is enough.
    - ``!*`` alone leaves nothing but what other patterns allow.
    """

    text: str
    denies: bool
    registry: str = ""
    """As it was written; empty for an image id and for ``!*``."""
    _registry: re.Pattern[str]
    _repository: re.Pattern[str]
    _tag: re.Pattern[str] | None = None
    _digest: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read one entry.

        Raises:
            ValueError: with a sentence about what is wrong.
        """
        denies = text.startswith("!")
        body = text.removeprefix("!")
        if body == "*" and denies:
            anything = re.compile(".*")
            return cls(text=text, denies=True, _registry=anything, _repository=anything)
        if body.startswith("sha256:"):
            return cls._image_id(text, body, denies=denies)
        registry, slash, rest = body.partition("/")
        if not slash or not _looks_like_host(registry):
            raise ValueError(f"it names no registry; for example {_example(body)}")
        _check_registry(registry)
        if registry == _DOCKER_HUB_ALIAS:
            registry = DOCKER_HUB
        rest, at, digest = rest.partition("@")
        repository, colon, tag = rest.partition(":")
        if not re.fullmatch(r"[a-z0-9*._/-]+", repository):
            raise ValueError("the repository may hold a-z 0-9 . _ - / and *")
        if registry == DOCKER_HUB and "/" not in repository and repository[0] != "*":
            raise ValueError(f"say whose; for example {_example(repository)}")
        if colon and not re.fullmatch(r"[A-Za-z0-9*_.-]+", tag):
            raise ValueError("the tag may hold letters, digits, . _ - and *")
        if at and not re.fullmatch(r"\*|sha[0-9]+:[a-f0-9*]+", digest):
            raise ValueError("the digest is * or sha256: and hexadecimal digits")
        return cls(
            text=text,
            denies=denies,
            registry=registry,
            _registry=_glob(registry, r"[a-z0-9-]+"),
            _repository=_glob(repository, r"[^:@]*"),
            _tag=_glob(tag, r"[^:@/]*") if colon else None,
            _digest=_glob(digest, r"[a-z0-9:]*") if at else None,
        )

    @classmethod
    def _image_id(cls, text: str, body: str, *, denies: bool) -> Self:
        if not re.fullmatch(r"sha256:(?:\*|[a-f0-9]{64})", body):
            raise ValueError("an image id is sha256: and 64 hexadecimal digits, or *")
        nothing = re.compile("")
        return cls(
            text=text,
            denies=denies,
            _registry=nothing,
            _repository=nothing,
            _digest=_glob(body, r"[a-f0-9]*"),
        )

    @property
    def is_everything(self) -> bool:
        """True for ``!*``, which leaves nothing but what other patterns allow."""
        return self.text == "!*"

    def matches(self, reference: Reference) -> bool:
        if self._registry.fullmatch(reference.registry) is None:
            return False
        if self._repository.fullmatch(reference.repository) is None:
            return False
        if self._tag is not None and self._tag.fullmatch(reference.tag) is None:
            return False
        if self._digest is not None:
            found = self._digest.fullmatch(reference.digest)
            return bool(reference.digest) and found is not None
        # The tag of a reference that has a digest, too, is decoration.
        return self.denies or self._tag is None or not reference.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """That an image may be used, and why."""

    reference: Reference
    rule: str
    """
    The operator's pattern; ``built-in list: `` and its entry; ``credentials
    configured: `` and where; or ``ECR: `` and the registry.
    """


def permitted(
    image: Reference | str,
    allowed_images: Iterable[Pattern] = (),
    *,
    require_digest: bool = False,
    configured: Callable[[Reference], str | None] = lambda _: None,
) -> Permit:
    """
    Judge *image* by its name alone; nothing is asked of any registry.

    The first rule that applies decides: the digest that is required and
    missing, a pattern that denies, a pattern that allows, the built-in list, a
    registry that *configured* has a rule for, ECR by any of its host names.

    Raises:
        JobInvalid: it is not a reference; the message is public.
        ImageNotAllowed: no; the message is public.
    """
    reference = Reference.parse(image) if isinstance(image, str) else image
    patterns = tuple(allowed_images)
    if require_digest and not reference.digest:
        raise ImageNotAllowed(
            f'image "{reference.written}" is not pinned by a digest,'
            " which this worker requires"
        )
    refuse_denied(reference, patterns)
    for pattern in patterns:
        if not pattern.denies and pattern.matches(reference):
            return Permit(reference=reference, rule=pattern.text)
    only_patterns = any(pattern.is_everything for pattern in patterns)
    if not only_patterns and (rule := _without_a_pattern(reference, configured)):
        return Permit(reference=reference, rule=rule)
    if reference.is_image_id:
        raise ImageNotAllowed(
            f'image "{reference.written}" is known by its id only,'
            " which is not allowed on this worker"
        )
    raise ImageNotAllowed(
        f'image "{reference.written}" comes from registry {reference.registry},'
        " which is not allowed on this worker"
    )


def _without_a_pattern(
    reference: Reference, configured: Callable[[Reference], str | None]
) -> str | None:
    for entry, hosts in BUILT_IN.items():
        if hosts.fullmatch(reference.registry):
            return f"built-in list: {entry}"
    if reference.is_image_id:
        return None
    if rule := configured(reference):
        return rule
    if EcrEndpoint.of(reference.registry):
        return f"ECR: {reference.registry}"
    return None


def refuse_denied(reference: Reference, allowed_images: Iterable[Pattern]) -> None:
    """
    Apply the patterns that deny, and nothing else.

    Ask once more when a tag has been resolved: the digest may be denied.

    Raises:
        ImageNotAllowed: one of them matches; the message is public.
    """
    names = (reference, *_on_docker_hub(reference))
    for pattern in allowed_images:
        if pattern.is_everything or not pattern.denies:
            continue
        if any(map(pattern.matches, names)):
            raise ImageNotAllowed(
                f'image "{reference.written}" is denied on this worker,'
                f" by {pattern.text}"
            )


BUILT_IN = {
    entry: re.compile(hosts)
    for entry, hosts in {
        "azurecr.io": rf"(?:{_LABEL}\.)?azurecr\.io",
        "dkr.ecr.<region>.amazonaws.com": (
            r"[0-9]{12}\.dkr\.ecr\.[a-z]+(?:-[a-z]+)+-[0-9]+\.amazonaws\.com(?:\.cn)?"
        ),
        "docker.io": r"docker\.io",
        "docker.pkg.dev": r"(?:[a-z0-9]+(?:-[a-z0-9]+)*-)?docker\.pkg\.dev",
        "gcr.io": r"(?:(?:us|eu|asia)\.)?gcr\.io",
        "ghcr.io": r"ghcr\.io",
        "public.ecr.aws": r"public\.ecr\.aws",
        "quay.io": r"quay\.io",
        "registry.gitlab.com": r"registry\.gitlab\.com",
        "registry.hub.docker.com": r"registry\.hub\.docker\.com",
    }.items()
}
"""Registries that are allowed unless a pattern denies them, default ports only."""


def quoted(text: str) -> str:
    """Return *text* in quotes, fit for a public message: short, plain ASCII."""
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return f'"{shown.encode("ascii", "backslashreplace").decode()}"'.translate(_CONTROL)


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _on_docker_hub(reference: Reference) -> Iterator[Reference]:
    """Give the Docker Hub name of an image that is reached by another host name."""
    if reference.registry in _DOCKER_HUB_OTHERS:
        repository = reference.repository
        if "/" not in repository:
            repository = f"library/{repository}"
        yield dataclasses.replace(reference, registry=DOCKER_HUB, repository=repository)


def _in_full(text: str) -> str:
    """Write out the registry and ``library/``, which people leave away."""
    first, slash, rest = text.partition("/")
    if not slash:
        name = re.split(r"[:@]", text, maxsplit=1)[0]
        if _looks_like_host(name) or name in _ALGORITHMS:
            return ""
        return f"{DOCKER_HUB}/library/{text}"
    if not _looks_like_host(first) and first == first.lower():
        return f"{DOCKER_HUB}/{text}"
    if first in (DOCKER_HUB, _DOCKER_HUB_ALIAS):
        return f"{DOCKER_HUB}/{rest}" if "/" in rest else f"{DOCKER_HUB}/library/{rest}"
    return text


def _looks_like_host(component: str) -> bool:
    return component == "localhost" or "." in component or ":" in component


def _hint(text: str) -> str:
    if not text:
        return ": it is empty"
    if "://" in text:
        return ": leave the scheme away"
    path, _, last = text.partition("@")[0].rpartition("/")
    name, _, _ = last.partition(":")
    if not path and (_looks_like_host(name) or name in _ALGORITHMS):
        return ": it names no repository"
    if f"{path}{name}" != f"{path}{name}".lower():
        return ": registry and repository must be lower case"
    return ""


def _example(body: str) -> str:
    """Guess what somebody meant by *body*, which names no registry."""
    if _looks_like_host(body):
        return f"{body}/*"
    return f"{DOCKER_HUB}/{body}" if "/" in body else f"{DOCKER_HUB}/library/{body}"


def _check_registry(registry: str) -> None:
    host, _, port = registry.partition(":")
    if not re.fullmatch(_HOST, registry.replace("*", "a")) or "*" in port:
        raise ValueError("the registry is a lower-case host name, with or without port")
    if "*" in host and any("*" in label for label in host.split(".")[-2:]):
        raise ValueError("only labels before the registry's last two may hold *")


def _glob(text: str, anything: str) -> re.Pattern[str]:
    return re.compile(anything.join(map(re.escape, re.split(r"\*+", text))))
