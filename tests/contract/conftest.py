"""The servers that contract tests run against."""

from tests.servers.milvus import milvus_lite_uri, milvus_uri
from tests.servers.postgres import empty_database, postgres, records

__all__ = ["empty_database", "milvus_lite_uri", "milvus_uri", "postgres", "records"]
