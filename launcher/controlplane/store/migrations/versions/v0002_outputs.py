"""What stacks tell others."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "outputs",
        sa.Column("run", sa.String(length=26), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_outputs_run"),
        sa.PrimaryKeyConstraint("run", name="pk_outputs"),
    )


def downgrade() -> None:
    op.drop_table("outputs")
