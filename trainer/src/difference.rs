//! What a run was begun with against what it is asked to go on with, in words.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::data::DataError;

/// The first field in which two records differ, and both of its values; within records in records, that of the innermost.
pub(crate) fn first_difference<T: Serialize>(one: &T, other: &T) -> Option<(String, String, String)> {
    let value = |record: &T| serde_json::to_value(record).unwrap_or_default();
    differs("", &value(one), &value(other))
}

fn differs(name: &str, one: &Value, other: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(one), Value::Object(other)) = (one, other) {
        if one.keys().eq(other.keys()) {
            return one.iter().find_map(|(name, one)| differs(name, one, &other[name]));
        }
        // A record of another version has fields that the other lacks; what is one of several things has one field.
        if one.len() > 1 || other.len() > 1 {
            let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
            let of =
                |fields: &serde_json::Map<String, Value>, name: &str| fields.get(name).cloned().unwrap_or_default();
            return names.into_iter().find_map(|name| differs(name, &of(one, name), &of(other, name)));
        }
    }
    (one != other).then(|| (name.to_string(), in_words(one), in_words(other)))
}

/// A value without the marks of JSON.
fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        // What was an f32 is shown as one: 0.1 and not 0.10000000149011612.
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && f64::from(float as f32) == float => (float as f32).to_string(),
            _ => number.to_string(),
        },
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{name} {}", in_words(value));
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) => values.iter().map(in_words).collect::<Vec<_>>().join(", "),
        Value::Bool(bool) => bool.to_string(),
    }
}

/// Refuses to go on with another record `now` than a run, whose file is `path`, was begun with. `item` turns a field's
/// name into what the message is about, such as its flag.
///
/// # Errors
/// [`DataError::Invalid`] of the first field that differs: then and now.
pub(crate) fn expect_same<T: Serialize>(
    path: &Path,
    item: impl Fn(&str) -> String,
    begun: &T,
    now: &T,
) -> Result<(), DataError> {
    match first_difference(begun, now) {
        None => Ok(()),
        Some((name, begun, now)) => {
            let expected = format!("{begun}, as the run was begun with");
            Err(DataError::invalid(path, item(&name), expected, now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_innermost_field_is_named_in_words() {
        let begun = json!({ "a": 1, "losses": { "lambda": 0.1f32, "contrast": "infonce" }, "for": { "steps": 6 } });
        let told = |edit: &dyn Fn(&mut Value)| {
            let mut now = begun.clone();
            edit(&mut now);
            first_difference(&begun, &now).map(|(name, begun, now)| format!("{name}: {begun} | {now}"))
        };
        assert_eq!(told(&|_| ()), None);
        assert_eq!(told(&|now| now["losses"]["lambda"] = json!(0.5)).unwrap(), "lambda: 0.1 | 0.5");
        assert_eq!(told(&|now| now["losses"]["contrast"] = json!("l2")).unwrap(), "contrast: infonce | l2");
        assert_eq!(told(&|now| now["for"] = json!({ "minutes": 4.5 })).unwrap(), "for: steps 6 | minutes 4.5");
        assert_eq!(told(&|now| now["for"] = json!({ "steps": 7 })).unwrap(), "steps: 6 | 7");
        let whole = told(&|now| now["losses"] = Value::Null).unwrap();
        assert!(whole.contains("lambda 0.1") && whole.contains("contrast infonce"), "{whole}");
        assert_eq!(told(&|now| now["more"] = json!(2)).unwrap(), "more: none | 2");
    }
}
