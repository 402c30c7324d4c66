#!/bin/sh
# The GPU check (benchmarks/gpu.py) with the Python that there is: PYTHON, or .venv's, or python3. On a machine that
# reaches no registry, wheels that `make gpu-carry` put into .cache/gpu-carry are installed into a temporary folder.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$root/.cache/gpu-carry/wheels
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
fi
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
site=
if ! "$python" -c 'import datasets' 2>/dev/null && ls "$wheels"/*.whl >/dev/null 2>&1; then
  site=$(mktemp -d) || exit 2
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl ||
    exit 2
  export PYTHONPATH="$PYTHONPATH:$site"
fi
"$python" "$root/benchmarks/gpu.py" "$@"
