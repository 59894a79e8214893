"""
The main job, from a trigger to a finished apply, on real parts.

Everything the project needs is set up before (`make demo` does it).  Here a
control plane and a launcher are started, a run is triggered, followed, confirmed
and followed again, and what the launcher's owner sees of it is printed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile

from dataclasses import dataclass
from pathlib import Path

from examples.demo.api import Api
from examples.demo.processes import (
    Process,
    make_repository,
    pool_variables,
    start_launcher,
    start_server,
)


HERE = Path(__file__).parent
IMAGE = "spacelift-launcher/runner:local"
STACK = "testing-spacelift"
TERRAFORM_STACK = "terraform-data"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="spacelift-demo-"))
    demo = None
    try:
        demo = start(folder)
        tell_the_story(demo)
        if keep:
            say_how_to_go_on(demo)
    finally:
        if demo is None or not keep:
            stop(demo, folder)
    return 0


@dataclass(frozen=True, kw_only=True)
class Demo:
    folder: Path
    server: Process
    launcher: Process
    endpoint: str
    api: Api
    secret: str
    has_terraform: bool


def start(folder: Path) -> Demo:
    """Start a control plane and a launcher, with a policy and an image of our own."""
    secret, token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    tool = terraform_in_image()
    for stack in ("ansible", "terraform"):
        make_repository(HERE / "stacks" / stack, folder / "repositories" / stack)
    config = folder / "control-plane.yaml"
    config.write_text(
        (HERE / "control-plane.yaml")
        .read_text()
        .replace("REPOSITORIES", str(folder / "repositories"))
        .replace("TERRAFORM_OR_TOFU", "opentofu" if tool == "tofu" else "terraform")
    )
    title("Starting a control plane and a launcher")
    server, addresses = start_server(
        folder, config, {"DEMO_API_SECRET": secret, "DEMO_STACK_TOKEN": token}
    )
    endpoint = addresses.people
    print(f"control plane: {endpoint}   (log: {server.log})")
    print(f"  for workers: {addresses.workers}, with mutual TLS")
    image = image_id()
    environment = {
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(HERE / "policy.rego"),
        # The image was built on this machine, so no registry vouches for it: it is
        # named by its id, allowed by its id, and never looked for elsewhere.
        "SPACELIFT_DEFAULT_RUNNER_IMAGE": image,
        "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE": image,
        "SPACELIFT_LAUNCHER_ALLOWED_IMAGES": image,
        "SPACELIFT_LAUNCHER_PULL_POLICY": "never",
        # The demo's repositories are folders on this machine.
        "SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file",
    }
    try:
        worker = start_launcher(
            folder,
            pool_variables(folder, "default", addresses.workers),
            environment,
        )
    except BaseException:
        server.stop()
        raise
    print(f"launcher:      {worker.pid}   (log: {worker.log})")
    return Demo(
        folder=folder,
        server=server,
        launcher=worker,
        endpoint=endpoint,
        api=Api(endpoint, "demo", secret),
        secret=secret,
        has_terraform=bool(tool),
    )


def tell_the_story(demo: Demo) -> None:
    run = deploy(demo, STACK)
    if demo.has_terraform:
        deploy(demo, TERRAFORM_STACK)
    title("What the policy was asked, from the launcher's standard error")
    samples = [
        event
        for event in demo.launcher.events()
        if "sample" in event and event["sample"]["input"]["run"]["id"] == run
    ]
    for sample in samples:
        print(json.dumps(sample, indent=2))
    seen = [s["sample"]["input"]["run"]["user_provided_metadata"] for s in samples]
    for metadata in seen:
        print(f"user_provided_metadata: {json.dumps(metadata)}")
    expected = [["deploy-metadata"], ["deploy-metadata", "confirm-metadata"]]
    if seen != expected:
        raise RuntimeError(f"the samples should show {expected}")
    title("The run's address, and the way in for spacectl")
    print(f"{demo.endpoint}/stack/{STACK}/run/{run}")
    for name, value in (
        ("ENDPOINT", demo.endpoint),
        ("ID", "demo"),
        ("SECRET", demo.secret),
    ):
        print(f"export SPACELIFT_API_KEY_{name}={shlex.quote(value)}")


def deploy(demo: Demo, stack: str) -> str:
    """Trigger, follow, confirm, follow; return the run's id."""
    title(f"A tracked run of stack {stack}")
    run = demo.api.trigger(stack, metadata="deploy-metadata")
    seen: set[int] = set()
    state = follow(demo, stack, run, seen, until="UNCONFIRMED")
    if state == "UNCONFIRMED":
        title("Confirming it")
        demo.api.confirm(stack, run, metadata="confirm-metadata")
        state = follow(demo, stack, run, seen)
    if state != "FINISHED":
        raise RuntimeError(f"run {run} ended as {state}; see {demo.launcher.log}")
    return run


def follow(demo: Demo, stack: str, run: str, seen: set[int], *, until: str = "") -> str:
    state = ""
    for state, text in demo.api.follow(stack, run, seen=seen, until=until):
        print(text or f"--- {state}\n", end="", flush=True)
    return state


def say_how_to_go_on(demo: Demo) -> None:
    print(f"export DEMO_FOLDER={shlex.quote(str(demo.folder))}")
    print("Both are still running.  To stop them:")
    print(f"  kill {demo.launcher.pid} && sleep 2 && kill {demo.server.pid}")
    print("An engine that was started for the demo: scripts/engine down")


def stop(demo: Demo | None, folder: Path) -> None:
    """Stop both, and see that nothing of the runs is left in the engine."""
    if demo is not None:
        codes = demo.launcher.stop(), demo.server.stop()
        if any(codes):
            print(f"launcher and control plane ended with {codes}", file=sys.stderr)
        left = leftovers(demo)
        if left:
            raise RuntimeError(f"left in the engine: {left}")
        title("Stopped; no container, volume or network is left")
    shutil.rmtree(folder)


def leftovers(demo: Demo) -> list[str]:
    instance = (demo.folder / "launcher" / "instance").read_text().strip()
    ours = f"label=spacelift.launcher.instance={instance}"
    listed = (
        docker("container", "ls", "--all", "--quiet", "--filter", ours),
        docker("volume", "ls", "--quiet", "--filter", ours),
        docker("network", "ls", "--quiet", "--filter", ours),
    )
    return [entry for entries in listed for entry in entries.split()]


def image_id() -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", IMAGE)


def terraform_in_image() -> str:
    """``tofu`` or ``terraform``, whichever the image has; empty for neither."""
    found = docker(
        *("run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE),
        *("-c", "command -v tofu || command -v terraform || true"),
    )
    return Path(found).name if found else ""


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
