#!/usr/bin/env bash
# Takes all results anew, into benchmarks/results and docs/_static. Some 25 minutes; leave the machine alone meanwhile.
#
#   benchmarks/all.sh [PYTHON]     a Python with the extra "bench" installed (default: python)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
export PYTHONPATH=$PWD
mkdir -p benchmarks/results

"$python" -m async_trainer bench --json benchmarks/results/bench.json | tee benchmarks/results/bench.txt
"$python" benchmarks/growth.py --json benchmarks/results/growth.json --plot docs/_static/growth.png |
    tee benchmarks/results/growth.txt
"$python" benchmarks/timeline.py --json benchmarks/results/timeline.json | tee benchmarks/results/timeline.txt
"$python" benchmarks/convoy.py --json benchmarks/results/convoy.json | tee benchmarks/results/convoy.txt
"$python" benchmarks/slow_sink.py --json benchmarks/results/slow_sink.json | tee benchmarks/results/slow_sink.txt
"$python" benchmarks/peers.py --json benchmarks/results/peers.json | tee benchmarks/results/peers.txt
