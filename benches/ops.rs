//! Convolution on the CPU, forward and both gradients, in GFLOP/s: `cargo bench --bench ops`.
//!
//! Each row is the median of as many repeats as fit into a quarter of a second, after one warm-up. Compare
//! two builds only when they run right after each other.

use dfka_engine::autograd::{Engine, Plan, Tape, tape::Learn};
use dfka_engine::device::StepState;
use dfka_engine::ops::layers::activation::Act;
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::tensor::Shape;
use std::time::Instant;

fn main() {
    println!("{:40} {:>9} {:>9} {:>9}", "convolution (batch 64)", "fwd", "fwd+dx", "fwd+dx+dw");
    for (h, c, k, r, stride) in [
        (32, 1, 16, 3, 2),
        (16, 16, 16, 3, 1),
        (16, 16, 32, 3, 2),
        (8, 32, 32, 3, 1),
        (4, 64, 64, 3, 1),
        (2, 128, 128, 3, 1),
        (8, 128, 128, 3, 1),
        (4, 256, 256, 3, 1),
        (8, 512, 512, 3, 1),
        (32, 32, 32, 3, 1),
        (16, 64, 64, 3, 1),
        (14, 1024, 256, 1, 1),
        (32, 32, 1, 3, 1),
    ] {
        let x = Shape::new(64, h, h, c);
        let row: Vec<String> = [(false, false), (true, false), (true, true)]
            .into_iter()
            .map(|(dx, dw)| {
                let learn = |w| if w { Learn::Trainable } else { Learn::Frozen };
                let mut e = Engine::<f32>::default();
                let (xi, wi) = (e.store.add("x", x), e.store.add("w", Shape::new(k, r, r, c)));
                for id in [xi, wi] {
                    e.store
                        .get_mut(id)
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v = (i as f32 * 0.37).sin());
                }
                let mut t = Tape::default();
                let (xv, wv) = (t.leaf(&e.store, xi, learn(dx)), t.leaf(&e.store, wi, learn(dw)));
                let y = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(stride, r / 2) }, &[xv, wv]).unwrap();
                t.output(y);
                let mut plan = Plan::compile(&t, &e.store, (dx || dw).then_some(y), &[]).unwrap();
                plan.reserve(&mut e).unwrap();
                plan.replay(&mut e, &StepState::default()).unwrap();
                let mut times = Vec::new();
                let start = Instant::now();
                while start.elapsed().as_secs_f64() < 0.25 {
                    let t = Instant::now();
                    plan.replay(&mut e, &StepState::default()).unwrap();
                    times.push(t.elapsed().as_secs_f64());
                }
                times.sort_by(f64::total_cmp);
                format!("{:9.1}", 2e-9 * plan.cost().macs as f64 / times[times.len() / 2])
            })
            .collect();
        println!("{:40} {}", format!("{h}x{h}x{c} -> {k}, {r}x{r} / {stride}"), row.join(" "));
    }
}
