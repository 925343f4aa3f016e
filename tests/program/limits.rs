//! Limits that a shell or a batch system sets: the program ends with one line and leaves nothing half-written.

use crate::common::Lab;
use std::process::{Command, Output};

/// The program after a command of the shell, such as `ulimit -f 8`.
fn limited(lab: &Lab, shell: &str, args: &[&str]) -> Output {
    let mut c = Command::new("bash");
    c.args(["-c", &format!("{shell} && exec \"$0\" \"$@\"")]).arg(crate::common::executable()).args(args);
    c.current_dir(lab.path("")).output().unwrap()
}

fn expect_error(out: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "expected {word:?}: {text}"));
}

#[test]
fn an_export_reports_a_file_that_may_not_grow() {
    let lab = Lab::new();
    for args in
        [&["export", "left.npz", "--to", "copy.safetensors"][..], &["export", "left.npz", "--to", "copy.npz"]]
    {
        let out = limited(&lab, "ulimit -f 4", args);
        expect_error(&out, 1, &["cannot write copy.", "File too large"]);
    }
    let left =
        std::fs::read_dir(lab.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.contains("copy")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The stacks of a thousand threads take more address space than there is.
#[test]
fn threads_that_cannot_start_are_an_error() {
    let lab = Lab::new();
    let args = ["check", "c.toml", "--device", "cpu", "--threads", "1024"];
    let out = limited(&lab, "ulimit -v 1000000", &args);
    expect_error(&out, 1, &["cannot start 1024 threads", "lower --threads", "ulimit -u"]);
}

#[test]
fn tensors_beyond_the_memory_are_refused_before_they_are_allocated() {
    let lab = Lab::new();
    std::fs::write(lab.path("t.toml"), super::bad_input::config::TEACH).unwrap();
    let large = ["--set", "generator.widths=[8192]", "--set", "generator.latent=65536"];
    let bank = ["--set", "dual.bank=100000000", "--set", "generator.steps=100000000"];
    // 5 GB, which this address space lacks and most machines have.
    let some = ["--set", "generator.widths=[4096,8]", "--set", "generator.latent=5000"];
    let cases: [(&str, &[&str], &str); 3] = [
        (
            "ulimit -v 8000000",
            &large,
            "of which generator.project.weight [131072, 1, 1, 65541] is the largest: needs",
        ),
        ("true", &bank, "`dual.bank`: needs"),
        (
            "ulimit -v 2000000",
            &some,
            "of which generator.project.weight [65536, 1, 1, 5005] is the largest: needs",
        ),
    ];
    for (shell, sets, words) in cases {
        for command in ["check", "run"] {
            let args =
                [&[command, "c.toml", "--device", "cpu", "--threads", "2", "--quiet"][..], sets].concat();
            let args: Vec<&str> = args.into_iter().filter(|a| command == "run" || *a != "--quiet").collect();
            let more = [&args[..], &["--force"]].concat();
            let out = limited(&lab, shell, if command == "run" { &more } else { &args });
            expect_error(&out, 6, &[words, "GB of memory", "GB are available"]);
        }
    }
    let sets = ["--set", "network.widths=[65536,65536]", "--set", "network.depths=[1,1]"];
    let args = [&["teach", "t.toml", "--device", "cpu", "--quiet"][..], &sets].concat();
    let out = limited(&lab, "ulimit -v 8000000", &args);
    expect_error(&out, 6, &["is the largest: needs", "lower network.widths"]);
}
