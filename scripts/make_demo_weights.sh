#!/usr/bin/env bash
# Makes everything in weights/demo from the public archives: scenes, backbone and teachers.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/fetch_demo_data.sh
cargo build --release
engine=target/release/dfka-engine

mkdir -p weights/demo
$engine scenes data/raw weights/demo/evaluation.npz --split eval --count 2000 --seed 5
$engine scenes data/raw weights/demo/unlabelled.npz --split train --count 8000 --seed 4 --unlabelled
$engine scenes data/raw weights/demo/one.npz --split train --count 1 --seed 4 --unlabelled
for part in backbone teacher_a teacher_b; do
  $engine teach "configs/demo/$part.toml" --out "runs/demo-$part" --force
  cp "runs/demo-$part/weights.npz" "weights/demo/$part.npz"
done
(cd weights/demo && sha256sum ./*.npz)
