//! What whole runs need in tests: teachers of a few thousand parameters, image sets, and a config of a few
//! steps.

#![allow(dead_code)] // each test binary uses its own part

pub mod mpi;

use dfka_engine::autograd::Store;
use dfka_engine::config::{self, Override};
use dfka_engine::data::labelled::LabelledSet;
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::device::philox::Draws;
use dfka_engine::error::Result;
use dfka_engine::labelled::run::run;
use dfka_engine::models::resnet::{BlockKind, Build, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::pipeline::observer::Silent;
use dfka_engine::pipeline::spec::RunSpec;
use dfka_engine::summary::Summary;
use dfka_engine::weights::{self, Tensors, npz};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository; or, where the tests were built on another machine (`benches/gpu.sh`), the folder with its
/// `configs` and `weights` that `DFKA_TEST_ROOT` names.
pub fn root() -> PathBuf {
    std::env::var_os("DFKA_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The program that cargo built for this test, or the one that `DFKA_TEST_PROGRAM` names.
pub fn executable() -> PathBuf {
    std::env::var_os("DFKA_TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_dfka-engine").into(), PathBuf::from)
}

pub fn network() -> ResNetSpec {
    let stem = Stem { width: 4, kernel: 3, stride: 1, max_pool: false };
    ResNetSpec::new(BlockKind::Basic, [16, 16, 1], stem, vec![4, 8, 8, 16], vec![1; 4])
}

/// A teacher's tensors under torchvision's names: random weights, and batch norms whose running estimates
/// are not those of a fresh one.
pub fn teacher_tensors(network: &ResNetSpec, labels: &[&str], seed: u64) -> Tensors {
    let mut store = Store::<f32>::default();
    let (blocks, head) = (1..=network.blocks(), Some(labels.len()));
    let net =
        ResNet::new(&mut store, "t", network, blocks.clone(), head, Build::Normed, Source::Random(seed))
            .unwrap();
    let mut plain = Tensors::new();
    net.export(&store, blocks, "", Build::Normed, &mut plain).unwrap();
    let [w, b] = net.head.unwrap();
    plain.insert("fc.weight", &[labels.len(), store.shape(w).c()], store.to_f32(w)).unwrap();
    plain.insert("fc.bias", &[labels.len()], store.to_f32(b)).unwrap();
    let mut out = Tensors::new();
    for (i, (name, t)) in plain.iter().enumerate() {
        let u = |k: usize| Draws::new(seed, 77, i as u64).uniforms(k as u32, 0)[0] as f32;
        let is_norm = t.shape.len() == 1 && name != "fc.bias";
        let value = |(k, v): (usize, &f32)| match name.rsplit('.').next() {
            _ if !is_norm => *v,
            Some("weight") => 0.5 + u(k),
            Some("running_var") => 0.5 + 2.0 * u(k),
            _ => 0.6 * (u(k) - 0.5),
        };
        out.insert(name, &t.shape, t.data.iter().enumerate().map(value).collect()).unwrap();
    }
    out.meta.insert("network".into(), serde_json::to_value(network).unwrap());
    out.meta.insert("labels".into(), serde_json::to_value(labels).unwrap());
    out
}

/// Images whose pixels are a function of `seed`.
pub fn images(n: usize, [h, w, c]: [usize; 3], seed: u64) -> ImageSet {
    let draws = Draws::new(seed, 78, 0);
    let pixels = (0..n * h * w * c).map(|i| (255.0 * draws.uniforms(i as u32, 0)[0]) as u8).collect();
    ImageSet::new(pixels, [n, h, w, c], "made up").unwrap()
}

pub fn labelled(n: usize, image: [usize; 3], labels: &[&str], seed: u64) -> LabelledSet {
    let draws = Draws::new(seed, 79, 0);
    let targets =
        (0..n * labels.len()).map(|i| (draws.words(i as u32, 0)[0].is_multiple_of(3)) as u8).collect();
    LabelledSet::new(images(n, image, seed), targets, labels.iter().map(|l| l.to_string()).collect()).unwrap()
}

pub const LEFT: [&str; 3] = ["bus", "car", "dog"];
pub const RIGHT: [&str; 2] = ["cat", "table"];
pub const THIRD: [&str; 2] = ["sofa", "tree"];

const CONFIG: &str = r#"name = "tiny"
seed = 5
teachers = [{ name = "left", weights = "left.npz" }, { name = "right", weights = "right.npz" }]

[student]
init = "mean"

[generator]
latent = 6
widths = [8, 8, 6]
steps = 6
batch = 8
shift = 1

[loss]
least_diversity = 0
least_information = 0
least_found = 0

[dual]
steps = [3, 3, 3, 3]
batch = 8
bank = 32
feature = 1.0
late_features = 0.5
augment = { shift = 1, flip = 0.5, mix_max = 0.3, cutmix = 0.3 }

[evaluation]
data = "evaluation.npz"
"#;

/// A folder with everything that a run reads.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        for (name, labels, seed) in [("left", &LEFT[..], 1), ("right", &RIGHT, 2), ("third", &THIRD, 3)] {
            let file = lab.path(&format!("{name}.npz"));
            npz::save(file, &teacher_tensors(&network(), labels, seed)).unwrap();
        }
        let all: Vec<&str> = LEFT.iter().chain(&RIGHT).chain(&THIRD).copied().collect();
        labelled(40, network().image, &all, 4).save(lab.path("evaluation.npz")).unwrap();
        images(24, network().image, 6).save(lab.path("ka.npz")).unwrap();
        std::fs::write(lab.path("c.toml"), CONFIG).unwrap();
        lab
    }

    /// The same with teachers of another network, for images of the same size.
    pub fn of(network: &ResNetSpec) -> Lab {
        let lab = Lab::new();
        for (name, labels, seed) in [("left", &LEFT[..], 1), ("right", &RIGHT, 2)] {
            npz::save(lab.path(&format!("{name}.npz")), &teacher_tensors(network, labels, seed)).unwrap();
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn spec(&self, sets: &[&str]) -> RunSpec {
        let overrides: Vec<Override> = sets.iter().map(|s| Override::set(s).unwrap()).collect();
        config::load_run(&self.path("c.toml"), &overrides).unwrap().spec
    }

    /// Runs into the folder `out`.
    pub fn run(&self, out: &str, sets: &[&str]) -> Result<Summary> {
        self.run_spec(out, &self.spec(sets))
    }

    pub fn run_spec(&self, out: &str, spec: &RunSpec) -> Result<Summary> {
        run(spec, &self.path(out), false, &mut Silent)
    }

    /// The program, in this folder.
    pub fn program(&self, args: &[&str]) -> Command {
        let mut c = Command::new(executable());
        c.args(args).current_dir(self.dir.path());
        c
    }

    pub fn call(&self, args: &[&str]) -> Output {
        self.program(args).output().unwrap()
    }
}

pub fn load(path: &Path) -> Tensors {
    weights::load(path).unwrap()
}

/// A copy of `t` with some tensors changed: `f` returns `None` to leave one out.
pub fn mapped(t: &Tensors, f: impl Fn(&str, &[usize], &[f32]) -> Option<(Vec<usize>, Vec<f32>)>) -> Tensors {
    let mut out = Tensors::new();
    for (name, tensor) in t.iter() {
        if let Some((shape, data)) = f(name, &tensor.shape, &tensor.data) {
            out.insert(name, &shape, data).unwrap();
        }
    }
    out.meta = t.meta.clone();
    out
}

/// Prints to the terminal that a test did not run. `eprintln!` would not do: the test harness hides what it
/// prints in a test that passes.
#[allow(clippy::explicit_write)]
pub fn skipped(why: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}
