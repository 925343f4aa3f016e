#!/usr/bin/env bash
# Fuzzes the readers of people's files, one after the other, and prints a table; fails where one crashed.
#
#     scripts/fuzz.sh [SECONDS [TARGET...]]      20 seconds for each target of fuzz/targets unless told otherwise
#
# Any toolchain will do: the flags below are those of cargo-fuzz without a sanitizer. What a run finds worth keeping goes to
# $DFKA_FUZZ_CORPUS/TARGET (a new temporary folder unless set, so that two runs with one DFKA_FUZZ_SEED begin alike), inputs
# that crash to fuzz/artifacts, logs to fuzz/logs. DFKA_FUZZ_SANITIZER=address needs a nightly toolchain.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-20}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: scripts/fuzz.sh [SECONDS [TARGET...]]" >&2; exit 2; }
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(basename -s .rs targets/*.rs))

host=$(rustc -vV | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for part in inline-8bit-counters pc-table trace-compares; do flags+=" -Cllvm-args=-sanitizer-coverage-$part"; done
if [ -n "${DFKA_FUZZ_SANITIZER:-}" ]; then
  flags+=" -Zsanitizer=$DFKA_FUZZ_SANITIZER"
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/$DFKA_FUZZ_SANITIZER
fi
# No emulator and no CUDA: no reader needs them.
export DFKA_EMU=off DFKA_CUDA_TARGETS="" RUSTFLAGS="${RUSTFLAGS:-} $flags"
begun=$SECONDS
cargo build --release --quiet --target "$host" "${targets[@]/#/--bin=}"
echo "built in $((SECONDS - begun)) s"

scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT
mkdir -p artifacts logs
failed=0
printf '%-14s %12s %9s %9s %7s\n' target executions coverage features crashes
for t in "${targets[@]}"; do
  corpus=${DFKA_FUZZ_CORPUS:-$scratch/corpus}/$t
  known=()
  for folder in "seeds/$t" "regressions/$t"; do [ ! -d "$folder" ] || known+=("$folder"); done
  dictionary=()
  [ ! -f "dictionaries/$t.dict" ] || dictionary=("-dict=dictionaries/$t.dict")
  mkdir -p "$corpus" "$scratch/files"
  before=$(find artifacts -name "$t-*" | wc -l)
  status=0
  TMPDIR=$scratch/files "${CARGO_TARGET_DIR:-target}/$host/release/$t" "$corpus" "${known[@]}" "${dictionary[@]}" \
    -seed="${DFKA_FUZZ_SEED:-1}" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="artifacts/$t-" >"logs/$t.log" 2>&1 || status=$?
  crashes=$(($(find artifacts -name "$t-*" | wc -l) - before))
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "logs/$t.log")
  last=$(grep -a 'cov: ' "logs/$t.log" | tail -1 || true)
  of() { sed -n "s/.* $1: \([0-9]*\).*/\1/p" <<<"$last"; }
  printf '%-14s %12s %9s %9s %7s\n' "$t" "${executions:-?}" "$(of cov)" "$(of ft)" "$crashes"
  if [ "$status" != 0 ]; then
    failed=1
    grep -aE 'panicked|ERROR|SUMMARY|Test unit' -A 2 "logs/$t.log" | head -20
  fi
done
exit $failed
