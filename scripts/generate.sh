#!/usr/bin/env bash
# Generates the stubs from proto/: Python (with types) into clients/python, TypeScript into
# clients/web/src/gen, and the descriptor set that Envoy transcodes by into servers/weftd/envoy.
# An argument names another root to write below (`make check` compares).
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
out=${1:-.}
mkdir -p "$out/clients/python" "$out/clients/web/src/gen" "$out/servers/weftd/envoy"
protoc=("$bin/python" -m grpc_tools.protoc -I proto/vendor -I proto)
vendored=(google/api/{annotations,http,httpbody}.proto google/rpc/{status,error_details}.proto)
services=(proto/weft/v1/{chat,knowledge,retrieval,models}.proto)
"${protoc[@]}" --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --python_out="$out/clients/python" --mypy_out=quiet:"$out/clients/python" proto/weft/v1/*.proto
"${protoc[@]}" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --grpc_python_out="$out/clients/python" --mypy_grpc_out=quiet,only_async:"$out/clients/python" "${services[@]}"
"${protoc[@]}" --plugin=protoc-gen-es=clients/web/node_modules/.bin/protoc-gen-es \
  --es_out="$out/clients/web/src/gen" --es_opt=target=ts proto/weft/v1/*.proto "${vendored[@]}"
# The error details' own types are in it, or the transcoder prints an empty body for an error.
"${protoc[@]}" --include_imports --descriptor_set_out="$out/servers/weftd/envoy/weft.binpb" proto/weft/v1/*.proto "${vendored[@]}"
