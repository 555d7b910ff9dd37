"""Alembic's environment: migrations run over the connection that `migrate.upgrade` hands in."""

from alembic import context

from services.registry.catalogue.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can change a column only by copying its table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
