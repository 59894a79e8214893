"""
Signed runs: proof that somebody of yours meant this very run to happen.

A signature travels as user-provided metadata.  It is a JWS over what decides
what will happen (`claims`), made with a key the control plane does not have
(`keys`, `tokens`), and checked on the worker against the input that the
initialization policy sees (`verification`), once for each run (`replay`).
"""
