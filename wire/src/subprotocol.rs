//! The `Sec-WebSocket-Protocol` header: the protocol's name and, from a browser that cannot set
//! headers, the tokens. The server selects [`V1`] alone.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// The name of the protocol.
pub const V1: &str = "underpass.v1";

const BEARER: &str = "bearer.";
const RESUME: &str = "resume.";

/// The longest offer that is looked at, in bytes: relays take headers of 16 KB.
pub const MAX_OFFER: usize = 8_192;

/// What a client offers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// It speaks `underpass.v1`.
    pub v1: bool,
    /// The relay token. One that does not decode is an empty string, which no verifier admits:
    /// a broken token is not an absent one.
    pub bearer: Option<String>,
    /// The resume token, in the same way.
    pub resume: Option<String>,
}

impl Offered {
    /// Reads the header; several headers are joined by commas first. Unknown names are passed
    /// over, of each token the first counts.
    pub fn parse(header: &str) -> Offered {
        let mut offered = Offered::default();
        if header.len() > MAX_OFFER {
            return offered;
        }
        for name in header.split(',').map(str::trim) {
            if name == V1 {
                offered.v1 = true;
            } else if let Some(token) = name.strip_prefix(BEARER) {
                offered.bearer.get_or_insert_with(|| decode(token));
            } else if let Some(token) = name.strip_prefix(RESUME) {
                offered.resume.get_or_insert_with(|| decode(token));
            }
        }
        offered
    }
}

/// Both tokens are secrets: they are not shown.
impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered")
            .field("v1", &self.v1)
            .field("bearer", &self.bearer.as_ref().map(|_| "…"))
            .field("resume", &self.resume.as_ref().map(|_| "…"))
            .finish()
    }
}

/// What a client offers, in order. A native client with a token sets `Authorization: Bearer`
/// instead and passes none here.
pub fn offer(token: Option<&str>, resume: Option<&str>) -> Vec<String> {
    let mut names = vec![V1.to_owned()];
    names.extend(token.map(|token| format!("{BEARER}{}", URL_SAFE_NO_PAD.encode(token))));
    names.extend(resume.map(|token| format!("{RESUME}{}", URL_SAFE_NO_PAD.encode(token))));
    names
}

fn decode(token: &str) -> String {
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    #[test]
    fn golden_offer() {
        let offer = offer(Some("claims.signature"), Some("r")).join(", ");
        insta::assert_snapshot!(offer, @"underpass.v1, bearer.Y2xhaW1zLnNpZ25hdHVyZQ, resume.cg");
    }

    #[test]
    fn offers_of_others() {
        let check = |header: &str, v1: bool, bearer: Option<&str>| {
            let offered = Offered::parse(header);
            assert_eq!(
                (offered.v1, offered.bearer.as_deref()),
                (v1, bearer),
                "{header}"
            );
        };
        check("", false, None);
        check("chat, superchat", false, None);
        check("underpass.v2", false, None);
        check("UNDERPASS.V1", false, None);
        check(" underpass.v1 ,,bearer.YQ", true, Some("a"));
        check("bearer.YQ,underpass.v1,bearer.Yg", true, Some("a"));
        check("underpass.v1,bearer.***", true, Some(""));
        check("underpass.v1,bearer._w", true, Some(""));
        check(&"underpass.v1,".repeat(1000), false, None);
    }

    #[test]
    fn debug_hides_the_tokens() {
        let offered = Offered::parse(&offer(Some("secret"), Some("secret")).join(","));
        assert_eq!(offered.bearer.as_deref(), Some("secret"));
        assert!(!format!("{offered:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn round_trip(bearer in option::of(".{0,80}"), resume in option::of(".{0,80}")) {
            let header = offer(bearer.as_deref(), resume.as_deref()).join(", ");
            prop_assert_eq!(Offered::parse(&header), Offered { v1: true, bearer, resume });
        }

        #[test]
        fn any_header_is_read_without_a_panic(header in "(bearer\\.|resume\\.|,|.){0,60}") {
            let _ = Offered::parse(&header);
        }
    }
}
