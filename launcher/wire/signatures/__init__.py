"""
Requests that prove by themselves which pool they are of: RFC 9421.

For installations in which TLS ends at a proxy, so that no client certificate
reaches the control plane.  `profile` is what both halves agree on, `signer` the
launcher's half, `verifier` and `nonces` the control plane's.  ``docs/protocol.md``
describes the headers.

`signer` and `verifier` load a library that nobody else needs: import them where
they are used, and `profile` wherever you like.
"""
