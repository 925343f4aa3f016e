#!/usr/bin/env bash
# Lines of the CUDA layer (src/device/gpu/cuda) that run on the fake CUDA driver, as a table of files. Fails below 95 %.
# Takes about 10 minutes on 2 cores. Needs rustup, for the component llvm-tools.
#
#   scripts/coverage.sh [FOLDER]     # FOLDER: gets an HTML page of each file as well
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
[ -x "$tools/llvm-cov" ] || rustup component add llvm-tools

export CARGO_TARGET_DIR=target/coverage RUSTFLAGS="-C instrument-coverage" DFKA_REQUIRE_NVRTC=1 DFKA_REQUIRE_EMU=1
profiles=$CARGO_TARGET_DIR/profiles
rm -rf "$profiles"
# %4m: four files that all processes add to, those that tests start too.
export LLVM_PROFILE_FILE=$PWD/$profiles/%4m.profraw

executable() { # ARGUMENTS: builds, and prints the path of the test binary
  cargo test "$@" --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}
unit=$(executable --lib)
program=$(executable --test program)
cuda() { LD_LIBRARY_PATH=$CARGO_TARGET_DIR/tmp/fakecuda FAKECUDA_QUIET=1 "$@"; }

"$program" fake_driver::
"$unit" device::gpu::
# Events with times, and what the op checks need of a device.
DFKA_TEST_DEVICE=cuda cuda "$unit" autograd::plan:: ops::losses:: --quiet
# One step of each stage of the demo, whose convolutions load their operands through tensor maps. Exit code 7: a student
# that was trained so shortly fails.
code=0
cuda "$CARGO_TARGET_DIR/debug/dfka-engine" run configs/demo.toml --device cuda --quiet --force --out "$profiles/demo" \
  --set generator.steps=1 --set generator.batch=4 --set dual.steps=[1,1,1,1] --set dual.batch=4 --set dual.bank=4 \
  --set loss.least_diversity=0 --set loss.least_information=0 --set loss.least_found=0 >"$profiles/demo.log" || code=$?
[ $code = 0 ] || [ $code = 7 ]

"$tools/llvm-profdata" merge --sparse "$profiles"/*.profraw -o "$profiles/all.profdata"
objects=(--object "$unit" --object "$program" --object "$CARGO_TARGET_DIR/debug/dfka-engine")
cov() { # COMMAND [OPTIONS]
  "$tools/llvm-cov" "$@" --instr-profile "$profiles/all.profdata" "${objects[@]}" --sources src/device/gpu/cuda
}
[ $# = 0 ] || cov show --format=html --output-dir "$1"
cov report --show-region-summary=false --show-branch-summary=false
share=$(cov export --summary-only |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["totals"]["lines"]["percent"])')
echo "lines that ran: $share %"
python3 -c "import sys; sys.exit($share < 95)" || { echo "expected 95 % at least" >&2; exit 1; }
