"""Runs migrations inside the transaction that `store.database` has opened."""

from __future__ import annotations

from alembic import context

from launcher.controlplane.store.tables import metadata


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
