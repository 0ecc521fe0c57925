#!/usr/bin/env bash
# The fast checks. Each prints its name; the first that fails ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
buf=clients/web/node_modules/.bin/buf
step() { printf '· %s\n' "$1"; }

step "buf lint"
"$buf" lint
step "buf breaking"
# Against the last release; before the first one, against what main has.
against=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || git rev-parse --verify -q main || git rev-parse HEAD)
"$buf" breaking --against ".git#ref=$against"
step "stubs are fresh"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
scripts/generate.sh "$fresh"
for made in clients/python/weft/v1 clients/web/src/gen servers/weftd/envoy/weft.binpb; do
  diff -r --exclude=__init__.py --exclude=__pycache__ "$fresh/$made" "$made" >/dev/null ||
    { echo "$made is not what proto/ gives: run make generate"; exit 1; }
done
step "ruff"
"$bin/ruff" check
"$bin/ruff" format --check --quiet
step "mypy"
"$bin/mypy" --no-error-summary
step "import-linter"
"$bin/lint-imports" --no-cache >"$fresh/imports" || { cat "$fresh/imports"; exit 1; }
step "typescript"
(cd clients/web && npm run --silent check)
echo "All checks passed."
