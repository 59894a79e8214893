"""
The worker protocol, version 1: what travels between launcher and control plane.

The only code that both halves share.  `jobs` is the work itself, `messages` the
requests and answers around it.  ``docs/protocol.md`` explains the conversation.
"""
