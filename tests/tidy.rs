//! The house rules that a compiler does not check: layering, module headers, banned words, and that
//! the table of edge cases names tests.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. A module uses only those before it; what stands together is one layer.
const LAYERS: [&[&str]; 5] = [
    &["rt"],
    &["limits", "durability", "error", "stats", "report", "log"],
    &["partition"],
    &["router"],
    &["store", "options", "open", "bulk", "reply"],
];

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Each file below `src`: its path there, and its text without the tests at its end.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 30, "this looks at the wrong folder");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            // Tests come last. A single import or function that is for them may be anywhere.
            let tests = ["#[cfg(all(test", "#[cfg(test)]\nmod ", "#[cfg(test)]\nimpl "];
            let end = tests.iter().filter_map(|start| text.find(start)).min();
            let code = text[..end.unwrap_or(text.len())].to_owned();
            (path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(), code)
        })
        .collect()
}

fn code_lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = code.lines().enumerate().map(|(n, line)| (n + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn a_module_uses_only_what_is_below_it() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let module = path.split(['/', '.']).next().unwrap();
        if module == "lib" {
            continue;
        }
        let own = layer(module).unwrap_or_else(|| panic!("{path} is in no layer: add it above"));
        for (n, line) in code_lines(&code) {
            for used in line.split("crate::").skip(1) {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                // Limits and the like that lib.rs re-exports are named in messages only.
                let is_item = used.starts_with(char::is_uppercase);
                if !is_item && used != module && layer(used).is_none_or(|other| other > own) {
                    wrong.push(format!("src/{path}:{n} uses {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "upwards:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_begins_by_saying_what_lives_there_and_what_it_keeps() {
    let mut silent = Vec::new();
    for (path, code) in sources() {
        let header: String = code.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(header.len() > 60, "src/{path} has no header");
        let keeps = ["nvariant", "keeps", "limits"].iter().any(|word| header.contains(word));
        let says_elsewhere =
            ["lib.rs", "error.rs", "stats.rs", "report.rs"].contains(&path.as_str());
        if !keeps && !says_elsewhere {
            silent.push(path);
        }
    }
    assert!(silent.is_empty(), "no invariant in the headers of {silent:?}");
}

#[test]
fn nothing_unfinished_and_nothing_that_panics_by_habit() {
    for (path, code) in sources() {
        for (n, line) in code_lines(&code) {
            for banned in
                ["todo!", "unimplemented!", "dbg!", ".unwrap()", "println!", "process::exit"]
            {
                assert!(!line.contains(banned), "src/{path}:{n} has {banned}");
            }
        }
    }
}

#[test]
fn only_the_runtime_may_ask_for_unsafe_code_and_says_why() {
    for (path, code) in sources() {
        if let Some(line) = code.lines().find(|line| line.contains("expect(unsafe_code")) {
            assert!(path.starts_with("rt/"), "src/{path}: only the runtime may be unsafe");
            assert!(line.contains("reason = "), "src/{path}: {line}");
        }
    }
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(lib.contains("#![deny(unsafe_code)]"));
}

#[test]
fn sources_are_ascii_and_lines_fit_the_page() {
    for (path, code) in sources() {
        for (n, line) in code.lines().enumerate() {
            assert!(line.is_ascii(), "src/{path}:{} is not ASCII", n + 1);
            assert!(line.len() <= 102, "src/{path}:{} is {} bytes long", n + 1, line.len());
        }
    }
}

#[test]
fn the_readme_has_exactly_two_commands_to_start_with() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let start = readme.split("## Quick start").nth(1).expect("a quick start");
    let start = start.split("\n## ").next().unwrap();
    let commands = start.lines().filter(|line| line.starts_with("cargo "));
    assert_eq!(commands.count(), 2, "{start}");
}

/// Whether a text has a test of this name; then whether it runs without being asked for.
fn test_in(text: &str, name: &str) -> Option<bool> {
    let (before, _) = text.split_once(&format!("fn {name}()"))?;
    let attributes = before.rsplit("\n\n").next().unwrap();
    attributes.contains("#[test]").then(|| !attributes.contains("#[ignore"))
}

/// The tests that a row of a table names, after the file that each is in: which there are not, and
/// whether one of the others is not ignored.
fn tests_named(row: &str) -> (Vec<String>, bool) {
    let mut files = Vec::new();
    for folder in ["tests", "src"] {
        rust_files(&root().join(folder), &mut files);
    }
    let (mut file, mut missing, mut runs) = ("", Vec::new(), false);
    for name in row.split('`').skip(1).step_by(2) {
        if Path::new(name).extension().is_some() {
            file = name;
            continue;
        }
        let named = files.iter().filter(|path| path.ends_with(file));
        let mut texts = named.map(|path| fs::read_to_string(path).unwrap());
        match texts.find_map(|text| test_in(&text, name)) {
            Some(quick) => runs |= quick,
            None => missing.push(format!("{file:?} has no test {name}: {row}")),
        }
    }
    (missing, runs)
}

#[test]
fn every_edge_case_names_tests_that_exist_and_one_that_is_not_ignored() {
    /// Of an operation that there is not.
    const NONE: [usize; 1] = [37];
    let table = fs::read_to_string(root().join("tests/EDGE_CASES.md")).unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    for row in table.lines().filter(|row| row.starts_with('|')).skip(2) {
        rows += 1;
        assert!(row.starts_with(&format!("| {rows} |")), "{row}");
        let (missing, runs) = tests_named(row);
        wrong.extend(missing);
        if runs == NONE.contains(&rows) {
            wrong.push(format!("{rows}: {}", if runs { "it has tests" } else { "no test" }));
        }
    }
    assert_eq!(rows, 49);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_class_of_faults_names_tests_that_exist_and_one_that_is_not_ignored() {
    let design = fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let (_, table) = design.split_once("| class | promise | held by |\n").unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    for row in table.lines().skip(1).take_while(|row| row.starts_with('|')) {
        rows += 1;
        let by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let (missing, runs) = tests_named(by);
        wrong.extend(missing);
        if !runs {
            wrong.push(format!("no test that runs: {row}"));
        }
    }
    assert!(rows > 20);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
