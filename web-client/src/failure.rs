//! One shape for all that goes wrong: a stable code, a sentence, a hint, and the rung it happened
//! on. At the border it becomes a JavaScript `Error` with these as members.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering},
};

use js_sys::Function;
use ssh::client::SshError;
use wasm_bindgen::prelude::*;
use wire::{CloseCode, Control};

use crate::{ladder::Rung, page};

type Text = Cow<'static, str>;

/// Why something did not happen, or ended.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Text,
    pub(crate) message: Text,
    pub(crate) hint: Text,
    pub(crate) rung: Option<Rung>,
}

impl Failure {
    pub(crate) fn new(
        code: impl Into<Text>,
        message: impl Into<Text>,
        hint: impl Into<Text>,
    ) -> Failure {
        Failure {
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
            rung: None,
        }
    }

    /// An error of the rooms below, with the hint that its text ends in or one told apart.
    pub(crate) fn told(code: &'static str, text: &str, hint: &str) -> Failure {
        let (message, hint) = text.split_once("; hint: ").unwrap_or((text, hint));
        Failure::new(code, sentence(message), sentence(hint))
    }

    pub(crate) fn cancelled() -> Failure {
        Failure::new(
            "cancelled",
            "It was cancelled.",
            "Start it again when it is wanted.",
        )
    }

    pub(crate) fn closed() -> Failure {
        Failure::new(
            "closed",
            "The tunnel was closed by this page.",
            "Connect again.",
        )
    }

    pub(crate) fn bad_argument(name: &str, wanted: &str) -> Failure {
        Failure::new(
            "bad_argument",
            format!("`{name}` is missing or wrong: it is {wanted}."),
            "Correct the call; the declarations of this module say what each option is.",
        )
    }

    /// Why a WebSocket that stood was closed: the relay's own words where it said any.
    pub(crate) fn websocket_closed(code: u16, reason: &str, told: Option<&Control>) -> Failure {
        if let Some(Control::Closing { code, reason, hint }) = told {
            let sentence = CloseCode::from_u16(*code).map_or_else(
                || Cow::from(format!("The relay closed the connection: {reason}.")),
                |known| Cow::from(known.sentence()),
            );
            return Failure::new(reason.clone(), sentence, hint.clone());
        }
        if let Some(known) = CloseCode::from_u16(code) {
            return Failure::new(known.reason(), known.sentence(), known.hint());
        }
        Failure::new(
            "relay_lost",
            format!(
                "The connection to the relay ended (code {code}{}{reason}).",
                if reason.is_empty() { "" } else { ": " }
            ),
            "Check the network; it is tried again by itself.",
        )
    }

    /// A browser says nothing about why a WebSocket does not open.
    pub(crate) fn websocket_refused() -> Failure {
        Failure::new(
            "relay_unreachable",
            "The relay did not accept a WebSocket.",
            "Check that the relay runs, that this browser accepts its certificate, that the relay \
             allows pages of this origin, and that no proxy on the way blocks WebSockets.",
        )
    }
}

impl From<SshError> for Failure {
    fn from(error: SshError) -> Failure {
        Failure::told(error.code(), &error.to_string(), error.hint())
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> JsValue {
        let error = js_sys::Error::new(&failure.message);
        error.set_name("UnderpassError");
        failure.describe(&error);
        if let Some(rung) = failure.rung {
            page::set(&error, "rung", rung.name());
        }
        error.into()
    }
}

impl Failure {
    /// Sets code and hint on an object.
    pub(crate) fn describe(&self, object: &JsValue) {
        page::set(object, "code", &*self.code);
        page::set(object, "hint", &*self.hint);
    }
}

/// Errors of the rooms below begin small and end bare; a person reads a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let mut sentence: String = letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .collect();
    sentence.push_str(letters.as_str());
    if !sentence.is_empty() && !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

/// What somebody's promise was rejected with, in words.
pub(crate) fn words(thrown: &JsValue) -> String {
    let message = page::member(thrown, "message");
    message
        .as_string()
        .or_else(|| thrown.as_string())
        .unwrap_or_else(|| "unknown".to_owned())
}

thread_local! {
    /// Who is told when the module panics: afterwards it can do nothing any more.
    static BEREAVED: std::cell::RefCell<Vec<Function>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Tells a status listener of a panic, should one happen.
pub(crate) fn tell_of_panic(listener: &Function) {
    BEREAVED.with_borrow_mut(|listeners| listeners.push(listener.clone()));
}

/// The listener's tunnel is closed.
pub(crate) fn forget_listener(listener: &Function) {
    BEREAVED.with_borrow_mut(|listeners| listeners.retain(|other| other != listener));
}

/// Reports the first panic on the console and to every tunnel's status listener.
#[wasm_bindgen(start)]
fn report_panics() {
    let told = AtomicBool::new(false);
    std::panic::set_hook(Box::new(move |info| {
        if told.swap(true, Ordering::Relaxed) {
            return;
        }
        page::console_error(&format!("underpass: {info}"));
        let failure = Failure::new(
            "client_crashed",
            "The WireGuard and SSH client in this page stopped by a fault of its own.",
            "Reload the page.",
        );
        let status = js_sys::Object::new();
        page::set(&status, "state", "closed");
        page::set(&status, "message", &*failure.message);
        failure.describe(&status);
        let listeners = BEREAVED.with(|listeners| listeners.try_borrow().map(|list| list.clone()));
        for listener in listeners.unwrap_or_default() {
            let _ = listener.call1(&JsValue::UNDEFINED, &status);
        }
    }));
}
