"""hello"""

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e


def test_hello(world: World) -> None:
    with world.project("hello") as hello:
        hello.follow()
        hello.wait_for(hello.repository.head)
        assert hello.get("hello") == "Hello Kubernetes!\n"
