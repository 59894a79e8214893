"""
Amazon's container registries, told by their host names.

A private one is ``<account>.dkr.ecr[-fips].<region>.amazonaws.com`` (in China with
``.cn``, in the European Sovereign Cloud ``.eu``), or its dual-stack twin
``<account>.dkr-ecr[-fips].<region>.on.aws``; the public one is ``public.ecr.aws``.
The names are from AWS's own list of endpoints.  No name with a port is one of them.
"""

from __future__ import annotations

import re

from dataclasses import dataclass
from typing import Self


PUBLIC = "public.ecr.aws"
PUBLIC_REGION = "us-east-1"
"""Where tokens for the public registry are issued, and nowhere else."""

_REGION = r"[a-z]+(?:-[a-z]+)+-[0-9]+"
_PRIVATE = re.compile(
    r"(?P<account>[0-9]{12})\.dkr"
    rf"(?:\.ecr(?P<fips>-fips)?\.(?P<region>{_REGION})\.amazonaws\.(?:com(?:\.cn)?|eu)"
    rf"|-ecr(?P<fips6>-fips)?\.(?P<region6>{_REGION})"
    r"\.on\.(?:aws|amazonwebservices\.com\.cn))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrEndpoint:
    """Whom to ask for a token: what registries of one region share."""

    region: str
    fips: bool = False
    dual_stack: bool = False
    public: bool = False

    @classmethod
    def of(cls, registry: str) -> Self | None:
        """Return the endpoint for *registry*, a host name; None: it is not ECR."""
        if registry == PUBLIC:
            return cls(region=PUBLIC_REGION, public=True)
        match = _PRIVATE.fullmatch(registry)
        if match is None:
            return None
        return cls(
            region=match["region"] or match["region6"],
            fips=bool(match["fips"] or match["fips6"]),
            dual_stack=match["region6"] is not None,
        )
