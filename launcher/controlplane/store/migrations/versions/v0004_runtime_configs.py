"""What runs are made from besides their stacks."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "runtime_configs",
        sa.Column("run", sa.String(length=26), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_runtime_configs_run"),
        sa.PrimaryKeyConstraint("run", name="pk_runtime_configs"),
    )


def downgrade() -> None:
    op.drop_table("runtime_configs")
