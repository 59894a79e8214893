"""
What a repository, and whoever triggers a run, says about how the run is to be made.

``.spacelift/config.yml`` is read at the run's commit, before anything of the run is
started, so that its image and its hooks are known to whoever has to admit it.  It is
written by strangers: its size and depth are bounded, and so is what its aliases
stand for.  What is wrong fails the run with a sentence; what is merely unknown is
told in the log.
"""

from __future__ import annotations

import hashlib

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import yaml

from launcher.controlplane.desired_state import one_word, project_root, variable_name
from launcher.controlplane.errors import RuntimeConfigInvalid
from launcher.controlplane.stack_spec import HOOK_NAMES, Bundle, StackSpec
from launcher.wire.jobs import LONGEST_VALUE, RUNTIME_CONFIG, Variable


LARGEST = 128 << 10
"""Bytes of the file."""
IGNORED = "feature:ignore_runtime_config"
"""A stack's label: what is in the repository does not count."""

_DEEPEST = 20
_MOST_NODES = 20_000
_MOST_NOTES = 20
_TOP = frozenset({"version", "stacks", "stack_defaults"})
_OF_MODULES = frozenset({"module_version", "test_defaults", "tests"})
_TOOLS = {"TERRAFORM_FOSS": "terraform", "OPEN_TOFU": "opentofu", "CUSTOM": ""}
_TEXTS = frozenset({"terraform_version", "opentofu_version"})
_BLOCK = (
    frozenset(HOOK_NAMES)
    | _TEXTS
    | {
        "environment",
        "git_sparse_checkout_paths",
        "project_root",
        "runner_image",
        "terraform_workflow_tool",
        "terragrunt",
    }
)
_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One block of settings; None where it says nothing."""

    hooks: dict[str, tuple[str, ...]] = {}
    """By name; one without commands takes the stack's away."""
    environment: tuple[Variable, ...] | None = None
    project_root: str | None = None
    runner_image: str | None = None
    terraform_version: str | None = None
    opentofu_version: str | None = None
    workflow_tool: str | None = None
    git_sparse_checkout_paths: tuple[str, ...] | None = None


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run is made from besides its stack, as it is stored with the run."""

    sha256: str | None = None
    """Of the file; empty when there is none, None when nobody looked for one."""
    version: int = 1
    block: Block = Block()
    """What the file says about this very stack."""
    defaults: Block = Block()
    once: Block = Block()
    """What was given when the run was triggered."""
    notes: tuple[str, ...] = ()
    """Sentences for the run's owner."""


def read(content: bytes | None, slug: str) -> RuntimeConfig:
    """
    What the file with *content* means for the stack *slug*; None is no file.

    Raises:
        RuntimeConfigInvalid: nobody can tell; the sentence says why.
    """
    if content is None:
        return RuntimeConfig(sha256="")
    reader = _Reader(RUNTIME_CONFIG)
    top = reader.document(content)
    config = _file(reader, top, slug)
    return msgspec.structs.replace(
        config, sha256=hashlib.sha256(content).hexdigest(), notes=reader.notes()
    )


def read_once(text: str, slug: str) -> RuntimeConfig:
    """
    What a run was triggered with: the settings of a block, or a whole file.

    Raises:
        RuntimeConfigInvalid: nobody can tell; the sentence says why.
    """
    reader = _Reader("runtime configuration")
    top = reader.document(text.encode())
    if _TOP.isdisjoint(top):
        once = _block(reader, top)
    else:
        given = _file(reader, top, slug)
        once = _over(given.block, given.defaults)
    return RuntimeConfig(once=once, notes=reader.notes())


def together(once: RuntimeConfig, file: RuntimeConfig) -> RuntimeConfig:
    """What a run was triggered with, and what its commit says."""
    return msgspec.structs.replace(
        file, once=once.once, notes=tuple(dict.fromkeys((*once.notes, *file.notes)))
    )


def applied(spec: StackSpec, config: RuntimeConfig) -> StackSpec:
    """
    The stack as a run with *config* sees it.

    From strongest to weakest: what the run was triggered with; what the file says
    about the stack; then, by version 1 of the file, the stack's own settings before
    the file's defaults, and by version 2 the other way round; last of all contexts.
    A list or map of a stronger one takes the place of the weaker one's; variables
    are told apart by name.  Hooks take the place of the stack's, never of a context's.
    """
    named = _over(config.once, config.block)
    beats = config.version > 1
    strong = _over(named, config.defaults) if beats else named
    weak = Block() if beats else config.defaults
    hooks = {
        name: tuple(
            strong.hooks.get(
                name, getattr(spec.own.hooks, name) or weak.hooks.get(name, ())
            )
        )
        for name in HOOK_NAMES
    }
    below = () if config.block.environment is not None else weak.environment or ()
    beyond: tuple[Variable, ...] = ()
    file_says = config.block.environment
    if file_says is None and beats:
        file_says = config.defaults.environment
    for variables in (file_says, config.once.environment):
        beyond += variables or ()
    vendor, version, options = _tool(spec, strong, weak)
    return msgspec.structs.replace(
        spec,
        own=Bundle(
            environment=(*below, *spec.own.environment, *beyond),
            mounted_files=spec.own.mounted_files,
            hooks=msgspec.convert(hooks, type(spec.own.hooks)),
        ),
        project_root=_first(strong.project_root, spec.project_root, weak.project_root),
        runner_image=_first(strong.runner_image, spec.runner_image, weak.runner_image),
        vendor=vendor,
        tool_version=version,
        vendor_config=options,
        source=msgspec.structs.replace(
            spec.source,
            sparse_paths=strong.git_sparse_checkout_paths
            if strong.git_sparse_checkout_paths is not None
            else spec.source.sparse_paths or weak.git_sparse_checkout_paths or (),
        ),
    )


def _tool(
    spec: StackSpec, strong: Block, weak: Block
) -> tuple[str, str, dict[str, object]]:
    """Vendor, version and options; a stack's vendor is always a setting of its own."""
    if spec.vendor not in _TOOLS.values():
        return spec.vendor, spec.tool_version, spec.vendor_config
    vendor, options = spec.vendor, dict(spec.vendor_config)
    if strong.workflow_tool is not None:
        vendor = _TOOLS[strong.workflow_tool] or spec.vendor
        options["workflow_tool"] = strong.workflow_tool
    given = f"{vendor}_version"
    own = spec.tool_version if vendor == spec.vendor else ""
    return vendor, _first(getattr(strong, given), own, getattr(weak, given)), options


def _first(strong: str | None, own: str, weak: str | None) -> str:
    return strong if strong is not None else own or weak or ""


def _over(strong: Block, weak: Block) -> Block:
    """Both in one; what the first one says takes the place of the other's."""
    said = {
        name: value
        for name in Block.__struct_fields__
        if (value := getattr(strong, name)) is not None
    }
    return msgspec.structs.replace(
        weak, **{**said, "hooks": {**weak.hooks, **strong.hooks}}
    )


def _file(reader: _Reader, top: Mapping[str, yaml.Node], slug: str) -> RuntimeConfig:
    reader.unknown(top, _TOP | _OF_MODULES)
    version = 1
    if "version" in top:
        text = reader.text(top["version"], "version")
        if text not in ("1", "2"):
            raise reader.wrong(top["version"], "version is 1 or 2")
        version = int(text)
    stacks = reader.mapping(top.get("stacks"), "stacks")
    return RuntimeConfig(
        version=version,
        block=_block(reader, reader.mapping(stacks.get(slug), slug)),
        defaults=_block(
            reader, reader.mapping(top.get("stack_defaults"), "stack_defaults")
        ),
    )


def _block(reader: _Reader, given: Mapping[str, yaml.Node]) -> Block:
    reader.unknown(given, _BLOCK)
    if "terragrunt" in given:
        reader.note(given["terragrunt"], "terragrunt is not known here, and ignored")
    texts = {
        name: reader.text(node, name)
        for name, node in given.items()
        if name in _TEXTS or name in ("project_root", "runner_image")
    }
    for name, check in (("project_root", project_root), ("runner_image", one_word)):
        if name in texts:
            try:
                texts[name] = check(texts[name])
            except ValueError as exc:
                raise reader.wrong(given[name], f"{name}: {exc}") from None
    tool = None
    if (node := given.get("terraform_workflow_tool")) is not None:
        tool = reader.text(node, "terraform_workflow_tool")
        if tool not in _TOOLS:
            known = ", ".join(_TOOLS)
            raise reader.wrong(node, f"terraform_workflow_tool is one of {known}")
    paths = given.get("git_sparse_checkout_paths")
    return Block(
        hooks={
            name: reader.texts(node, name)
            for name, node in given.items()
            if name in HOOK_NAMES
        },
        environment=_environment(reader, given.get("environment")),
        workflow_tool=tool,
        git_sparse_checkout_paths=(
            None if paths is None else reader.texts(paths, "git_sparse_checkout_paths")
        ),
        **texts,
    )


def _environment(
    reader: _Reader, node: yaml.Node | None
) -> tuple[Variable, ...] | None:
    if node is None:
        return None
    variables = []
    for name, value in reader.mapping(node, "environment", nulls=True).items():
        try:
            bare, scope = variable_name(name)
        except ValueError as exc:
            raise reader.wrong(value, f"environment: {exc}") from None
        text = reader.text(value, name) if value.tag != _NULL else ""
        if len(name) + 2 + len(text.encode()) > LONGEST_VALUE:
            raise reader.wrong(
                value, f"{name} is longer than {LONGEST_VALUE >> 10} KiB"
            )
        variables.append(Variable(name=bare, value=text, scope=scope))
    return tuple(variables)


class _Reader:
    """Reads one document; every complaint names it, and the line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._notes: dict[str, None] = {}

    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)[:_MOST_NOTES]

    def note(self, node: yaml.Node, sentence: str) -> None:
        line = node.start_mark.line + 1
        self._notes[f"{self._name}: line {line}: {sentence}"] = None

    def wrong(self, node: yaml.Node, sentence: str) -> RuntimeConfigInvalid:
        return self._invalid(f"line {node.start_mark.line + 1}: {sentence}")

    def document(self, content: bytes) -> dict[str, yaml.Node]:
        """The top of it, once all of it is known to be small."""
        if len(content) > LARGEST:
            raise self._invalid(f"it has more than {LARGEST >> 10} KiB")
        try:
            node = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
        except UnicodeDecodeError:
            raise self._invalid("it is not UTF-8 text") from None
        except RecursionError:
            raise self._too_deep() from None
        except yaml.MarkedYAMLError as exc:
            line = exc.problem_mark.line + 1 if exc.problem_mark else 1
            raise self._invalid(f"line {line}: not YAML: {exc.problem}") from exc
        except yaml.YAMLError as exc:
            raise self._invalid("it is not YAML") from exc
        if node is None:
            return {}
        self._bound(node)
        return self.mapping(node, "it")

    def _bound(self, top: yaml.Node) -> None:
        """
        Refuse what is large or deep, each alias counted as all that it stands for.

        So that whoever goes through the nodes comes to an end.
        """
        count, waiting = 0, [(top, 1)]
        while waiting:
            node, depth = waiting.pop()
            count += 1
            if depth > _DEEPEST:
                raise self._too_deep()
            if count > _MOST_NODES:
                raise self._invalid(
                    f"its aliases stand for more than {_MOST_NODES} values"
                )
            waiting += [(child, depth + 1) for child in _children(node)]

    def mapping(
        self, node: yaml.Node | None, what: str, *, nulls: bool = False
    ) -> dict[str, yaml.Node]:
        """Keys and values, those merged in (``<<``) included; *nulls* on request."""
        if node is None or node.tag == _NULL:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} must be a mapping")
        own: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong(key, f"a key of {what} must be a text")
            if key.tag == _MERGE:
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    merged = self.mapping(part, "what is merged", nulls=True) | merged
            elif key.value in own:
                raise self.wrong(key, f"key {key.value!r} is there twice")
            else:
                own[str(key.value)] = value
        return {
            name: value
            for name, value in (merged | own).items()
            if nulls or value.tag != _NULL
        }

    def text(self, node: yaml.Node, what: str) -> str:
        """A text, as it is written: numbers and the like need no quotes."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            raise self.wrong(node, f"{what} must be a text")
        if "\0" in node.value:
            raise self.wrong(node, f"{what} must not hold a NUL character")
        return str(node.value)

    def texts(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(node, f"{what} must be a list")
        return tuple(self.text(item, f"an item of {what}") for item in node.value)

    def unknown(self, given: Mapping[str, yaml.Node], known: Iterable[str]) -> None:
        for name in sorted(given.keys() - set(known)):
            self.note(given[name], f"unknown key {name[:60]!r} is ignored")

    def _too_deep(self) -> RuntimeConfigInvalid:
        return self._invalid(f"it is nested more than {_DEEPEST} deep")

    def _invalid(self, sentence: str) -> RuntimeConfigInvalid:
        return RuntimeConfigInvalid(f"{self._name} cannot be used: {sentence}")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
