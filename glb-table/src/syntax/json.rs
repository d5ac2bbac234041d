//! Parses strict JSON.

use std::collections::HashSet;

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{ObjectPropName, Value as Json},
    common::Ranged,
    parse_to_ast,
};

use super::{Entry, Node, Value};
use crate::diagnostic::SpannedDiagnostic;

const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn parse(text: &str, findings: &mut Vec<SpannedDiagnostic>) -> Option<Node> {
    const HELP: &str = "the file must be one JSON object: { \"tables\": [ … ] }";
    let loose = ParseOptions::default();
    let parse = |options| parse_to_ast(text, &CollectOptions::default(), options);
    let parsed = parse(&STRICT).or_else(|error| {
        let span = error.range().start..error.range().end;
        findings.push(SpannedDiagnostic::new(
            &span,
            "this is not JSON",
            error.kind().to_string(),
            HELP,
        ));
        // Parse on in loose mode, to find other errors behind a missing comma or a comment.
        parse(&loose).map_err(drop)
    });
    let value = parsed.ok()?.value;
    if value.is_none() && findings.is_empty() {
        findings.push(SpannedDiagnostic::new(
            &(0..0),
            "this file is empty",
            "the file has no value",
            HELP,
        ));
    }
    value.map(|value| node(value, findings))
}

fn node(value: Json<'_>, findings: &mut Vec<SpannedDiagnostic>) -> Node {
    let span = value.start()..value.end();
    let value = match value {
        Json::StringLit(text) => Value::Str(text.value.into_owned()),
        Json::NumberLit(number) => match number.value.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => {
                let fraction = number.value.contains(['.', 'e', 'E']);
                let kind = if fraction {
                    "a number with a fraction"
                } else {
                    "a whole number that is too large"
                };
                Value::Other(number.value.to_owned(), kind)
            }
        },
        Json::BooleanLit(value) => Value::Bool(value.value),
        Json::NullKeyword(_) => Value::Null,
        Json::Array(list) => {
            Value::List(list.elements.into_iter().map(|value| node(value, findings)).collect())
        }
        Json::Object(object) => {
            let mut entries: Vec<Entry> = Vec::with_capacity(object.properties.len());
            let mut seen = HashSet::new();
            for property in object.properties {
                let key_span = property.name.start()..property.name.end();
                let key = match property.name {
                    ObjectPropName::String(name) => name.value.into_owned(),
                    ObjectPropName::Word(name) => name.value.to_owned(),
                };
                if !seen.insert(key.clone()) {
                    let message = format!("`{key}` is given twice");
                    findings.push(SpannedDiagnostic::new(
                        &key_span,
                        message,
                        "the second one",
                        "remove one of them",
                    ));
                    continue;
                }
                entries.push(Entry { key, key_span, node: node(property.value, findings) });
            }
            Value::Map(entries)
        }
    };
    Node { span, value }
}
