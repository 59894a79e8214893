"""A small client of the control plane's GraphQL API: what spacectl does, in Python."""

from __future__ import annotations

import json
import threading
import time

from collections.abc import Iterator
from typing import Any

import urllib3


METADATA_HEADER = "Spacelift-User-Provided-Run-Metadata"

_LOGIN = (
    "mutation($id: ID!, $secret: String!)"
    " { apiKeyUser(id: $id, secret: $secret) { jwt } }"
)
_TRIGGER = (
    "mutation($stack: ID!, $type: RunType)"
    " { runTrigger(stack: $stack, runType: $type) { id } }"
)
_CONFIRM = (
    "mutation($stack: ID!, $run: ID!) { runConfirm(stack: $stack, run: $run) { id } }"
)
_DISCARD = (
    "mutation($stack: ID!, $run: ID!) { runDiscard(stack: $stack, run: $run) { id } }"
)
_STOP = (
    "mutation($stack: ID!, $run: ID!)"
    ' { runStop(stack: $stack, run: $run, note: "stopped by the client") { id } }'
)
_HISTORY = (
    "query($stack: ID!, $run: ID!) { stack(id: $stack) { run(id: $run)"
    " { history { state stateVersion hasLogs terminal note } } } }"
)
_LOGS = (
    "query($stack: ID!, $run: ID!, $state: RunState!, $version: Int!, $token: String)"
    " { stack(id: $stack) { run(id: $run)"
    " { logs(state: $state, stateVersion: $version, token: $token)"
    " { finished hasMore messages { message } nextToken } } } }"
)


class ApiError(Exception):
    """The control plane said no, in its own words."""


class Api:
    """One signed-in caller."""

    def __init__(self, endpoint: str, key: str, secret: str) -> None:
        self._url = f"{endpoint}/graphql"
        self._http = urllib3.PoolManager()
        self._headers = {"Content-Type": "application/json"}
        answer = self.query(_LOGIN, {"id": key, "secret": secret})
        self._headers["Authorization"] = f"Bearer {answer['apiKeyUser']['jwt']}"

    def query(
        self, document: str, variables: dict[str, Any], metadata: str = ""
    ) -> dict[str, Any]:
        extra = {METADATA_HEADER: metadata} if metadata else {}
        response = self._http.request(
            "POST",
            self._url,
            body=json.dumps({"query": document, "variables": variables}),
            headers={**self._headers, **extra},
            timeout=60,
        )
        answer = response.json()
        if answer.get("errors"):
            raise ApiError(answer["errors"][0]["message"])
        data: dict[str, Any] = answer["data"]
        return data

    def trigger(self, stack: str, *, metadata: str = "", kind: str = "TRACKED") -> str:
        answer = self.query(_TRIGGER, {"stack": stack, "type": kind}, metadata)
        return str(answer["runTrigger"]["id"])

    def confirm(self, stack: str, run: str, *, metadata: str = "") -> None:
        self.query(_CONFIRM, {"stack": stack, "run": run}, metadata)

    def discard(self, stack: str, run: str) -> None:
        self.query(_DISCARD, {"stack": stack, "run": run})

    def stop(self, stack: str, run: str) -> None:
        self.query(_STOP, {"stack": stack, "run": run})

    def history(self, stack: str, run: str) -> list[dict[str, Any]]:
        """State transitions, oldest first."""
        answer = self.query(_HISTORY, {"stack": stack, "run": run})
        return list(reversed(answer["stack"]["run"]["history"]))

    def log(self, stack: str, run: str, state: str, version: int) -> Iterator[str]:
        """Text of one state, as it comes, until the run has left that state."""
        token = None
        while True:
            variables = {
                "stack": stack,
                "run": run,
                "state": state,
                "version": version,
                "token": token,
            }
            logs = self.query(_LOGS, variables)["stack"]["run"]["logs"]
            for message in logs["messages"]:
                yield message["message"]
            if logs["finished"]:
                return
            token = logs["nextToken"]

    def follow(
        self, stack: str, run: str, *, seen: set[int] | None = None, until: str = ""
    ) -> Iterator[tuple[str, str]]:
        """
        Yield (state, text) as they come: an empty text when a state begins.

        Ends with a terminal state, or when the run is in the state *until*.
        """
        seen = set() if seen is None else seen
        pause = threading.Event()
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            for transition in self.history(stack, run):
                version, state = transition["stateVersion"], transition["state"]
                if version in seen:
                    continue
                seen.add(version)
                yield state, ""
                if transition["hasLogs"]:
                    for text in self.log(stack, run, state, version):
                        yield state, text
                if transition["terminal"] or state == until:
                    return
            pause.wait(0.1)
        raise ApiError(f"run {run} did not get anywhere within fifteen minutes")
