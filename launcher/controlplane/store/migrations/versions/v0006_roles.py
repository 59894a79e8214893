"""What API keys may do, and the samples of a run."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(
            # Whoever has a key from before could do everything.
            sa.Column(
                "role", sa.String(length=32), nullable=False, server_default="admin"
            )
        )
    with op.batch_alter_table("api_keys") as batch:
        batch.alter_column("role", server_default=None)
    op.create_index("ix_policy_samples_run", "policy_samples", ["run"])


def downgrade() -> None:
    op.drop_index("ix_policy_samples_run", "policy_samples")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_column("role")
