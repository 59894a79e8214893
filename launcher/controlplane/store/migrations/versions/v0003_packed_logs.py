"""Parts of logs may be stored as they came: compressed."""

from __future__ import annotations

import sqlalchemy as sa
import zstandard

from alembic import op


revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("log_chunks", sa.Column("unpacked", sa.Integer(), nullable=True))


def downgrade() -> None:
    chunks = sa.table(
        "log_chunks", *map(sa.column, ("job", "start", "data", "unpacked"))
    )
    packed = sa.select(chunks).where(chunks.c.unpacked.is_not(None))
    connection = op.get_bind()
    for row in connection.execute(packed).all():
        plain = zstandard.decompress(row.data, max_output_size=row.unpacked)
        connection.execute(
            sa.update(chunks)
            .where(chunks.c.job == row.job, chunks.c.start == row.start)
            .values(data=plain)
        )
    with op.batch_alter_table("log_chunks") as table:
        table.drop_column("unpacked")
