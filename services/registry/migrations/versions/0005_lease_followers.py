"""The Routers that follow the Controller which holds the lease. Those of before are not known."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lease", sa.Column("followers", sa.JSON))


def downgrade() -> None:
    op.drop_column("lease", "followers")
