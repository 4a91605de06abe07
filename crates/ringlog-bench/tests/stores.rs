//! Runs the `stores` binary as a user would, for a short time.

use std::process::{Command, Output};

use serde_json::Value;

fn stores(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    Command::new(env!("CARGO_BIN_EXE_stores"))
        .args(["--rounds", "1", "--seconds", "0.05", "--warm-up", "0.01", "--dir"])
        .arg(dir.path())
        .args(["--keys", "500", "--open-keys", "500", "--cold-bytes", "1048576"])
        .args(arguments)
        .output()
        .expect("the binary has been built")
}

/// Every engine answers right in every workload: a wrong value ends the measurement.
#[test]
fn every_engine_does_every_workload() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (json, html) = (dir.path().join("run.json"), dir.path().join("run.html"));
    let [json, html] = [&json, &html].map(|path| path.to_str().expect("an ASCII path"));
    let output = stores(&["--callers", "3", "--json", json, "--html", html]);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(json).expect("it was written");
    let report: Value = serde_json::from_str(&text).expect("it is JSON");
    let cells = report["cells"].as_array().expect("there are cells");
    assert!(cells.len() >= 27, "{}", cells.len());
    for cell in cells {
        let measured = &cell["measured"];
        assert_eq!(measured["rounds"].as_array().map(Vec::len), Some(1), "{cell}");
        assert!(measured["median"]["figure"].as_f64() > Some(0.0), "{cell}");
    }
    let page = std::fs::read_to_string(html).expect("it was written");
    assert!(page.contains("<svg") && !page.contains("<script"), "{page}");
}

#[test]
fn options_are_checked() {
    for arguments in [["--callers", "0"], ["--value", "3"], ["--engines", "none"]] {
        assert!(!stores(&arguments).status.success(), "{arguments:?}");
    }
}
