#!/usr/bin/env bash
# The runs of docs/results.md but the paper's tables (`dfka-engine experiment` has those), one after the other into $1 (default
# runs/experiments), and their table. A run that is already there is not repeated. 13 runs, about 20 minutes on 2 idle cores.
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

# The default config (four groups), three seeds.
for seed in 0 1 2; do run "default-$seed" --seed $seed; done
# Two customised labels, one of each teacher: two groups, branched after block 3.
two=(--set generator.groups=2 --set student.branch=3)
run pair-bag-0 "${two[@]}" --set 'student.labels=["bag","0"]'
run pair-sneaker-sandal "${two[@]}" --set 'student.labels=["sneaker","sandal"]'
run pair-4-trouser "${two[@]}" --set 'student.labels=["4","trouser"]'
# Same initialisation and budget, other images: KA (real, unlabelled) and noise.
run ka --set dual.images=real:../weights/demo/unlabelled.npz
run noise --set dual.images=noise
run noise-scratch --set dual.images=noise --set student.init=scratch --set student.norm=batch
# Groups of the generator: one, and two with three seeds.
run groups-1 --set generator.groups=1
for seed in 0 1 2; do run "groups-2-seed$seed" --seed $seed --set generator.groups=2; done

python3 scripts/results_table.py "$out"
