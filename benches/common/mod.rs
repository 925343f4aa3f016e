//! Shared by the benches: networks of random weights, and the config of the steps to time.

use dfka_engine::autograd::Store;
use dfka_engine::error::Result;
use dfka_engine::models::filter::FilterKind;
use dfka_engine::models::resnet::{BlockKind, Build, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::spec::*;
use dfka_engine::tensor::Elem;
use dfka_engine::weights::{Tensors, npz};
use std::collections::BTreeMap;
use std::path::Path;

const LABELS: usize = 10;
const BATCH: usize = 64;

pub fn demo_network() -> ResNetSpec {
    let stem = Stem { width: 16, kernel: 3, stride: 2, max_pool: false };
    ResNetSpec::new(BlockKind::Basic, [32, 32, 1], stem, vec![16, 32, 64, 128], vec![1; 4])
}

/// A network with random weights, as a file.
pub fn write_teacher(path: &Path, name: &str, seed: u64, network: &ResNetSpec) -> Result<()> {
    let mut store = Store::<f32>::default();
    let net =
        ResNet::new(&mut store, "t", network, 1..=4, Some(LABELS), Build::Normed, Source::Random(seed))?;
    let mut out = Tensors::new();
    net.export(&store, 1..=4, "", Build::Normed, &mut out)?;
    let [weight, bias] = net.head.expect("built with a head");
    out.insert("fc.weight", &[LABELS, network.widths[network.blocks() - 1]], store.to_f32(weight))?;
    out.insert("fc.bias", &[LABELS], store.to_f32(bias))?;
    let labels: Vec<String> = (0..LABELS).map(|i| format!("{name}{i}")).collect();
    out.meta.insert("labels".into(), labels.into());
    out.meta.insert("network".into(), serde_json::to_value(network).expect("a network is plain data"));
    npz::save(path, &out)
}

/// The conditional recipe at the demo's size with every optional part switched on. The folder `teachers` has
/// the files `a` and `b`.
pub fn demo_spec(teachers: &Path, groups: usize) -> RunSpec {
    RunSpec {
        name: "bench".into(),
        seed: 1,
        checkpoint_seconds: 1e6,
        precision: Elem::Bf16,
        split: Default::default(),
        device: Device::default(),
        teachers: ["a", "b"].map(|t| TeacherSpec::new(t, teachers.join(t))).into_iter().collect(),
        student: StudentOptions {
            labels: vec![],
            init: StudentInit::Scratch,
            norm: StudentNorm::Stored,
            branch: Branch::Block(4),
            network: None,
            filter: FilterKind::Gain,
            teachers_of: BTreeMap::new(),
            filter_reduction: 4,
        },
        generator: GeneratorOptions {
            groups,
            latent: 108,
            widths: vec![128, 64, 32, 32, 16],
            steps: 400,
            batch: BATCH,
            learning_rate: 1e-3,
            betas: [0.5, 0.999],
            shift: 6,
            teachers_at_once: None,
        },
        loss: LossSpec {
            recipe: Recipe::Conditional { max_labels: 3, positive: 4.0 },
            alpha: 0.1,
            mean_activation: true,
            beta: 0.0,
            gamma: 0.0,
            statistics: 5.0,
            least_diversity: 0.0,
            least_entropy: 0.0,
            least_information: 0.0,
            least_found: 0.0,
        },
        dual: DualSpec {
            images: ImageSource::Generator,
            steps: vec![400; 4],
            batch: BATCH,
            learning_rate: 1e-3,
            feature: 1.0,
            late_features: 1.0,
            freeze_earlier: false,
            lambda_in: [1.0, 0.3],
            augment: AugmentSpec { shift: 6, flip: 0.0, mix_max: 0.3, cutmix: 0.0 },
            bank: 4096,
        },
        evaluation: None,
        baselines: vec![],
    }
}
