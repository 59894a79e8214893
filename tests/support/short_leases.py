"""A control plane like any other, with leases as short as a test wants them."""

import functools
import os

from launcher.cli import main
from launcher.controlplane import serve as serving
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.services import Limits


if __name__ == "__main__":
    lease = float(os.environ["LEASE_SECONDS"])
    terms = LeaseTerms(
        lease_seconds=lease,
        renew_seconds=lease / 4,
        stop_grace_seconds=lease / 2,
        sweep_seconds=0.5,
    )
    serving.serve = functools.partial(serving.serve, limits=Limits(lease_terms=terms))
    main()
