"""Deployments for tests: each with its own Redis and its own ledger.

    @pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT, sync_seconds=0.5)

says what the fixtures `deployment` and `shop` make for a test, or with `pytestmark` for a file.

Nothing tells of crawls here, and none is asked for, unless a test says otherwise: READ_BACK_SECONDS decide.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.deployment import API_KEY, Deployment, MakeDeployment
from harness.ledgers import LEDGERS

from worker.dev.embedded import embedded_redis
from worker.dev.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Unpack

    from worker.dev.sandbox.options import WorldOptions
    from worker.ledger.vault import TokenVault

MARKER = (
    "deployment(ledgers=LEDGERS, settings={}, shops=('shop-1',), **options): the kinds of ledger, the settings of the "
    "workers, the connections that the fixture `shop` makes, and the options of the sandbox's World."
)
# What is the fixtures'; everything else of the marker is the sandbox's.
DEFAULTS: dict[str, Any] = {"ledgers": LEDGERS, "settings": {}, "shops": ("shop-1",)}
WITHOUT_CRAWLS: WorldOptions = {"sync_schedules": False}
UNFORCED = {"FORCE_SYNC": "false"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "deployment" in metafunc.fixturenames:
        metafunc.parametrize("deployment", _marked(metafunc.definition)["ledgers"], indirect=True)


def _marked(test: pytest.Item) -> dict[str, Any]:
    marker = test.get_closest_marker("deployment")
    return {**DEFAULTS, **(marker.kwargs if marker else {})}


@pytest.fixture(scope="session")
def make_deployment(
    make_database: Callable[[str], str], credential_key: str, tmp_path_factory: pytest.TempPathFactory
) -> MakeDeployment:
    """Make a deployment with a ledger of a kind, for as long as the `with` block lasts."""

    @contextmanager
    def make(kind: str, settings: Mapping[str, str] = {}, **options: Unpack[WorldOptions]) -> Iterator[Deployment]:
        with ExitStack() as stack:
            # Its own Redis: another test of this process would empty a shared one.
            redis = stack.enter_context(embedded_redis())
            sandbox = stack.enter_context(Sandbox(API_KEY, **WITHOUT_CRAWLS | options))
            folder = tmp_path_factory.mktemp("deployment")
            url = make_database(kind)
            made = Deployment(
                redis.url, url, sandbox.world, sandbox.url, folder, credential_key, {"FORCE_SYNC": "false", **settings}
            )
            made.redis_server = redis
            stack.callback(made.close)
            yield made

    return make


@pytest.fixture
def deployment(request: pytest.FixtureRequest, make_deployment: MakeDeployment) -> Iterator[Deployment]:
    """A deployment as the marker wants it, without a worker so far."""
    marked = _marked(request.node)
    options = {name: value for name, value in marked.items() if name not in DEFAULTS}
    with make_deployment(request.param, marked["settings"], **options) as made:
        yield made


@pytest.fixture
def shop(request: pytest.FixtureRequest, deployment: Deployment, vault: TokenVault) -> str:
    """The first of the connections that the marker names, all of which Trackstar and the ledger know."""
    shops: tuple[str, ...] = _marked(request.node)["shops"]
    deployment.connect(vault, shops)
    return shops[0]
