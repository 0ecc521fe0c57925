"""What the edge reads from the contract: its services, which calls stream, which may be tried twice."""

from __future__ import annotations

from dataclasses import dataclass

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet, ServiceDescriptorProto
from google.protobuf.message import DecodeError

__all__ = ["Service", "read_services"]

# Calls that change nothing, by the contract's naming: a lost one may be sent again.
_READS = ("Get", "List", "Search")
# Calls that answer once, but only when a model has been loaded: they may take minutes, as streams do.
_LONG = ("Rollback",)


@dataclass(frozen=True, slots=True)
class Service:
    """`name` is the full one (`weft.v1.ChatService`), `cluster` the name of its proto file (`chat`).

    `streams` and `reads` name methods; what is long is among the streams. `uploads` are REST paths whose body
    is passed on in pieces.
    """

    name: str
    cluster: str
    methods: tuple[str, ...]
    streams: tuple[str, ...]
    reads: tuple[str, ...]
    uploads: tuple[str, ...]


def read_services(descriptors: bytes) -> list[Service]:
    """The services of a serialized `FileDescriptorSet`, in its order. ValueError where it is none."""
    try:
        files = FileDescriptorSet.FromString(descriptors).file
    except DecodeError:
        raise ValueError("The contract's descriptor set cannot be read: run scripts/generate.sh.") from None
    return [
        _service(file.package, file.name.rpartition("/")[2].removesuffix(".proto"), service)
        for file in files
        for service in file.service
    ]


def _service(package: str, cluster: str, service: ServiceDescriptorProto) -> Service:
    streams = tuple(
        m.name for m in service.method if m.client_streaming or m.server_streaming or m.name.startswith(_LONG)
    )
    return Service(
        name=f"{package}.{service.name}",
        cluster=cluster,
        methods=tuple(m.name for m in service.method),
        streams=streams,
        reads=tuple(m.name for m in service.method if m.name.startswith(_READS) and m.name not in streams),
        uploads=tuple(
            m.options.Extensions[annotations_pb2.http].post
            for m in service.method
            if m.client_streaming and m.options.HasExtension(annotations_pb2.http)
        ),
    )
