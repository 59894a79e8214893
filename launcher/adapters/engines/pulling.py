"""
One pull, and the thread that reads what the engine says about it.

docker-py's own ``pull`` waits for ever and hands out nothing by which it could be
ended, so the call is made here.
"""

from __future__ import annotations

import contextlib
import json
import threading

from collections.abc import Mapping

import docker
import docker.auth
import docker.errors
import requests

from docker.types import CancellableStream

from launcher.adapters.engines.docker_errors import VENDOR_ERRORS
from launcher.adapters.engines.pull_progress import PullProgress


class Pull:
    """Asks the engine for *runnable*, a repository with a digest."""

    def __init__(
        self,
        api: docker.APIClient,
        runnable: str,
        auth: Mapping[str, str],
        progress: PullProgress,
        *,
        quiet_for: float,
    ) -> None:
        self._api = api
        self._name, _, self._digest = runnable.rpartition("@")
        self._auth = auth
        self._progress = progress
        self._quiet_for = quiet_for
        self._lock = threading.Lock()
        self._left = False
        self._response: requests.Response | None = None
        self.over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Block until the engine has the image, or says that it will not."""
        try:
            with contextlib.closing(self._begun()) as response:
                with self._lock:
                    self._response = response
                    if self._left:
                        return
                self._follow(response)
        except BaseException as exc:  # noqa: BLE001 (for whoever waits to raise)
            self.error = exc
        finally:
            self.over.set()

    def leave(self) -> None:
        """Let go of it; the engine gives it up unless somebody else wants it."""
        with self._lock:
            self._left = True
            response = self._response
        if response is not None and not self.over.is_set():
            with contextlib.suppress(*VENDOR_ERRORS):
                CancellableStream(iter(()), response).close()

    def _begun(self) -> requests.Response:
        return self._api.post(
            f"{self._api.base_url}/v{self._api.api_version}/images/create",
            params={"fromImage": self._name, "tag": self._digest},
            headers={"X-Registry-Auth": docker.auth.encode_header(dict(self._auth))},
            stream=True,
            # Longer than whoever waits has patience: it only ends what was left.
            timeout=(self._api.timeout, self._quiet_for * 2),
        )

    def _follow(self, response: requests.Response) -> None:
        try:
            response.raise_for_status()
        except requests.HTTPError as exc:
            docker.errors.create_api_error_from_http_exception(exc)
        for line in response.iter_lines(chunk_size=None):
            if not line:
                continue
            said = json.loads(line)
            if error := said.get("error"):
                raise docker.errors.APIError(str(error), explanation=str(error))
            self._progress.tick(said)
