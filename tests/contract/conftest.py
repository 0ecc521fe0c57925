"""The servers that contract tests run against."""

from tests.servers.milvus import milvus_lite_uri, milvus_uri

__all__ = ["milvus_lite_uri", "milvus_uri"]
