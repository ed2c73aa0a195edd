//! Dependencies of modules: no two folders of a crate, and no two modules, import each other in a circle.
//! With a circle neither can be read, tested or moved without the other. And names of files on the board
//! are in one module only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Sources in which neither folders nor modules import each other in a circle.
const CRATES: [&str; 2] = ["edge-min/src", "edge-cloud/src"];

/// Folders whose files are parts of one `impl`, so they are one module here.
const WHOLE: [&str; 1] = ["driver"];

/// The module of the agent that names files, and those that name files of other formats: sysfs, OCI
/// layouts, cgroups.
const PATHS: &str = "paths";
const FOREIGN: [&str; 4] = [
    "board::name",
    "storage::wear",
    "image::layout",
    "workload::cgroup",
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Every module of a crate with its code outside tests, and its imports from the crate.
struct Sources {
    code: BTreeMap<Vec<String>, String>,
    modules: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
}

impl Sources {
    fn read(top: &Path) -> Self {
        let mut texts = BTreeMap::new();
        collect(top, &mut Vec::new(), &mut texts);
        let known: BTreeSet<Vec<String>> = texts.keys().cloned().collect();
        let code: BTreeMap<Vec<String>, String> = texts
            .iter()
            .map(|(module, text)| (module.clone(), outside_tests(text)))
            .collect();
        let modules = code
            .iter()
            .map(|(module, code)| {
                let imports = paths(module, code)
                    .into_iter()
                    .filter_map(|path| {
                        let lengths = (1..=path.len()).rev();
                        let mut prefixes = lengths.filter_map(|length| path.get(..length));
                        prefixes.find(|one| known.contains(*one)).map(<[_]>::to_vec)
                    })
                    .filter(|import| import != module)
                    .collect();
                (module.clone(), imports)
            })
            .collect();
        Self { code, modules }
    }

    /// The imports between the units to which `unit` maps the modules.
    fn graph(&self, unit: impl Fn(&[String]) -> String) -> Graph {
        let mut graph = Graph::new();
        for (module, imports) in &self.modules {
            let from = unit(module);
            for import in imports {
                let to = unit(import);
                if from != to {
                    graph.entry(from.clone()).or_default().insert(to);
                }
            }
        }
        graph
    }
}

fn collect(dir: &Path, module: &mut Vec<String>, texts: &mut BTreeMap<Vec<String>, String>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, texts);
            module.pop();
        } else if path.extension().is_some_and(|end| end == "rs") && !name.ends_with("tests") {
            let text = fs::read_to_string(&path).unwrap();
            let mut own = module.clone();
            // The root of a crate declares and re-exports; it is not imported.
            match name.as_str() {
                "lib" | "main" => continue,
                "mod" => {}
                _ => own.push(name),
            }
            texts.insert(own, text);
        }
    }
}

/// The code before the tests, without comments on lines of their own.
fn outside_tests(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or("")
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// All paths below the crate's root in this code, `super` and `self` resolved.
fn paths(module: &[String], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let before = code.get(..at).unwrap_or("");
        let begin = before
            .rfind(|character: char| !(character.is_alphanumeric() || character == '_'))
            .map_or(0, |index| index + 1);
        let mut rest = code.get(at + 2..).unwrap_or("");
        let mut base = module.to_vec();
        match before.get(begin..) {
            Some("crate") if !before.get(..begin).is_some_and(|all| all.ends_with('$')) => {
                base.clear();
            }
            Some("super") if !before.get(..begin).is_some_and(|all| all.ends_with("::")) => {
                base.pop();
                while let Some(after) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = after;
                }
            }
            _ => continue,
        }
        expand(&base, rest, &mut found);
    }
    found
}

/// Adds each path of `rest`, which may be a tree in braces.
fn expand(base: &[String], rest: &str, found: &mut Vec<Vec<String>>) {
    let rest = rest.trim_start();
    if let Some(tree) = rest.strip_prefix('{') {
        let mut depth = 0_usize;
        let mut begin = 0;
        for (index, character) in tree.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    expand(base, tree.get(begin..index).unwrap_or(""), found);
                    begin = index + 1;
                    if character == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let end = rest
        .find(|character: char| !(character.is_alphanumeric() || character == '_'))
        .unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    let mut path = base.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name.to_owned());
    }
    match after.strip_prefix("::") {
        Some(after) => expand(&path, after, found),
        None => found.push(path),
    }
}

/// A circle, if there is one, as the names along it.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit<'a>(
        graph: &'a Graph,
        name: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = way.iter().position(|one| *one == name) {
            let round = way.iter().skip(begin).chain([&name]);
            return Some(round.map(|one| (*one).to_owned()).collect());
        }
        if !done.insert(name) {
            return None;
        }
        way.push(name);
        for next in graph.get(name).into_iter().flatten() {
            if let Some(found) = visit(graph, next, way, done) {
                return Some(found);
            }
        }
        way.pop();
        None
    }
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|name| visit(graph, name, &mut Vec::new(), &mut done))
}

fn folder(module: &[String]) -> String {
    module.first().cloned().unwrap_or_default()
}

/// A file directly in a folder, with what is below it.
fn file(module: &[String]) -> String {
    match module {
        [folder, ..] if WHOLE.contains(&folder.as_str()) => folder.clone(),
        [folder, file, ..] => [folder.as_str(), file].join("::"),
        _ => folder(module),
    }
}

#[test]
fn no_folder_and_no_module_imports_in_a_circle() {
    for name in CRATES {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let sources = Sources::read(&top);
        assert!(!sources.graph(folder).is_empty(), "{name}: nothing imports");
        for (what, graph) in [
            ("folders", sources.graph(folder)),
            ("modules", sources.graph(file)),
        ] {
            if let Some(way) = circle(&graph) {
                panic!("{name}: {what} import each other: {}", way.join(" -> "));
            }
        }
    }
}

/// Names of files in this code: a literal as the argument of a method that creates a path.
fn file_names(code: &str) -> Vec<&str> {
    let calls = [".join(\"", ".with_extension(\""];
    let found = calls.iter().flat_map(|call| code.split(call).skip(1));
    found
        .filter_map(|rest| rest.split('"').next())
        .filter(|name| name.contains(|one: char| one.is_alphanumeric()))
        .collect()
}

/// Goal: the path of a file on the board is written once. Method: no other module of the agent creates a
/// path from a name.
#[test]
fn one_module_names_the_files_of_the_board() {
    let code = [
        ".join(\"a/b\")",
        ".join(\", \")",
        ".with_extension(\"tmp\")",
    ]
    .concat();
    assert_eq!(file_names(&code), ["a/b", "tmp"]);
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edge-min/src");
    let sources = Sources::read(&top);
    for (module, code) in &sources.code {
        let (module, names) = (module.join("::"), file_names(code));
        let may = module == PATHS || FOREIGN.contains(&&*module);
        assert_eq!(may, !names.is_empty(), "{module}: {names:?}");
    }
}

/// Goal: the test of circles recognizes each form of an import. Method: a module that has all of them.
#[test]
fn every_form_of_an_import_is_seen() {
    let text = "use crate::a::{self, b::{C, d}, e};\nuse super::f;\n// use crate::comment;\n\
        fn g() { crate::h::i(); super::super::j(); }\n#[cfg(test)]\nmod tests { use crate::k; }\n";
    let module = ["x".to_owned(), "y".to_owned()];
    let found: BTreeSet<String> = paths(&module, &outside_tests(text))
        .iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = ["a", "a::b::C", "a::b::d", "a::e", "x::f", "h::i", "j"];
    assert_eq!(found, expected.map(str::to_owned).into());
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            let imports = graph.entry((*from).to_owned()).or_default();
            imports.insert((*to).to_owned());
        }
        graph
    };
    let line = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")];
    assert_eq!(circle(&graph(&line)), None);
    let round = [("a", "b"), ("b", "c"), ("c", "b")];
    assert_eq!(
        circle(&graph(&round)),
        Some(["b", "c", "b"].map(str::to_owned).to_vec())
    );
}
