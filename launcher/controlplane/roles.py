"""
What API keys may do: three roles, and which one each thing needs that can be asked for.

This table is the only place that says so, for the API and for the pages.  What it does
not name needs the strictest role.
"""

from __future__ import annotations

import enum

from collections.abc import Mapping


class Role(enum.StrEnum):
    """Each may do what those before it may."""

    READER = "reader"
    """Sees everything but secrets and the audit trail."""
    WRITER = "writer"
    """Lets runs begin, go on and end."""
    ADMIN = "admin"
    """Changes what there is: stacks, their environment, and workers."""

    def covers(self, other: Role) -> bool:
        """Whether this role may do what needs *other*."""
        order = list(Role)
        return order.index(self) >= order.index(other)


READER, WRITER, ADMIN = Role

NEEDED: Mapping[str, Role] = {
    "debugInfo": READER,
    "policy": READER,
    "publicWorkerPool": READER,
    "runStack": READER,
    "searchPolicies": READER,
    "searchStacks": READER,
    "stack": READER,
    "stacks": READER,
    "workerPool": READER,
    "workerPools": READER,
    "policySimulate": WRITER,
    "runCancel": WRITER,
    "runConfirm": WRITER,
    "runDiscard": WRITER,
    "runExternalDependencyMarkAsCompleted": WRITER,
    "runPrioritizeSet": WRITER,
    "runPromote": WRITER,
    "runProposeLocalWorkspace": WRITER,
    "runRetry": WRITER,
    "runReview": WRITER,
    "runStop": WRITER,
    "runTargetedReplan": WRITER,
    "runTrigger": WRITER,
    "stackLock": WRITER,
    "stackSetCurrentCommit": WRITER,
    "stackSyncCommit": WRITER,
    "stackUnlock": WRITER,
    "taskCreate": WRITER,
    "uploadLocalWorkspace": WRITER,
    "searchAuditTrailEntries": ADMIN,
    "stackConfigAdd": ADMIN,
    "stackConfigDelete": ADMIN,
    "stackDelete": ADMIN,
    "stackDisable": ADMIN,
    "stackEnable": ADMIN,
    "stateDownloadUrl": ADMIN,
    "workerDrainSet": ADMIN,
    "workerPoolCycle": ADMIN,
}
"""Fields of GraphQL's roots, but for those that strangers may ask for."""


def needed(what: str) -> Role:
    """The role without which *what*, a field of GraphQL's roots, is refused."""
    return NEEDED.get(what, ADMIN)
