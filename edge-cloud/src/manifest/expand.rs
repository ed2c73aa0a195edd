//! `$(NAME)` in command, args and env values, as Kubernetes expands it: `$$` is a `$`, and an undefined
//! name stays as it is (so `$(date)` reaches the shell).

use edge_proto::limits::POD_BYTES_MAX;
use edge_proto::object::{EnvValue, EnvVar};

/// Why a text was not expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExpandError {
    /// The value of this variable is not known here.
    Unknown(String),
    /// The result is larger than a Pod may be: variables that double each other.
    TooLarge,
}

impl std::fmt::Display for ExpandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(name) => write!(
                f,
                "uses $({name}), which comes from a ConfigMap or Secret: only variables with a \
                 literal value are expanded; use ${{{name}}} in a shell"
            ),
            Self::TooLarge => write!(f, "expands to more than {POD_BYTES_MAX} bytes"),
        }
    }
}

/// Replaces the variables of `env` in `text`. Variables of `envFrom` are not looked up.
///
/// # Errors
/// See [`ExpandError`].
pub(super) fn expand(text: &str, env: &[EnvVar]) -> Result<String, ExpandError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let after = after.get(1..).unwrap_or_default();
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match env.iter().rev().find(|var| var.name == name) {
                Some(EnvVar {
                    value: EnvValue::Literal(value),
                    ..
                }) => out.push_str(value),
                Some(_) => return Err(ExpandError::Unknown(name.to_owned())),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
        if out.len() > POD_BYTES_MAX {
            return Err(ExpandError::TooLarge);
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_expand_as_in_kubernetes() {
        let literal = |name: &str, value: &str| EnvVar {
            name: name.to_owned(),
            value: EnvValue::Literal(value.to_owned()),
        };
        let secret = EnvVar {
            name: "KEY".to_owned(),
            value: EnvValue::Secret {
                name: "s".to_owned(),
                key: "k".to_owned(),
                optional: false,
            },
        };
        let env = [literal("A", "1"), literal("A", "2"), secret];
        for (text, wanted) in [
            ("x$(A)y", "x2y"),
            ("$$(A)", "$(A)"),
            ("$(date) $A $", "$(date) $A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$2"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(wanted), "{text}");
        }
        assert_eq!(
            expand("$(KEY)", &env),
            Err(ExpandError::Unknown("KEY".to_owned()))
        );
        let env = [literal("A", &"x".repeat(20_000))];
        assert_eq!(expand("$(A)$(A)", &env), Err(ExpandError::TooLarge));
    }
}
