"""Migrations of the database's tables."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

_SCRIPTS = Path(__file__).parents[1] / "migrations"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations. Blocks: call it through AsyncConnection.run_sync."""
    config = Config()
    # Config interpolates, so a percent sign in the installation's path must be doubled.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
