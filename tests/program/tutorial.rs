//! The commands of docs/tutorial.md, one block after the other.

use crate::common::{Lab, root, skipped};
use std::path::Path;
use std::process::Command;

/// The blocks of shell commands in a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```sh\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block without its end").0)
        .collect()
}

/// Whether the Python that commands would call has torch and safetensors.
fn has_torch(python: &str) -> bool {
    Command::new(python).args(["-c", "import torch, safetensors"]).output().is_ok_and(|o| o.status.success())
}

#[test]
fn the_tutorials_commands_work_as_they_stand() {
    let page = std::fs::read_to_string(root().join("docs/tutorial.md")).unwrap();
    let blocks = blocks(&page);
    assert_eq!(blocks.len(), 5, "blocks were added or removed: say here which of them need torch");
    let lab = Lab::new();
    for name in ["weights", "scripts", "python", "tests"] {
        std::os::unix::fs::symlink(root().join(name), lab.path(name)).unwrap();
    }

    // The folder of the program comes first in PATH, and python3 is the one with torch, if there is one.
    let bin = lab.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_dfka-engine"));
    std::os::unix::fs::symlink(program, bin.join("dfka-engine")).unwrap();
    let python = std::env::var("DFKA_PYTHON").unwrap_or_else(|_| "python3".into());
    let with_torch = has_torch(&python);
    if with_torch && python != "python3" {
        std::fs::write(bin.join("python3"), format!("#!/bin/sh\nexec {python} \"$@\"\n")).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(bin.join("python3")).status().unwrap().success());
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let run = |commands: &str| {
        let mut shell = Command::new("sh");
        let output =
            shell.args(["-e", "-c", commands]).current_dir(lab.path("")).env("PATH", &path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{commands}\n{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    if with_torch {
        blocks[..2].iter().for_each(|b| drop(run(b)));
        for name in ["a", "b"] {
            let score = |file: &str| {
                run(&format!("dfka-engine eval {file} weights/demo/evaluation.npz --device cpu"))
            };
            let (original, converted) =
                (score(&format!("weights/demo/teacher_{name}.npz")), score(&format!("{name}.safetensors")));
            let of = |text: &str| {
                text.split_whitespace().filter_map(|w| w.parse::<f64>().ok()).collect::<Vec<_>>()
            };
            assert_eq!(of(&original), of(&converted), "{original}\n{converted}");
        }
    } else {
        skipped(&format!(
            "{python} has no torch: the tutorial's first two blocks; the rest runs on the same weights"
        ));
        for name in ["a", "b"] {
            run(&format!("dfka-engine export weights/demo/teacher_{name}.npz --to {name}.safetensors"));
        }
    }
    run(blocks[2]);
    let config = std::fs::read_to_string(lab.path("mine.toml")).unwrap();
    assert!(config.contains("init = \"mean\""), "{config}");
    let said = run(blocks[3]);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    assert!(last[2].starts_with("good: ") || last[2].starts_with("weak: "), "{said}");
    let said = run(blocks[4]);
    assert!(said.contains("000001.jpg  ") && said.contains("mine.onnx: images of 32 x 32 pixels"), "{said}");
    let report = std::fs::read_to_string(lab.path("runs/mine-seed0/report.html")).unwrap();
    assert!(report.contains("name=\"viewport\"") && report.contains("Verdict: "), "the page of the tutorial");
}
