//! Close codes: one per reason, 4000 to 4999, each with a sentence and a hint that a person can
//! act on. The numbers and the snake_case reasons are stable.

macro_rules! close_codes {
    ($($variant:ident = $code:literal, $reason:literal, $sentence:literal, $hint:literal;)+) => {
        /// Why a WebSocket was closed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum CloseCode {
            $(#[doc = $sentence] $variant = $code,)+
        }

        impl CloseCode {
            /// Every code.
            pub const ALL: &[CloseCode] = &[$(CloseCode::$variant),+];

            /// The code with this number, when it is one of ours.
            pub fn from_u16(code: u16) -> Option<CloseCode> {
                match code {
                    $($code => Some(CloseCode::$variant),)+
                    _ => None,
                }
            }

            /// The stable name of the reason: it goes into the close frame and into metrics.
            pub fn reason(self) -> &'static str {
                match self { $(CloseCode::$variant => $reason,)+ }
            }

            /// What happened, for a person.
            pub fn sentence(self) -> &'static str {
                match self { $(CloseCode::$variant => $sentence,)+ }
            }

            /// What to do now, for a person.
            pub fn hint(self) -> &'static str {
                match self { $(CloseCode::$variant => $hint,)+ }
            }
        }
    };
}

close_codes! {
    // the client broke the protocol
    RecordMalformed = 4000, "record_malformed",
        "A data message held a record of length zero, or one that was cut.",
        "Update the client: it does not speak underpass.v1.";
    RecordTooLarge = 4001, "record_too_large",
        "A record was larger than 2,048 bytes.",
        "Lower the tunnel's MTU to 1420 or less.";
    ControlMalformed = 4002, "control_malformed",
        "A text message was no control message.",
        "Send datagrams in binary messages; text messages are control only.";
    MessageTooLarge = 4003, "message_too_large",
        "A message was larger than 65,536 bytes.",
        "Update the client: it does not speak underpass.v1.";
    FrameMalformed = 4004, "frame_malformed",
        "A frame broke the WebSocket protocol.",
        "Look for a proxy on the way that rewrites WebSocket frames, or update the client.";
    NotWireguard = 4005, "not_wireguard",
        "Nothing that was sent is WireGuard.",
        "This relay carries WireGuard alone; check what is behind the bridge.";
    Unproven = 4006, "unproven",
        "No WireGuard handshake for this gateway arrived in time.",
        "Check that the peer's public key in the configuration is this gateway's.";
    // admission
    TokenInvalid = 4010, "token_invalid",
        "The relay token was not signed by a key that this relay knows.",
        "Log in again for a fresh token.";
    TokenExpired = 4011, "token_expired",
        "The relay token has expired.",
        "Log in again for a fresh token; check the clock of this machine.";
    TokenWrongGateway = 4012, "token_wrong_gateway",
        "The relay token is for another gateway.",
        "Use the relay URL that came with the token.";
    GatewayUnknown = 4013, "gateway_unknown",
        "This relay serves no gateway of that name.",
        "Check the last part of the relay URL; it names the gateway.";
    OriginRefused = 4014, "origin_refused",
        "Pages of this origin may not use this relay.",
        "Open the console at the address its server announces, or have the origin allowed.";
    TooManySessions = 4015, "too_many_sessions",
        "The relay has no room for another session.",
        "Close sessions that are not needed, or try again in a minute.";
    TooManyFromSource = 4016, "too_many_from_source",
        "Too many sessions come from this network address.",
        "Close sessions that are not needed, or try again in a minute.";
    TooManyOfToken = 4017, "too_many_of_token",
        "Too many sessions are open under this relay token.",
        "Close sessions that are not needed; each process has a lease, and a token, of its own.";
    // the life of a session
    SlowClient = 4020, "slow_client",
        "The client did not take data in time.",
        "Connect again; the network on the way may be stalled.";
    ClientSilent = 4021, "client_silent",
        "Nothing was heard from the client.",
        "Connect again; the network on the way may have changed.";
    Idle = 4022, "idle",
        "No datagram passed for longer than the idle limit.",
        "Connect again when there is something to send.";
    Restarting = 4023, "restarting",
        "The relay is restarting.",
        "Connect again; another relay takes over.";
    Superseded = 4024, "superseded",
        "This session goes on in a newer connection.",
        "Nothing is to be done.";
    GatewayUnreachable = 4025, "gateway_unreachable",
        "The relay cannot send to the gateway.",
        "Check that the gateway runs and that its address is right, then connect again.";
}

impl std::fmt::Display for CloseCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hint: {}", self.sentence(), self.hint())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn golden_codes() {
        let table: Vec<String> = CloseCode::ALL
            .iter()
            .map(|code| format!("{} {}", *code as u16, code.reason()))
            .collect();
        insta::assert_snapshot!(table.join("\n"), @r#"
        4000 record_malformed
        4001 record_too_large
        4002 control_malformed
        4003 message_too_large
        4004 frame_malformed
        4005 not_wireguard
        4006 unproven
        4010 token_invalid
        4011 token_expired
        4012 token_wrong_gateway
        4013 gateway_unknown
        4014 origin_refused
        4015 too_many_sessions
        4016 too_many_from_source
        4017 too_many_of_token
        4020 slow_client
        4021 client_silent
        4022 idle
        4023 restarting
        4024 superseded
        4025 gateway_unreachable
        "#);
    }

    #[test]
    fn each_code_is_one_of_a_kind() {
        let mut reasons = HashSet::new();
        for code in CloseCode::ALL {
            assert!((4000..5000).contains(&(*code as u16)));
            assert_eq!(CloseCode::from_u16(*code as u16), Some(*code));
            assert!(reasons.insert(code.reason()));
            // The reason of a close frame has 123 bytes.
            assert!(code.reason().len() <= 123);
            assert!(code.sentence().ends_with('.') && code.hint().ends_with('.'));
        }
        for code in [0, 1000, 1006, 3999, 4999, 5000, u16::MAX] {
            assert_eq!(CloseCode::from_u16(code), None);
        }
    }
}
