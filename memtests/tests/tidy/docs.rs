//! A doc comment says more than the name below it.

use super::{report, rust};

/// Words that say nothing by themselves: articles, prepositions and pronouns.
const EMPTY: &[&str] = &[
    "a", "an", "and", "as", "at", "by", "each", "for", "from", "in", "into", "is", "it", "its",
    "of", "on", "one", "or", "per", "the", "their", "this", "these", "to", "with",
];

/// The words of a comment or of a name in any case, in lower case and without a plural.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut after_lower = false;
    for letter in text.chars().chain([' ']) {
        let begins = letter.is_ascii_uppercase() && after_lower;
        if (begins || !letter.is_ascii_alphanumeric()) && !word.is_empty() {
            words.push(singular(&word.to_ascii_lowercase()));
            word.clear();
        }
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
        }
        after_lower = letter.is_ascii_lowercase() || letter.is_ascii_digit();
    }
    words
}

fn singular(word: &str) -> String {
    match word {
        _ if word.len() <= 3 || word.ends_with("ss") => word.to_owned(),
        _ if word.ends_with("ies") => format!("{}y", word.trim_end_matches("ies")),
        _ => word.trim_end_matches('s').to_owned(),
    }
}

/// Whether every word of `text` is one of `name` or empty.
fn repeats(text: &str, name: &str) -> bool {
    let of_name = words(name);
    // An identifier of two words may be one word of the comment.
    let joined = of_name.concat();
    let known =
        |word: &String| EMPTY.contains(&word.as_str()) || of_name.contains(word) || *word == joined;
    words(text).iter().all(known)
}

/// Line and text of each comment that only repeats the name of its item.
fn repetitions(items: &[rust::Documented]) -> Vec<(usize, String)> {
    let repeated = items.iter().filter(|item| repeats(&item.text, &item.name));
    repeated
        .map(|item| (item.line, format!("`{}`: {}", item.name, item.text.trim())))
        .collect()
}

#[test]
fn a_doc_comment_says_more_than_the_name() {
    let mut findings = Vec::new();
    let mut read = 0;
    for source in rust::all() {
        let items = rust::documented(source.tokens());
        read += items.len();
        let path = source.path.display();
        let found = repetitions(&items).into_iter();
        findings.extend(found.map(|(line, what)| format!("{path}:{line}: {what}")));
    }
    assert!(read > 1_000, "hardly any doc comment is read");
    report(
        "a doc comment repeats the name: say purpose, unit, bound or caller, or remove it",
        &findings,
    );
}

#[test]
fn a_doc_comment_that_repeats_the_name_is_found() {
    const TEXT: &str = "
        //! The module.
        /// A pod.
        #[derive(Debug)]
        pub struct Pod {
            /// Its names.
            pub(crate) name: String,
            /// Highest number.
            pub number_max: u32,
        }
        /// The table of all the pods.
        pub fn table_of_pods(/* none */) {}
        /// `RestartPolicy`
        enum RestartPolicy {
            /// Restart the container whenever it ends.
            Always,
        }
        numbers! {
            /// The numbers.
            pub enum Kind {
                /// A ConfigMap.
                0 = ConfigMap,
                /// A Secret. Sealed at rest.
                1 = Secret,
            }
        }
        /// What a macro defines.
        macro_rules! defines { () => {} }
        /// Default of the policy.
        impl Default for RestartPolicy {}
        /// Bytes of the key.
        const KEY_BYTES: usize = 1;
        mod tests {
            /// Pods.
            #[test]
            fn pods() {}
        }
    ";
    let found = repetitions(&rust::documented(&TEXT.parse().unwrap()));
    let names: Vec<&str> = found.iter().map(|(_, what)| what.as_str()).collect();
    assert_eq!(
        names,
        [
            "`Pod`: A pod.",
            "`name`: Its names.",
            "`RestartPolicy`: `RestartPolicy`",
            "`ConfigMap`: A ConfigMap.",
            "`KEY_BYTES`: Bytes of the key.",
            "`pods`: Pods.",
        ]
    );
    assert_eq!(found[0].0, 3);
}
