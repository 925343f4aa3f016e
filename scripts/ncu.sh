#!/usr/bin/env bash
# Profiles kernels with all metrics of Nsight Compute:
#     scripts/ncu.sh KERNEL CONFIG [OPTIONS OF `dfka-engine run`]
# KERNEL is a regular expression for names without template arguments, such as '^conv2d_'. Environment
# variables and their defaults: STEPS=20..21, COUNT=10 (launches in all), REPORT=runs/ncu, DFKA_ENGINE (the
# program). See docs/profiling.md.
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
if ! command -v ncu >/dev/null; then
  echo "ncu.sh: no ncu in PATH; install CUDA or NVIDIA Nsight Compute" >&2
  exit 2
fi
kernel=$1 report=${REPORT:-runs/ncu}
shift
mkdir -p "$(dirname "$report")"
ncu --profile-from-start off --set full --nvtx --kernel-name "regex:$kernel" --launch-count "${COUNT:-10}" \
  --export="$report" --force-overwrite "${DFKA_ENGINE:-target/release/dfka-engine}" \
  run "$@" --device cuda --profile "${STEPS:-20..21}" --out "$report.run" --force
