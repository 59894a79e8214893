"""
The shape of a Docker configuration, as far as logins are concerned.

A value of ``credHelpers`` and ``credsStore`` is the end of a program's name.  It is
looked for in PATH, so what leads elsewhere is refused.
"""

from __future__ import annotations

import json
import re

from typing import Any


_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parsed(text: bytes) -> dict[str, Any]:
    """
    Read a Docker configuration.  Entries of ``auths`` may still be of any shape.

    Raises:
        ValueError: it is none; the message repeats nothing of it.
    """
    try:
        document = json.loads(text)
    except ValueError:
        raise ValueError("must be JSON") from None
    if not isinstance(document, dict):
        raise ValueError("must be a Docker configuration")  # noqa: TRY004
    for part in ("auths", "credHelpers"):
        if not isinstance(document.setdefault(part, {}), dict):
            raise ValueError(f"its {part} must be a mapping")  # noqa: TRY004
    store = document.get("credsStore")
    for name in (*document["credHelpers"].values(), *([store] if store else [])):
        if not is_helper_name(name):
            raise ValueError(
                "a credential helper must be named by letters, digits, . _ and -,"
                " never by a path"
            )
    return document


def is_helper_name(text: object) -> bool:
    """Tell whether *text* may be the end of a helper's name."""
    return isinstance(text, str) and _HELPER.fullmatch(text) is not None
