//! The command line: unknown words, contradictions, and output folders that cannot be used.

use super::{Case, Lab, nothing, put};

const fn case(what: &'static str, args: &'static str, words: &'static [&'static str]) -> Case {
    Case { what, spoil: nothing, args, code: 2, words }
}

const fn after(
    what: &'static str,
    spoil: fn(&Lab),
    args: &'static str,
    words: &'static [&'static str],
) -> Case {
    Case { what, spoil, args, code: 2, words }
}

/// A folder that an earlier run, of a config with another seed, left behind.
fn begun(lab: &Lab) {
    let out = lab.call(&["run", "c.toml", "--out", "out", "--seed", "9", "--quiet", "--device", "cpu"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn folder(lab: &Lab, name: &str) {
    std::fs::create_dir_all(lab.path(name)).unwrap();
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    case("a command with a slip", "ruin c.toml", &["unrecognized subcommand 'ruin'", "run"]),
    case("a run of nothing", "run", &["<CONFIG>"]),
    case("a flag with a slip", "run c.toml --resmue", &["unexpected argument '--resmue'", "--resume"]),
    case("two configs", "run c.toml d.toml", &["unexpected argument 'd.toml'"]),
    case("a change without a value", "* c.toml --set generator.batch", &["--set generator.batch: expected KEY=VALUE"]),
    case("a change without a key", "* c.toml --set =8", &["--set =8: expected KEY=VALUE"]),
    case("a change with a broken path", "* c.toml --set a..b=1", &["--set a..b=1: expected KEY=VALUE"]),
    case("a seed that is a word", "* c.toml --seed many", &["invalid value 'many' for '--seed <N>'"]),
    case("a seed that TOML cannot hold", "* c.toml --seed 18446744073709551615", &["invalid value '18446744073709551615' for '--seed <N>'"]),
    case("an unknown device", "* c.toml --device gpu", &["invalid value 'gpu' for '--device <DEVICE>'", "cuda:N"]),
    case("a device without a number", "* c.toml --device cuda:x", &["invalid value 'cuda:x' for '--device <DEVICE>'"]),
    case("an unknown card", "check c.toml --card h300", &["invalid value 'h300' for '--card <NAME>'", "h200"]),
    case("to resume and replace", "run c.toml --resume --force", &["'--resume' cannot be used with '--force'"]),
    case("to resume nothing", "run c.toml --resume", &["--resume: nothing to continue, runs/tiny-seed5/", "does not exist"]),
    case("a profile without a GPU", "run c.toml --device cpu --profile 1..2", &["--profile", "--device cuda"]),
    case("a profile of no steps", "run c.toml --profile 5..5", &["invalid value '5..5' for '--profile <FROM..TO>'"]),
    case("a split of another name", "scenes raw out.npz --split test --count 3", &["invalid value 'test' for '--split <SPLIT>'", "train", "eval"]),
    after("to resume in an empty folder", |l| folder(l, "out"), "run c.toml --out out --resume", &["--resume: nothing to continue, out/", "does not exist"]),
    after("to resume with another seed", begun, "run c.toml --out out --resume", &["--resume: the config has changed since the run started: out/", "seed = 9", "seed = 5"]),
    after("to resume with another rate", begun, "run c.toml --out out --seed 9 --resume --set dual.learning_rate=0.5", &["the config has changed since the run started", "learning_rate = 0.001", "learning_rate = 0.5"]),
    after("results in the way", |l| { folder(l, "runs/tiny-seed5"); put(l, "runs/tiny-seed5/student.npz", "precious") }, "run c.toml", &["output folder runs/tiny-seed5 is not empty", "--force", "--out"]),
    after("a teacher's results in the way", |l| { folder(l, "runs/t-seed0"); put(l, "runs/t-seed0/weights.npz", "precious"); put(l, "t.toml", super::config::TEACH) }, "teach t.toml", &["output folder runs/t-seed0 is not empty"]),
    after("results among the images", |l| { folder(l, "images"); put(l, "images/a.png", "") }, "run c.toml --set dual.images='real:images' --out images/out", &["output folder images/out lies in", "images, whose files this command reads", "--out"]),
    case("a page of a file", "report c.toml", &["c.toml: expected the folder of a run, found a file"]),
    case("captions in place of the picture", "sample out --captions --out g.JSON", &["--out g.JSON: the captions would replace the picture; name a .png file"]),
    after("a preset for a config that can be read once", |l| { let text = l.bytes("c.toml"); super::pipe(l, "p.toml"); let to = l.path("p.toml"); std::thread::spawn(move || std::fs::write(to, text)); }, "check p.toml --preset quick", &["--preset reads the config twice, and p.toml is a pipe"]),
    case("a file in the way", "run c.toml --out c.toml", &["output folder c.toml: a file exists at this path or above it"]),
    case("a file in the way of a folder above", "run c.toml --out c.toml/out", &["output folder c.toml/out: a file exists at this path or above it"]),
];
