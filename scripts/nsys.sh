#!/usr/bin/env bash
# A timeline of a few steps of every stage, one report a stage: scripts/nsys.sh CONFIG [OPTIONS OF `dfka-engine run`]
# STEPS=20..25 says which steps, REPORT=runs/nsys where to, DFKA_ENGINE which program. See docs/profiling.md.
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
command -v nsys >/dev/null || { echo "nsys.sh: no nsys in PATH; it comes with CUDA, or as NVIDIA Nsight Systems" >&2; exit 2; }
report=${REPORT:-runs/nsys}
mkdir -p "$(dirname "$report")"
nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=repeat --force-overwrite=true \
  --output="$report" "${DFKA_ENGINE:-target/release/dfka-engine}" run "$@" --device cuda --profile "${STEPS:-20..25}" \
  --out "$report.run" --force
