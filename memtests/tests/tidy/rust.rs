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
