#!/usr/bin/env bash
# Every figure of docs/results.md: runs the demo's experiments one after the other into $1 (default runs/experiments)
# and prints the table. A run that is already there is not repeated. About half an hour on 2 cores.
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

# The default config, three seeds.
for seed in 0 1 2; do run "default-$seed" --seed $seed; done
# Two customised labels, one of each teacher, branched after block 3.
two=(--set student.branch=3)
run pair-bag-0 "${two[@]}" --set 'student.labels=["bag","0"]'
run pair-sneaker-sandal "${two[@]}" --set 'student.labels=["sneaker","sandal"]'
run pair-4-trouser "${two[@]}" --set 'student.labels=["4","trouser"]'
# Same initialisation and budget, other images: KA (real, unlabelled) and noise.
run ka --set dual.images=real:../weights/demo/unlabelled.npz
run noise --set dual.images=noise
run noise-scratch --set dual.images=noise --set student.init=scratch --set student.norm=batch
# Table 3: groups of the generator.
for groups in 1 2; do # default-0 has four
  run "groups-$groups" --set generator.groups=$groups; done

python3 scripts/results_table.py "$out"
