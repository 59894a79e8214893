"""Run types, locks, local previews, reviews, policies and the audit trail."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op


revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("resource_type", sa.String(length=32), nullable=False),
        sa.Column("resource", sa.String(length=255), nullable=True),
        sa.Column("related_type", sa.String(length=32), nullable=True),
        sa.Column("related", sa.String(length=255), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
        sa.UniqueConstraint("id", name="uq_audit_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policies"),
    )
    op.create_table(
        "policy_samples",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("policy", sa.String(length=255), nullable=False),
        sa.Column("run", sa.String(length=26), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_policy_samples"),
    )
    op.create_index(
        "ix_policy_samples_policy", "policy_samples", ["policy"], unique=False
    )
    op.create_table(
        "webhooks",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("allow_local", sa.Boolean(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_webhooks"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("webhook", sa.String(length=255), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["webhook"], ["webhooks.name"], name="fk_deliveries_webhook"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_webhook", "deliveries", ["webhook"], unique=False)
    op.create_table(
        "local_workspaces",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("used", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stack"], ["stacks.slug"], name="fk_local_workspaces_stack"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_local_workspaces"),
    )
    op.create_table(
        "resources",
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("address", sa.String(length=1024), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("creator", sa.String(length=26), nullable=True),
        sa.Column("updater", sa.String(length=26), nullable=True),
        sa.ForeignKeyConstraint(["stack"], ["stacks.slug"], name="fk_resources_stack"),
        sa.PrimaryKeyConstraint("stack", "address", name="pk_resources"),
    )
    op.create_table(
        "stack_config",
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=1024), nullable=False),
        sa.Column("file", sa.Boolean(), nullable=False),
        sa.Column("secret", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stack"], ["stacks.slug"], name="fk_stack_config_stack"
        ),
        sa.PrimaryKeyConstraint("stack", "name", "file", name="pk_stack_config"),
    )
    op.create_table(
        "stack_dependencies",
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("upstream", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["stack"], ["stacks.slug"], name="fk_stack_dependencies_stack"
        ),
        sa.PrimaryKeyConstraint("stack", "upstream", name="pk_stack_dependencies"),
    )
    op.create_index(
        "ix_stack_dependencies_upstream",
        "stack_dependencies",
        ["upstream"],
        unique=False,
    )
    op.create_table(
        "stack_outputs",
        sa.Column("stack", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("changed_by", sa.String(length=26), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("sensitive", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["stack"], ["stacks.slug"], name="fk_stack_outputs_stack"
        ),
        sa.PrimaryKeyConstraint("stack", "name", name="pk_stack_outputs"),
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("run", sa.String(length=26), nullable=False),
        sa.Column("author", sa.String(length=255), nullable=False),
        sa.Column("approves", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_reviews_run"),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
    )
    op.create_index("ix_reviews_run", "reviews", ["run"], unique=False)
    op.create_table(
        "run_dependencies",
        sa.Column("run", sa.String(length=26), nullable=False),
        sa.Column("upstream", sa.Boolean(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("outputs", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("always", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=True),
        sa.Column("changed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_run_dependencies_run"),
        sa.PrimaryKeyConstraint("run", "upstream", "name", name="pk_run_dependencies"),
    )
    op.create_index(
        "ix_run_dependencies_name", "run_dependencies", ["name"], unique=False
    )
    op.add_column("pools", sa.Column("drift_limit", sa.Integer(), nullable=True))
    op.add_column(
        "runs", sa.Column("command", sa.Text(), server_default="", nullable=False)
    )
    op.add_column(
        "runs",
        sa.Column("skip_init", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column(
        "runs", sa.Column("targets", sa.JSON(), server_default="[]", nullable=False)
    )
    op.add_column("runs", sa.Column("runtime_config", sa.LargeBinary(), nullable=True))
    op.add_column(
        "runs",
        sa.Column(
            "prioritized", sa.Boolean(), server_default=sa.false(), nullable=False
        ),
    )
    op.add_column(
        "runs",
        sa.Column("drift", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column(
        "runs", sa.Column("local_workspace", sa.String(length=26), nullable=True)
    )
    op.add_column("runs", sa.Column("overrides", sa.LargeBinary(), nullable=True))
    op.add_column("runs", sa.Column("inputs", sa.LargeBinary(), nullable=True))
    op.add_column(
        "runs",
        sa.Column(
            "needs_approval", sa.Boolean(), server_default=sa.false(), nullable=False
        ),
    )
    op.add_column(
        "runs", sa.Column("flags", sa.JSON(), server_default="[]", nullable=False)
    )
    op.add_column(
        "runs", sa.Column("denials", sa.JSON(), server_default="[]", nullable=False)
    )
    op.add_column(
        "runs", sa.Column("warnings", sa.JSON(), server_default="[]", nullable=False)
    )
    op.add_column(
        "stacks", sa.Column("locked_by", sa.String(length=255), nullable=True)
    )
    op.add_column("stacks", sa.Column("lock_note", sa.Text(), nullable=True))
    op.add_column(
        "stacks",
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column(
        "stacks",
        sa.Column("deleted", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column("stacks", sa.Column("destroyer", sa.String(length=26), nullable=True))
    op.add_column(
        "stacks", sa.Column("pinned_commit", sa.JSON(none_as_null=True), nullable=True)
    )
    op.add_column(
        "stacks", sa.Column("pinned_by", sa.String(length=255), nullable=True)
    )
    op.add_column(
        "workers",
        sa.Column("drained", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column(
        "workers",
        sa.Column("cycled", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("workers", "cycled")
    op.drop_column("workers", "drained")
    op.drop_column("stacks", "pinned_by")
    op.drop_column("stacks", "pinned_commit")
    op.drop_column("stacks", "destroyer")
    op.drop_column("stacks", "deleted")
    op.drop_column("stacks", "disabled")
    op.drop_column("stacks", "lock_note")
    op.drop_column("stacks", "locked_by")
    op.drop_column("runs", "warnings")
    op.drop_column("runs", "denials")
    op.drop_column("runs", "flags")
    op.drop_column("runs", "needs_approval")
    op.drop_column("runs", "inputs")
    op.drop_column("runs", "overrides")
    op.drop_column("runs", "local_workspace")
    op.drop_column("runs", "drift")
    op.drop_column("runs", "prioritized")
    op.drop_column("runs", "runtime_config")
    op.drop_column("runs", "targets")
    op.drop_column("runs", "skip_init")
    op.drop_column("runs", "command")
    op.drop_column("pools", "drift_limit")
    op.drop_index("ix_run_dependencies_name", table_name="run_dependencies")
    op.drop_table("run_dependencies")
    op.drop_index("ix_reviews_run", table_name="reviews")
    op.drop_table("reviews")
    op.drop_table("stack_outputs")
    op.drop_index("ix_stack_dependencies_upstream", table_name="stack_dependencies")
    op.drop_table("stack_dependencies")
    op.drop_table("stack_config")
    op.drop_table("resources")
    op.drop_table("local_workspaces")
    op.drop_index("ix_deliveries_webhook", table_name="deliveries")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_index("ix_policy_samples_policy", table_name="policy_samples")
    op.drop_table("policy_samples")
    op.drop_table("policies")
    op.drop_table("audit")
