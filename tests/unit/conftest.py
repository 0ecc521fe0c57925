from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    migrate(url)
    opened = Records(url)
    yield opened
    await opened.close()
