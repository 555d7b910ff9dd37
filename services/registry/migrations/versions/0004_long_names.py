"""Names of models as long as a file system allows: 255 bytes.

SQLite does not enforce lengths, and could change a column only by copying its table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("models", "name"),
    ("versions", "model"),
    ("uses", "model"),
    ("uses", "used"),
    ("footprints", "model"),
)


def upgrade() -> None:
    _set_length(255)


def downgrade() -> None:
    _set_length(128)


def _set_length(length: int) -> None:
    if op.get_bind().dialect.name != "sqlite":
        for table, column in _COLUMNS:
            op.alter_column(table, column, type_=sa.String(length), existing_nullable=False)
