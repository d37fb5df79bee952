//! Database values (RFC 7047 section 5.1): atoms, sets, maps.

use crate::Uuid;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// One scalar. The columns we watch hold no reals, so these are refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    Integer(i64),
    Boolean(bool),
    String(String),
    Uuid(Uuid),
}

/// The content of one column. A scalar is a set of one, an optional that is absent an empty set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Datum {
    Set(BTreeSet<Atom>),
    Map(BTreeMap<Atom, Atom>),
}

/// Why a JSON value is not a database value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed database value: {0}")]
pub(super) struct ValueError(String);

fn malformed(value: &Value) -> ValueError {
    ValueError(value.to_string().chars().take(80).collect())
}

impl Atom {
    pub(super) fn parse(value: &Value) -> Result<Self, ValueError> {
        match value {
            Value::Bool(b) => Ok(Atom::Boolean(*b)),
            Value::String(s) => Ok(Atom::String(s.clone())),
            Value::Number(n) => n.as_i64().map(Atom::Integer).ok_or_else(|| malformed(value)),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(tag), Value::String(uuid)] if tag == "uuid" => {
                    uuid.parse().map(Atom::Uuid).map_err(|_| malformed(value))
                }
                _ => Err(malformed(value)),
            },
            Value::Null | Value::Object(_) => Err(malformed(value)),
        }
    }

    /// NUL, which the server takes for a broken message, becomes U+FFFD.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Atom::Integer(i) => json!(i),
            Atom::Boolean(b) => json!(b),
            Atom::String(s) if s.contains('\0') => json!(s.replace('\0', "\u{fffd}")),
            Atom::String(s) => json!(s),
            Atom::Uuid(u) => json!(["uuid", u.to_string()]),
        }
    }
}

impl From<&str> for Atom {
    fn from(text: &str) -> Self {
        Atom::String(text.to_owned())
    }
}

impl Datum {
    pub(super) fn parse(value: &Value) -> Result<Self, ValueError> {
        if let Value::Array(items) = value {
            match items.as_slice() {
                [Value::String(tag), Value::Array(members)] if tag == "set" => {
                    return members
                        .iter()
                        .map(Atom::parse)
                        .collect::<Result<_, _>>()
                        .map(Datum::Set);
                }
                [Value::String(tag), Value::Array(pairs)] if tag == "map" => {
                    return pairs
                        .iter()
                        .map(parse_pair)
                        .collect::<Result<_, _>>()
                        .map(Datum::Map);
                }
                _ => {}
            }
        }
        Atom::parse(value).map(Datum::one)
    }

    pub(super) fn one(atom: Atom) -> Self {
        Datum::Set(BTreeSet::from([atom]))
    }

    pub(super) fn optional(atom: Option<Atom>) -> Self {
        Datum::Set(atom.into_iter().collect())
    }

    pub(super) fn strings<'a>(items: impl IntoIterator<Item = &'a String>) -> Self {
        Datum::Set(items.into_iter().cloned().map(Atom::String).collect())
    }

    pub(super) fn string_map(map: &BTreeMap<String, String>) -> Self {
        Datum::Map(
            map.iter()
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
        )
    }

    pub(super) fn integer_map(map: &BTreeMap<String, i64>) -> Self {
        Datum::Map(
            map.iter()
                .map(|(k, v)| (k.as_str().into(), Atom::Integer(*v)))
                .collect(),
        )
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Datum::Set(atoms) => match (atoms.len(), atoms.first()) {
                (1, Some(atom)) => atom.to_json(),
                _ => json!(["set", atoms.iter().map(Atom::to_json).collect::<Vec<_>>()]),
            },
            Datum::Map(map) => {
                let pairs: Vec<Value> = map
                    .iter()
                    .map(|(k, v)| json!([k.to_json(), v.to_json()]))
                    .collect();
                json!(["map", pairs])
            }
        }
    }

    /// The members of a set; nothing for a map.
    pub(super) fn atoms(&self) -> impl Iterator<Item = &Atom> {
        match self {
            Datum::Set(atoms) => Some(atoms.iter()),
            Datum::Map(_) => None,
        }
        .into_iter()
        .flatten()
    }

    pub(super) fn integers(&self) -> impl Iterator<Item = i64> {
        self.atoms()
            .filter_map(|a| if let Atom::Integer(i) = a { Some(*i) } else { None })
    }

    pub(super) fn uuids(&self) -> impl Iterator<Item = Uuid> {
        self.atoms()
            .filter_map(|a| if let Atom::Uuid(u) = a { Some(*u) } else { None })
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.atoms().filter_map(|a| {
            if let Atom::String(s) = a {
                Some(s.as_str())
            } else {
                None
            }
        })
    }

    /// The pairs of a map from strings to strings; others are left out.
    pub(super) fn to_string_map(&self) -> BTreeMap<String, String> {
        match self {
            Datum::Map(map) => map
                .iter()
                .filter_map(|pair| match pair {
                    (Atom::String(k), Atom::String(v)) => Some((k.clone(), v.clone())),
                    _ => None,
                })
                .collect(),
            Datum::Set(_) => BTreeMap::new(),
        }
    }
}

fn parse_pair(pair: &Value) -> Result<(Atom, Atom), ValueError> {
    match pair.as_array().map(Vec::as_slice) {
        Some([key, value]) => Ok((Atom::parse(key)?, Atom::parse(value)?)),
        _ => Err(malformed(pair)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::ovsdb) fn any_atom() -> impl Strategy<Value = Atom> {
        prop_oneof![
            any::<i64>().prop_map(Atom::Integer),
            any::<bool>().prop_map(Atom::Boolean),
            "[^\0]{0,8}".prop_map(Atom::String),
            any::<u128>().prop_map(|u| Atom::Uuid(Uuid(u))),
        ]
    }

    pub(in crate::ovsdb) fn any_datum() -> impl Strategy<Value = Datum> {
        prop_oneof![
            prop::collection::btree_set(any_atom(), 0..5).prop_map(Datum::Set),
            prop::collection::btree_map(any_atom(), any_atom(), 0..5).prop_map(Datum::Map),
        ]
    }

    /// JSON that is often nearly a database value.
    pub(in crate::ovsdb) fn near_datum() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<f64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop_oneof!["set", "map", "uuid", "x", "f23ce3b1-6399-4179-bce2-c3f1a774729a"]
                .prop_map(|s: String| Value::from(s)),
        ];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("new|old|x", inner, 0..3)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip(datum in any_datum()) {
            prop_assert_eq!(Datum::parse(&datum.to_json()), Ok(datum));
        }

        #[test]
        fn anything_is_parsed_or_refused(value in near_datum()) {
            let _ = Datum::parse(&value);
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [
            json!(null),
            json!(1.5),
            json!(u64::MAX),
            json!({}),
            json!(["uuid", "x"]),
            json!(["named-uuid", "x"]),
            json!(["set", 1]),
            json!(["set", [["set", []]]]),
            json!(["map", [["a"]]]),
            json!(["map", [1]]),
            json!(["set", [1], 2]),
        ] {
            assert!(Datum::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nul_does_not_reach_the_wire() {
        assert_eq!(Atom::from("a\0b").to_json(), json!("a\u{fffd}b"));
    }
}
