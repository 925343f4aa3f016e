#!/usr/bin/env bash
# Fuzzes the readers of user-supplied files and prints a table. Fails if a target crashed.
#
#     scripts/fuzz.sh [SECONDS [TARGET...]]      the default is 20 seconds for each target of fuzz/targets
#
# Any toolchain works: the flags below are those of cargo-fuzz without a sanitizer. The corpus goes to
# $DFKA_FUZZ_CORPUS/TARGET, by default a new temporary folder, so that two runs with the same DFKA_FUZZ_SEED
# begin alike. Inputs that crash go to fuzz/artifacts, logs to fuzz/logs. DFKA_FUZZ_JOBS=2 runs two targets at
# a time. DFKA_FUZZ_LEVEL=2 optimises the engine (twice the build time, 1.2 to 2.1 times the executions).
# DFKA_FUZZ_SANITIZER=address needs a nightly toolchain.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-20}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: scripts/fuzz.sh [SECONDS [TARGET...]]" >&2; exit 2; }
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(basename -s .rs targets/*.rs)

host=$(rustc -vV | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for part in inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$part"
done
built=${CARGO_TARGET_DIR:-target}
if [ -n "${DFKA_FUZZ_SANITIZER:-}" ]; then
  flags+=" -Zsanitizer=$DFKA_FUZZ_SANITIZER"
  built+=/$DFKA_FUZZ_SANITIZER
fi
level=()
if [ -n "${DFKA_FUZZ_LEVEL:-}" ]; then
  level=(--config "profile.release.opt-level=3"
    --config "profile.release.package.dfka-engine.opt-level=$DFKA_FUZZ_LEVEL")
fi
# The readers need neither the emulator nor CUDA.
DFKA_EMU=off DFKA_CUDA_TARGETS="" RUSTFLAGS="${RUSTFLAGS:-} $flags" CARGO_TARGET_DIR=$built \
  cargo build "${level[@]}" --release --quiet --target "$host" "${targets[@]/#/--bin=}"
echo "built in $SECONDS s"

scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT
mkdir -p artifacts logs

fuzz() { # TARGET: prints a line of the table, and creates $scratch/crashed if the target crashed
  local t=$1 log=logs/$1.log known=() dictionary=() status=0 last spent TIMEFORMAT='%U %S'
  local corpus=${DFKA_FUZZ_CORPUS:-$scratch/corpus}/$t
  for folder in "seeds/$t" "regressions/$t"; do [ ! -d "$folder" ] || known+=("$folder"); done
  [ ! -f "dictionaries/$t.dict" ] || dictionary=("-dict=dictionaries/$t.dict")
  mkdir -p "$corpus" "$scratch/files"
  spent=$({ time TMPDIR=$scratch/files "$built/$host/release/$t" "$corpus" "${known[@]}" "${dictionary[@]}" \
    -seed="${DFKA_FUZZ_SEED:-1}" -max_total_time="$seconds" -max_len=16384 -timeout=30 -rss_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="artifacts/$t-" >"$log" 2>&1; } 2>&1) || status=$?
  last=$(grep -a 'cov: ' "$log" | tail -1 || true)
  of() { sed -n "s/.* $1: \([0-9]*\).*/\1/p" <<<"$last"; }
  printf "$row" "$t" "$(awk '{ printf "%.1f", ($1 + $2) / 60 }' <<<"$spent")" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(of cov)" "$(of ft)" "$([ $status = 0 ] && echo fine || echo crashed)"
  if [ $status != 0 ]; then
    touch "$scratch/crashed"
    grep -aE 'panicked|ERROR|Test unit' -A 1 "$log" | head -12
  fi
}

row='%-17s %8s %12s %9s %9s  %s\n'
printf "$row" target "CPU min" executions coverage features ""
for t in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "${DFKA_FUZZ_JOBS:-1}" ]; do wait -n; done
  fuzz "$t" &
done
wait
[ ! -e "$scratch/crashed" ]
