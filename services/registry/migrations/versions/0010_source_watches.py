"""Sources that are looked at again and again."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NAME = sa.String(255).with_variant(sa.String(128), "sqlite")


def upgrade() -> None:
    op.create_table(
        "source_watches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", _NAME, nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("last_import", sa.String(32), nullable=False),
        sa.Column("declared_memory", sa.JSON, nullable=False),
        sa.Column("pending", sa.Boolean, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("source_watches")
