"""How much each version is used."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("footprints") as table:
        table.add_column(sa.Column("uses", sa.Float(), nullable=False, server_default="0"))
        table.add_column(sa.Column("used_us", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("footprints") as table:
        table.drop_column("used_us")
        table.drop_column("uses")
