"""Brings the database's tables up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

_SCRIPTS = Path(__file__).parents[1] / "migrations"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Runs the migrations that are missing. Blocks; for AsyncConnection.run_sync."""
    config = Config()
    # Config interpolates, so a per cent sign in the installation's path must be doubled.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
