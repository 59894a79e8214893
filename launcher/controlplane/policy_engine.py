"""Where the control plane gets its policy engine: the same that launchers have."""

from __future__ import annotations

from launcher.controlplane.policies import Judge
from launcher.errors import PolicyUnusable


def compiled(body: str, kind: str) -> Judge:
    """
    Compile a policy of the type *kind*, such as ``PLAN``.

    Raises:
        PolicyUnusable: it cannot be compiled, or nobody asks such policies.
    """
    # wasmtime is large, and only those who have policies should pay for it.
    from launcher.adapters.policies.central import (  # noqa: PLC0415
        QUESTIONS,
        CentralPolicy,
    )

    if kind not in QUESTIONS:
        raise PolicyUnusable(f"policies of type {kind} are not evaluated here")
    return CentralPolicy(body, QUESTIONS[kind])
