"""Runs migrations on the connection it is handed; Alembic calls this file, store.prepare calls Alembic."""

from alembic import context

from gateway.log.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    transactional_ddl=False,  # the caller's transaction holds the lock that keeps other processes out
)
context.run_migrations()
