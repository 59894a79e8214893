"""
What the script around the phases adds, compared with a plain ``sh`` in the same image.

Both are measured inside of one container, by a program that hands commands to each and
waits for their end: so neither the engine nor the network is in the figures.
"""

from __future__ import annotations

import io
import json
import tarfile

from collections.abc import Iterator

import docker

from benchmarks.report import Row
from launcher.adapters.engines.entry import PROGRAM
from launcher.model import WORKSPACE
from launcher.script import phase_script


NONCE = "5ec4e7"
ROUNDS = 200
HOOKS = 50
VARIABLES = {f"VARIABLE_{number}": "some value " * 10 for number in range(40)}

# Prints seconds per phase: of the entry script, and of a shell that gets the commands.
_DRIVER = """
import json, os, subprocess, sys, time

def ends(path, mark, position):
    while True:
        with open(path, "rb") as file:
            file.seek(position)
            if mark in file.read():
                return os.path.getsize(path)

def timed(command, texts, mark, path, **files):
    process = subprocess.Popen(command, stdin=subprocess.PIPE, **files)
    times, position = [], 0
    for text in texts:
        begun = time.perf_counter()
        process.stdin.write(text)
        process.stdin.flush()
        position = ends(path, mark, position)
        times.append(time.perf_counter() - begun)
    process.kill()
    return times[5:]

work = json.load(open("/bench/work.json"))
log = "/mnt/spacelift-log/output"
found = {}
for name, (phase, plain) in work["texts"].items():
    open(log, "w").close()
    entry = ["sh", "/bench/entry", work["nonce"], "3600", str(1 << 30)]
    texts = [phase.encode()] * work["rounds"]
    found[name] = timed(entry, texts, b"\\x1e" + work["nonce"].encode() + b" end", log)
    with open("/run/spacelift/plain", "wb") as output:
        texts = [plain.encode()] * work["rounds"]
        found["plain " + name] = timed(
            ["sh"], texts, b"the end", output.name, stdout=output
        )
print(json.dumps(found))
"""


def phases(api: docker.APIClient, image: str) -> Iterator[Row]:
    """An empty phase, and one with many hooks that do nothing."""
    found = _measured(api, image)
    for name, plain in (("empty", "sh"), ("hooks", f"sh, {HOOKS} commands")):
        yield Row(name=f"plain {plain}", unit="s", values=tuple(found[f"plain {name}"]))
    yield Row(
        name="an empty phase",
        unit="s",
        values=tuple(found["empty"]),
        baseline="plain sh",
        target="adds at most 0.020",
    )
    yield Row(
        name=f"a phase with {HOOKS} hooks",
        unit="s",
        values=tuple(found["hooks"]),
        baseline=f"plain sh, {HOOKS} commands",
        target=f"adds at most {HOOKS * 0.002 + 0.020:.3f}",
    )


def _measured(api: docker.APIClient, image: str) -> dict[str, list[float]]:
    texts = {
        "empty": (_phase(()), "sh -c 'true'; echo the end\n"),
        "hooks": (
            _phase((":",) * HOOKS),
            f"sh -c '{' && '.join([':'] * HOOKS)}'; echo the end\n",
        ),
    }
    work = {"nonce": NONCE, "rounds": ROUNDS + 5, "texts": texts}
    memory = dict.fromkeys((WORKSPACE, "/run/spacelift", "/mnt/spacelift-log"), "")
    made = api.create_container(
        image,
        ["python3", "-c", _DRIVER],
        user="0",
        host_config=api.create_host_config(tmpfs=memory),
    )["Id"]
    try:
        api.put_archive(made, "/", _files(json.dumps(work).encode()))
        api.start(made)
        api.wait(made)
        found: dict[str, list[float]] = json.loads(api.logs(made, stderr=False))
        return found
    finally:
        api.remove_container(made, v=True, force=True)


def _phase(hooks: tuple[str, ...]) -> str:
    script = phase_script("plan", hooks, directory=WORKSPACE, export=VARIABLES)
    return f"phase plan 30\n{script.text}{NONCE}\n"


def _files(work: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in {"bench/entry": PROGRAM, "bench/work.json": work}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()
