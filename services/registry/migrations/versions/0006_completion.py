"""Configs that only a server can complete: why, what it said, and what it was given."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("parts_waiting", "incomplete", "completion_problem")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("versions", sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.add_column(
        "versions", sa.Column("scanned", sa.String(64), nullable=False, server_default="")
    )


def downgrade() -> None:
    for name in (*COLUMNS, "scanned"):
        op.drop_column("versions", name)
