"""What several servers share, and what is left of what was kept long enough."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("job", sa.String(length=26), nullable=False),
        sa.Column("renewals", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_leases"),
    )
    op.create_table(
        "uploads",
        sa.Column("job", sa.String(length=26), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("file", sa.String(length=255), nullable=False),
        sa.Column("external", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_uploads"),
    )
    op.create_table(
        "removed_logs",
        sa.Column("job", sa.String(length=26), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.Column("kept_days", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_removed_logs"),
    )
    op.create_table(
        "used_signatures",
        sa.Column("mark", sa.LargeBinary(length=32), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("mark", name="pk_used_signatures"),
    )
    op.create_index("ix_used_signatures_until", "used_signatures", ["until"])


def downgrade() -> None:
    for table in ("used_signatures", "removed_logs", "uploads", "leases"):
        op.drop_table(table)
