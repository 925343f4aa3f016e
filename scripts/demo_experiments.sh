#!/usr/bin/env bash
# Makes the runs of docs/results.md, except the paper's tables, which `dfka-engine experiment` makes, and
# prints their table. The runs go to $1 (default runs/experiments); a run that is already there is not
# repeated. 13 runs take about 20 minutes on 2 idle cores.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/experiments}
engine=${ENGINE:-target/release/dfka-engine}
mkdir -p "$out"

run() { # name, overrides...
  local name=$1
  shift
  [ -s "$out/$name/summary.json" ] && return
  echo "== $name: $*"
  $engine run configs/demo.toml --quiet --force --out "$out/$name" "$@" > "$out/$name.log"
}

# The default config (four groups) with three seeds.
for seed in 0 1 2; do run "default-$seed" --seed $seed; done
# Two chosen labels, one of each teacher; two groups, branched after block 3.
two=(--set generator.groups=2 --set student.branch=3)
run pair-bag-0 "${two[@]}" --set 'student.labels=["bag","0"]'
run pair-sneaker-sandal "${two[@]}" --set 'student.labels=["sneaker","sandal"]'
run pair-4-trouser "${two[@]}" --set 'student.labels=["4","trouser"]'
# The same initialisation and budget with other images: real unlabelled ones (KA) and noise.
run ka --set dual.images=real:../weights/demo/unlabelled.npz
run noise --set dual.images=noise
run noise-scratch --set dual.images=noise --set student.init=scratch --set student.norm=batch
# The number of generator groups: one, and two with three seeds.
run groups-1 --set generator.groups=1
for seed in 0 1 2; do run "groups-2-seed$seed" --seed $seed --set generator.groups=2; done

python3 scripts/results_table.py "$out"
