#!/usr/bin/env bash
# Everything that only a GPU can show, in at most eight minutes, without a network: scripts/gpu_check.sh [OUT.json] [--tiny]
#
# PYTHON names the interpreter (default: .venv/bin/python where it is there, else python3); it needs ghosttune's
# dependencies and pytest, not ghosttune itself. Afterwards: python scripts/gpu_check.py --page OUT.json > benchmarks/gpu.md
set -euo pipefail
out=$(realpath -m "${1:-gpu_check.json}")
shift || true
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD/src:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
exec "$PYTHON" scripts/gpu_check.py --out "$out" "$@"
