#!/usr/bin/env bash
# Runs every test, the real servers included; installs the servers where they are missing (Debian, as root).
set -euo pipefail
cd "$(dirname "$0")/.."

need=()
[ -x /usr/lib/postgresql/15/bin/postgres ] || need+=(postgresql-15)
command -v chromium >/dev/null || need+=(chromium)
if [ ${#need[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${need[*]} …"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
  else
    echo "Some tests need ${need[*]}: install them, or those tests are skipped."
  fi
fi

scripts/conformance.sh || echo "The conformance suite could not be fetched: its tests are skipped, or fail in CI."

make --no-print-directory check
exec .venv/bin/python -m pytest "$@"
