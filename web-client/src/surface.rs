//! The declarations of what passes the border, and how options are read from it.
//!
//! Options are read member by member and none is trusted to be of its declared type.

use js_sys::{Array, Function};
use wasm_bindgen::prelude::*;
use web_sys::AbortSignal;

use crate::{failure::Failure, ladder::Ladder, page};

#[wasm_bindgen(typescript_custom_section)]
const DECLARATIONS: &str = include_str!("surface.d.ts");

#[wasm_bindgen]
extern "C" {
    /// The options of `Tunnel.connect`.
    #[wasm_bindgen(typescript_type = "TunnelOptions")]
    pub type TunnelOptions;
    /// The options of `tunnel.ssh`.
    #[wasm_bindgen(typescript_type = "SshOptions")]
    pub type SshOptions;
    /// The options of `tunnel.dial`.
    #[wasm_bindgen(typescript_type = "DialOptions")]
    pub type DialOptions;
    /// What `tunnel.stats` answers.
    #[wasm_bindgen(typescript_type = "TunnelStats")]
    pub type TunnelStats;
    /// What `session.exited` answers.
    #[wasm_bindgen(typescript_type = "ExitStatus")]
    pub type ExitStatus;

    /// A terminal that the page made.
    #[wasm_bindgen(typescript_type = "TerminalLike")]
    pub type TerminalLike;
    #[wasm_bindgen(method, getter, structural)]
    pub(crate) fn cols(this: &TerminalLike) -> f64;
    #[wasm_bindgen(method, getter, structural)]
    pub(crate) fn rows(this: &TerminalLike) -> f64;
    #[wasm_bindgen(method, structural, catch)]
    pub(crate) fn write(
        this: &TerminalLike,
        data: &JsValue,
        callback: &Function,
    ) -> Result<(), JsValue>;
    #[wasm_bindgen(method, structural, catch, js_name = onData)]
    pub(crate) fn on_data(this: &TerminalLike, listener: &Function) -> Result<Disposable, JsValue>;
    #[wasm_bindgen(method, structural, catch, js_name = onBinary)]
    pub(crate) fn on_binary(
        this: &TerminalLike,
        listener: &Function,
    ) -> Result<Disposable, JsValue>;
    #[wasm_bindgen(method, structural, catch, js_name = onResize)]
    pub(crate) fn on_resize(
        this: &TerminalLike,
        listener: &Function,
    ) -> Result<Disposable, JsValue>;

    /// What a terminal's `on...` gives back.
    pub type Disposable;
    #[wasm_bindgen(method, structural, catch)]
    pub(crate) fn dispose(this: &Disposable) -> Result<(), JsValue>;
}

/// A member that must be a text.
pub(crate) fn text(options: &JsValue, name: &str, wanted: &str) -> Result<String, Failure> {
    optional_text(options, name)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Failure::bad_argument(name, wanted))
}

/// A member that may be a text.
pub(crate) fn optional_text(options: &JsValue, name: &str) -> Option<String> {
    page::member(options, name).as_string()
}

/// A member that may be a function.
pub(crate) fn function(options: &JsValue, name: &str) -> Option<Function> {
    page::member(options, name).dyn_into().ok()
}

/// A whole number within bounds, where one is given.
pub(crate) fn number(options: &JsValue, name: &str, most: f64) -> Option<f64> {
    let number = page::member(options, name).as_f64()?;
    (number >= 1.0 && number <= most).then_some(number.trunc())
}

/// A member that must be a list of texts.
pub(crate) fn texts(options: &JsValue, name: &str) -> Result<Vec<String>, Failure> {
    let wrong = || Failure::bad_argument(name, "a list of texts");
    let list: Array = page::member(options, name)
        .dyn_into()
        .map_err(|_| wrong())?;
    list.iter()
        .map(|text| text.as_string().ok_or_else(wrong))
        .collect()
}

/// `onRung` and `signal`.
pub(crate) fn ladder(options: &JsValue) -> Ladder {
    let signal = page::member(options, "signal");
    let signal = signal
        .is_object()
        .then(|| signal.unchecked_into::<AbortSignal>());
    Ladder::new(function(options, "onRung"), signal)
}
