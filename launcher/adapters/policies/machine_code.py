"""
Machine code of policies, kept so that a start need not wait for the compiler.

Import this lazily, since it imports wasmtime (see `machine`).

Whoever can have us load machine code has us do what he likes, and wasmtime does not
check what it is given.  So only what the cache has authenticated is loaded: what was
checked is what is loaded, in memory; what is doubtful is made anew.
"""

from __future__ import annotations

import hashlib
import platform

from importlib.metadata import version
from pathlib import Path

import structlog
import wasmtime

from launcher.adapters.policies.cache import PolicyCache


log = structlog.get_logger()

_KEPT = 4
_CONFIGURED = "epoch interruption"
"""What `configured` has set; to be changed with it."""


def configured() -> wasmtime.Config:
    """How policies are compiled: so that a time limit can end them."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    return config


class MachineCode:
    """What wasmtime has made of WebAssembly, if it was here, and kept by us."""

    def __init__(self, directory: Path, secret: bytes) -> None:
        """Keep it in *directory*, authenticated by *secret*."""
        self._cache = PolicyCache(directory, secret, suffix="machine", kept=_KEPT)

    def module(self, engine: wasmtime.Engine, wasm: bytes) -> wasmtime.Module:
        """
        The module that *wasm* is, for an *engine* as it is `configured`.

        Raises:
            wasmtime.WasmtimeError: it is none.
        """
        made_of = hashlib.sha256(wasm).hexdigest()
        tool = hashlib.sha256(_maker().encode()).hexdigest()
        code = self._cache.get(made_of, tool)
        if code is not None:
            module = _loaded(engine, code)
            if module is not None:
                return module
        module = wasmtime.Module(engine, wasm)
        self._cache.put(made_of, tool, bytes(module.serialize()))
        return module


def _loaded(engine: wasmtime.Engine, code: bytes) -> wasmtime.Module | None:
    try:
        return wasmtime.Module.deserialize(engine, code)
    except wasmtime.WasmtimeError as exc:
        # Ours, and of another processor: the disk has moved to this machine.
        log.warning(
            "machine_code.unusable", error=str(exc), consequence="it is made anew"
        )
        return None


def _maker() -> str:
    return f"wasmtime {version('wasmtime')}, {platform.machine()}, {_CONFIGURED}"
