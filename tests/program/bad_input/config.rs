//! Config files: types, ranges, unknown keys, contradictions, and files that are not configs.

use super::{Case, edit, nothing, put};

const fn case(what: &'static str, spoil: fn(&super::Lab), words: &'static [&'static str]) -> Case {
    Case { what, spoil, args: "* c.toml", code: 3, words }
}

/// A case with its own arguments.
const fn set(what: &'static str, args: &'static str, words: &'static [&'static str]) -> Case {
    Case { what, spoil: nothing, args, code: 3, words }
}

/// Makes a teacher's path, without its links, one that is not UTF-8.
fn not_utf8(lab: &super::Lab) {
    use std::os::unix::ffi::OsStrExt;
    let folder = lab.path("").join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(lab.path("left.npz"), folder.join("left.npz")).unwrap();
    std::os::unix::fs::symlink(folder, lab.path("link")).unwrap();
    edit(lab, "left.npz", "link/left.npz");
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    // Keys.
    case("a key with a slip", |l| edit(l, "latent", "latnet"), &["c.toml:9: unknown key `latnet`; did you mean `latent`?"]),
    case("a table with a slip", |l| edit(l, "[generator]", "[genertor]"), &["c.toml:8: unknown key `genertor`; did you mean `generator`?"]),
    case("a strange key", |l| edit(l, "shift = 1", "optimiser = 1"), &["c.toml:13: unknown key `optimiser`; expected one of: groups, latent"]),
    case("a slip in an inline table", |l| edit(l, "flip", "flop"), &["c.toml:26: unknown key `flop`; did you mean `flip`?"]),
    case("a missing key", |l| edit(l, "steps = [3, 3, 3, 3]", ""), &["c.toml:20: missing key `dual.steps`"]),
    case("a missing key of a teacher", |l| edit(l, ", weights = \"right.npz\"", ""), &["c.toml:3: missing key `teachers.1.weights`"]),
    case("a missing table", |l| edit(l, "[dual]", "[loss.dual]"), &["c.toml"]),
    case("an empty file", |l| put(l, "c.toml", ""), &["c.toml: missing key `name`"]),
    case("a key twice", |l| edit(l, "seed = 5", "name = \"again\""), &["c.toml:2: not valid TOML: duplicate key"]),
    case("a table twice", |l| edit(l, "[evaluation]", "[loss]"), &["c.toml:28: not valid TOML: duplicate key"]),
    // Types.
    case("a string for a number", |l| edit(l, "feature = 1.0", "feature = \"fast\""), &["c.toml:24: `dual.feature`: found string \"fast\", expected a number"]),
    case("a number for a list", |l| edit(l, "[3, 3, 3, 3]", "3"), &["c.toml:21: `dual.steps`: found integer `3`, expected a list"]),
    case("a fraction for a count", |l| edit(l, "latent = 6", "latent = 6.5"), &["c.toml:9: `generator.latent`", "6.5", "expected a whole number"]),
    case("a table for a string", |l| edit(l, "\"tiny\"", "{}"), &["c.toml:1: `name`", "expected a string"]),
    case("a string for a table", |l| edit(l, "augment = {", "augment = \"all\"\nx = {"), &["c.toml:26: `dual.augment`: found string \"all\"; expected a table"]),
    case("a date for a number", |l| edit(l, "seed = 5", "seed = 2026-01-01"), &["c.toml:2: `seed`", "expected a whole number"]),
    case("labels that are a number", |l| edit(l, "[student]", "[student]\nlabels = 3"), &["c.toml:6", "found integer `3`, expected \"all\" or a list of labels"]),
    case("a label that is a number", |l| edit(l, "[student]", "[student]\nlabels = [\n\"bus\",\n4]"), &["c.toml:8", "`student.labels.1`", "expected a string"]),
    case("teachers that are a table", |l| edit(l, "teachers = [{ name = \"left\", weights = \"left.npz\" }, { name = \"right\", weights = \"right.npz\" }]", "[teachers]\nname = \"a\""), &["c.toml:3: `teachers`", "expected a list"]),
    // Ranges.
    case("a rate of 0", |l| edit(l, "shift = 1", "learning_rate = 0.0"), &["c.toml:13: `generator.learning_rate` is 0; expected above 0 and at most 1"]),
    case("a rate that is no number", |l| edit(l, "shift = 1", "learning_rate = nan"), &["c.toml:13: `generator.learning_rate` is NaN"]),
    case("a rate meant as 1e-3", |l| edit(l, "shift = 1", "learning_rate = 1e3"), &["c.toml:13: `generator.learning_rate` is 1000; expected above 0 and at most 1"]),
    case("a batch of 0", |l| edit(l, "batch = 8", "batch = 0"), &["c.toml:12: `generator.batch` is 0; expected at least 1"]),
    case("an endless batch", |l| edit(l, "batch = 8", "batch = 9000000"), &["c.toml:12: `generator.batch` is 9000000; expected at least 1 and at most 65536"]),
    case("steps below 0", |l| edit(l, "[3, 3, 3, 3]", "[3, 3, -1, 3]"), &["c.toml:21: `dual.steps.2` is -1"]),
    case("a seed below 0", |l| edit(l, "seed = 5", "seed = -1"), &["c.toml:2: `seed` is -1; expected 0 to"]),
    case("a seed beyond 64 bits", |l| edit(l, "seed = 5", "seed = 99999999999999999999"), &["c.toml:2: "]),
    case("a probability above 1", |l| edit(l, "flip = 0.5", "flip = 1.5"), &["c.toml:26: `dual.augment.flip` is 1.5; expected at least 0 and at most 1"]),
    case("no groups", |l| edit(l, "shift = 1", "groups = 0"), &["c.toml:13: `generator.groups` is 0; expected at least 1"]),
    case("a bank smaller than a batch", |l| edit(l, "bank = 32", "bank = 7"), &["c.toml:23: `dual.bank` is 7; expected at least `generator.batch`, which is 8 images"]),
    case("no widths", |l| edit(l, "[8, 8, 6]", "[]"), &["c.toml:10: `generator.widths` is empty"]),
    case("a pair of three", |l| edit(l, "shift = 1", "betas = [0.1, 0.2, 0.3]"), &["c.toml:13: `generator.betas`", "list of length 2"]),
    set("a rate that single precision rounds to 0", "* c.toml --set dual.learning_rate=1e-320", &["--set dual.learning_rate=1e-320: `dual.learning_rate` is 1e-320, which is 0 in single precision; expected above 0 and at most 1"]),
    set("a beta that single precision rounds to 1", "* c.toml --set generator.betas=[0.5,0.99999999999]", &["`generator.betas.1` is 0.99999999999, which is 1 in single precision; expected at least 0 and below 1"]),
    case("inputs without a weight", |l| edit(l, "feature = 1.0", "lambda_in = [0.0, 0.0]"), &["c.toml:24: `dual.lambda_in` is 0 for both inputs"]),
    case("a generator of one image a step", |l| edit(l, "batch = 8", "batch = 1"), &["c.toml:12: `generator.batch` is 1; expected at least 2"]),
    set("one image to be mixed with itself", "* c.toml --set dual.batch=1", &["--set dual.batch=1: `dual.batch` is 1; expected at least 2, because `dual.augment` mixes"]),
    case("mixes more probable than 1", |l| edit(l, "cutmix = 0.3", "cutmix = 0.8"), &["c.toml:26: `dual.augment.mix_max` and `dual.augment.cutmix` are 0.3 and 0.8"]),
    case("a shift of the whole image", |l| edit(l, "shift = 1,", "shift = 16,"), &["c.toml:26: `dual.augment.shift` is 16; expected fewer pixels than the images have, which are 16 x 16"]),
    case("a generator's shift of the whole image", |l| edit(l, "shift = 1", "shift = 16"), &["c.toml:13: `generator.shift` is 16; expected fewer pixels"]),
    // Names and words.
    case("a label with control characters", |l| edit(l, "[student]", "[student]\nlabels = [\"b\\u001b[31mus\"]"), &["c.toml:6: `student.labels` contains \"b\\u{1b}[31mus\"; expected a label without control characters"]),
    case("no teachers", |l| edit(l, "teachers = [{ name = \"left\", weights = \"left.npz\" }, { name = \"right\", weights = \"right.npz\" }]", "teachers = []"), &["c.toml:3: `teachers` is empty; expected at least one"]),
    case("a thousand teachers and one", |l| edit(l, "{ name = \"right\"", &format!("{}{{ name = \"right\"", (0..999).map(|i| format!("{{ name = \"t{i}\", weights = \"x\" }}, ")).collect::<String>())), &["c.toml:3: `teachers` has 1001 tables; expected at most 1000"]),
    case("two teachers of one name", |l| edit(l, "name = \"right\"", "name = \"left\""), &["c.toml:3: two teachers are named `left`"]),
    case("teachers whose tensors would share names", |l| edit(l, "\"right\"", "\"left.layer1.0\""), &["c.toml:3: two teachers are named `left` and `left.layer1.0`; expected names of which none begins with another one and a dot"]),
    case("a teacher with a name of the tables", |l| edit(l, "name = \"right\"", "name = \"mean\""), &["c.toml:3: a teacher is named `mean`, which is a word of the run's tables", "expected a name other than mean, teachers, student"]),
    case("a label of no letters", |l| edit(l, "[student]", "[student]\nlabels = [\"bus\", \" \"]"), &["c.toml:6: `student.labels` contains an empty label"]),
    case("a label twice", |l| edit(l, "[student]", "[student]\nlabels = [\"bus\", \"bus\"]"), &["c.toml:6: label `bus` is listed more than once"]),
    case("a label that no teacher has", |l| edit(l, "[student]", "[student]\nlabels = [\"bus\", \"tabel\"]"), &["c.toml:6: no teacher predicts the label `tabel`; did you mean `table`?"]),
    case("a label like no other", |l| edit(l, "[student]", "[student]\nlabels = [\"submarine\"]"), &["c.toml:6: no teacher predicts the label `submarine`; the teachers predict: bus, car, cat, dog, table"]),
    case("an empty list of labels", |l| edit(l, "[student]", "[student]\nlabels = []"), &["c.toml:6: `student.labels` is an empty list; write \"all\""]),
    case("a run named like a path", |l| edit(l, "\"tiny\"", "\"../tiny\""), &["c.toml:1: `name` names the output folder", "\"../tiny\""]),
    case("images of an unknown kind", |l| edit(l, "[dual]", "[dual]\nimages = \"nosie\""), &["c.toml:21: unknown `dual.images` \"nosie\"; did you mean `noise`?"]),
    case("a start from an unknown teacher", |l| edit(l, "\"mean\"", "\"teacher:lfet\""), &["c.toml:6: `student.init` is \"teacher:lfet\", but no teacher is named `lfet`; did you mean `left`?"]),
    case("a network of the student that its teachers do not fit", |l| edit(l, "init = \"mean\"", "network = { block = \"basic\", widths = [4, 8, 8, 16], depths = [1, 1, 1, 1], stem = { width = 4, kernel = 3, stride = 2, max_pool = false } }"), &["c.toml:6: the teacher left (", "does not fit beside the student's network: expected maps of 8 x 8 pixels after block 1, found 16 x 16"]),
    case("a network of the student with fewer blocks", |l| edit(l, "init = \"mean\"", "network = { block = \"basic\", widths = [4, 8], depths = [1, 1], stem = { width = 4, kernel = 3, stride = 1, max_pool = false } }"), &["c.toml:6: the teacher left (", "expected 2 blocks, found 4"]),
    case("the mean of blocks that the student has not", |l| edit(l, "init = \"mean\"", "init = \"mean\"\nnetwork = { block = \"basic\", widths = [4, 8, 8, 16], depths = [1, 1, 1, 2], stem = { width = 4, kernel = 3, stride = 1, max_pool = false } }"), &["c.toml:6: `student.init` is \"mean\", which needs blocks of the student's architecture; the teacher left has residual units by block 1, 1, 1, 1 (1, 1, 1, 2 in the student); use student.init = \"scratch\""]),
    case("a student's network without a name", |l| edit(l, "[student]", "[student]\nnetwork = \"resnet17\""), &["c.toml:6: unknown `student.network` \"resnet17\"; did you mean `resnet18`?"]),
    case("a student's network with an even stem", |l| edit(l, "[student]", "[student]\nnetwork = { block = \"basic\", widths = [4], depths = [1], stem = { width = 4, kernel = 2, stride = 1, max_pool = false } }"), &["c.toml:6: `student.network.stem.kernel` is 2; expected an odd number"]),
    case("a filter of an unknown kind", |l| edit(l, "[student]", "[student]\nfilter = \"stich\""), &["c.toml:6: `student.filter`: unknown variant `stich`, expected `gain` or `stitch`"]),
    case("a label from an unknown teacher", |l| edit(l, "[student]", "[student]\nteachers_of = { bus = \"lfet\" }"), &["c.toml:6: `student.teachers_of` gives the label `bus` to `lfet`, but no teacher is named so; did you mean `left`?"]),
    case("a label from a teacher that has it not", |l| edit(l, "[student]", "[student]\nteachers_of = { bus = \"right\" }"), &["c.toml:6: `student.teachers_of` gives the label `bus` to the teacher right, which predicts: cat, table"]),
    case("an unknown recipe", |l| edit(l, "[loss]", "[loss]\nrecipe = \"publishd\""), &["c.toml:16: unknown `loss.recipe` \"publishd\"; did you mean `published`?"]),
    case("a key of another recipe", |l| edit(l, "[loss]", "[loss]\nrecipe = \"balanced\"\nmax_labels = 3"), &["c.toml:17: `loss.max_labels` applies to recipe = \"conditional\" only"]),
    case("an unknown precision", |l| edit(l, "seed = 5", "precision = \"fp8\""), &["c.toml:2", "precision", "bf16", "f32"]),
    case("an unknown network", |l| edit(l, "weights = \"left.npz\"", "weights = \"left.npz\", network = \"resnet19\", labels = [\"bus\"]"), &["c.toml:3: unknown `teachers.0.network` \"resnet19\"; did you mean `resnet18`?"]),
    // Against the teachers.
    case("more groups than blocks", |l| edit(l, "shift = 1", "groups = 5"), &["c.toml:13: `generator.groups` is 5; the teachers have 4 blocks"]),
    case("steps for three blocks", |l| edit(l, "[3, 3, 3, 3]", "[3, 3, 3]"), &["c.toml:21: `dual.steps` has 3 entries; expected 4"]),
    case("a branch behind the last block", |l| edit(l, "[student]", "[student]\nbranch = 9"), &["c.toml:6: `student.branch` is 9; the teachers have 4 blocks"]),
    case("a reduction that does not divide", |l| edit(l, "[student]", "[student]\nfilter_reduction = 3"), &["c.toml:6: `student.filter_reduction` is 3, which does not divide"]),
    // Syntax and files.
    case("a value left out", |l| edit(l, "seed = 5", "seed = "), &["c.toml:2: not valid TOML"]),
    case("a string left open", |l| edit(l, "\"tiny\"", "\"tiny"), &["c.toml:1: not valid TOML"]),
    case("an escape that is none", |l| edit(l, "\"tiny\"", "\"ti\\qny\""), &["c.toml:1: not valid TOML"]),
    case("brackets without end", |l| put(l, "c.toml", "[".repeat(100_000)), &["c.toml:1: not valid TOML"]),
    case("lists in lists in lists", |l| put(l, "c.toml", format!("name = {}1{}", "[".repeat(50_000), "]".repeat(50_000))), &["c.toml:1: "]),
    case("a zero byte", |l| put(l, "c.toml", "\0"), &["c.toml:1: not valid TOML"]),
    case("bytes that are no text", |l| put(l, "c.toml", b"name = 'a'\n\xff\xfe"), &["c.toml:2: not UTF-8 text, perhaps Latin-1 (byte ff); save the file as UTF-8"]),
    case("a mark, Windows' line ends, and a slip", |l| { edit(l, "latent", "latnet"); let text = String::from_utf8(l.bytes("c.toml")).unwrap(); put(l, "c.toml", format!("\u{feff}{}", text.replace('\n', "\r\n"))) }, &["c.toml:9: unknown key `latnet`; did you mean `latent`?"]),
    case("UTF-16", |l| put(l, "c.toml", b"\xff\xfen\0a\0m\0e\0"), &["c.toml:1: not UTF-8 text but UTF-16; save the file as UTF-8"]),
    case("a file of many megabytes", |l| put(l, "c.toml", "# padding\n".repeat(2_000_000)), &["c.toml: ", "at most", "found"]),
    case("a name with control characters", |l| edit(l, "latent = 6", "\"\\u001b[31mred\" = 6"), &["c.toml:9: unknown key"]),
    case("a key of many parts", |l| put(l, "c.toml", format!("a{} = 1", ".a".repeat(100_000))), &["c.toml: not valid TOML: recursion limit"]),
    case("a hundred thousand labels", |l| edit(l, "[student]", &format!("[student]\nlabels = [{}\"0\"]", (0..100_000).map(|i| format!("\"{i}\",")).collect::<String>())), &["c.toml:6: label `0` is listed more than once"]),
    case("a key without end", |l| put(l, "c.toml", format!("{} = 1", "k".repeat(60_000))), &["c.toml:1: unknown key `kkkk"]),
    case("a config that is a folder", |l| { std::fs::remove_file(l.path("c.toml")).unwrap(); std::fs::create_dir(l.path("c.toml")).unwrap() }, &["c.toml: cannot read the config", "directory"]),
    set("a config that is not there", "* none.toml", &["none.toml: cannot read the config", "No such file"]),
    case("a folder that is not UTF-8", not_utf8, &["odd", "c.toml:3: `teachers.0.weights`: ", "this path is not UTF-8 text"]),
    set("a config that never ends", "* /dev/zero", &["/dev/zero: ", "at most"]),
    // Changes on the command line.
    set("a change out of range", "* c.toml --set generator.batch=0", &["--set generator.batch=0: `generator.batch` is 0; expected at least 1"]),
    set("a change of an unknown key", "* c.toml --set generator.bacth=8", &["--set generator.bacth=8: unknown key `bacth`; did you mean `batch`?"]),
    set("a change of another type", "* c.toml --set dual.steps=many", &["--set dual.steps=many: `dual.steps`: found string \"many\", expected a list"]),
    set("a change of a teacher that is not there", "* c.toml --set teachers.2.name=x", &["--set teachers.2.name=x: `teachers` is a list of 2, counted from 0; there is no `teachers.2`"]),
    set("a change below a number", "* c.toml --set seed.x=1", &["--set seed.x=1: `seed`"]),
    // A teacher's training.
    Case { what: "a teacher's config for a run", spoil: |l| edit(l, "[dual]", "[network]\n[dual]"), args: "* c.toml", code: 3, words: &["c.toml:20: unknown key `network`"] },
    Case { what: "a run's config for a teacher", spoil: nothing, args: "teach c.toml", code: 3, words: &["c.toml:"] },
    Case { what: "an even kernel", spoil: |l| put(l, "t.toml", TEACH.replace("kernel = 3", "kernel = 4")), args: "teach t.toml", code: 3, words: &["t.toml:8: `network.stem.kernel` is 4; expected an odd number"] },
    Case { what: "widths and depths that differ", spoil: |l| put(l, "t.toml", TEACH.replace("[1, 1]", "[1]")), args: "teach t.toml", code: 3, words: &["t.toml:7: `network.depths` has 1 entries and `network.widths` 2"] },
    Case { what: "bottlenecks of an odd width", spoil: |l| put(l, "t.toml", TEACH.replace("basic", "bottleneck").replace("[4, 8]", "[4, 6]")), args: "teach t.toml", code: 3, words: &["t.toml:6: `network`: bottleneck widths must be multiples of 4"] },
    Case { what: "a scenes' seed below 0", spoil: |l| put(l, "t.toml", TEACH.replace("train = \"evaluation.npz\"", "scenes = { archives = \"x\", count = 1, seed = -1 }")), args: "teach t.toml", code: 3, words: &["t.toml:3: `data.scenes.seed` is -1; expected 0 to"] },
    Case { what: "two kinds of data", spoil: |l| put(l, "t.toml", TEACH.replace("[network]", "scenes = { archives = \"x\", count = 1 }\n[network]")), args: "teach t.toml", code: 3, words: &["t.toml:2", "either"] },
    // An experiment's file.
    experiment("an experiment: no such scale", |l| put(l, "e.toml", EXPERIMENT.replace("demo", "dmo")), &["e.toml:4: no scale `demo`, found dmo; did you mean `dmo`?"]),
    experiment("an experiment: a seed twice", |l| put(l, "e.toml", EXPERIMENT.replace("[0]", "[0, 1, 0]")), &["e.toml:3: seed 0 is listed more than once"]),
    experiment("an experiment: a row of two kinds", |l| put(l, "e.toml", EXPERIMENT.replace("run =", "teacher = 1\nrun =")), &["e.toml:6: `rows.0` takes exactly one of `run`, `teacher` and `teachers_of`"]),
    experiment("an experiment: a change without a value", |l| put(l, "e.toml", EXPERIMENT.replace("groups=1", "groups")), &["e.toml:9: `rows.0.set.0` is \"generator.groups\"; expected KEY=VALUE"]),
    experiment("an experiment: a change with a slip", |l| put(l, "e.toml", EXPERIMENT.replace("groups=1", "gruops=1")), &["e.toml:9: generator.gruops=1: unknown key `gruops`; did you mean `groups`?"]),
    experiment("an experiment: a change out of range", |l| put(l, "e.toml", EXPERIMENT.replace("groups=1", "groups=0")), &["e.toml:9: generator.groups=0: `generator.groups` is 0; expected at least 1"]),
    experiment("an experiment: a config that is not there", |l| put(l, "e.toml", EXPERIMENT.replace("c.toml", "d.toml")), &["d.toml: cannot read the config"]),
    experiment("an experiment: one run with two configs", |l| put(l, "e.toml", format!("{EXPERIMENT}{}", ROW.replace("groups=1", "groups=2"))), &["e.toml:12: `rows.1` and `rows.0` name the same run, \"a\", but `rows.1` sets `generator.groups=2` where `rows.0` sets `generator.groups=1`"]),
    experiment("an experiment: a row of no scale", |l| put(l, "e.toml", format!("{EXPERIMENT}only = \"dmo\"\n")), &["e.toml:10: `rows.0.only` is \"dmo\", which [scales] does not have; did you mean `demo`?"]),
    experiment("an experiment: a published figure of no label", |l| put(l, "e.toml", format!("{EXPERIMENT}published = {{ mAP = 1, bsu = 2 }}\n")), &["e.toml:10: `rows.0.published` has `bsu`", "did you mean `bus`?"]),
];

const fn experiment(what: &'static str, spoil: fn(&super::Lab), words: &'static [&'static str]) -> Case {
    Case { what, spoil, args: "experiment e.toml --scale demo --device cpu", code: 3, words }
}

/// A config that would run.
const EXPERIMENT: &str = r#"title = "t"
source = "s"
seeds = [0]
[scales.demo]
config = "c.toml"
[[rows]]
name = "ours"
run = "a"
set = ["generator.groups=1"]
"#;

/// Its row, once more.
const ROW: &str = "[[rows]]\nname = \"again\"\nrun = \"a\"\nset = [\"generator.groups=1\"]\n";

pub const TEACH: &str = r#"name = "t"
[data]
train = "evaluation.npz"
[network]
block = "basic"
widths = [4, 8]
depths = [1, 1]
stem = { width = 4, kernel = 3, stride = 1, max_pool = false }
[training]
steps = 2
"#;
