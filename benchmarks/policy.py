"""What one evaluation costs, beside what OPA itself costs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Row
from launcher.adapters.policies.loading import load
from launcher.policy import PolicyEngine
from launcher.settings import PolicySettings


EVALUATIONS = 5_000
THREADS = 8
ROUNDS = 7
PROCESSES = 20
MANY = 100_000

POLICY = """package spacelift

deny contains "only main may be applied" if {
	input.static_run_environment.run_type == "TRACKED"
	input.static_run_environment.commit_branch != "main"
}

deny contains sprintf("hook %q is not one of ours", [hook]) if {
	some hook in input.static_run_environment.before_init
	not startswith(hook, "/opt/hooks/")
}

deny contains "no metadata" if count(input.run.user_provided_metadata) == 0

sample := true
"""

SAMPLE: dict[str, Any] = {
    "docker_image": "",
    "run": {
        "based_on_local_workspace": False,
        "changes": [],
        "commit": {
            "author": "someone",
            "branch": "main",
            "created_at": 1630588655754344000,
            "message": "Update the stack",
        },
        "created_at": 1630588655754344000,
        "id": "01FEKAGP4AYV0DWP4QDGTANMV0",
        "state": "PREPARING",
        "triggered_by": "api::01FEJQG0DQ0J7N2KXD0J0P0P2S",
        "updated_at": 1630588655754344000,
        "user_provided_metadata": ["deploy-metadata", "confirm-metadata"],
    },
    "static_run_environment": {
        "account_name": "acme",
        "auto_deploy": True,
        "before_apply": None,
        "before_init": ["/opt/hooks/prepare"],
        "command": "",
        "commit_branch": "main",
        "commit_sha": "8edbcb3d1c1ad4b6c4c4d8ad8f0a7f4d4a2a6f0b",
        "endpoint_logs": "tcp://127.0.0.1:1983",
        "endpoint_registry": "",
        "environment_variables": {},
        "project_root": "",
        "refresh_state": True,
        "repository_path": "acme/testing-spacelift",
        "run_type": "TRACKED",
        "run_ulid": "01FEKAGP4AYV0DWP4QDGTANMV0",
        "skip_init": False,
        "stack_labels": None,
        "stack_slug": "testing-spacelift",
        "terraform_version": "0.14.10",
        "vendor_specific_config": {
            "vendor": "terraform",
            "typed_config": {"use_terragrunt": False, "use_infracost": False},
        },
    },
    "worker_version": "development",
}


def policies(folder: Path) -> Iterator[Row]:
    folder.mkdir(exist_ok=True)
    path = folder / "policy.rego"
    path.write_text(POLICY)
    (folder / "input.json").write_text(json.dumps(SAMPLE))
    policy = load(PolicySettings(path=path))
    if not policy.evaluate(SAMPLE).allowed:
        raise RuntimeError("the sample is not allowed")
    times = [timed(lambda: policy.evaluate(SAMPLE)) for _ in range(EVALUATIONS)]
    for quantile, target in ((0.5, "at most 0.001"), (0.99, "at most 0.005")):
        yield Row(
            name=f"policy: one evaluation, p{quantile * 100:g}",
            unit="s",
            values=tuple(times),
            quantile=quantile,
            target=target,
        )
    yield Row(
        name="policy: 8 threads, throughput against one",
        unit="ratio of rates",
        values=tuple(throughput(policy) for _ in range(ROUNDS)),
        target="at least 0.7",
    )
    yield Row(
        name="policy: `opa eval`, a process each",
        unit="s",
        values=tuple(timed(lambda: opa_eval(folder)) for _ in range(PROCESSES)),
        baseline="policy: one evaluation, p50",
        target="ratio at least 50",
    )
    with opa_server(path) as ask:
        ask()
        yield Row(
            name="policy: warm `opa run --server`, over loopback",
            unit="s",
            values=tuple(timed(ask) for _ in range(EVALUATIONS)),
            baseline="policy: one evaluation, p50",
            target="ratio above 1",
        )
    large = with_changes(5_000)
    policy.evaluate(large)
    yield Row(
        name="policy: an input of 2 MB, 5000 changes",
        unit="s",
        values=tuple(timed(lambda: policy.evaluate(large)) for _ in range(20)),
        target="at most 0.2",
    )
    yield Row(
        name="policy: memory that 100,000 evaluations add",
        unit="MB resident, after each fifth",
        values=tuple(growth(policy)),
        target="flat",
    )


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def throughput(policy: PolicyEngine) -> float:
    count = 2_000

    def several(_: object) -> None:
        for _ in range(count // THREADS):
            policy.evaluate(SAMPLE)

    one = timed(lambda: [several(None) for _ in range(THREADS)])
    with ThreadPoolExecutor(THREADS) as pool:
        all_at_once = timed(lambda: list(pool.map(several, range(THREADS))))
    return one / all_at_once


def opa_eval(folder: Path) -> None:
    subprocess.run(
        ["opa", "eval", "-d", "policy.rego", "-i", "input.json", "data.spacelift"],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@contextmanager
def opa_server(policy: Path) -> Iterator[Callable[[], None]]:
    """A server of OPA that knows the policy, over one connection kept open."""
    process = subprocess.Popen(
        ["opa", "run", "--server", "--addr=127.0.0.1:0", "--log-level=error", policy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", listening(process.pid))
        body = json.dumps({"input": SAMPLE})

        def ask() -> None:
            connection.request("POST", "/v1/data/spacelift", body)
            answer = json.loads(connection.getresponse().read())
            if answer["result"]["deny"]:
                raise RuntimeError("the sample is not allowed")

        yield ask
        connection.close()
    finally:
        process.terminate()
        process.wait()


def listening(pid: int) -> int:
    """Wait for the process to listen; returns the port."""
    process = psutil.Process(pid)
    while True:
        for each in process.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                return int(each.laddr.port)
        os.sched_yield()


def with_changes(count: int) -> dict[str, Any]:
    changes = [
        {
            "action": "added",
            "phase": "plan",
            "entity": {
                "address": f"aws_instance.many[{number}]",
                "name": "many",
                "type": "aws_instance",
                "entity_vendor": "terraform",
                "data": {"values": {"ami": "ami-0123456789", "note": "x" * 240}},
            },
        }
        for number in range(count)
    ]
    return SAMPLE | {"run": SAMPLE["run"] | {"changes": changes}}


def growth(policy: PolicyEngine) -> Iterator[float]:
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(5):
        for _ in range(MANY // 5):
            policy.evaluate(SAMPLE)
        yield (process.memory_info().rss - before) / 1e6
