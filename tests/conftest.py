"""Settings that every test shares."""

import pytest
from hypothesis import settings

from tests.support.miniature import Miniature, make_miniature

# A deadline in milliseconds fails on a busy machine and says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))
