"""Migrations of the database's tables."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

_SCRIPTS = Path(__file__).parents[1] / "migrations"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations. Blocks: call it through AsyncConnection.run_sync."""
    if revision == "head" and current(connection) == newest():
        return
    from alembic import command  # takes as long as all the rest of a start
    from alembic.config import Config

    config = Config()
    # Config interpolates, so a percent sign in the installation's path must be doubled.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def current(connection: Connection) -> str | None:
    """Return the revision of the database's tables; None if there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def newest() -> str:
    """Return the revision that the last migration leads to: its file begins with it."""
    return max(path.name.partition("_")[0] for path in (_SCRIPTS / "versions").glob("[0-9]*_*.py"))
