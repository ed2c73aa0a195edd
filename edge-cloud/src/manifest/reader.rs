//! Reads a YAML value field by field and keeps the path of each.
//!
//! Every field must be taken, declared harmless or refused: [`Object::finish`] turns every remaining
//! field into a fault, so no field of a manifest is ignored silently. `null` counts as absent, as
//! in Kubernetes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_norway::Value;

/// Faults that one document may list; further ones are dropped.
pub(super) const FAULTS_MAX: usize = 64;

/// Maps that have no meaning when they are empty; other empty maps are refused by Kubernetes, or have a
/// meaning.
const EMPTY_MAPS: [&str; 3] = ["affinity", "dnsConfig", "lifecycle"];

/// An error in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// `spec.containers[0].image`; empty for the document itself.
    pub(super) path: String,
    /// Human-readable.
    pub(super) reason: String,
}

/// Faults of one document, at most [`FAULTS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    /// Adds a fault.
    pub(super) fn add(&self, path: &str, reason: impl Into<String>) {
        let mut faults = self.0.borrow_mut();
        if faults.len() < FAULTS_MAX {
            faults.push(Fault {
                path: path.to_owned(),
                reason: reason.into(),
            });
        }
    }

    /// Whether no fault was found so far.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// All faults.
    #[must_use]
    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    value: &'a Value,
    /// Path of the field in its document.
    pub(super) path: String,
    /// Collects refusals.
    pub(super) faults: &'a Faults,
}

impl<'a> Field<'a> {
    /// The document itself.
    #[must_use]
    pub(super) const fn document(value: &'a Value, faults: &'a Faults) -> Self {
        Self {
            value,
            path: String::new(),
            faults,
        }
    }

    /// Adds a fault here.
    pub(super) fn refuse(&self, reason: impl Into<String>) {
        self.faults.add(&self.path, reason);
    }

    fn wrong<T>(&self, wanted: &str) -> Option<T> {
        self.refuse(format!("must be {wanted}"));
        None
    }

    fn is_empty_text(&self) -> bool {
        matches!(self.value, Value::String(text) if text.is_empty())
    }

    /// A string.
    #[must_use]
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value {
            Value::String(text) if !text.contains('\0') => Some(text),
            Value::String(_) => self.wrong("text without NUL"),
            Value::Number(_) | Value::Bool(_) => self.wrong("a string: put it in quotes"),
            _ => self.wrong("a string"),
        }
    }

    /// A string; `valid` returns what is wrong with it.
    pub(super) fn checked(
        &self,
        valid: impl Fn(&str) -> Result<(), &'static str>,
    ) -> Option<String> {
        let text = self.text()?;
        match valid(text) {
            Ok(()) => Some(text.to_owned()),
            Err(reason) => {
                self.refuse(reason);
                None
            }
        }
    }

    /// `true` or `false`; any other value is a fault.
    #[must_use]
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(*value),
            _ => self.wrong("true or false"),
        }
    }

    /// A whole number from `min` to `max`.
    #[must_use]
    pub(super) fn integer(&self, min: u32, max: u32) -> Option<u32> {
        let number = self.value.as_u64().and_then(|n| u32::try_from(n).ok());
        match number {
            Some(number) if (min..=max).contains(&number) => Some(number),
            _ => self.wrong(&format!("a whole number from {min} to {max}")),
        }
    }

    /// Text of a scalar that Kubernetes lets be a number or a string (a quantity, a mode).
    #[must_use]
    pub(super) fn scalar(&self) -> Option<String> {
        match self.value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => self.wrong("a number or a string"),
        }
    }

    /// A list of at most `count_max` items.
    #[must_use]
    pub(super) fn list(&self, count_max: usize) -> Vec<Self> {
        let Value::Sequence(items) = self.value else {
            return self.wrong("a list").unwrap_or_default();
        };
        if items.len() > count_max {
            return self
                .wrong(&format!("at most {count_max} items"))
                .unwrap_or_default();
        }
        let item = |(index, value)| Field {
            value,
            path: format!("{}[{index}]", self.path),
            faults: self.faults,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// A map with fields that are looked up by name.
    #[must_use]
    pub(super) fn object(&self) -> Option<Object<'a>> {
        let rest = self.entries(usize::MAX)?;
        Some(Object {
            rest: rest.into_iter().collect(),
            path: self.path.clone(),
            faults: self.faults,
        })
    }

    /// A map with arbitrary keys, at most `count_max`.
    #[must_use]
    pub(super) fn entries(&self, count_max: usize) -> Option<Vec<(&'a str, Self)>> {
        let Value::Mapping(map) = self.value else {
            return self.wrong("a map");
        };
        if map.len() > count_max {
            return self.wrong(&format!("at most {count_max} entries"));
        }
        let mut entries = Vec::with_capacity(map.len());
        for (key, value) in map {
            let Value::String(key) = key else {
                let key = serde_norway::to_string(key).unwrap_or_default();
                return self.wrong(&format!("a map of texts: put {} in quotes", key.trim()));
            };
            if !value.is_null() {
                let path = join(&self.path, key);
                let faults = self.faults;
                entries.push((
                    key.as_str(),
                    Field {
                        value,
                        path,
                        faults,
                    },
                ));
            }
        }
        Some(entries)
    }
}

fn join(path: &str, key: &str) -> String {
    // A key in a file may have any length; the path is for display.
    let key: String = key.chars().take(80).collect();
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// A map whose fields are taken one by one.
#[derive(Debug)]
pub(super) struct Object<'a> {
    rest: BTreeMap<&'a str, Field<'a>>,
    path: String,
    faults: &'a Faults,
}

impl<'a> Object<'a> {
    /// Takes a field.
    pub(super) fn take(&mut self, key: &str) -> Option<Field<'a>> {
        self.rest.remove(key)
    }

    /// Takes a text; an empty one counts as absent, as in Kubernetes.
    pub(super) fn take_text(&mut self, key: &str) -> Option<Field<'a>> {
        self.take(key).filter(|field| !field.is_empty_text())
    }

    /// Takes a mandatory field.
    pub(super) fn require(&mut self, key: &str) -> Option<Field<'a>> {
        let field = self.take(key);
        if field.is_none() {
            self.refuse(key, "is missing");
        }
        field
    }

    /// Takes a boolean, `false` when absent.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.take(key)
            .and_then(|field| field.boolean())
            .unwrap_or_default()
    }

    /// Adds a fault at the field `key` of this map.
    pub(super) fn refuse(&self, key: &str, reason: impl Into<String>) {
        self.faults.add(&join(&self.path, key), reason);
    }

    /// Drops fields that change nothing on a node.
    pub(super) fn harmless(&mut self, keys: &[&str]) {
        for key in keys {
            self.take(key);
        }
    }

    /// Drops booleans with the only supported value, and refuses the other value.
    pub(super) fn only(&mut self, key: &str, wanted: bool, reason: &str) {
        if let Some(field) = self.take(key)
            && field.boolean().is_some_and(|value| value != wanted)
        {
            field.refuse(reason);
        }
    }

    /// Drops a number with the only supported value, and refuses every other.
    pub(super) fn only_zero(&mut self, key: &str, reason: &str) {
        if let Some(field) = self.take(key)
            && field.value.as_u64() != Some(0)
        {
            field.refuse(reason);
        }
    }

    /// Drops a text with a supported value, and refuses every other.
    pub(super) fn only_text(&mut self, key: &str, wanted: &[&str], reason: &str) {
        if let Some(field) = self.take_text(key)
            && field.text().is_some_and(|value| !wanted.contains(&value))
        {
            field.refuse(reason);
        }
    }

    /// Refuses every remaining field: with the reason given for it, or as not supported. An
    /// empty text or list has no meaning in Kubernetes, and neither have some empty maps.
    pub(super) fn finish(self, reasons: &[(&str, &str)]) {
        for (key, field) in &self.rest {
            let empty = match field.value {
                Value::Sequence(items) => items.is_empty(),
                Value::Mapping(map) => map.is_empty() && EMPTY_MAPS.contains(key),
                _ => field.is_empty_text(),
            };
            if empty {
                continue;
            }
            let reason = reasons.iter().find(|(name, _)| name == key);
            field.refuse(reason.map_or("is not supported", |(_, reason)| reason));
        }
    }
}
