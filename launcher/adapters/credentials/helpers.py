"""
Logins from credential helpers: programs that the owner named in a configuration.

The protocol is that of ``docker-credential-…``: the command ``get``, the registry on
standard input, JSON on standard output; the user ``<token>`` says that the secret is
an identity token; exit status 1 and ``credentials not found …`` say that there is
none.  A helper is found by its name in PATH, so a name is no path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess

from collections.abc import Mapping

from launcher.credentials import Login
from launcher.docker_auths import is_helper_name
from launcher.errors import ImageUnavailable
from launcher.secret import Secret


HELPER_SECONDS = 10.0

_NOT_FOUND = b"credentials not found"
_IDENTITY_TOKEN = "<token>"  # noqa: S105 (what helpers say instead of a user)
_MAX_ANSWER = 1 << 20


class Helpers:
    """Starts helpers; they see *environment* and nothing else of ours."""

    def __init__(
        self, environment: Mapping[str, str], *, seconds: float = HELPER_SECONDS
    ) -> None:
        self._environment = dict(environment)
        self._seconds = seconds

    def ask(self, name: str, server: str, registry: str) -> Login | None:
        """
        Return what ``docker-credential-<name>`` knows of *server*.

        Raises:
            ImageUnavailable: it cannot be started, fails, takes too long, or says
                what nobody understands.
        """
        program = f"docker-credential-{name}"
        path = is_helper_name(name) and shutil.which(
            program, path=self._environment.get("PATH", os.defpath)
        )
        if not path:
            raise _useless(program, "there is no such program in PATH")
        answer = self._run(path, program, server)
        if answer is None:
            return None
        try:
            said = json.loads(answer)
            username, secret = str(said["Username"]), str(said["Secret"])
        except (ValueError, KeyError, TypeError):
            # Neither the answer nor the exception: it quotes what may be secret.
            raise _useless(program, "its answer is not a login") from None
        token = username == _IDENTITY_TOKEN
        return Login(
            username="" if token else username,
            password=Secret("" if token else secret),
            identity_token=Secret(secret) if token else None,
            registry=registry,
        )

    def _run(self, path: str, program: str, server: str) -> bytes | None:
        try:
            process = subprocess.Popen(
                [path, "get"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:
            raise _useless(program, str(exc.strerror)) from exc
        with process:
            try:
                answer, _ = process.communicate(server.encode(), timeout=self._seconds)
            except subprocess.TimeoutExpired:
                raise _useless(program, f"no answer in {self._seconds:g} s") from None
            finally:
                # Whatever it started, too: it may hold our end of the pipe.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            if answer.strip().startswith(_NOT_FOUND):
                return None
            raise _useless(program, f"it ended with {process.returncode}")
        if len(answer) > _MAX_ANSWER:
            raise _useless(program, "its answer is not a login")
        return answer


def _useless(program: str, why: str) -> ImageUnavailable:
    return ImageUnavailable(
        f"the credential helper {program} of this worker gives no login",
        details=f"{program}: {why}",
    )
