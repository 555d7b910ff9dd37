"""Why a version could not be loaded the last time."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("footprints") as table:
        table.add_column(sa.Column("failure", sa.JSON()))


def downgrade() -> None:
    with op.batch_alter_table("footprints") as table:
        table.drop_column("failure")
