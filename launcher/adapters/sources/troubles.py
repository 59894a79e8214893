"""
What git says when it fails, in one sentence for the owner of the run.

git has exit codes for hardly anything, so its words are read.  It speaks English
here (LC_ALL=C), and what the server says beside it is left out.
"""

from __future__ import annotations

import re

from launcher.errors import SourceUnavailable


_NOT = "{what} cannot be fetched: "
_TROUBLES: dict[tuple[str, ...], str] = {
    ("no space left on device",): "the worker's disk is full",
    ("remote host identification has changed",): _NOT
    + "its server shows another ssh host key than the one that is known",
    ("host key is known for", "host key verification failed"): _NOT
    + "the ssh host key of its server is not among the known hosts",
    (
        "could not read username",
        "could not read password",
        "terminal prompts disabled",
    ): _NOT + "its server asks for credentials, and there are none for it",
    (
        "authentication failed",
        r"permission denied \(",
        "returned error: 403",
        "http basic: access denied",
        "load key .* (invalid format|error in libcrypto)",
    ): _NOT + "its server does not accept the credentials",
    ("returned error: 30[12378]", "unable to update url base from redirection"): _NOT
    + "its server sends us on to another address, which is not followed",
    (
        "certificate verif",
        "ssl certificate problem",
        "no alternative certificate subject name",
        "does not match target host",
        "gnutls_handshake",
        "ssl_connect",
    ): _NOT + "the certificate of its server is not trusted",
    (
        "could not resolve host",
        "name or service not known",
        "temporary failure in name",
    ): _NOT + "there is no address for the name of its server",
    (
        "failed to connect",
        "couldn't connect",
        "connection refused",
        "connection timed out",
        "no route to host",
        "network is unreachable",
        "connection reset",
        "operation too slow",
        "connection closed by",
        "timeout was reached",
    ): _NOT + "its server cannot be reached",
    (
        "repository '.*' not found",
        "does not appear to be a git repository",
        "repository not found",
        "returned error: 404",
        "no such file or directory",
    ): _NOT + "there is no such repository, or the credentials do not show it",
}
"""What is said of what git says; of several that fit, the first one counts."""
_REMOTE = re.compile(r"^remote:.*$", re.MULTILINE)


def trouble(complaint: str, what: str) -> SourceUnavailable | None:
    """The error for git's *complaint* about *what*; None if it may yet work."""
    words = _REMOTE.sub("", complaint)
    for patterns, sentence in _TROUBLES.items():
        if re.search("|".join(patterns), words, re.IGNORECASE):
            return SourceUnavailable(sentence.format(what=what), details=complaint)
    return None
