"""
Machine code of policies, kept so that a start need not wait for the compiler.

Import this lazily, since it imports wasmtime (see `machine`).

Whoever can have us load machine code has us do what he likes, and wasmtime does not
check what it is given.  So a file that belongs to us, in a directory of ours, is not
enough: its content bears a MAC by a key that lies in no file beside it, over what the
code was made of and by what.  What is read is what is checked and what is loaded, in
memory; what is doubtful is made anew.
"""

from __future__ import annotations

import hashlib
import hmac
import platform

from importlib.metadata import version
from pathlib import Path

import structlog
import wasmtime

from launcher.adapters.policies.cache import PolicyCache


log = structlog.get_logger()

_MAC = hashlib.sha256().digest_size
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

    def __init__(self, directory: Path, key: bytes) -> None:
        """Keep it in *directory*, authenticated by *key*, which is secret."""
        self._cache = PolicyCache(directory, suffix="machine", kept=_KEPT)
        self._key = key

    def module(self, engine: wasmtime.Engine, wasm: bytes) -> wasmtime.Module:
        """
        The module that *wasm* is, for an *engine* as it is `configured`.

        Raises:
            wasmtime.WasmtimeError: it is none.
        """
        made_of, made_by = hashlib.sha256(wasm).hexdigest(), _maker()
        label = f"{made_of}\n{made_by}\n".encode()
        tool = hashlib.sha256(made_by.encode()).hexdigest()[:16]
        kept = self._cache.get(made_of, tool)
        if kept is not None:
            module = self._loaded(engine, label, kept)
            if module is not None:
                return module
        module = wasmtime.Module(engine, wasm)
        code = bytes(module.serialize())
        self._cache.put(made_of, tool, self._mac(label, code) + code)
        return module

    def _loaded(
        self, engine: wasmtime.Engine, label: bytes, kept: bytes
    ) -> wasmtime.Module | None:
        mac, code = kept[:_MAC], kept[_MAC:]
        if not hmac.compare_digest(mac, self._mac(label, code)):
            log.warning("machine_code.not_ours", consequence="it is made anew")
            return None
        try:
            return wasmtime.Module.deserialize(engine, code)
        except wasmtime.WasmtimeError as exc:
            # Ours, and of another processor: the disk has moved to this machine.
            log.warning(
                "machine_code.unusable", error=str(exc), consequence="it is made anew"
            )
            return None

    def _mac(self, label: bytes, code: bytes) -> bytes:
        return hmac.digest(self._key, label + code, "sha256")


def _maker() -> str:
    return f"wasmtime {version('wasmtime')}, {platform.machine()}, {_CONFIGURED}"
