//! The Rust files of the repository, parsed once for all rules.

use std::path::{Path, PathBuf};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItemFn, ItemConst, ItemFn, ItemMod, Meta, Signature, TraitItemFn};

use super::sources;

/// One file.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    tokens: TokenStream,
    file: syn::File,
}

/// A function with a body.
pub(super) struct Function {
    pub(super) name: String,
    /// Of its documentation and attributes, of its signature, and of its closing brace.
    pub(super) documented: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// An item, member or variant with a doc comment.
pub(super) struct Documented {
    pub(super) name: String,
    pub(super) text: String,
    /// First line of the comment.
    pub(super) line: usize,
}

/// What a rule looks at, without the modules and functions that are compiled for tests only.
#[derive(Default)]
pub(super) struct Items {
    pub(super) functions: Vec<Function>,
    pub(super) constants: Vec<String>,
    /// Lines of what is left out.
    pub(super) test_lines: usize,
}

/// All Rust files. A symbolic link is a file of another place.
pub(super) fn all() -> Vec<Source> {
    let rust = |path: &Path| path.extension().is_some_and(|kind| kind == "rs");
    let files = sources().into_iter().filter(|(path, _)| rust(path));
    files
        .map(|(path, text)| {
            let tokens: TokenStream = text
                .parse()
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let file = syn::parse2(tokens.clone())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Source {
                path,
                text,
                tokens,
                file,
            }
        })
        .collect()
}

impl Source {
    /// Nothing of it is in a program: tests, fuzz targets, and the package that measures.
    pub(super) fn is_test(&self) -> bool {
        let folder = |name| self.path.iter().any(|part| part == name);
        let stem = self.path.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.unwrap_or_default();
        folder("tests")
            || folder("fuzz")
            || folder("benches")
            || self.path.starts_with("memtests")
            || stem == "tests"
            || stem.ends_with("_tests")
    }

    pub(super) const fn tokens(&self) -> &TokenStream {
        &self.tokens
    }

    pub(super) fn items(&self) -> Items {
        let mut items = Items::default();
        items.visit_file(&self.file);
        items
    }

    /// Each identifier with its line; comments and strings have none.
    pub(super) fn identifiers(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        let mut rest = vec![self.tokens.clone()];
        while let Some(tokens) = rest.pop() {
            for token in tokens {
                match token {
                    TokenTree::Group(group) => rest.push(group.stream()),
                    TokenTree::Ident(ident) => {
                        found.push((ident.to_string(), ident.span().start().line));
                    }
                    TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
        }
        found.sort_unstable_by_key(|(_, line)| *line);
        found
    }
}

/// Everything with a doc comment and a name, also inside of macro calls. Items without a name, such as
/// `impl`, are left out.
pub(super) fn documented(tokens: &TokenStream) -> Vec<Documented> {
    let mut found = Vec::new();
    let mut doc: Option<(String, usize)> = None;
    let mut tokens = tokens.clone().into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                if let Some(TokenTree::Group(attribute)) = tokens.peek() {
                    if let Some((text, line)) = doc_text(attribute.stream()) {
                        doc.get_or_insert((String::new(), line)).0 += &text;
                    }
                    tokens.next();
                }
            }
            // `pub(crate)`, or the number of a variant and its `=`.
            TokenTree::Group(group) if doc.is_none() => found.extend(documented(&group.stream())),
            TokenTree::Group(_) | TokenTree::Literal(_) => {}
            TokenTree::Punct(punct) if matches!(punct.as_char(), '=' | '!') => {}
            TokenTree::Punct(_) => doc = None,
            TokenTree::Ident(ident) => match ident.to_string().as_str() {
                "impl" | "use" => doc = None,
                name if KEYWORDS.contains(&name) => {}
                name => {
                    let name = name.to_owned();
                    found.extend(
                        doc.take()
                            .map(|(text, line)| Documented { name, text, line }),
                    );
                }
            },
        }
    }
    found
}

/// What may stand between a comment and the name of its item.
const KEYWORDS: &[&str] = &[
    "pub",
    "const",
    "unsafe",
    "async",
    "extern",
    "fn",
    "struct",
    "enum",
    "static",
    "mod",
    "type",
    "trait",
    "mut",
    "macro_rules",
];

/// Text and line of the attribute `doc = "text"`.
fn doc_text(attribute: TokenStream) -> Option<(String, usize)> {
    let line = attribute.span().start().line;
    let doc: syn::MetaNameValue = syn::parse2(attribute).ok()?;
    match doc.value {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) if doc.path.is_ident("doc") => Some((text.value(), line)),
        _ => None,
    }
}

/// `#[cfg(test)]`, also with more conditions, or `#[test]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let cfg_test = match &attribute.meta {
            Meta::List(list) => {
                let what = list.tokens.to_string();
                list.path.is_ident("cfg") && what.contains("test") && !what.contains("not")
            }
            _ => false,
        };
        cfg_test || attribute.path().is_ident("test")
    })
}

impl Items {
    fn leave_out(&mut self, item: Span) {
        self.test_lines += item.end().line + 1 - item.start().line;
    }

    fn function(&mut self, attributes: &[Attribute], signature: &Signature, block: &Block) {
        let first = signature.span().start().line;
        let documented = attributes.iter().map(|one| one.span().start().line).min();
        self.functions.push(Function {
            name: signature.ident.to_string(),
            documented: documented.unwrap_or(first),
            first,
            last: block.span().end().line,
        });
    }
}

impl<'ast> Visit<'ast> for Items {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        match is_for_tests(&item.attrs) {
            true => self.leave_out(item.span()),
            false => visit::visit_item_mod(self, item),
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if is_for_tests(&item.attrs) {
            return self.leave_out(item.span());
        }
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if is_for_tests(&item.attrs) {
            return self.leave_out(item.span());
        }
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        // An assertion has no name.
        if item.ident != "_" {
            self.constants.push(item.ident.to_string());
        }
        visit::visit_item_const(self, item);
    }
}
