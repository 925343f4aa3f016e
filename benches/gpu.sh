#!/usr/bin/env bash
# Answers everything that needs a GPU, in one call of less than nine minutes (benches/PENDING.md lists the questions).
#
#   benches/gpu.sh pack         where there are Rust, g++ and NVRTC: builds and collects all of it in target/gpu
#   benches/gpu.sh run [OUT]    on the machine with the GPU: needs target/gpu, glibc 2.34 and a driver, but no Rust
#
# `run` writes raw results to OUT (default benches/runs/<date>-<device>), seven files, and a table last. A part that fails
# or takes too long does not stop the others; the exit code is 0 if the gates and the whole runs passed. DRY=1, or no GPU,
# runs the same on the emulator, cut to what it can do in moments.
#
# target/gpu.tar.gz is target/gpu in one file; unpacked anywhere it works alone: ./gpu.sh run OUT.
# PACK names another folder than target/gpu, CARGO_TARGET_DIR another place to build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -x $here/bin/gates ]]; then
  root=$here pack=$here
else
  root=$(dirname "$here")
  pack=${PACK:-$root/target/gpu}
fi

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

# ---- pack ------------------------------------------------------------------------------------------------------------

pack() {
  cd "$root"
  local log
  log=$(mktemp)
  cargo test --release --no-run --lib --bins --test machines --test kernels --bench kernels 2>&1 | tee "$log" >&2
  # Cargo ends with lines such as `Executable tests/machines.rs (target/release/deps/machines-0123)`.
  built() { sed -n "s|^ *Executable .*$1 (\(.*\))\$|\1|p" "$log"; }
  rm -rf "$pack"
  mkdir -p "$pack/bin" "$pack/configs" "$pack/weights"
  cp "$(built src/lib.rs)" "$pack/bin/gates"
  cp "$(built tests/machines.rs)" "$pack/bin/machines"
  cp "$(built tests/kernels.rs)" "$pack/bin/compiled"
  cp "$(built benches/kernels.rs)" "$pack/bin/kernels"
  cp "${CARGO_TARGET_DIR:-target}/release/dfka-engine" "$pack/bin/dfka-engine"
  rm "$log"
  strip "$pack"/bin/*
  cp configs/demo*.toml "$pack/configs/"
  cp -r weights/demo "$pack/weights/"
  cp benches/gpu.sh "$pack/gpu.sh"
  {
    git describe --always --dirty --abbrev=12
    rustc --version
  } >"$pack/REVISION"

  "$pack/bin/dfka-engine" doctor | grep -E '^(kernels|emulator) ' | tee "$pack/KERNELS"
  grep -q 'compiled for' "$pack/KERNELS" || fail "built without NVRTC: set DFKA_NVRTC_DIR to its folder"
  grep -q '^emulator .* CPU threads' "$pack/KERNELS" || fail "built without g++: no emulator to compare with"
  if command -v objdump >/dev/null; then
    echo "needs: $(objdump -T "$pack"/bin/* | grep -oE 'GLIBC(XX)?_[0-9.]+' | sort -uV |
      awk -F_ '{ newest[$1] = $0 } END { for (k in newest) printf "%s ", newest[k] }')"
  fi
  tar -C "$pack" -czf "$pack.tar.gz" .
  du -sh "$pack" "$pack.tar.gz"
  local bytes
  bytes=$(stat -c %s "$pack.tar.gz")
  ((bytes <= 64 << 20)) || fail "$pack.tar.gz has $bytes bytes; it should travel in 64 MiB"
}

# ---- run -------------------------------------------------------------------------------------------------------------

rows=() # part|result|seconds|note

# part FILE NAME LIMIT COMMAND...: output goes behind what is in OUT/FILE, and to $log; sets `result` (passed, failed or
# cut) and `seconds`, adds no row.
part() {
  local file=$1 name=$2 limit=$3 start end code=0
  shift 3
  echo "== $name (at most $limit s)"
  log=$work/$name.log
  start=$(date +%s.%N)
  timeout -k 5 "$limit" "$@" >"$log" 2>&1 || code=$?
  end=$(date +%s.%N)
  seconds=$(awk "BEGIN { printf \"%.1f\", $end - $start }")
  case $code in
    0) result=passed ;;
    124 | 137) result=cut ;;
    *) result="FAILED ($code)" ;;
  esac
  {
    echo "## $name: $result, $seconds s (revision $revision, $device, $(date -u +%FT%TZ))"
    echo "## ${*//"$pack"\//}"
    cat "$log"
    echo
  } >>"$out/$file"
}

row() { rows+=("$1|$2|$3|$4"); }

# Whether the part went well, and was not a filter that no test fits.
passed() { [[ $result == passed ]] && grep -q '^test result: ok. [1-9]' "$log"; }

# Of libtest's output: tests passed and failed, and the first that failed.
tests() {
  awk '/^test .* \.\.\. ok$/ { ok++ }
       /^test .* \.\.\. FAILED$/ { bad++; if (!first) first = $2 }
       END { printf "%d passed, %d failed%s", ok, bad, first ? ", first " first : "" }' "$log"
}

sanitise() {
  local tool=$1 limit=$2 sanitizer summary
  if [[ -n $dry ]]; then
    row "$tool" skipped 0 "dry run"
    return
  fi
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  if [[ -z $sanitizer ]]; then
    row "$tool" SKIPPED 0 "no compute-sanitizer in PATH or /usr/local/cuda/bin"
    return
  fi
  # One thread: the tool serialises launches anyway, and reports stay in order.
  part sanitizers.txt "$tool" "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 "$pack/bin/gates" ops:: --test-threads=1
  summary=$(sed -n 's/^=* *\(.*SUMMARY.*\)/\1/p' "$log" | tail -1)
  # One that was cut has no summary, but what it found so far.
  row "$tool" "$result" "$seconds" "$(tests); ${summary:-no summary; findings: $(grep -cE '^=+ (Invalid|Error|.*hazard)' "$log" || true)}"
}

# demo NAME LIMIT DEVICE SET...: a run of the demo; its row has what a comparison needs.
demo() {
  local name=$1 limit=$2 on=$3 folder=$work/$1 sets=() s note=
  shift 3
  for s in "$@"; do sets+=(--set "$s"); done
  part demo.txt "$name" "$limit" "$pack/bin/dfka-engine" run "$pack/configs/demo.toml" --device "$on" --out "$folder" \
    --quiet ${sets[@]+"${sets[@]}"}
  # The student's figure, and the steps' time without the evaluation's.
  if [[ -s $folder/summary.json ]]; then
    note=$(awk '/^  "student": / { in_student = 1 }
                in_student && /"map":/ { printf "mAP %.2f", $2; in_student = 0 }
                /^    "(block[0-9]+|generator)": / { steps += $2 }
                END { printf ", steps %.1f s", steps }' "$folder/summary.json")
  fi
  if [[ -s $folder/metrics.jsonl ]]; then
    note+=", last losses $(tail -1 "$folder/metrics.jsonl" | sed 's/.*"metrics":{\([^}]*\)}.*/\1/; s/"//g; s/:/ /g; s/,/, /g')"
  fi
  row "$name" "$result" "$seconds" "${note:-no result}"
}

# Where the comparison with PyTorch on the GPU belongs: benches/torch/step.py times the CPU's steps only.
torch_comparison() {
  if ! timeout 15 python3 -c 'import torch; assert torch.cuda.is_available()' >/dev/null 2>&1; then
    row torch SKIPPED 0 "no python3 whose torch sees a GPU"
  else
    row torch "not yet" 0 "benches/torch/step.py knows no GPU yet"
  fi
}

run() {
  [[ -x $pack/bin/gates ]] || fail "no $pack: run 'benches/gpu.sh pack' where there is Rust, and bring the folder"
  local missing
  missing=$(ldd "$pack/bin/gates" 2>&1 | grep 'not found' || true)
  [[ -z $missing ]] || fail "the programs do not start here: $missing"

  revision=$(head -1 "$pack/REVISION")
  local found
  found=$("$pack/bin/dfka-engine" doctor | sed -n 's/^cuda devices *//p')
  dry=${DRY:-}
  if [[ $dry == 0 ]]; then dry=; fi
  if [[ -z $dry && $found != cuda:0* ]]; then
    echo "No GPU ($found): a dry run on the emulator."
    dry=1
  fi
  if [[ -n $dry ]]; then
    device=emulator on=emu
  else
    device=$(sed 's/^cuda:0 \([^(]*\) (.*/\1/' <<<"$found") on=cuda
  fi
  out=${1:-$root/benches/runs/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$device")}
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  rm -f "$out"/{README.md,{gates,machines,sanitizers,kernels,demo}.txt,kernels.json}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT

  local begin gates_passed=1 machines_passed=1
  begin=$(date +%s)
  {
    echo "# $(date +%F), $device"
    echo
    echo "- Command: \`benches/gpu.sh run\`${dry:+ (dry: on the emulator, cut short)}."
    echo "- Revision: $revision ($(sed -n 2p "$pack/REVISION"))."
    echo "- Device: $found."
    if command -v nvidia-smi >/dev/null; then
      nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current \
        --format=csv,noheader | sed 's/^/- nvidia-smi (clocks of SM and memory, power limit, ECC): /' || true
    fi
    echo
    echo '```'
  } >"$out/README.md"
  # A test that cannot open its machine must fail, not skip.
  export DFKA_REQUIRE_EMU=1 DFKA_REQUIRE_NVRTC=1
  export DFKA_TEST_ROOT=$pack DFKA_TEST_PROGRAM=$pack/bin/dfka-engine DFKA_TEST_DEVICE=$on

  part README.md doctor 10 "$pack/bin/dfka-engine" doctor
  row doctor "$result" "$seconds" "$(sed -n 's/^kernels *//p' "$log")"

  part gates.txt compiled 15 "$pack/bin/compiled"
  row compiled "$result" "$seconds" "$(tests)"

  part gates.txt gates 105 "$pack/bin/gates" ops::
  passed || gates_passed=0
  row gates "$result" "$seconds" "$(tests)"

  # The emulator takes half a minute for all three: a dry run takes one.
  local machines=()
  if [[ -n $dry ]]; then machines=(a_run_moves); fi
  part machines.txt machines 50 "$pack/bin/machines" ${machines[@]+"${machines[@]}"}
  passed || machines_passed=0
  row machines "$result" "$seconds" "$(tests)"

  sanitise memcheck 50
  sanitise racecheck 50

  part kernels.txt kernels 95 "$pack/bin/kernels" --device "$on" --json "$out/kernels.json" --seconds 5
  row kernels "$result" "$seconds" "$(cat "$out/kernels.json" 2>/dev/null | grep -c '"kernel":' || true) rows in kernels.json"

  # The whole demo on the device, then a quarter of its steps there and on the CPU: the three to compare.
  local short=(generator.steps=125 'dual.steps=[25, 100, 200, 325]' loss.least_diversity=0 loss.least_entropy=0)
  if [[ -n $dry ]]; then
    short=(generator.steps=1 'dual.steps=[1, 1, 1, 1]' generator.batch=4 dual.batch=4 dual.bank=8
      loss.least_diversity=0 loss.least_entropy=0)
    row demo skipped 0 "dry run"
  else
    demo demo 45 "$on"
  fi
  demo short-bf16 20 "$on" "${short[@]}"
  demo short-f32 20 "$on" "${short[@]}" 'precision="f32"'
  demo short-cpu 45 cpu "${short[@]}"

  torch_comparison

  echo '```' >>"$out/README.md"
  {
    echo
    echo "$device, revision $revision: $(($(date +%s) - begin)) s in all"
    echo
    local name result seconds note r
    printf '| %-10s | %-12s | %7s | %s |\n' part result seconds "" ---------- ------------ ------: ---
    for r in "${rows[@]}"; do
      IFS='|' read -r name result seconds note <<<"$r"
      printf '| %-10s | %-12s | %7s | %s |\n' "$name" "$result" "$seconds" "$note"
    done
  } | tee -a "$out/README.md"
  echo "raw results in $out"
  [[ $gates_passed == 1 && $machines_passed == 1 ]] || exit 1
}

case ${1:-} in
  pack) pack ;;
  run) run "${2:-}" ;;
  *) fail "expected 'pack' or 'run [OUT]'" ;;
esac
