"""${message}.

Old code runs beside the new schema while a release rolls out: add, backfill and enforce in separate revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
<%! from worker.version import __version__ %>
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

step = "expand"  # or "contract", with `unused_since = "X.Y.Z"`: the first release that does without what goes
release = ${repr(__version__.partition(".dev")[0])}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
