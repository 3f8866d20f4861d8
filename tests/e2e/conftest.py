"""Deployments for tests: each with its own Redis and its own ledger, of both kinds."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.deployment import API_KEY, Deployment

from worker.embedded import embedded_redis
from worker.trackstar.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def make_deployment(
    make_database: Callable[[str], str], credential_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Make a deployment with a ledger of a kind, for as long as the `with` block lasts."""

    @contextmanager
    def make(kind: str, **options: Any) -> Iterator[Deployment]:
        with ExitStack() as stack:
            # Its own Redis: another test of this process would empty a shared one.
            redis = stack.enter_context(embedded_redis())
            sandbox = stack.enter_context(Sandbox(API_KEY, **options))
            folder = tmp_path_factory.mktemp("deployment")
            database_url = make_database(kind)
            deployment = Deployment(redis.url, database_url, sandbox.world, sandbox.url, folder, credential_key)
            deployment.server = redis
            stack.callback(deployment.close)
            yield deployment

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request: pytest.FixtureRequest, make_deployment: Any) -> Iterator[Deployment]:
    """A deployment of both kinds, without a worker so far."""
    with make_deployment(request.param) as made:
        yield made
