"""The roles as `ops/postgres/roles.sql` makes them, on a server of a test's own: a role belongs to a whole server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from worker.ledger import migrations
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from harness.parts import PostgresServer

ROLES = (Path(__file__).parents[2] / "ops" / "postgres" / "roles.sql").read_text()
OWNER, WORKER, OPERATOR, READER = "cancel_owner", "cancel_worker", "cancel_operator", "cancel_reader"


def url_of(server: PostgresServer, role: str) -> str:
    """Return the server's address for one of the roles."""
    return make_url(server.url).set(username=role).render_as_string(hide_password=False)


def apply(server: PostgresServer) -> None:
    """Run the file as the superuser."""
    server.execute(ROLES)


def migrate_as_owner(server: PostgresServer) -> None:
    """Do what a deployment does: the file, the tables as their owner, and the file again."""
    apply(server)
    engine = open_ledger(url_of(server, OWNER))
    migrations.migrate(engine)
    engine.dispose()
    apply(server)
