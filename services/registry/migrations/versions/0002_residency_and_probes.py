"""What models ask of the fleet, and what versions must answer before they count as READY."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("residency", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("versions", sa.Column("probe", sa.LargeBinary, nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "probe")
    op.drop_column("models", "residency")
