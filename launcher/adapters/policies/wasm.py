"""
Evaluates a compiled policy in this process, by opa-py-wasm and wasmtime.

Import this lazily: with a policy loaded it costs 27 MB and 0.2 s, which a worker
without a policy need not spend.

Facts this is built around:

- Each evaluation gets an instance of its own.  It costs 1 ms more than a reused
  one, and buys that no run can see, grow or poison the memory of the next.
- A time limit needs somebody to advance the engine's epoch.  The library's own
  ticker does so for ever, at 0.8 % of a processor; ours runs only while
  something is being evaluated.
- The limit cannot interrupt a builtin of the host, so those must be quick.
- A builtin that fails ends the evaluation, where OPA would go on with
  "undefined"; the run is denied, so this errs on the safe side.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
import wasmtime

from opapywasm import OpaWasmError, PolicyConfig
from opapywasm.abi import OpaAbiSpec
from opapywasm.builtins import BuiltinRegistry, default_builtins
from opapywasm.instance import OpaPolicyInstance
from opapywasm.runtime import EpochTicker, WasmtimeRuntimeFactory

from launcher.adapters.policies.compiler import ENTRYPOINT, REFUSED, Compiled
from launcher.errors import PolicyUnusable
from launcher.policy import Evaluation
from launcher.threads import spawn


log = structlog.get_logger()

_PAGE = 64 << 10
MEMORY = 256 << 20
"""Bytes one evaluation may use."""
LARGEST_INPUT = 16 << 20
"""Bytes of input as JSON; OPA needs about ten times as much to hold it."""

_ENTRYPOINTS = (ENTRYPOINT, "spacelift")
"""What is asked: our prelude, or the whole package of a policy compiled elsewhere."""


def sanitized(value: object) -> str:
    """The product's digest: the last eight hexadecimal digits of SHA-256."""
    if not isinstance(value, str):
        raise TypeError("sanitized takes a string")
    return hashlib.sha256(value.encode()).hexdigest()[-8:]


class WasmPolicy:
    """A policy that has been loaded and can be asked."""

    def __init__(self, policy: Compiled, *, timeout: float) -> None:
        """
        Load *policy*.

        Raises:
            PolicyUnusable: it is not a policy of ours, or needs what we lack.
        """
        self._body = policy.source
        self._timeout = timeout
        self._builtins = BuiltinRegistry({**default_builtins(), "sanitized": sanitized})
        self._config = PolicyConfig(
            max_input_bytes=LARGEST_INPUT,
            eval_timeout_seconds=timeout,
            parse_raw_json_input=False,
        )
        try:
            self._factory = WasmtimeRuntimeFactory(
                policy.wasm, max_memory_pages=MEMORY // _PAGE
            )
            self._ticker = _Ticker(self._factory.engine)
            with self._instance() as probe:
                known, needed = probe.entrypoints(), set(probe.builtins())
        except (OpaWasmError, wasmtime.WasmtimeError) as exc:
            raise PolicyUnusable(
                "the initialization policy is not a policy compiled by OPA",
                details=str(exc),
            ) from exc
        self._entrypoint = _entrypoint(known)
        _refuse_missing(needed - set(self._builtins.names()))

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        began = time.monotonic()
        try:
            answer = self._ask(_encoded(document))
        except OpaWasmError as exc:
            error = _explained(exc)
            if time.monotonic() - began >= self._timeout:
                error = f"the evaluation took longer than {self._timeout:g} s"
            return Evaluation.failed(error, body=self._body)
        except Exception as exc:  # whatever it is, nobody said yes
            log.exception("policy.evaluation_crashed")
            return Evaluation.failed(type(exc).__name__, body=self._body)
        match answer:
            case [{"result": dict(results)}]:
                return Evaluation.of(results, body=self._body)
            case _:
                return Evaluation.failed("the policy gave no answer", body=self._body)

    def _ask(self, document: bytes) -> object:
        with self._ticker.running(), self._instance() as instance:
            return instance.evaluate(document, self._entrypoint)

    @contextmanager
    def _instance(self) -> Iterator[OpaPolicyInstance]:
        instance = OpaPolicyInstance(
            self._factory,
            self._config,
            OpaAbiSpec(),
            builtins=self._builtins,
            epoch=self._ticker,
        )
        try:
            yield instance
        finally:
            instance.close()


def _explained(exc: OpaWasmError) -> str:
    message = str(exc).partition("\n")[0]
    if "opa_malloc" in message:
        return f"the evaluation needed more than {MEMORY >> 20} MiB of memory"
    return message


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def _entrypoint(known: Mapping[str, int]) -> int:
    for name in _ENTRYPOINTS:
        if name in known:
            return known[name]
    raise PolicyUnusable(
        "the compiled policy has no entrypoint of ours: build it from"
        " `package spacelift` with `opa build -t wasm -e spacelift`"
    )


def _refuse_missing(missing: set[str]) -> None:
    if not missing:
        return
    reasons = [
        f"{name} ({REFUSED[name]})" if name in REFUSED else name
        for name in sorted(missing)
    ]
    raise PolicyUnusable(
        "the initialization policy calls what this launcher does not provide: "
        + ", ".join(reasons)
    )


class _Ticker(EpochTicker):
    """Advances the epoch while something is evaluated, and sleeps otherwise."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        super().__init__(engine)
        self._advance: Callable[[], None] = engine.increment_epoch
        self._guard = threading.Lock()
        self._running = 0
        self._idle = threading.Event()

    def ensure_running(self) -> None:
        """Do nothing: instances ask for it although nobody evaluates yet."""

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._guard:
            self._running += 1
            if self._running == 1:
                self._idle = threading.Event()
                spawn("policy ticker", _Ticks(self._advance, self._idle))
        try:
            yield
        finally:
            with self._guard:
                self._running -= 1
                if not self._running:
                    self._idle.set()


class _Ticks:
    """Body of the thread; knows its own end, whatever starts after it."""

    def __init__(self, advance: Callable[[], None], idle: threading.Event) -> None:
        self._advance, self._idle = advance, idle

    def __call__(self) -> None:
        while not self._idle.wait(EpochTicker.tick_seconds):
            self._advance()
