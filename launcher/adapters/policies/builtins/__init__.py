"""
The builtins that OPA's WebAssembly leaves to its host.

What is here is proved against OPA's own cases (`make conformance`).  What is not
here stops the start of a launcher whose policy needs it, by name.
"""

from launcher.adapters.policies.builtins import (
    hashes,
    nets,
    signatures,
    structures,
    texts,
    times,
    tokens,
)
from launcher.adapters.policies.machine import Builtin


BUILTINS: dict[str, Builtin] = {
    **hashes.BUILTINS,
    **nets.BUILTINS,
    **signatures.BUILTINS,
    **structures.BUILTINS,
    **texts.BUILTINS,
    **times.BUILTINS,
    **tokens.BUILTINS,
}

TRUSTING: dict[str, Builtin] = {**BUILTINS, **tokens.TRUSTING}
"""The same, where every token counts as well signed; for trying a policy only."""
