"""
One job's way to its image: who it is to the registry, found out once.

A login that the registry refuses is replaced once in a job: tokens end before their
time, and passwords are renewed while jobs are on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from launcher.cancel import CancelToken
from launcher.credentials import Login, RegistryCredentials
from launcher.errors import ImageAccessDenied
from launcher.images import Permit, Reference
from launcher.model import ResolvedImage
from launcher.ports import ContainerEngine
from launcher.wire.jobs import Job


log = structlog.get_logger()

Answer = TypeVar("Answer")


class ImageAccess:
    """Resolves and pulls for one job, in one thread."""

    def __init__(
        self,
        job: Job,
        engine: ContainerEngine,
        credentials: RegistryCredentials,
        *,
        say: Callable[[str], None],
        cancel: CancelToken,
        logged_in: Callable[[Login], None] = lambda _: None,
    ) -> None:
        """
        *say* is told how it goes, *logged_in* each login before it is used.
        """
        self._given = job.registry_logins
        self._engine = engine
        self._credentials = credentials
        self._say = say
        self._cancel = cancel
        self._logged_in = logged_in
        self._login: Login | None = None
        self._asked = self._renewed = False

    def resolve(self, permit: Permit) -> ResolvedImage:
        """Do what `ContainerEngine.resolve` does, as the job."""
        return self._as_the_job(
            permit.reference, lambda login: self._engine.resolve(permit, login)
        )

    def pull(self, image: ResolvedImage) -> None:
        """Do what `ContainerEngine.pull` does, as the job."""
        self._as_the_job(
            Reference.parse(image.reference),
            lambda login: self._engine.pull(
                replace(image, login=login), say=self._say, cancel=self._cancel
            ),
        )

    def _as_the_job(
        self, reference: Reference, attempt: Callable[[Login | None], Answer]
    ) -> Answer:
        if not self._asked:
            self._use(self._credentials.for_image(reference, self._given))
            self._asked = True
        try:
            return attempt(self._login)
        except ImageAccessDenied:
            if self._renewed:
                raise
            self._renewed = True
            fresh = self._credentials.renewed(reference, self._login, self._given)
            if fresh is None:
                raise
            log.info("credentials.renewed", registry=reference.registry)
            self._use(fresh)
        return attempt(fresh)

    def _use(self, login: Login | None) -> None:
        if login is not None:
            self._logged_in(login)
        self._login = login
