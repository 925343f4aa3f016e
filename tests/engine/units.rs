//! A residual unit as a student has it, with batch norms, on a machine with bf16 maps: the batch norm at its end also
//! computes the unit's activation, the gradient of the unit's sum is read where the skip's lies, and with running
//! estimates batch norms are folded into the filters. Two inputs of the same layers, and two networks of equal layers,
//! share launches. Results are those of f64 but for the rounding to bf16.

use crate::machines::machine;
use dfka_engine::autograd::tape::{Learn, Value};
use dfka_engine::autograd::{Engine, Optimiser, Plan, Tape, TensorId};
use dfka_engine::device::{Choice, StepState};
use dfka_engine::models::Recorder;
use dfka_engine::ops::Scalar;
use dfka_engine::ops::layers::activation::{Act, Activation};
use dfka_engine::ops::layers::batch_norm::{BatchNorm, Stats};
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::ops::layers::global_avg_pool::GlobalAvgPool;
use dfka_engine::ops::losses::activation_loss::ActivationLoss;
use dfka_engine::ops::losses::weighted_sum::WeightedSum;
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::ops::random::noise::Noise;
use dfka_engine::tensor::{Elem, Shape};

/// Convolution and batch norm: the filter, gamma and beta learn.
struct Layer {
    filter: TensorId,
    norm: [TensorId; 4],
}

impl Layer {
    fn new<R: Scalar>(engine: &mut Engine<R>, name: &str, k: f32, channels: usize) -> Layer {
        let mut add = |part: &str, shape: Shape, size: f32, about: f32| {
            let wave: Vec<f32> = (0..shape.elems()).map(|i| about + size * (i as f32 * k).sin()).collect();
            engine.store.add_with(&format!("{name}.{part}"), shape, &wave)
        };
        let v = Shape::vector(channels);
        Layer {
            filter: add("w", Shape::new(channels, 3, 3, channels), 0.6 / (channels as f32).sqrt(), 0.0),
            norm: [
                add("gamma", v, 0.3, 1.0),
                add("beta", v, 0.3, 0.0),
                add("mean", v, 0.2, 0.1),
                add("var", v, 0.2, 1.0),
            ],
        }
    }
    fn record<R: Scalar>(&self, r: &mut Recorder<R>, x: Value, stats: Stats, act: Act) -> Value {
        let w = r.leaf(self.filter, Learn::Trainable);
        let u = r.apply(Conv2d::new(1, 1), &[x, w]).unwrap();
        let [gamma, beta] = [0, 1].map(|i| r.leaf(self.norm[i], Learn::Trainable));
        let [mean, var] = [2, 3].map(|i| r.leaf(self.norm[i], Learn::Frozen));
        let norm = BatchNorm { stats, act, momentum: 0.1, eps: 1e-5 };
        r.apply(norm, &[u, gamma, beta, mean, var]).unwrap()
    }
    fn learning(&self) -> [TensorId; 3] {
        [self.filter, self.norm[0], self.norm[1]]
    }
}

/// What runs in one step: networks of two units each, and inputs for each of them.
#[derive(Clone, Copy, Debug)]
struct Networks {
    count: usize,
    inputs: usize,
    /// Height and width of the maps, four of them a batch.
    map: [usize; 2],
    /// Their channels.
    channels: usize,
    /// Whether the units of an input are a segment of the tape, in which no batch norm is folded.
    in_segment: bool,
}

const ONE: Networks = Networks { count: 1, inputs: 1, map: [7, 6], channels: 16, in_segment: false };

/// The loss and the gradients of all that learns in the networks, and the plan.
fn units<R: Scalar>(mut engine: Engine<R>, stats: Stats, networks: Networks) -> (Vec<Vec<f64>>, Plan<R>) {
    let wave = |i: usize| 0.71 + 0.13 * i as f32;
    let layers: Vec<Layer> = (0..4 * networks.count)
        .map(|i| Layer::new(&mut engine, &format!("layer{i}"), wave(i), networks.channels))
        .collect();
    let learning: Vec<TensorId> = layers.iter().flat_map(Layer::learning).collect();
    let moments: Vec<Vec<TensorId>> = learning
        .iter()
        .map(|id| {
            let shape = engine.store.shape(*id);
            ["first", "second"].map(|m| engine.store.add(&format!("{m} of {id:?}"), shape)).to_vec()
        })
        .collect();
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let mut losses = Vec::new();
    for (i, network) in layers.chunks(4).flat_map(|n| vec![n; networks.inputs]).enumerate() {
        let [h, w] = networks.map;
        let noise = Noise { shape: Shape::new(4, h, w, networks.channels), stream: 1 + i as u32 };
        let mut x = r.apply(noise, &[]).unwrap();
        if networks.in_segment {
            r.tape.begin_segment();
        }
        for unit in network.chunks(2) {
            let y = unit[0].record(&mut r, x, stats, Act::Relu);
            let y = unit[1].record(&mut r, y, stats, Act::None);
            x = r.apply(Activation(Act::Relu), &[y, x]).unwrap();
        }
        r.tape.end_segment();
        let features = r.apply(GlobalAvgPool, &[x]).unwrap();
        losses.push(r.apply(ActivationLoss { mean_over_features: true }, &[features]).unwrap());
    }
    let loss = r.apply(WeightedSum { weights: vec![1.0; losses.len()] }, &losses).unwrap();
    tape.output(loss);
    // With beta1 = 0, Adam's first moment is the gradient.
    let adam = Adam { lr_slot: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let tensors = learning.into_iter().zip(moments.clone()).collect();
    let optimiser = Optimiser { op: adam.into(), tensors };
    let mut plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(&mut engine).unwrap();
    plan.replay(&mut engine, &StepState::default()).unwrap();
    plan.collect(&engine).unwrap();
    engine.pull().unwrap();
    let mut found = vec![plan.output(&engine, loss).unwrap().iter().map(|v| v.f64()).collect()];
    let gradient = |m: &Vec<TensorId>| engine.store.get(m[0]).iter().map(|v| v.f64()).collect();
    found.extend(moments.iter().map(gradient));
    (found, plan)
}

/// The plan on a machine, after a comparison of its loss and gradients with those of f64.
fn checked(choice: Choice, elem: Elem, stats: Stats, networks: Networks) -> Plan<f32> {
    // Rounding to bf16 changes the sign in front of some ReLUs: found were 5e-4 of the loss, and of the gradients up to
    // 5 % with running estimates and 15 % with the batch's statistics.
    let [of_loss, of_gradients] = if elem == Elem::F32 { [3e-5, 3e-5] } else { [2e-3, 0.25] };
    let (expected, _) = units(Engine::<f64>::default(), stats, networks);
    let (found, plan) = units(Engine::<f32>::on(choice.machine(elem).unwrap().unwrap()), stats, networks);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let most = if i == 0 { of_loss } else { of_gradients };
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let size = norm(&mut expected.iter().copied());
        assert!(size > 0.0 && off <= most * size, "{elem}, {stats:?}, {networks:?}: off by {off} of {size}");
    }
    plan
}

#[test]
fn a_students_units_are_fused_and_have_the_oracles_gradients() {
    let Some(choice) = machine() else { return };
    for elem in [Elem::F32, Elem::Bf16] {
        for stats in [Stats::Running, Stats::Batch] {
            let plan = checked(choice, elem, stats, ONE);
            let sizes = |part: &str| sizes(&plan, part);
            let count = |part: &str| sizes(part).len();
            // The mean over pixels applies the second unit's mask; the first unit's is applied by the second's
            // convolution. Neither has to copy the gradient.
            assert_eq!(count("activation_step_bwd"), 0, "{elem}, {stats:?}");
            if stats == Stats::Running {
                assert_eq!([sizes("fold_norm_fwd"), sizes("fold_norm_bwd")], [[4], [4]], "{elem}");
                assert_eq!([count("batch_norm"), count("activation_step")], [0, 0], "{elem}");
                continue;
            }
            let fused = if elem == Elem::Bf16 { 2 } else { 0 };
            let activations = [count("batch_norm_fwd_activation"), count("activation_step_fwd")];
            assert_eq!(activations, [fused, 2 - fused], "{elem}");
            assert_eq!(count("batch_norm_bwd_sums"), 4, "{elem}");
        }
    }
}

/// The members of each launch of the kernels whose names begin so.
fn sizes(plan: &Plan<f32>, kernel: &str) -> Vec<usize> {
    let of_kernel = plan.launches().filter(|(l, _)| l.kernel.name.starts_with(kernel));
    of_kernel.map(|(l, _)| l.group_size()).collect()
}

/// With few pixels a filter's gradient is whole. The second of two waits for the first one's parts all the same.
#[test]
fn gradients_of_one_part_are_added_too() {
    let Some(choice) = machine() else { return };
    for map in [[2, 2], [7, 6]] {
        checked(choice, Elem::Bf16, Stats::Running, Networks { inputs: 2, map, ..ONE });
        checked(choice, Elem::F32, Stats::Batch, Networks { inputs: 3, map, ..ONE });
    }
}

#[test]
fn units_side_by_side_share_launches_and_have_the_oracles_gradients() {
    let Some(choice) = machine() else { return };
    for elem in [Elem::F32, Elem::Bf16] {
        for stats in [Stats::Running, Stats::Batch] {
            for [count, inputs] in [[2, 1], [1, 2]] {
                // 1,024 pixels, so that the filters' gradients are in two parts.
                let networks = Networks { count, inputs, map: [16, 16], ..ONE };
                let plan = checked(choice, elem, stats, networks);
                let sizes = |part: &str| sizes(&plan, part);
                let case = format!("{elem}, {stats:?}, {networks:?}");
                // Two inputs of one network change its running estimates one after the other, so that their batch norms
                // cannot run together. Its filters, gammas and betas get two gradients.
                let norms = match stats {
                    Stats::Batch => ["batch_norm_fwd<", "batch_norm_bwd_sums", "batch_norm_bwd<"].map(sizes),
                    Stats::Running => [const { vec![] }; 3],
                };
                let each = if count == 1 { 1 } else { 2 };
                assert!(norms.iter().flatten().all(|size| *size == each), "{case}: {norms:?}");
                assert_eq!(["conv2d_fwd", "conv2d_wgrad"].map(sizes), [[2; 4], [2; 4]], "{case}");
                // A filter's parts are added in one launch after backward, and all filters are folded in one. Statistics
                // of the batch are needed within backward.
                let own = if count == 1 { vec![1; 8] } else { vec![2; 4] };
                let folds = vec![4 * count];
                let expected = if stats == Stats::Batch {
                    [own, vec![], vec![]]
                } else {
                    [vec![], folds.clone(), folds]
                };
                let found = ["batch_norm_bwd_finish", "fold_norm_fwd", "fold_norm_bwd"].map(sizes);
                assert_eq!(found, expected, "{case}");
                let found = ["conv2d_sum_parts", "late_sums_few"].map(sizes);
                assert_eq!(found, [vec![], vec![1]], "{case}");
            }
        }
    }
}

/// Channels in whole slabs run on wgmma, which reads a folded filter from the arena. The gradient of its bias comes from the
/// kernel of the filter's gradient.
#[test]
fn folded_filters_are_multiplied_by_wgmma() {
    let Some(choice) = machine() else { return };
    for [count, inputs] in [[2, 1], [1, 2]] {
        let networks = Networks { count, inputs, map: [4, 4], channels: 64, in_segment: false };
        let plan = checked(choice, Elem::Bf16, Stats::Running, networks);
        let found = ["conv2d_fwd_wgmma", "conv2d_wgrad_wgmma", "conv2d_dbias"].map(|k| sizes(&plan, k));
        assert_eq!(found, [vec![2; 4], vec![2; 4], vec![]], "{networks:?}");
        assert_eq!(sizes(&plan, "fold_norm_bwd"), [4 * count], "{networks:?}");
    }
}

#[test]
fn batch_norms_of_a_segment_are_not_folded_and_their_parts_are_added_late() {
    let Some(choice) = machine() else { return };
    for elem in [Elem::F32, Elem::Bf16] {
        let plan = checked(choice, elem, Stats::Running, Networks { inputs: 2, in_segment: true, ..ONE });
        assert!(sizes(&plan, "fold_norm").is_empty(), "{elem}");
        assert_eq!(sizes(&plan, "batch_norm_bwd_running"), [1; 8], "{elem}");
        assert_eq!(sizes(&plan, "late_sums_many"), [1], "{elem}");
    }
}
