#!/usr/bin/env bash
# Answers most of the questions that need a GPU, in calls of less than nine minutes each (benches/PENDING.md
# lists the questions, and what answers the others).
#
#   benches/gpu.sh pack         on a machine with Rust, g++ and NVRTC: builds everything into target/gpu
#   benches/gpu.sh run [OUT]    on the machine with the GPU, which needs target/gpu, glibc 2.34 and a driver,
#                               no Rust. Correctness and speed: op checks, machines, parity, steps, PyTorch
#   benches/gpu.sh run2 [OUT]   details: sanitizers, kernels, lab, whole runs
#   benches/gpu.sh run3 [OUT]   steps again, and those of PyTorch's variants that no call has measured yet
#
# They write raw results to OUT (default benches/runs/<date>-<device>), and a table last. `run` removes the
# results of earlier calls; `run2` and `run3` add to them. A part that fails or takes too long does not stop
# the others, and none starts once a call has taken TOTAL seconds (530). The exit code is 0 if the op checks,
# the machines' tests and the parity passed. DRY=1, or no GPU, runs small versions of the same: on the GPU if the
# driver lists one, which may be the fake driver (tests/fakecuda), otherwise on the emulator. PYTHON names an
# interpreter with torch (python3).
#
# target/gpu.tar.gz is target/gpu in one file; unpacked anywhere it works alone: ./gpu.sh run OUT.
# PACK names another folder than target/gpu, CARGO_TARGET_DIR another place to build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -x $here/bin/op_checks ]]; then
  root=$here pack=$here
else
  root=$(dirname "$here")
  pack=${PACK:-$root/target/gpu}
fi

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

# ---- pack ----

pack() {
  cd "$root"
  local log
  log=$(mktemp)
  local lab=()
  if [[ -f benches/lab.rs ]]; then lab=(--bench lab); fi
  cargo test --release --no-run --lib --bins --test engine --bench kernels --bench step \
    ${lab[@]+"${lab[@]}"} 2>&1 | tee "$log" >&2
  # Cargo ends with lines such as `Executable tests/engine/main.rs (target/release/deps/engine-0123)`.
  built() { sed -n "s|^ *Executable .*$1 (\(.*\))\$|\1|p" "$log"; }
  rm -rf "$pack"
  mkdir -p "$pack/bin" "$pack/configs" "$pack/weights"
  cp "$(built src/lib.rs)" "$pack/bin/op_checks"
  cp "$(built tests/engine/main.rs)" "$pack/bin/engine"
  cp "$(built benches/kernels.rs)" "$pack/bin/kernels"
  cp "$(built benches/step.rs)" "$pack/bin/step"
  if [[ -n ${lab[*]-} ]]; then cp "$(built benches/lab.rs)" "$pack/bin/lab"; fi
  cp "${CARGO_TARGET_DIR:-target}/release/dfka-engine" "$pack/bin/dfka-engine"
  rm "$log"
  strip "$pack"/bin/*
  cp configs/demo*.toml configs/voc.toml "$pack/configs/"
  mkdir "$pack/torch"
  cp benches/torch/*.py "$pack/torch/"
  cp -r weights/demo "$pack/weights/"
  cp benches/gpu.sh "$pack/gpu.sh"
  {
    git describe --always --dirty --abbrev=12
    rustc --version
  } >"$pack/REVISION"

  "$pack/bin/dfka-engine" doctor | grep -E '^(kernels|emulator) ' | tee "$pack/KERNELS"
  grep -q 'compiled for' "$pack/KERNELS" || fail "built without NVRTC: set DFKA_NVRTC_DIR to its folder"
  # Machine code of CUDA 13's NVRTC runs on drivers from 580 on, of CUDA 12's from 525 on.
  if "$pack/bin/dfka-engine" doctor | grep -qE '^libnvrtc +1[3-9]'; then
    echo "gpu.sh: this pack needs a driver of CUDA 13; one of NVRTC 12.4 runs on drivers of CUDA 12 too:" \
      "pip install nvidia-cuda-nvrtc-cu12==12.4.127" >&2
  fi
  grep -q '^emulator .* CPU threads' "$pack/KERNELS" || fail "built without g++: no emulator to compare with"
  if command -v objdump >/dev/null; then
    echo "needs: $(objdump -T "$pack"/bin/* | grep -oE 'GLIBC(XX)?_[0-9.]+' | sort -uV |
      awk -F_ '{ newest[$1] = $0 } END { for (k in newest) printf "%s ", newest[k] }')"
  fi
  tar -C "$pack" -czf "$pack.tar.gz" .
  du -sh "$pack" "$pack.tar.gz"
}

# ---- run ----

rows=() # part|result|seconds|note

# part FILE NAME LIMIT COMMAND...: runs COMMAND for at most LIMIT seconds. Appends its output to OUT/FILE, and
# writes it to $log; sets `result` (passed, FAILED, cut or no time) and `seconds`, adds no row.
part() {
  local file=$1 name=$2 limit=$3 start end code=0
  shift 3
  log=$work/$name.log
  if ((limit > $(left))); then limit=$(left); fi
  if ((limit < 5)); then
    : >"$log"
    result="no time" seconds=0
    return
  fi
  echo "== $name (at most $limit s)"
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

# Whole seconds that the call has left.
left() { echo $((${TOTAL:-530} - $(date +%s) + begin)); }

# Whether the part passed, and its filter matched at least one test.
passed() { [[ $result == passed ]] && grep -q '^test result: ok. [1-9]' "$log"; }

# From libtest's output: the number of tests that passed and failed, and the first that failed.
tests() {
  awk '/^test .* \.\.\. ok$/ { ok++ }
       /^test .* \.\.\. FAILED$/ { bad++; if (!first) first = $2 }
       END { printf "%d passed, %d failed%s", ok, bad, first ? ", first " first : "" }' "$log"
}

# one_by_one NAME PROGRAM FILTER...: after a run of PROGRAM whose output is in $log, runs every test that did
# not pass in a process of its own that waits for every launch. After one bad address CUDA refuses all further
# work in a process, so that every later test fails as well.
one_by_one() {
  local name=$1 program=$2 before=$log t ran=0 alone=0 failed=() mma=0 end=$((SECONDS + ${APART:-90}))
  shift 2
  comm -23 <("$pack/bin/$program" "$@" --list 2>/dev/null | sed -n 's/: test$//p' | sort) \
    <(sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' "$before" | sort) >"$work/$name.todo"
  while read -r t; do
    if ((SECONDS >= end)) || (($(left) < 15)); then break; fi
    ran=$((ran + 1))
    part "$name.txt" "$name-alone" 12 env DFKA_SYNC=1 "$pack/bin/$program" --exact "$t"
    if passed; then
      alone=$((alone + 1))
      continue
    fi
    failed+=("$t")
    part "$name.txt" "$name-mma" 12 env DFKA_SYNC=1 DFKA_TENSOR_CORES=mma "$pack/bin/$program" --exact "$t"
    if passed; then mma=$((mma + 1)); fi
  done <"$work/$name.todo"
  row "alone" "$([[ ${#failed[@]} == 0 ]] && echo passed || echo FAILED)" 0 "of $(wc -l <"$work/$name.todo") that did not pass $ran \
ran alone: $alone passed, ${#failed[@]} failed ($mma of them pass without wgmma)${failed[*]:+: ${failed[*]}}"
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
  part sanitizers.txt "$tool" "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 "$pack/bin/op_checks" ops:: --test-threads=1
  summary=$(sed -n 's/^=* *\(.*SUMMARY.*\)/\1/p' "$log" | tail -1)
  # A tool that was cut prints no summary, so count what it has found.
  row "$tool" "$result" "$seconds" "$(tests); ${summary:-no summary; findings: $(grep -cE '^=+ (Invalid|Error|.*hazard)' "$log" || true)}"
}

# demo NAME LIMIT DEVICE SET...: a run of the demo. Its row has the score, the time and the losses to compare.
demo() {
  local name=$1 limit=$2 on=$3 folder=$work/$1 sets=() s note=
  shift 3
  for s in "$@"; do sets+=(--set "$s"); done
  part demo.txt "$name" "$limit" "$pack/bin/dfka-engine" run "$pack/configs/demo.toml" --device "$on" --out "$folder" \
    --quiet ${sets[@]+"${sets[@]}"}
  # The student's mAP, and the time of the steps without the evaluation.
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

# torch_there: sets `torch_device` to the device on which PyTorch runs here, empty without PyTorch.
torch_there() {
  torch_device= without_torch="no $python whose torch sees a GPU"
  local seen
  seen=$(timeout 60 "$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")' 2>/dev/null || true)
  if [[ $seen == cuda && -z $dry ]] || [[ -n $seen && -n $dry ]]; then
    torch_device=$([[ -n $dry ]] && echo cpu || echo cuda)
  fi
}

# The engine's and PyTorch's losses and gradients from the same networks and inputs: the demo's networks, and
# two ResNet-101 with random weights.
parity() {
  local precision config files=() exported=1 name code
  if [[ -z $torch_device ]]; then
    row parity SKIPPED 0 "$without_torch"
    return
  fi
  for config in demo voc; do
    for precision in f32 bf16; do
      name=parity-$config-$precision
      local sets=(--set "precision=\"$precision\"" --set "generator.batch=8")
      if [[ -n $dry && $config == voc ]]; then sets+=(--tiny); fi
      part parity.txt "$name" 40 "$pack/bin/step" --device "$on" --config "$pack/configs/$config.toml" "${sets[@]}" \
        --threads "$(nproc)" --export "$work/$name.npz"
      if [[ $result == passed ]]; then files+=("$work/$name.npz"); else exported=0; fi
    done
  done
  part parity.txt parity 80 "$python" "$pack/torch/step.py" --device "$torch_device" --json "$out" \
    --parity ${files[@]+"${files[@]}"}
  [[ $result == passed && $exported == 1 ]] || parity_passed=0
  row parity "$result" "$seconds" "$(grep -c ': reached' "$log" || true) of 4 bars reached, $(
    grep -c 'MISSED' "$log" || true) missed$(((exported)) || echo '; an export failed')"
}

# steps TORCH_SECONDS: times the engine's steps and then PyTorch's, because a ratio needs both from one call.
steps() {
  local seconds_of_torch=$1 n='' i done=() tiny=() variants=() limit=300
  for i in '' 2 3 4 5 6 7 8 9; do
    n=$i
    if [[ ! -e $out/step$i.json ]]; then break; fi
    done+=(--done "$out/torch$i.json")
  done
  if [[ -n $dry ]]; then tiny=(--tiny) variants=(--variants "eager folded,eager") limit=60; fi
  part step.txt step 110 "$pack/bin/step" --device "$on" --config "$pack/configs/voc.toml" --seconds 2 --threads "$(nproc)" \
    --json "$out/step$n.json" ${tiny[@]+"${tiny[@]}"}
  row step "$result" "$seconds" "$(grep -c '"roof_percent":' "$out/step$n.json" 2>/dev/null || true) of 7 steps in step$n.json"
  if [[ -z $torch_device ]]; then
    row torch SKIPPED 0 "$without_torch"
    return
  fi
  # Some seconds of the call stay for the table.
  local budget=$(($(left) - 15))
  if ((budget > seconds_of_torch)); then budget=$seconds_of_torch; fi
  part torch.txt torch $((budget + 10)) "$python" "$pack/torch/step.py" --device "$torch_device" \
    --config "$pack/configs/voc.toml" --json "$out/torch$n.json" --limit "$limit" --budget "$budget" \
    ${done[@]+"${done[@]}"} ${tiny[@]+"${tiny[@]}"} ${variants[@]+"${variants[@]}"}
  row torch "$result" "$seconds" "$(grep -c '"ms":' "$out/torch$n.json" 2>/dev/null || true) measured, $(
    grep -c '"error":' "$out/torch$n.json" 2>/dev/null || true) not, in torch$n.json"
}

# Prints the targets and the measured figures, if a step was measured.
bars() {
  if compgen -G "$out/step*.json" >/dev/null; then
    "$pack/bin/step" --report "$out" 2>&1 || true
  fi
}

# run CALL [OUT]
run() {
  [[ -x $pack/bin/op_checks ]] || fail "no $pack: run 'benches/gpu.sh pack' where there is Rust, and bring the folder"
  local call=$1 missing begin
  begin=$(date +%s)
  missing=$(ldd "$pack/bin/op_checks" 2>&1 | grep 'not found' || true)
  [[ -z $missing ]] || fail "the programs do not start here: $missing"

  revision=$(head -1 "$pack/REVISION") python=${PYTHON:-python3}
  local found
  found=$("$pack/bin/dfka-engine" doctor | sed -n 's/^cuda devices *//p')
  dry=${DRY:-}
  if [[ $dry == 0 ]]; then dry=; fi
  if [[ -z $dry && $found != cuda:0* ]]; then
    echo "No GPU ($found): a dry run on the emulator."
    dry=1
  fi
  if [[ -n $dry && $found != cuda:0* ]]; then
    device=emulator on=emu
  else
    device=$(sed 's/^cuda:0 \([^(]*\) (.*/\1/' <<<"$found") on=cuda
  fi
  out=${2:-$root/benches/runs/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$device")}
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  if [[ $call == run ]]; then
    rm -f "$out"/{README.md,{op_checks,machines,sanitizers,kernels,lab,demo,parity,step,torch}.txt,kernels.json}
    rm -f "$out"/{step,torch,parity-}*.json
  fi
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT

  op_checks_passed=1 machines_passed=1 parity_passed=1
  {
    [[ -s $out/README.md ]] && echo
    echo "# $(date +%F), $device${call#run}"
    echo
    echo "- Command: \`benches/gpu.sh $call\`${dry:+ (dry: cut short)}."
    echo "- Revision: $revision ($(sed -n 2p "$pack/REVISION"))."
    echo "- Device: $found."
    if command -v nvidia-smi >/dev/null; then
      nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current \
        --format=csv,noheader | sed 's/^/- nvidia-smi (clocks of SM and memory, power limit, ECC): /' || true
    fi
    echo
    echo '```'
  } >>"$out/README.md"
  # A test that cannot open its machine must fail, not skip.
  export DFKA_REQUIRE_EMU=1 DFKA_REQUIRE_NVRTC=1
  export DFKA_TEST_ROOT=$pack DFKA_TEST_PROGRAM=$pack/bin/dfka-engine DFKA_TEST_DEVICE=$on

  part README.md doctor 10 "$pack/bin/dfka-engine" doctor
  row doctor "$result" "$seconds" "$(sed -n 's/^kernels *//p' "$log")"
  "call_$call"

  echo '```' >>"$out/README.md"
  {
    bars
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
  [[ $op_checks_passed == 1 && $machines_passed == 1 && $parity_passed == 1 ]] || exit 1
}

# ---- the calls ----

call_run() {
  # What the pack holds; the other tests of `kernels` disassemble it, which takes the CPU 20 seconds.
  part op_checks.txt compiled 15 "$pack/bin/engine" kernels::every_kernel_compiles_for_every_target_without_spills
  row compiled "$result" "$seconds" "$(tests)"

  part op_checks.txt op_checks 105 "$pack/bin/op_checks" ops::
  row op_checks "$result" "$seconds" "$(tests)"
  passed || {
    op_checks_passed=0
    one_by_one op_checks op_checks ops::
  }

  # The emulator takes half a minute for all three: a dry run takes one.
  local machines=machines::
  if [[ -n $dry ]]; then machines=machines::a_run_moves; fi
  part machines.txt machines 50 "$pack/bin/engine" "$machines"
  row machines "$result" "$seconds" "$(tests)"
  passed || {
    machines_passed=0
    one_by_one machines engine "$machines"
  }

  torch_there
  parity
  steps 240
}

call_run2() {
  sanitise memcheck 50
  sanitise racecheck 50

  # cuBLASLt of PyTorch's wheels, if the loader finds none.
  local library='
import ctypes, glob, sys
for name in "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so":
    try: sys.exit(bool(ctypes.CDLL(name)) and 0)
    except OSError: pass
found = [f for p in sys.path for f in sorted(glob.glob(p + "/nvidia/*/lib/libcublasLt.so.1[23]"))]
print(*found[-1:])'
  library=$("$python" -c "$library" 2>/dev/null || true)
  part kernels.txt kernels 95 env ${library:+DFKA_CUBLASLT="$library"} "$pack/bin/kernels" --device "$on" ${dry:+--tiny} \
    --json "$out/kernels.json" --seconds 5
  row kernels "$result" "$seconds" "$(cat "$out/kernels.json" 2>/dev/null | grep -c '"kernel":' || true) rows in kernels.json"

  # The rungs of the convolution's ladder (kernels/lab), if the pack has them.
  if [[ -x $pack/bin/lab ]]; then
    part lab.txt lab 90 "$pack/bin/lab" --device "$on"
    row lab "$result" "$seconds" "$(grep -c . "$log" || true) lines in lab.txt"
  else
    row lab SKIPPED 0 "no benches/lab.rs in the pack"
  fi

  # The whole demo on the device, then a quarter of its steps in bf16, in f32 and on the CPU, to compare these
  # three.
  local short=(generator.steps=125 'dual.steps=[25, 100, 200, 325]' loss.least_diversity=0 loss.least_information=0 loss.least_found=0)
  if [[ -n $dry ]]; then
    short=(generator.steps=1 'dual.steps=[1, 1, 1, 1]' generator.batch=4 dual.batch=4 dual.bank=8
      loss.least_diversity=0 loss.least_information=0 loss.least_found=0)
    row demo skipped 0 "dry run"
  else
    demo demo 45 "$on"
  fi
  demo short-bf16 20 "$on" "${short[@]}"
  demo short-f32 20 "$on" "${short[@]}" 'precision="f32"'
  demo short-cpu 45 cpu "${short[@]}"
}

call_run3() {
  torch_there
  steps 400
}

case ${1:-} in
  pack) pack ;;
  run | run2 | run3) run "$1" "${2:-}" ;;
  *) fail "expected 'pack', or 'run', 'run2' or 'run3' and OUT" ;;
esac
