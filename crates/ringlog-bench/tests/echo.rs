//! Runs the `echo` binary as a user would, for a short time.

use std::process::{Command, Output};

use serde_json::Value;

fn echo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_echo"))
        .args(["--rounds", "2", "--seconds", "0.1"])
        .args(arguments)
        .output()
        .expect("the binary has been built")
}

fn json(arguments: &[&str]) -> Value {
    let output = echo(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// Every engine either echoes correctly or says why it could not start.
#[test]
fn every_engine_gives_figures_or_a_reason() {
    let report = json(&["--connections", "1,3"]);
    let cells = report["cells"].as_array().expect("there are cells");
    assert!(cells.len() >= 2);
    for cell in cells {
        if let Some(reason) = cell["unavailable"].as_str() {
            assert!(!reason.is_empty());
            continue;
        }
        let measured = &cell["measured"];
        assert_eq!(measured["rounds"].as_array().map(Vec::len), Some(2), "{cell}");
        assert!(measured["median"]["requests_per_second"].as_f64() > Some(0.0), "{cell}");
    }
}

/// Messages that fit neither the servers' buffer nor a socket's come back whole.
#[test]
fn large_messages_are_echoed() {
    let report = json(&["--connections", "2", "--message", "1000000", "--engines", "tokio,raw"]);
    for cell in report["cells"].as_array().expect("there are cells") {
        let unavailable = cell["unavailable"].as_str().unwrap_or_default();
        assert!(!unavailable.contains("other bytes"), "{cell}");
        assert!(!unavailable.contains("no answer"), "{cell}");
    }
}

#[test]
fn options_are_checked() {
    for arguments in [["--connections", "0"], ["--seconds", "-1"], ["--engines", "none"]] {
        assert!(!echo(&arguments).status.success(), "{arguments:?}");
    }
}
