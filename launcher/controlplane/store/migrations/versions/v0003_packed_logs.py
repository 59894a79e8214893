"""Parts of logs may be stored as they came: compressed."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0003"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("log_chunks", sa.Column("unpacked", sa.Integer(), nullable=True))
