"""Passages in Milvus: vectors (HNSW) from 2.3 on, words (BM25) from 2.5 on.

One collection per embedding model, shared by the tenants; the tenant is its partition key. Milvus
takes deleted bytes off its disk some hours after `compact`, when its garbage collection says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pymilvus import AsyncMilvusClient, DataType, Function, FunctionType, MilvusClient

from weft.v1 import error_reason_pb2
from weftd.errors import Unavailable, WeftError
from weftd.stores.passages.port import Hit, Passage, Scope, searchable
from weftd.text.tokens import search_tokens

T = TypeVar("T")
_PREFIX = "weft_passages_"
_COLUMNS = [field.name for field in fields(Passage)]
# Bytes of UTF-8, as Milvus counts; what is longer is cut.
_LENGTHS = {
    "dataset_id": 1_024,
    "document_id": 1_024,
    "name": 4_096,
    "heading": 8_192,
    "content": 65_535,
    "tokens": 65_535,
}
_ROWS_PER_CALL = 256
_READ_TIMEOUT_S = 5.0
_WRITE_TIMEOUT_S = 60.0
_GRAPH = {"M": 16, "efConstruction": 200}
_WORDS_SINCE = (2, 5)

# Its own log lines quote the requests; failures reach the log through our errors.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


class MilvusPassages:
    """`DensePassages`, and `LexicalPassages` where `has_words` is true."""

    def __init__(self, uri: str, token: str, client: Any, version: str) -> None:
        self._uri = uri
        self._token = token
        self._client = client
        self._analyzer = _analyzer(version)
        self._known: set[str] = set()

    @classmethod
    async def connect(cls, uri: str, token: str = "") -> MilvusPassages:
        """Opens `uri` ("http://host:19530", or a file's path for milvus-lite). Raises `Unavailable`.

        `token` is "user:password" or an API key; empty where the server asks for none.
        """
        client = AsyncMilvusClient(uri, token=token, timeout=_READ_TIMEOUT_S)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                version = await client.get_server_version(timeout=_READ_TIMEOUT_S)
        except Exception as error:
            await client.close()
            raise _unavailable(uri, error) from error
        return cls(uri, token, client, version)

    @property
    def has_words(self) -> bool:
        """Whether the server can search by words; if not, another store must."""
        return self._analyzer is not None

    async def put(
        self, tenant: str, model_id: str, passages: Sequence[Passage], vectors: npt.NDArray[np.float32]
    ) -> None:
        if len(passages) != len(vectors):
            raise ValueError(f"{len(passages)} passages came with {len(vectors)} vectors")
        if not passages:
            return
        name = _collection(model_id)
        if not await self._exists(name):
            await self._answer(asyncio.to_thread(self._create, name, vectors.shape[1]), _WRITE_TIMEOUT_S)
            self._known.add(name)
        rows = await asyncio.to_thread(self._rows, tenant, passages, vectors)
        for start in range(0, len(rows), _ROWS_PER_CALL):
            part = rows[start : start + _ROWS_PER_CALL]
            # 2.3 loses rows when it upserts into a collection with a partition key.
            where = f"{_of(tenant)} and {_in('id', [row['id'] for row in part])}"
            await self._answer(self._client.delete(name, filter=where), _WRITE_TIMEOUT_S)
            await self._answer(self._client.insert(name, part), _WRITE_TIMEOUT_S)
        await self._settle(name)

    async def search(
        self, scope: Scope, model_id: str, vector: npt.NDArray[np.float32], limit: int
    ) -> list[Hit]:
        parameters = {"metric_type": "COSINE", "params": {"ef": max(64, 2 * limit)}}
        return await self._found(scope, model_id, "vector", vector, parameters, limit)

    async def match(self, scope: Scope, model_id: str, tokens: Sequence[str], limit: int) -> list[Hit]:
        if not tokens:
            return []
        return await self._found(scope, model_id, "words", " ".join(tokens), {"metric_type": "BM25"}, limit)

    async def delete(self, tenant: str, dataset_id: str, document_ids: Sequence[str] = ()) -> None:
        where = _where(Scope(tenant, (dataset_id,), tuple(document_ids)))
        for name in await self._names():
            await self._answer(self._client.delete(name, filter=where), _WRITE_TIMEOUT_S)
            await self._settle(name)

    async def count(self, scope: Scope) -> int:
        return sum([await self._count(name, scope, "Eventually") for name in await self._names()])

    async def compact(self, tenant: str, *, erase: bool = False) -> None:
        """Writes out and merges the segments, of all tenants: they share them."""
        for name in await self._names():
            await self._answer(self._client.flush(name), _WRITE_TIMEOUT_S)
            await self._answer(self._client.compact(name), _WRITE_TIMEOUT_S)

    async def ping(self) -> None:
        await self._answer(self._client.get_server_version(), _READ_TIMEOUT_S)

    async def close(self) -> None:
        await self._client.close()

    async def _answer(self, call: Awaitable[T], timeout_s: float) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except WeftError:
            raise
        except Exception as error:  # pymilvus lets the errors of grpc through beside its own
            raise _unavailable(self._uri, error) from error

    async def _names(self) -> list[str]:
        names = await self._answer(self._client.list_collections(), _READ_TIMEOUT_S)
        return [name for name in names if name.startswith(_PREFIX)]

    async def _exists(self, name: str) -> bool:
        if name not in self._known and await self._answer(self._client.has_collection(name), _READ_TIMEOUT_S):
            self._known.add(name)
        return name in self._known

    async def _settle(self, name: str) -> None:
        """Waits until what was written can be read.

        Readers then ask for what is there ("Eventually", 5 ms); if they asked for all that was
        written ("Strong") each would wait 200 ms for the next tick of Milvus's clock.
        """
        await self._count(name, Scope(""), "Strong")

    async def _count(self, name: str, scope: Scope, consistency: str) -> int:
        found = await self._answer(
            self._client.query(
                name, filter=_where(scope), output_fields=["count(*)"], consistency_level=consistency
            ),
            _READ_TIMEOUT_S,
        )
        return int(found[0]["count(*)"])

    async def _found(
        self, scope: Scope, model_id: str, field: str, data: Any, parameters: Mapping[str, Any], limit: int
    ) -> list[Hit]:
        name = _collection(model_id)
        if not await self._exists(name):
            return []
        call = self._client.search(
            name,
            data=[data],
            anns_field=field,
            filter=_where(scope),
            limit=limit,
            output_fields=_COLUMNS,
            search_params=dict(parameters),
            consistency_level="Eventually",
        )
        # milvus-lite gives BM25 scores with a minus.
        (found,) = await self._answer(call, _READ_TIMEOUT_S)
        return [Hit(_passage(row["entity"]), abs(row["distance"])) for row in found]

    def _create(self, name: str, dim: int) -> None:
        """Makes, indexes and loads the collection: 3 s, once per embedding model. Blocking."""
        schema = AsyncMilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("tenant", DataType.VARCHAR, max_length=64, is_partition_key=True)
        for column in ("dataset_id", "document_id", "name", "heading", "content"):
            schema.add_field(column, DataType.VARCHAR, max_length=_LENGTHS[column])
        for column in ("ordinal", "page", "uploaded_at_ms"):
            schema.add_field(column, DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        indexes = AsyncMilvusClient.prepare_index_params()
        indexes.add_index("vector", index_type="HNSW", metric_type="COSINE", params=_GRAPH)
        if self._analyzer is not None:
            schema.add_field(
                "tokens",
                DataType.VARCHAR,
                max_length=_LENGTHS["tokens"],
                enable_analyzer=True,
                analyzer_params=self._analyzer,
            )
            schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
            schema.add_function(Function("bm25", FunctionType.BM25, ["tokens"], ["words"]))
            indexes.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        # The asynchronous client's waits for an index call what milvus-lite does not have.
        client = MilvusClient(self._uri, token=self._token, timeout=_WRITE_TIMEOUT_S)
        try:
            client.create_collection(name, schema=schema, index_params=indexes)
        finally:
            client.close()

    def _rows(
        self, tenant: str, passages: Sequence[Passage], vectors: npt.NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """The last of each key. Blocking."""
        rows: dict[str, dict[str, Any]] = {}
        for passage, vector in zip(passages, vectors, strict=True):
            row = {name: getattr(passage, name) for name in _COLUMNS}
            row |= {"page": passage.page or 0, "tenant": _digest(tenant), "vector": vector}
            row["id"] = _digest(json.dumps([tenant, passage.document_id, passage.ordinal]))
            if self._analyzer is not None:
                row["tokens"] = " ".join(search_tokens(searchable(passage)))
            for column, length in _LENGTHS.items():
                if column in row:
                    row[column] = row[column].encode()[:length].decode(errors="ignore")
            rows[row["id"]] = row
        return list(rows.values())


def _analyzer(version: str) -> dict[str, str] | None:
    """What splits the tokens that we join by spaces; None where the server has no search by words."""
    if version.startswith("milvus_lite"):
        return {"tokenizer": "standard"}  # it has no other that needs no further package
    found = re.match(r"v?(\d+)\.(\d+)", version)
    numbers = (int(found[1]), int(found[2])) if found else (0, 0)
    return {"tokenizer": "whitespace"} if numbers >= _WORDS_SINCE else None


def _passage(entity: Mapping[str, Any]) -> Passage:
    values = {name: entity[name] for name in _COLUMNS}
    return Passage(**(values | {"page": values["page"] or None}))


def _where(scope: Scope) -> str:
    terms = [_of(scope.tenant)]
    if scope.dataset_ids:
        terms.append(_in("dataset_id", scope.dataset_ids))
    if scope.document_ids:
        terms.append(_in("document_id", scope.document_ids))
    if scope.uploaded_from_ms is not None:
        terms.append(f"uploaded_at_ms >= {int(scope.uploaded_from_ms)}")
    if scope.uploaded_to_ms is not None:
        terms.append(f"uploaded_at_ms <= {int(scope.uploaded_to_ms)}")
    return " and ".join(terms)


def _of(tenant: str) -> str:
    return f'tenant == "{_digest(tenant)}"'


def _in(column: str, values: Sequence[str]) -> str:
    return f"{column} in {json.dumps(list(values), ensure_ascii=False)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _collection(model_id: str) -> str:
    return _PREFIX + _digest(model_id)


def _unavailable(uri: str, error: Exception) -> Unavailable:
    return Unavailable(
        error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
        f"Milvus at {uri} does not answer or cannot do what was asked ({type(error).__name__}). "
        "Try again; if it stays, look whether it runs there and what its log says.",
        metadata={"backend": "passages"},
    )
