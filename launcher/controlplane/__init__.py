"""
The control plane: a small server that spacectl and launchers talk to.

What a run may do next is a table (`lifecycle`), what happened is in a database
(`store`), and who may ask for what is decided at the edge (`worker_api` for
launchers, `graphql` for people).  In between are plain, blocking services that
know neither HTTP nor GraphQL.  With the launcher this package shares the wire
types and the errors, nothing else.
"""
