"""From a case to WebAssembly: one `opa build` each, kept by content."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile

from pathlib import Path

from tests.conformance.cases import OPA, Case


ENTRYPOINT = "conformance_question/result"


def compiled(case: Case, cache: Path) -> bytes | str:
    """WebAssembly, or why the compiler refused the case."""
    cache.mkdir(parents=True, exist_ok=True)
    parts = [OPA, case.dialect, case.question, *case.modules]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    wasm, refusal = cache / f"{key}.wasm", cache / f"{key}.txt"
    if wasm.exists():
        return wasm.read_bytes()
    if refusal.exists():
        return refusal.read_text()
    answer = _built(case)
    kept = wasm if isinstance(answer, bytes) else refusal
    temporary = kept.with_suffix(f".{os.getpid()}.{id(case)}")
    temporary.write_bytes(answer if isinstance(answer, bytes) else answer.encode())
    temporary.replace(kept)
    return answer


def _built(case: Case) -> bytes | str:
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        folder = Path(name)
        (folder / "question.rego").write_text(case.question)
        files = ["question.rego"]
        for number, module in enumerate(case.modules):
            files.append(f"module-{number}.rego")
            (folder / files[-1]).write_text(module)
        dialect = ["--v0-compatible"] if case.dialect == "v0" else []
        command = ["opa", "build", *dialect, "-t", "wasm", "-e", ENTRYPOINT]
        answer = subprocess.run(
            [*command, "-o", "bundle.tar.gz", *files],
            cwd=folder,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )
        if answer.returncode:
            return answer.stderr or answer.stdout
        with tarfile.open(folder / "bundle.tar.gz") as bundle:
            return bundle.extractfile("/policy.wasm").read()
