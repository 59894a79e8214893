"""
Runs a compiled policy in this process, by opa-py-wasm and wasmtime.

Import this lazily: with a policy loaded it costs 27 MB and 0.2 s, which a worker
without a policy need not spend.

Facts this is built around:

- Making an instance costs 1 ms, as much as everything else together.  So
  instances are used again, after their memory has been put back, byte for byte,
  to what it was before the first evaluation: nothing of one run is there when
  the next is judged.  One that trapped or grew is thrown away.
- A time limit needs somebody to advance the engine's epoch.  The library's own
  ticker does so for ever, at 0.8 % of a processor; ours ends when nothing has
  been evaluated for a while.
- The limit cannot interrupt a builtin of the host, so those that loop ask for the
  time themselves.
- The library ends an evaluation when a builtin fails, and gives it JSON, which
  knows no sets.  OPA goes on with "undefined", and so does this; only what
  raises `Halt` ends the evaluation.
"""

from __future__ import annotations

import ctypes
import threading
import time

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
import wasmtime

from opapywasm import OpaBuiltinError, OpaWasmError, PolicyConfig
from opapywasm.abi import OpaAbiSpec
from opapywasm.instance import OpaPolicyInstance
from opapywasm.runtime import EpochTicker, WasmtimeRuntimeFactory

from launcher.adapters.policies.machine_code import MachineCode, configured
from launcher.adapters.policies.values import Value, notation, parsed
from launcher.errors import PolicyError, PolicyUnusable
from launcher.threads import spawn


log = structlog.get_logger()

_PAGE = 64 << 10
MEMORY = 256 << 20
"""Bytes one evaluation may use."""
LARGEST_INPUT = 8 << 20
"""Bytes of input as JSON; OPA needs about ten times as much to hold it."""

_ROOM = 1 << 20
"""Bytes an instance has from the start, so that most evaluations never grow it."""
_IDLE_INSTANCES = 8
_PATIENCE = 0.02
"""Seconds an evaluation waits for others, since Python runs one of them at a time."""
_LINGER = 1.0
"""Seconds the ticker outlives the last evaluation: starting a thread is slow."""


class LimitExceeded(PolicyError):
    """It took too much of something; the message is fit for everybody."""


class Halt(Exception):
    """Raised by a builtin whose failure must end the evaluation."""


@dataclass(kw_only=True)
class Call:
    """The evaluation that a builtin is called in."""

    document: bytes
    """The input, as JSON."""
    ends: float
    """Where the monotonic clock is when its time is over."""
    memory: dict[str, Value] = field(default_factory=dict)
    """What a builtin wants to know again in the same evaluation."""

    def check_time(self) -> None:
        """
        Be called by whatever may go on for long.

        Raises:
            Halt: the evaluation's time is over.
        """
        if time.monotonic() > self.ends:
            raise Halt("its time is over")


Builtin = Callable[..., Value]
"""Takes the `Call`, then values; raises if its result is undefined."""


class Machine:
    """A compiled policy that several threads may ask at once."""

    def __init__(
        self,
        wasm: bytes,
        builtins: Mapping[str, Builtin],
        *,
        timeout: float,
        data: bytes | None = None,
        code: MachineCode | None = None,
    ) -> None:
        """
        Load *wasm*, with *data* as JSON, to be asked for *timeout* seconds at most.

        What it becomes is taken from, and left in, *code*.

        Raises:
            PolicyUnusable: OPA did not make it.
        """
        self._builtins = builtins
        self._data = data
        self.timeout = timeout
        """Seconds; may be set until the first evaluation."""
        self._idle: list[_Instance] = []
        self._closed = False
        self._lock = threading.Lock()
        self._turns = threading.Lock()
        try:
            self._factory = _Factory(wasm, code)
            self._ticker = _Ticker(self._factory.engine)
            probe = self._made()
            self.entrypoints = probe.entrypoints()
            self.needed = frozenset(probe.builtins())
            probe.close()
        except (OpaWasmError, wasmtime.WasmtimeError) as exc:
            raise PolicyUnusable(
                "the initialization policy is not a policy compiled by OPA",
                details=str(exc),
            ) from exc

    def ask(self, document: bytes, entrypoint: int) -> object:
        """
        Evaluate *entrypoint* for the input *document*.

        Returns:
            OPA's result set: empty, or a list of one ``{"result": …}``.

        Raises:
            PolicyError: it failed; the message may quote the policy.
        """
        if len(document) > LARGEST_INPUT:
            raise LimitExceeded(
                f"its input has {len(document)} bytes, more than the"
                f" {LARGEST_INPUT >> 20} MiB that are judged"
            )
        began = time.monotonic()
        call = Call(document=document, ends=began + self.timeout)
        try:
            with self._turn(), self._ticker.running(), self._instance(call) as instance:
                return instance.evaluate(document, entrypoint)
        except OpaWasmError as exc:
            if time.monotonic() >= call.ends:
                raise LimitExceeded(
                    f"the evaluation took longer than {self.timeout:g} s"
                ) from exc
            message = str(exc).partition("\n")[0]
            if "opa_malloc" in message:
                raise LimitExceeded(
                    f"the evaluation needed more than {MEMORY >> 20} MiB of memory"
                ) from exc
            raise PolicyError(message) from exc

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for others, but not for slow ones."""
        taken = self._turns.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            if taken:
                self._turns.release()

    def close(self) -> None:
        """Give back what idle instances hold."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for instance in idle:
            instance.close()

    def _made(self) -> _Instance:
        config = PolicyConfig(
            max_input_bytes=LARGEST_INPUT,
            max_data_bytes=MEMORY // 4,
            max_result_bytes=LARGEST_INPUT,
            eval_timeout_seconds=self.timeout,
            parse_raw_json_input=False,
        )
        return _Instance(
            self._factory, config, self._builtins, self._data, self._ticker
        )

    @contextmanager
    def _instance(self, call: Call) -> Iterator[_Instance]:
        with self._lock:
            instance = self._idle.pop() if self._idle else None
        if instance is None:
            instance = self._made()
        instance.call = call
        reusable = False
        try:
            yield instance
            reusable = instance.restored()
        finally:
            instance.call = None
            with self._lock:
                room = not self._closed and len(self._idle) < _IDLE_INSTANCES
                kept = reusable and room
                if kept:
                    self._idle.append(instance)
            if not kept:
                instance.close()


class _Factory(WasmtimeRuntimeFactory):
    """The library's own, which always compiles, but for where modules come from."""

    def __init__(self, wasm: bytes, code: MachineCode | None) -> None:
        self._max_memory_pages = MEMORY // _PAGE
        self._engine = wasmtime.Engine(configured())
        self._epoch = EpochTicker(self._engine)
        if code is None:
            self._module = wasmtime.Module(self._engine, wasm)
        else:
            self._module = code.module(self._engine, wasm)
        self._validate_required_env_imports()


class _Signature:
    """What a call needs to know of a function's type."""

    def __init__(self, function: wasmtime.FuncType) -> None:
        self.params, self.results = function.params, function.results


class _Instance(OpaPolicyInstance):
    """One memory with the policy in it; for one thread at a time."""

    def __init__(
        self,
        factory: WasmtimeRuntimeFactory,
        config: PolicyConfig,
        builtins: Mapping[str, Builtin],
        data: bytes | None,
        ticker: _Ticker,
    ) -> None:
        self.call: Call | None = None
        self._ours = builtins
        super().__init__(factory, config, OpaAbiSpec(), initial_data=data, epoch=ticker)
        try:
            self._remember_types()
            heap = self.abi.opa_heap_ptr_get()
            self.abi.opa_malloc(_ROOM)
            self.abi.opa_heap_ptr_set(heap)
            self._size = self.abi.memory_len()
            self._begin = self.abi.memory_read(0, self._size).rstrip(b"\0")
            self._begin_at = (ctypes.c_char * len(self._begin)).from_buffer(self._begin)
        except BaseException:
            self.close()
            raise

    def _remember_types(self) -> None:
        # wasmtime would ask for them before every call, a third of what it costs.
        for export in self._runtime.exports().values():
            if isinstance(export, wasmtime.Func):
                signature = _Signature(export.type(self._runtime.store))
                export.type = lambda _, known=signature: known  # type: ignore[method-assign,misc]

    def restored(self) -> bool:
        """Put the memory back to its beginning; false if that is impossible."""
        if self.poisoned or self.abi.memory_len() != self._size:
            return False
        address = ctypes.addressof(
            self._runtime.memory.data_ptr(self._runtime.store).contents
        )
        length = len(self._begin)
        ctypes.memmove(address, self._begin_at, length)
        ctypes.memset(address + length, 0, self._size - length)
        return True

    def _dispatch_builtin(self, number: int, _: int, addresses: list[int]) -> int:
        """Return the address of the result; 0 is undefined."""
        name = self._builtin_id_to_name.get(number, "")
        builtin = self._ours.get(name)
        if builtin is None:
            raise OpaBuiltinError(f"{name}: not available")
        try:
            arguments = [self._taken(address) for address in addresses]
            text = notation(builtin(self.call, *arguments)).encode()
        except (Halt, MemoryError, RecursionError) as exc:
            raise OpaBuiltinError(f"{name}: {str(exc) or type(exc).__name__}") from exc
        except OpaWasmError:
            raise
        except Exception as exc:  # noqa: BLE001 (OPA: a builtin that fails is undefined)
            log.debug("policy.undefined", builtin=name, why=type(exc).__name__)
            return 0
        return self._called("opa_value_parse", self.codec.write_bytes(text), len(text))

    def _taken(self, address: int) -> Value:
        text = self.codec.read_cstring(self._called("opa_value_dump", address))
        return parsed(text.decode())

    def _called(self, name: str, *arguments: int) -> int:
        address = int(self._runtime.get_func(name)(self._runtime.store, *arguments))
        if not address:
            raise OpaBuiltinError(f"{name} failed")
        return address


class _Ticker(EpochTicker):
    """Advances the epoch while something is evaluated, and a little longer."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        super().__init__(engine)
        self._advance: Callable[[], None] = engine.increment_epoch
        self._guard = threading.Lock()
        self._running = 0
        self._alive = False
        self._last = 0.0
        self._never = threading.Event()

    def ensure_running(self) -> None:
        """Do nothing: instances ask for it although nobody evaluates yet."""

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._guard:
            self._running += 1
            if not self._alive:
                self._alive = True
                spawn("policy ticker", self._tick)
        try:
            yield
        finally:
            with self._guard:
                self._running -= 1
                self._last = time.monotonic()

    def _tick(self) -> None:
        while not self._never.wait(self.tick_seconds):
            self._advance()
            with self._guard:
                over = time.monotonic() - self._last > _LINGER
                if over and not self._running:
                    self._alive = False
                    return
