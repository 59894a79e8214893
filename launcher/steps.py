"""
The commands of a phase in their order, and what it means when one of them fails.

How far a phase got is what its container says, and the job could have said it, too.
So it words the reason of a failure, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model import Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    hook: str = ""
    """What the hooks are called, as in ``before_plan``."""
    before: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        return (*self.before, *self.own, *self.after)

    def failure(self, result: Exit) -> tuple[str, str]:
        """Why the phase failed, in public words and as a code."""
        reason, code = f"exit code {result.code}", "phase_failed"
        at = result.at or 0
        last_own = len(self.before) + len(self.own)
        if 0 < at <= len(self.before):
            which = f"before_{self.hook} hook {at} of {len(self.before)}"
            reason, code = f"{which} failed with {reason}", "before_hook_failed"
        elif last_own < at <= len(self.commands):
            which = f"after_{self.hook} hook {at - last_own} of {len(self.after)}"
            reason, code = f"{which} failed with {reason}", "after_hook_failed"
        return reason, code
