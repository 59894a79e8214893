"""When stacks were last looked at for drift."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "drift_schedules",
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("looked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stack", name="pk_drift_schedules"),
    )


def downgrade() -> None:
    op.drop_table("drift_schedules")
