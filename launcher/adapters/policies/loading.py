"""From a file to an engine, and from two files to an answer."""

from __future__ import annotations

import dataclasses
import json

from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.adapters.policies.cache import PolicyCache
from launcher.adapters.policies.compiler import compiled
from launcher.adapters.policies.reloading import ReloadingPolicy
from launcher.errors import PolicyUnusable
from launcher.memory import give_back
from launcher.policy import Evaluation, NoPolicy, PolicyEngine
from launcher.settings import PolicySettings


if TYPE_CHECKING:
    from launcher.adapters.policies.wasm import WasmPolicy


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """Where what was compiled is kept, and what proves that it was compiled here."""

    directory: Path
    secret: bytes = dataclasses.field(repr=False)


def load(settings: PolicySettings) -> PolicyEngine:
    """
    Load the policy that *settings* name; without one everything is allowed.

    Nothing is kept, and nothing that was kept is used.

    Raises:
        PolicyUnusable: there is a policy and it cannot be used.
    """
    if settings.path is None:
        return NoPolicy()
    return _loaded(settings, settings.path)


def load_trusting(settings: PolicySettings) -> PolicyEngine:
    """
    Load the policy to be tried as if every token in its input were well signed.

    Never ask it about a run.

    Raises:
        PolicyUnusable: it cannot be used.
    """
    if settings.path is None:
        return NoPolicy()
    return _loaded(settings, settings.path, trusting=True)


def follow(
    settings: PolicySettings,
    path: Path,
    state_dir: Path,
    *,
    secret: bytes,
) -> ReloadingPolicy:
    """
    Load the policy in *path*, and keep up with its file.

    What is compiled is kept below *state_dir*, authenticated by *secret*.

    Raises:
        PolicyUnusable: it cannot be used as it is now.
    """
    kept = _Kept(state_dir / "policy-cache", secret)
    return ReloadingPolicy(path, lambda: _loaded(settings, path, kept=kept))


def _loaded(
    settings: PolicySettings,
    path: Path,
    *,
    trusting: bool = False,
    kept: _Kept | None = None,
) -> WasmPolicy:
    cache = PolicyCache(kept.directory, kept.secret) if kept else None
    policy = compiled(path, rego_version=settings.rego_version, cache=cache)

    # wasmtime is large, and only those who have a policy should pay for it.
    from launcher.adapters.policies import builtins  # noqa: PLC0415
    from launcher.adapters.policies.machine_code import MachineCode  # noqa: PLC0415
    from launcher.adapters.policies.wasm import WasmPolicy  # noqa: PLC0415

    loaded = WasmPolicy(
        policy,
        timeout=settings.timeout,
        exec_allowed=settings.exec_allowed,
        builtins=builtins.TRUSTING if trusting else builtins.BUILTINS,
        code=MachineCode(kept.directory, kept.secret) if kept else None,
    )
    # What turns WebAssembly into machine code needs much, and once.
    give_back()
    return loaded


def evaluate_file(
    policy: Path, document: Path, *, settings: PolicySettings | None = None
) -> dict[str, Any]:
    """
    Ask the policy in one file about the input in another; has no side effects.

    Returns ``outcome``, ``results`` and ``error`` as the sample line shows them.
    What cannot be loaded is an error, too: it would deny every run.
    """
    chosen = settings or PolicySettings()
    try:
        engine = load(dataclasses.replace(chosen, path=policy))
        evaluation = engine.evaluate(_input(document))
    except PolicyUnusable as exc:
        evaluation = Evaluation.failed(str(exc))
    return {
        "outcome": str(evaluation.outcome),
        "results": dict(evaluation.results),
        "error": evaluation.error,
    }


def _input(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except OSError as exc:
        raise PolicyUnusable(
            f"the input {path} cannot be read: {exc.strerror}"
        ) from exc
    except ValueError as exc:
        raise PolicyUnusable(f"the input {path} is not JSON") from exc
    if not isinstance(document, dict):
        raise PolicyUnusable(f"the input {path} is not a JSON object")
    return document
