//! Writes health check results into the text of a table file. Only `healthy` and `state` of backends
//! change; everything else in the text stays.

use std::{ops::Range, path::Path};

use crate::{
    Format, LoadError, State, TableSet, parse_bytes,
    syntax::{self, Entry, Node, Value},
};

/// The health check result of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthResult {
    /// Whether the backend can take connections.
    pub healthy: bool,
    /// The state to write.
    pub state: State,
}

/// Returns the text with the results written into it. `results` has one list per table with one result
/// per backend, in the file's order.
///
/// # Errors
/// When the text is not a valid table, or the numbers of results and backends differ.
pub fn apply(path: &Path, text: &str, results: &[Vec<HealthResult>]) -> Result<String, LoadError> {
    let form = Format::of_path(path);
    let tables = parse_bytes(path, form, text.as_bytes())?;
    let shape = |set: &TableSet| set.tables.iter().map(|t| t.backends.len()).collect::<Vec<_>>();
    let given: Vec<usize> = results.iter().map(Vec::len).collect();
    if shape(&tables) != given {
        let message = format!(
            "there are results for {given:?} backends, and the file has {:?}",
            shape(&tables)
        );
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, message);
        return Err(LoadError::Io { path: path.to_owned(), source });
    }
    // The syntax tree of a valid file has the same order as the model.
    let root = syntax::parse(form, text, &mut Vec::new());
    let mut edits = Vec::new();
    for (table, results) in root.iter().flat_map(|root| items(root, "tables")).zip(results) {
        for (backend, result) in items(table, "backends").iter().zip(results) {
            edit(form, text, backend, *result, &mut edits);
        }
    }
    edits.sort_by_key(|(place, _)| place.start);
    let mut out = String::with_capacity(text.len() + 16 * edits.len());
    let mut copied = 0;
    for (place, new) in edits {
        out.push_str(&text[copied..place.start]);
        out.push_str(&new);
        copied = place.end;
    }
    out.push_str(&text[copied..]);
    parse_bytes(path, form, out.as_bytes())?;
    Ok(out)
}

fn edit(
    form: Format,
    text: &str,
    backend: &Node,
    result: HealthResult,
    edits: &mut Vec<(Range<usize>, String)>,
) {
    let Some(state) = entry(backend, "state") else { return };
    if !matches!(&state.node.value, Value::Str(name) if name == result.state.name()) {
        edits.push((state.node.span.clone(), format!("\"{}\"", result.state)));
    }
    let healthy = result.healthy;
    match entry(backend, "healthy") {
        Some(found) => {
            if !matches!(found.node.value, Value::Bool(is) if is == healthy) {
                edits.push((found.node.span.clone(), healthy.to_string()));
            }
        }
        None => {
            // Inserted before the state, so that a comment behind the state stays there.
            let at = state.key_span.start;
            let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let indent = &text[line..at];
            let new = match form {
                Format::Json => format!("\"healthy\": {healthy}, "),
                Format::Toml if indent.trim().is_empty() && !inline(text, backend) => {
                    format!("healthy = {healthy}\n{indent}")
                }
                Format::Toml => format!("healthy = {healthy}, "),
            };
            edits.push((at..at, new));
        }
    }
}

/// Whether a backend is an inline TOML table.
fn inline(text: &str, backend: &Node) -> bool {
    text[backend.span.clone()].starts_with('{')
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Entry> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key)
}

fn items<'n>(node: &'n Node, key: &str) -> &'n [Node] {
    match entry(node, key).map(|entry| &entry.node.value) {
        Some(Value::List(nodes)) => nodes,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: HealthResult = HealthResult { healthy: true, state: State::Active };
    const DOWN: HealthResult = HealthResult { healthy: false, state: State::Active };
    const DRAIN: HealthResult = HealthResult { healthy: true, state: State::Draining };

    fn apply_to(file: &str, text: &str, results: &[Vec<HealthResult>]) -> String {
        apply(Path::new(file), text, results).unwrap()
    }

    const HEAD: &str = "[[tables]]\nname = \"a\" # a comment\nhash_key = \
         \"00000000000000000000000000000000\"\nseed = \"11111111111111111111111111111111\"\n\
         [[tables.binds]]\nip = \"203.0.113.10\"\nproto = \"tcp\"\nport = 80\n";

    #[test]
    fn toml_text_changes_in_health_and_state_only() {
        let text = format!(
            "{HEAD}[[tables.backends]]\n  ip = \"10.0.0.1\"\n  state = \"active\" # why\n\
             [[tables.backends]] # second\nhealthy = true\nip = \"10.0.0.2\"\nstate = \"active\"\n\
             [tables.backends.healthchecks]\nhttp = 80\n"
        );
        let out = apply_to("t.toml", &text, &[vec![UP, DOWN]]);
        let wanted = text
            .replace("  state = \"active\" # why", "  healthy = true\n  state = \"active\" # why")
            .replace("# second\nhealthy = true", "# second\nhealthy = false");
        assert_eq!(out, wanted);
        assert_eq!(apply_to("t.toml", &out, &[vec![UP, DOWN]]), out);
        let drained = apply_to("t.toml", &out, &[vec![DRAIN, DOWN]]);
        assert_eq!(drained, out.replacen("\"active\"", "\"draining\"", 1));
    }

    #[test]
    fn inline_toml_and_json_are_edited_in_place() {
        let head = HEAD.replace("[[tables.binds]]", "");
        let head = head.split("ip =").next().unwrap();
        let text = format!(
            "{head}binds = [{{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }}]\nbackends = [\n\
             {{ ip = \"10.0.0.1\", state = \"active\" }},\n\
             {{ ip = \"10.0.0.2\",\n  state = \"active\", healthy = true }},\n]\n"
        );
        let out = apply_to("t.toml", &text, &[vec![UP, DOWN]]);
        assert!(out.contains("{ ip = \"10.0.0.1\", healthy = true, state = \"active\" }"), "{out}");
        assert!(out.contains("\n  state = \"active\", healthy = false }"), "{out}");

        let text = r#"{"healthchecks": {"trigger": 2}, "tables": [{"hash_key":
            "00000000000000000000000000000000", "seed": "11111111111111111111111111111111",
            "binds": [{"ip": "1.1.1.1", "proto": "tcp", "port": 80}],
            "backends": [{"ip": "10.0.0.1", "state": "active", "healthchecks": {"http": 80}}]}]}"#;
        let out = apply_to("t.json", text, &[vec![UP]]);
        assert_eq!(out, text.replace("\"state\"", "\"healthy\": true, \"state\""));
    }

    #[test]
    fn results_for_other_backends_are_refused() {
        let text = format!("{HEAD}[[tables.backends]]\nip = \"10.0.0.1\"\nstate = \"active\"\n");
        assert!(apply(Path::new("t.toml"), &text, &[vec![UP, UP]]).is_err());
        assert!(apply(Path::new("t.toml"), "nonsense", &[vec![UP]]).is_err());
    }
}
