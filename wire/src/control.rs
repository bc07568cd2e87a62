//! Control messages: small JSON objects in text messages, tagged by `type`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::CloseCode;

/// The largest control message in bytes.
pub const MAX_CONTROL: usize = 4_096;

/// What relay and client tell each other beside datagrams.
#[derive(Clone, PartialEq, Eq)]
pub enum Control {
    /// The relay's first message.
    Hello {
        /// What this relay can do beyond the base protocol.
        caps: Vec<String>,
        /// A single-use token with which a lost session is resumed; none when it cannot be.
        resume: Option<String>,
        /// Without a datagram for this long the relay closes the session.
        idle_seconds: u32,
        /// The session of the resume token that was offered goes on: the gateway has noticed
        /// nothing.
        resumed: bool,
    },
    /// Asks for a [`Control::Pong`] with the same number. Either side may ask.
    Ping {
        /// Comes back unchanged. A client in JavaScript keeps it below 2^53.
        n: u64,
    },
    /// Answers a [`Control::Ping`].
    Pong {
        /// The number that was asked with.
        n: u64,
    },
    /// Something does not pass at present; the session goes on. Sent once, not per datagram.
    Limited {
        /// The code of a [`Limit`], or one that this version does not know.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The relay goes away soon.
    Draining {
        /// When to connect again; spread over the clients.
        retry_after_ms: u64,
    },
    /// The relay closes with this code; sent before the close frame, whose reason is short.
    Closing {
        /// A [`CloseCode`].
        code: u16,
        /// Its stable name.
        reason: String,
        /// What to do now.
        hint: String,
    },
}

impl Control {
    /// The notice of a limit.
    pub fn limited(limit: Limit) -> Control {
        Control::Limited {
            what: limit.code().into(),
            hint: limit.hint().into(),
        }
    }

    /// The last words before a close with `code`.
    pub fn closing(code: CloseCode) -> Control {
        Control::Closing {
            code: code as u16,
            reason: code.reason().into(),
            hint: code.hint().into(),
        }
    }

    /// Reads a text message.
    ///
    /// # Errors
    /// [`ControlError::UnknownType`] is a well-formed message of a newer version: a client passes
    /// it over. The others break the protocol.
    pub fn parse(text: &str) -> Result<Control, ControlError> {
        if text.len() > MAX_CONTROL {
            return Err(ControlError::TooLong);
        }
        let flat: Flat = serde_json::from_str(text).map_err(|_| ControlError::Malformed)?;
        let missing = ControlError::Malformed;
        Ok(match flat.kind.as_str() {
            "hello" => Control::Hello {
                caps: flat.caps.unwrap_or_default(),
                resume: flat.resume,
                idle_seconds: flat.idle_seconds.ok_or(missing)?,
                resumed: flat.resumed.unwrap_or_default(),
            },
            "ping" => Control::Ping {
                n: flat.n.ok_or(missing)?,
            },
            "pong" => Control::Pong {
                n: flat.n.ok_or(missing)?,
            },
            "limited" => Control::Limited {
                what: flat.what.ok_or(missing)?,
                hint: flat.hint.unwrap_or_default(),
            },
            "draining" => Control::Draining {
                retry_after_ms: flat.retry_after_ms.ok_or(missing)?,
            },
            "closing" => Control::Closing {
                code: flat.code.ok_or(missing)?,
                reason: flat.reason.ok_or(missing)?,
                hint: flat.hint.unwrap_or_default(),
            },
            _ => return Err(ControlError::UnknownType),
        })
    }

    /// The text message.
    pub fn to_text(&self) -> String {
        let flat = match self.clone() {
            Control::Hello {
                caps,
                resume,
                idle_seconds,
                resumed,
            } => Flat {
                kind: "hello".into(),
                caps: Some(caps),
                resume,
                idle_seconds: Some(idle_seconds),
                resumed: resumed.then_some(true),
                ..Flat::default()
            },
            Control::Ping { n } => Flat {
                kind: "ping".into(),
                n: Some(n),
                ..Flat::default()
            },
            Control::Pong { n } => Flat {
                kind: "pong".into(),
                n: Some(n),
                ..Flat::default()
            },
            Control::Limited { what, hint } => Flat {
                kind: "limited".into(),
                what: Some(what),
                hint: Some(hint),
                ..Flat::default()
            },
            Control::Draining { retry_after_ms } => Flat {
                kind: "draining".into(),
                retry_after_ms: Some(retry_after_ms),
                ..Flat::default()
            },
            Control::Closing { code, reason, hint } => Flat {
                kind: "closing".into(),
                code: Some(code),
                reason: Some(reason),
                hint: Some(hint),
                ..Flat::default()
            },
        };
        // Strings and numbers always serialize; an empty text would be refused by any reader.
        serde_json::to_string(&flat).unwrap_or_default()
    }
}

/// The resume token is a secret: it is not shown.
impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Control::Hello {
                caps,
                resume,
                idle_seconds,
                resumed,
            } => f
                .debug_struct("Hello")
                .field("caps", caps)
                .field("resume", &resume.as_ref().map(|_| "…"))
                .field("idle_seconds", idle_seconds)
                .field("resumed", resumed)
                .finish(),
            other => f.write_str(&other.to_text()),
        }
    }
}

/// A text message that is no control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Over [`MAX_CONTROL`].
    #[error("a control message over {MAX_CONTROL} bytes")]
    TooLong,
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("a text message that is no control message")]
    Malformed,
    /// A `type` that this version does not know.
    #[error("a control message of a type that this version does not know")]
    UnknownType,
}

macro_rules! limits {
    ($($variant:ident, $code:literal, $sentence:literal, $hint:literal;)+) => {
        /// What a [`Control::Limited`] says.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Limit {
            $(#[doc = $sentence] $variant,)+
        }

        impl Limit {
            /// Every limit.
            pub const ALL: &[Limit] = &[$(Limit::$variant),+];

            /// The limit with this stable name.
            pub fn from_code(code: &str) -> Option<Limit> {
                match code {
                    $($code => Some(Limit::$variant),)+
                    _ => None,
                }
            }

            /// The stable name.
            pub fn code(self) -> &'static str {
                match self { $(Limit::$variant => $code,)+ }
            }

            /// What happens, for a person.
            pub fn sentence(self) -> &'static str {
                match self { $(Limit::$variant => $sentence,)+ }
            }

            /// What to do, for a person.
            pub fn hint(self) -> &'static str {
                match self { $(Limit::$variant => $hint,)+ }
            }
        }
    };
}

limits! {
    GatewayUnreachable, "gateway_unreachable",
        "The gateway behind this relay does not answer at its address.",
        "Check that the gateway runs; the session goes on when it returns.";
    GatewayReachable, "gateway_reachable",
        "The gateway behind this relay answers again.",
        "Nothing is to be done.";
    Initiations, "initiations",
        "Too many WireGuard handshakes are begun in this session.",
        "Check that not several tunnels share one session, and that the keys match.";
    Unproven, "unproven",
        "Data does not pass before a WireGuard handshake for this gateway.",
        "Begin with a fresh handshake; check the gateway's public key.";
    NotWireguard, "not_wireguard",
        "Some of what was sent is not WireGuard and is dropped.",
        "This relay carries WireGuard alone; check what is behind the bridge.";
    Rate, "rate",
        "More than this relay carries for one session in a second; the rest is dropped.",
        "Send slower, or ask who runs the relay for more.";
    Overload, "overload",
        "More arrives than passes; the oldest data is dropped.",
        "Send slower; the transport inside the tunnel does so by itself.";
}

/// Every field of every message. One flat shape costs less code than a tagged enum, which
/// serde buffers.
#[derive(Default, Serialize, Deserialize)]
struct Flat {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    caps: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn any_control() -> impl Strategy<Value = Control> {
        prop_oneof![
            (
                vec(".{0,20}", 0..5),
                option::of(".{0,40}"),
                any::<u32>(),
                any::<bool>()
            )
                .prop_map(|(caps, resume, idle_seconds, resumed)| Control::Hello {
                    caps,
                    resume,
                    idle_seconds,
                    resumed
                }),
            any::<u64>().prop_map(|n| Control::Ping { n }),
            any::<u64>().prop_map(|n| Control::Pong { n }),
            (".{0,40}", ".{0,40}").prop_map(|(what, hint)| Control::Limited { what, hint }),
            any::<u64>().prop_map(|retry_after_ms| Control::Draining { retry_after_ms }),
            (any::<u16>(), ".{0,40}", ".{0,40}")
                .prop_map(|(code, reason, hint)| { Control::Closing { code, reason, hint } }),
        ]
    }

    #[test]
    fn golden_text() {
        let messages = [
            Control::Hello {
                caps: vec!["a".into()],
                resume: None,
                idle_seconds: 300,
                resumed: false,
            },
            Control::Hello {
                caps: vec![],
                resume: Some("secret".into()),
                idle_seconds: 300,
                resumed: true,
            },
            Control::Ping { n: u64::MAX },
            Control::Pong { n: 0 },
            Control::limited(Limit::GatewayUnreachable),
            Control::Draining {
                retry_after_ms: 1500,
            },
            Control::closing(CloseCode::TokenExpired),
        ];
        let text: Vec<String> = messages.iter().map(Control::to_text).collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        {"type":"hello","caps":["a"],"idle_seconds":300}
        {"type":"hello","caps":[],"resume":"secret","idle_seconds":300,"resumed":true}
        {"type":"ping","n":18446744073709551615}
        {"type":"pong","n":0}
        {"type":"limited","what":"gateway_unreachable","hint":"Check that the gateway runs; the session goes on when it returns."}
        {"type":"draining","retry_after_ms":1500}
        {"type":"closing","code":4011,"reason":"token_expired","hint":"Log in again for a fresh token; check the clock of this machine."}
        "#);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "hello",
            "{}",
            "null",
            r#"{"type":"ping"}"#,
            r#"{"type":"ping","n":-1}"#,
            r#"{"type":"ping","n":"1"}"#,
            r#"{"type":["ping"],"n":1}"#,
            r#"{"type":"ping","n":1} trailing"#,
            r#"{"type":"closing","code":70000,"reason":"x"}"#,
            &"[".repeat(MAX_CONTROL),
        ] {
            assert_eq!(Control::parse(text), Err(ControlError::Malformed), "{text}");
        }
        let long = format!(
            r#"{{"type":"ping","n":1,"pad":"{}"}}"#,
            "x".repeat(MAX_CONTROL)
        );
        assert_eq!(Control::parse(&long), Err(ControlError::TooLong));
        let newer = r#"{"type":"weather","n":1}"#;
        assert_eq!(Control::parse(newer), Err(ControlError::UnknownType));
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let text = r#"{"n":7,"later":{"a":[1]},"type":"ping"}"#;
        assert_eq!(Control::parse(text), Ok(Control::Ping { n: 7 }));
    }

    #[test]
    fn debug_hides_the_resume_token() {
        let hello = Control::Hello {
            caps: vec![],
            resume: Some("secret".into()),
            idle_seconds: 1,
            resumed: false,
        };
        assert!(!format!("{hello:?}").contains("secret"));
    }

    #[test]
    fn limits_have_distinct_codes() {
        for limit in Limit::ALL {
            assert_eq!(Limit::from_code(limit.code()), Some(*limit));
            assert!(!limit.sentence().is_empty() && !limit.hint().is_empty());
        }
        assert_eq!(Limit::from_code("weather"), None);
    }

    proptest! {
        #[test]
        fn round_trip(control in any_control()) {
            prop_assert_eq!(Control::parse(&control.to_text()), Ok(control));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[{}\\[\\]\":,a-z0-9\\\\]{0,200}|.{0,200}") {
            let _ = Control::parse(&text);
        }
    }
}
