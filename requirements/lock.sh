#!/usr/bin/env bash
# Pins the dependencies of servers/pyproject.toml and the *.in files here, with hashes. Run it after changing one.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header
  --override requirements/overrides.txt)
"${compile[@]}" --no-emit-package weft -o requirements/base.txt servers/pyproject.toml
"${compile[@]}" -c requirements/base.txt -o requirements/s3.txt requirements/s3.in
"${compile[@]}" -c requirements/base.txt -c requirements/s3.txt -o requirements/dev.txt requirements/dev.in
"${compile[@]}" -o requirements/triton.txt requirements/triton.in
"${compile[@]}" -c requirements/triton.txt -o requirements/llm.txt requirements/llm.in
