"""Passages in LanceDB: both routes in one table per tenant and embedding model.

The directory may be opened by several processes at once; each sees what the others wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.index import FTS, HnswSq
from lancedb.query import MatchQuery

from weft.v1 import error_reason_pb2
from weftd.errors import Unavailable
from weftd.stores.passages.port import Hit, Passage, Scope, searchable
from weftd.text.tokens import search_tokens

T = TypeVar("T")
_COLUMNS = (
    "dataset_id",
    "document_id",
    "ordinal",
    "name",
    "page",
    "heading",
    "content",
    "uploaded_at_ms",
)
_KEY = ["document_id", "ordinal"]
_OPEN_TABLES = 256
# An exact search of 10,000 rows takes 20 ms of CPU, with the index 7, and 98 of 100 hits are the same.
_INDEXED_FROM_ROWS = 10_000
_SEARCH_WIDTH = 200
# While one process compacts, another may read files that go: it opens the table again.
_ATTEMPTS = 6
_VERSIONS_KEPT = timedelta(minutes=10)
# A session keeps files open that are deleted, and so their bytes on the disk: so often it is left behind.
_SESSION_S = 120.0

warnings.filterwarnings("ignore", message=r"optimize\(cleanup_older_than=0\)")


class LancePassages:
    """`DensePassages` and `LexicalPassages` in the directory (or object store) `uri`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._connected_at = -_SESSION_S
        self._tables: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    async def connect(cls, uri: Path | str) -> LancePassages:
        """Opens or makes the directory. Raises `Unavailable`."""
        passages = cls(str(uri))
        try:
            await passages._connected()
        except (RuntimeError, OSError, ValueError) as error:
            raise _unavailable(error) from error
        return passages

    async def put(
        self, tenant: str, model_id: str, passages: Sequence[Passage], vectors: npt.NDArray[np.float32]
    ) -> None:
        if len(passages) != len(vectors):
            raise ValueError(f"{len(passages)} passages came with {len(vectors)} vectors")
        if not passages:
            return
        rows = await asyncio.to_thread(_rows, passages, vectors)

        async def merge(table: Any) -> None:
            merging = table.merge_insert(_KEY).when_matched_update_all().when_not_matched_insert_all()
            await merging.execute(rows)

        name = _table_name(tenant, model_id)
        if name not in self._tables:
            await self._retried(lambda: self._create(name, rows.schema))
        await self._on_table(name, merge)

    async def search(
        self, scope: Scope, model_id: str, vector: npt.NDArray[np.float32], limit: int
    ) -> list[Hit]:
        async def run(table: Any) -> list[Hit]:
            query = table.query().nearest_to(vector).distance_type("cosine").ef(_SEARCH_WIDTH).limit(limit)
            return await _hits(query, scope, "_distance", lambda distance: 1.0 - distance)

        return await self._on_table(_table_name(scope.tenant, model_id), run) or []

    async def match(self, scope: Scope, model_id: str, tokens: Sequence[str], limit: int) -> list[Hit]:
        if not tokens:
            return []

        async def run(table: Any) -> list[Hit]:
            query = table.query().nearest_to_text(MatchQuery(" ".join(tokens), "tokens")).limit(limit)
            return await _hits(query, scope, "_score", float)

        return await self._on_table(_table_name(scope.tenant, model_id), run) or []

    async def delete(self, tenant: str, dataset_id: str, document_ids: Sequence[str] = ()) -> None:
        where = _where(Scope(tenant, (dataset_id,), tuple(document_ids)))
        for name in await self._names(tenant):
            await self._on_table(name, lambda table: table.delete(where))

    async def count(self, scope: Scope) -> int:
        where = _where(scope)
        counts = [
            await self._on_table(name, lambda table: table.count_rows(where))
            for name in await self._names(scope.tenant)
        ]
        return sum(count or 0 for count in counts)

    async def compact(self, tenant: str, *, erase: bool = False) -> None:
        for name in await self._names(tenant):
            await self._on_table(name, partial(_compact, erase=erase))

    async def ping(self) -> None:
        async def list_one() -> None:
            await (await self._connected()).list_tables(limit=1)

        await self._retried(list_one)

    async def close(self) -> None:
        self._tables.clear()
        self._connection.close()

    async def _connected(self) -> Any:
        """The connection; one that is too old is left to those who still read from it."""
        now = time.monotonic()
        if now - self._connected_at >= _SESSION_S:
            self._connected_at = now
            self._connection = await lancedb.connect_async(
                self._uri, read_consistency_interval=timedelta(0), session=lancedb.Session()
            )
            self._tables.clear()
        return self._connection

    async def _names(self, tenant: str) -> list[str]:
        prefix = _table_name(tenant, "")[: -len(_digest(""))]
        names: list[str] = []
        start = prefix
        while True:
            page = await self._retried(partial(self._page, start))
            names += [name for name in page.tables if name.startswith(prefix)]
            if not page.page_token or not page.tables[-1].startswith(prefix):
                return names
            start = page.tables[-1]

    async def _page(self, start: str) -> Any:
        return await (await self._connected()).list_tables(page_token=start, limit=100)

    async def _create(self, name: str, schema: Any) -> None:
        """Makes the table and its index of words if they are missing; another process may do the same."""
        table = await (await self._connected()).create_table(name, schema=schema, exist_ok=True)
        if not await table.list_indices():
            await _index_words(table)

    async def _open(self, name: str) -> Any | None:
        """The table, None where it was never made."""
        connection = await self._connected()
        if name in self._tables:
            self._tables.move_to_end(name)
            return self._tables[name]
        try:
            table = await connection.open_table(name)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise
        self._tables[name] = table
        if len(self._tables) > _OPEN_TABLES:
            self._tables.popitem(last=False)
        return table

    async def _on_table(self, name: str, action: Callable[[Any], Awaitable[T]]) -> T | None:
        """What `action` returns for the table; None where there is no such table."""

        async def run() -> T | None:
            table = await self._open(name)
            try:
                return None if table is None else await action(table)
            except BaseException:
                self._tables.pop(name, None)
                raise

        return await self._retried(run)

    async def _retried(self, action: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return await action()
            except (RuntimeError, OSError, ValueError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise _unavailable(error) from error
                await asyncio.sleep(0.05 * attempt)
        raise AssertionError("unreachable")


async def _compact(table: Any, *, erase: bool) -> None:
    indexes = {index.columns[0]: index.name for index in await table.list_indices()}
    if erase:
        # LanceDB itself leaves deleted rows in files of which most rows live, and their words in the index.
        await table.update(updates_sql={"ordinal": "ordinal"})  # writes every row anew
    if erase or "tokens" not in indexes:
        await _index_words(table)
    if await table.count_rows() >= _INDEXED_FROM_ROWS:
        if erase or "vector" not in indexes:
            await table.create_index("vector", config=HnswSq(distance_type="cosine"), replace=True)
    elif erase and "vector" in indexes:
        await table.drop_index(indexes["vector"])
    await table.optimize(cleanup_older_than=timedelta(0) if erase else _VERSIONS_KEPT)


async def _index_words(table: Any) -> None:
    words = FTS(
        base_tokenizer="whitespace",
        stem=False,
        remove_stop_words=False,
        ascii_folding=False,
        lower_case=False,
    )
    await table.create_index("tokens", config=words, replace=True)


def _rows(passages: Sequence[Passage], vectors: npt.NDArray[np.float32]) -> Any:
    """The last of each key, as an Arrow table."""
    last = {(passage.document_id, passage.ordinal): index for index, passage in enumerate(passages)}
    kept = [passages[index] for index in last.values()]
    flat = np.ascontiguousarray(vectors[list(last.values())], np.float32).ravel()
    types = dict.fromkeys(_COLUMNS, pa.string())
    types |= {"ordinal": pa.int32(), "page": pa.int32(), "uploaded_at_ms": pa.int64()}
    columns = {
        name: pa.array([getattr(passage, name) for passage in kept], kind) for name, kind in types.items()
    }
    columns["tokens"] = pa.array([" ".join(search_tokens(searchable(passage))) for passage in kept])
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])
    return pa.table(columns)


async def _hits(query: Any, scope: Scope, column: str, score: Callable[[float], float]) -> list[Hit]:
    where = _where(scope)
    if where is not None:
        query = query.where(where)
    found = (await query.select([*_COLUMNS, column]).to_arrow()).to_pylist()
    return [Hit(Passage(**{name: row[name] for name in _COLUMNS}), score(row[column])) for row in found]


def _where(scope: Scope) -> str | None:
    terms = [
        f"{column} IN ({', '.join(map(_quoted, values))})"
        for column, values in (("dataset_id", scope.dataset_ids), ("document_id", scope.document_ids))
        if values
    ]
    if scope.uploaded_from_ms is not None:
        terms.append(f"uploaded_at_ms >= {int(scope.uploaded_from_ms)}")
    if scope.uploaded_to_ms is not None:
        terms.append(f"uploaded_at_ms <= {int(scope.uploaded_to_ms)}")
    return " AND ".join(terms) or None


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _table_name(tenant: str, model_id: str) -> str:
    """Tenants' names are not ours to trust: only their digest reaches the disk."""
    return f"{_digest(tenant)}_{_digest(model_id)}"


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(
        error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
        f"The passages in LanceDB cannot be read or written ({type(error).__name__}). "
        "Try again; if it stays, look at the disk and the rights of the data directory.",
        metadata={"backend": "passages"},
    )
