//! The three shapes of a JSON-RPC 1.0 message.

use serde_json::{Map, Value, json};

/// One message, either way.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Request {
        id: Value,
        method: String,
        params: Vec<Value>,
    },
    Notification {
        method: String,
        params: Vec<Value>,
    },
    /// `error` is null on success.
    Response {
        id: Value,
        result: Value,
        error: Value,
    },
}

/// Why a JSON object is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a message is not a JSON object")]
    NotAnObject,
    #[error("a message's \"method\" is not a string")]
    BadMethod,
    #[error("a message's \"params\" is not an array")]
    BadParams,
    #[error("a message has neither \"method\" nor \"id\"")]
    NoKind,
}

impl Message {
    pub fn request(id: impl Into<Value>, method: &str, params: Vec<Value>) -> Self {
        Message::Request {
            id: id.into(),
            method: method.to_owned(),
            params,
        }
    }

    /// Sorts a JSON object into one of the shapes. A request with a null id is a notification, as the protocol says.
    pub fn from_value(value: Value) -> Result<Self, MessageError> {
        let Value::Object(mut map) = value else {
            return Err(MessageError::NotAnObject);
        };
        let mut take = |key: &str| take(&mut map, key);
        let id = take("id");
        match take("method") {
            Value::Null => {
                let (result, error) = (take("result"), take("error"));
                if id.is_null() {
                    Err(MessageError::NoKind)
                } else {
                    Ok(Message::Response { id, result, error })
                }
            }
            Value::String(method) => {
                let params = match take("params") {
                    Value::Array(params) => params,
                    _ => return Err(MessageError::BadParams),
                };
                Ok(match id {
                    Value::Null => Message::Notification { method, params },
                    id => Message::Request { id, method, params },
                })
            }
            _ => Err(MessageError::BadMethod),
        }
    }

    /// The text that goes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let value = match self {
            Message::Request { id, method, params } => {
                json!({"id": id, "method": method, "params": params})
            }
            Message::Notification { method, params } => {
                json!({"id": null, "method": method, "params": params})
            }
            Message::Response { id, result, error } => {
                json!({"id": id, "result": result, "error": error})
            }
        };
        value.to_string().into_bytes()
    }
}

fn take(map: &mut Map<String, Value>, key: &str) -> Value {
    map.remove(key).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let request = json!({"id": 0, "method": "echo", "params": []});
        assert_eq!(
            Message::from_value(request),
            Ok(Message::request(0, "echo", vec![]))
        );
        let response = json!({"id": 0, "error": "no"});
        assert_eq!(
            Message::from_value(response),
            Ok(Message::Response {
                id: json!(0),
                result: Value::Null,
                error: json!("no")
            })
        );
        let note = json!({"id": null, "method": "update", "params": [1]});
        assert_eq!(
            Message::from_value(note),
            Ok(Message::Notification {
                method: "update".into(),
                params: vec![json!(1)]
            })
        );
    }

    #[test]
    fn malformed_shapes_are_errors() {
        assert_eq!(Message::from_value(json!([])), Err(MessageError::NotAnObject));
        assert_eq!(Message::from_value(json!({})), Err(MessageError::NoKind));
        assert_eq!(
            Message::from_value(json!({"method": 1})),
            Err(MessageError::BadMethod)
        );
        assert_eq!(
            Message::from_value(json!({"method": "a", "params": {}})),
            Err(MessageError::BadParams)
        );
    }

    #[test]
    fn the_wire_text_reads_back() {
        for message in [
            Message::request("x", "m", vec![json!("p")]),
            Message::Notification {
                method: "n".into(),
                params: vec![],
            },
            Message::Response {
                id: json!(7),
                result: json!({}),
                error: Value::Null,
            },
        ] {
            let value = serde_json::from_slice(&message.to_bytes()).unwrap();
            assert_eq!(Message::from_value(value), Ok(message));
        }
    }
}
