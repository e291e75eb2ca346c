//! Claim: a room of `src` imports only what the table below lets it, and no rooms import each other
//! in a circle. No modules of `loadtest/src` do either.
//!
//! Set-up: the paths that start with `crate`, `super` or a module's own child in the sources,
//! without comments and unit tests. Tests may stand on anything.
//!
//! Expectation: each path leads to the room itself or to one that its row names. Rows name rows
//! above them only, so what the table allows has no circle. In `loadtest/src`, which has no table,
//! modules of one folder are sorted by their imports, and none is left over. What a module and the
//! modules within it import of each other does not count, and nothing imports `main`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room, the bottom one first, and the rooms that it may import. A file belongs to the room with
/// the longest name that its path starts with. Not here: `main` and `banner`, which nothing can
/// import.
const ROOMS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("clock", &[]),
    ("close", &[]),
    ("topic_pattern", &["event"]),
    ("printed", &[]),
    ("secret", &[]),
    ("admission", &[]),
    ("wire", &["event", "close", "topic_pattern"]),
    ("config/limits", &["event", "wire"]),
    ("auth", &["event", "topic_pattern", "config/limits"]),
    ("refusal", &["config/limits"]),
    ("publishing", &["event", "wire", "config/limits", "refusal"]),
    ("config/capacity", &["config/limits"]),
    ("config/units", &["wire"]),
    ("config", &["auth", "event", "topic_pattern", "config/limits", "config/units", "secret", "wire"]),
    ("config/flags", &["config", "config/limits", "config/units", "topic_pattern"]),
    ("log", &["clock", "config", "config/limits"]),
    ("jetstream", &["event", "topic_pattern", "clock", "publishing", "config", "config/limits", "log"]),
    ("handover", &["event", "clock", "config", "config/limits", "publishing"]),
    ("store", &["event", "clock", "config", "config/limits", "publishing", "handover"]),
    ("metrics", &["event", "wire", "close", "refusal"]),
    (
        "broadcast",
        &["auth", "event", "wire", "clock", "config", "config/limits", "metrics", "refusal", "publishing"],
    ),
    // The kernel's view of a batch, which the batch keeps. It is in `uring` because it is unsafe.
    ("egress/uring/header", &[]),
    ("egress/batch", &["clock", "egress/uring/header"]),
    ("egress/ring", &["close", "egress/batch"]),
    ("egress/listener", &["config/limits"]),
    ("egress/uring", &["config/limits", "egress/batch", "egress/ring", "egress/uring/header"]),
    ("egress/epoll", &["config/limits", "egress/batch", "egress/ring"]),
    ("egress/sim", &["config/limits", "egress/batch", "egress/ring"]),
    // What the shard sees of it: the trait, the batches, the prefetch.
    ("egress", &["egress/batch", "egress/ring", "egress/uring"]),
    (
        "shard",
        &[
            "event",
            "topic_pattern",
            "auth",
            "wire",
            "clock",
            "close",
            "admission",
            "refusal",
            "publishing",
            "config",
            "config/limits",
            "log",
            "metrics",
            "broadcast",
            "egress",
        ],
    ),
    ("client", &["event", "close", "topic_pattern", "wire", "config/limits", "secret"]),
    ("relay", &["event", "config", "config/limits", "client", "secret"]),
    (
        "hub",
        &[
            "event",
            "topic_pattern",
            "auth",
            "wire",
            "clock",
            "close",
            "admission",
            "refusal",
            "publishing",
            "config",
            "config/limits",
            "config/units",
            "log",
            "metrics",
            "broadcast",
            "printed",
            "secret",
            "handover",
            "store",
            "jetstream",
            "client",
            "relay",
        ],
    ),
    ("tls", &["config", "config/limits", "egress", "wire"]),
    ("http2", &["config/limits", "egress", "wire"]),
    ("acme", &["config", "config/limits", "tls"]),
    (
        "runtime",
        &[
            "clock",
            "config/limits",
            "broadcast",
            "egress",
            "egress/uring",
            "egress/epoll",
            "shard",
            "tls",
            "http2",
        ],
    ),
    ("systemd", &["config", "hub"]),
    (
        "command",
        &[
            "event",
            "topic_pattern",
            "auth",
            "clock",
            "config",
            "config/flags",
            "config/limits",
            "config/units",
            "client",
            "tls",
        ],
    ),
];

/// Puts the others together: it imports what it likes, and no other room imports it.
const TOP_FLOOR: [&str; 1] = ["serve"];

/// The room of a module's path, `egress/uring` for `egress/uring/setup`.
fn room_of(path: &str) -> Option<&'static str> {
    let names = ROOMS.iter().map(|(name, _)| *name).chain(TOP_FLOOR);
    let inside =
        |name: &&str| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    names.filter(inside).max_by_key(|name| name.len())
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        // Unit tests in files of their own, and what they share.
        if ["tests", "tests.rs", "fixtures.rs"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The path of a file's module below the crate: `egress/uring/setup`.
fn module_of(file: &Path) -> String {
    let text = file.with_extension("").to_str().expect("a path in UTF-8").to_string();
    text.strip_suffix("/mod").map(str::to_string).unwrap_or(text)
}

/// The code of a file: no comments, no unit tests, which stand last.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let module = |next: &&str| next.contains("mod ") && next.ends_with('{');
        if line == "#[cfg(test)]" && lines.peek().is_some_and(module) {
            break;
        }
        let line = line
            .find("//")
            .filter(|at| line[..*at].trim_end().len() < *at || *at == 0)
            .map_or(line, |at| &line[..at]);
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// The names of a path that `text` begins with, one list for each end of a group: `a::{b, c::d}` is
/// `a/b` and `a/c/d`. Gives what follows.
fn ends<'a>(text: &'a str, before: &[&'a str], found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = ends(rest, before, found).trim_start();
            rest = match rest.strip_prefix("as ") {
                Some(renamed) => {
                    renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').trim_start()
                }
                None => rest,
            };
            match rest.strip_prefix(',') {
                Some(after) if !after.trim_start().starts_with('}') => rest = after,
                Some(after) => return after.trim_start().strip_prefix('}').unwrap_or(after),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = before.to_vec();
    path.push(name);
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with(['*', '<']) => ends(rest, &path, found),
        _ => {
            found.push(path.join("/"));
            rest
        }
    }
}

/// The paths that a module's code names, from the crate's root.
fn imports(module: &str, code: &str) -> Vec<String> {
    let children: Vec<&str> =
        code.lines().filter_map(|line| line.rsplit_once("mod ")?.1.strip_suffix(';')).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let start =
            code[..at].rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |before| before + 1);
        // The middle of a path was read from its beginning.
        if code[..start].ends_with("::") || code[..start].ends_with('$') {
            continue;
        }
        let first = &code[start..at];
        if ["crate", "super", "self"].contains(&first) || children.contains(&first) {
            ends(&code[start..], &[], &mut found);
        }
    }
    let absolute = |path: String| {
        let mut base: Vec<&str> = module.split('/').collect();
        let mut names = path.split('/').peekable();
        while let Some(name) = names.peek() {
            match *name {
                "crate" => base.clear(),
                "super" => drop(base.pop()),
                "self" => {}
                _ => break,
            }
            names.next();
        }
        base.extend(names);
        base.join("/")
    };
    found.into_iter().map(absolute).collect()
}

#[test]
fn every_room_imports_only_what_its_row_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files {
        let module = module_of(file.strip_prefix(&root).expect("below src"));
        if ["main", "banner", "lib"].contains(&module.as_str()) {
            continue;
        }
        let Some(room) = room_of(&module) else {
            wrong.push(format!("src/{module} belongs to no room: give it a row in tests/layers.rs"));
            continue;
        };
        if TOP_FLOOR.contains(&room) {
            continue;
        }
        let (_, allowed) = ROOMS.iter().find(|(name, _)| *name == room).expect("a row for each room");
        let code = code_of(&fs::read_to_string(&file).expect("a readable source"));
        for path in imports(&module, &code) {
            let Some(other) = room_of(&path) else { continue };
            seen += 1;
            if other != room && !allowed.contains(&other) {
                wrong.push(format!("src/{module} imports {path}: `{room}` may not import `{other}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 200, "only {seen} imports were found, so the sources were not read");
}

#[test]
fn a_row_names_rows_above_it_so_that_no_circle_is_allowed() {
    for (index, (room, allowed)) in ROOMS.iter().enumerate() {
        for other in *allowed {
            let above = ROOMS[..index].iter().any(|(name, _)| name == other);
            assert!(above, "`{room}` may import `{other}`, which does not stand above it");
        }
    }
}

/// Which modules of one folder import which others of it: for an import of `plan/fit` by
/// `engine/course` that `engine` imports `plan`. Fails on an import of what is no module.
fn neighbours(modules: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut neighbours: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, code) in modules {
        for path in imports(module, code) {
            let mut parents = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path.as_str()]);
            let other = parents.rfind(|parent| modules.contains_key(*parent));
            let other =
                other.unwrap_or_else(|| panic!("{module} imports {path}, which only `main` can have"));
            let same =
                module.split('/').zip(other.split('/')).take_while(|(one, other)| one == other).count();
            let part = |path: &str, names: usize| path.split('/').take(names).collect::<Vec<_>>().join("/");
            let (shared, from, to) = (part(module, same), part(module, same + 1), part(other, same + 1));
            // Otherwise the one is within the other.
            if from != shared && to != shared {
                neighbours.entry(from).or_default().insert(to);
            }
        }
    }
    neighbours
}

/// The modules that are left over once those that import none of the others have been taken away,
/// again and again.
fn circles(mut neighbours: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    loop {
        let left: BTreeSet<String> = neighbours.keys().cloned().collect();
        neighbours.retain(|_, others| others.iter().any(|other| left.contains(other)));
        if neighbours.len() == left.len() {
            return left.into_iter().collect();
        }
    }
}

#[test]
fn no_modules_of_the_load_generator_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtest/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let read = |file: PathBuf| {
        let module = module_of(file.strip_prefix(&root).expect("below src"));
        (module, code_of(&fs::read_to_string(&file).expect("a readable source")))
    };
    let mut modules: BTreeMap<String, String> = files.into_iter().map(read).collect();
    modules.remove("main").expect("a main");
    let neighbours = neighbours(&modules);
    let seen: usize = neighbours.values().map(BTreeSet::len).sum();
    assert!(seen > 100, "only {seen} imports were found, so the sources were not read");
    assert_eq!(circles(neighbours), Vec::<String>::new());
}

#[test]
fn a_circle_of_modules_is_found_at_any_depth() {
    let modules = |code: &[(&str, &str)]| {
        code.iter().map(|(module, code)| ((*module).to_owned(), (*code).to_owned())).collect()
    };
    let straight = [("a", "use super::b::c::D;"), ("b", "mod c;"), ("b/c", "use super::E;"), ("f", "")];
    assert_eq!(circles(neighbours(&modules(&straight))), Vec::<String>::new());
    let across =
        [("a", "use super::b::c::D;"), ("b", "mod c;"), ("b/c", "use crate::f::G;"), ("f", "use crate::a;")];
    assert_eq!(circles(neighbours(&modules(&across))), ["a", "b", "f"]);
    let within = [("b", "mod c; mod d;"), ("b/c", "use super::d::D;"), ("b/d", "use super::c::C;")];
    assert_eq!(circles(neighbours(&modules(&within))), ["b/c", "b/d"]);
}

#[test]
fn imports_are_found_in_every_form() {
    let code = code_of(
        "// use crate::comment::A;\n\
         pub mod child;\n\
         pub use child::Thing;\n\
         use super::batch::Batch;\n\
         use crate::{clock::Stamp, wire::{self, sse as other, Format}};\n\
         use std::collections::BTreeMap;\n\
         fn f() -> crate::metrics::ShardMetrics { super::super::hub::g::<u8>() } // crate::also::A\n\
         #[cfg(test)]\n\
         mod tests {\n    use crate::serve::run;\n}\n",
    );
    let mut found = imports("egress/uring", &code);
    found.sort();
    let expected = [
        "clock/Stamp",
        "egress/batch/Batch",
        "egress/uring/child/Thing",
        "hub/g",
        "metrics/ShardMetrics",
        "wire/Format",
        "wire/self",
        "wire/sse",
    ];
    assert_eq!(found, expected);
}
