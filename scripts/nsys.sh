#!/usr/bin/env bash
# Records a timeline of a few steps of every stage, one report per stage:
#     scripts/nsys.sh CONFIG [OPTIONS OF `dfka-engine run`]
# Environment variables and their defaults: STEPS=20..25, REPORT=runs/nsys, DFKA_ENGINE (the program). See
# docs/profiling.md.
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
if ! command -v nsys >/dev/null; then
  echo "nsys.sh: no nsys in PATH; install CUDA or NVIDIA Nsight Systems" >&2
  exit 2
fi
report=${REPORT:-runs/nsys}
mkdir -p "$(dirname "$report")"
nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=repeat \
  --force-overwrite=true --output="$report" "${DFKA_ENGINE:-target/release/dfka-engine}" \
  run "$@" --device cuda --profile "${STEPS:-20..25}" --out "$report.run" --force
