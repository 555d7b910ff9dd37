"""The repositories that were imported, and what could not be imported from each."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "repositories",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("problems", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("repositories")
