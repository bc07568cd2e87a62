//! What is asked of the page: its clocks, its timers, its events.
//!
//! The functions are those of the global scope, so that a page, a worker and Node all do.

use std::time::{Duration, SystemTime};

use js_sys::{Function, Promise};
use tunnel::Instant;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{Event, EventTarget};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn performance_now() -> f64;
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Function, ms: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(id: &JsValue);
    #[wasm_bindgen(js_name = queueMicrotask)]
    pub(crate) fn queue_microtask(callback: &Function);
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    pub(crate) fn console_error(text: &str);
}

/// The page's monotonic clock. It may stand still while the machine sleeps.
pub(crate) fn now() -> Instant {
    Instant::from_micros((performance_now() * 1000.0) as u64)
}

/// The page's wall clock.
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(js_sys::Date::now() as u64)
}

/// A `setTimeout` that is cleared when dropped.
pub(crate) struct Timer {
    id: JsValue,
}

impl Timer {
    pub(crate) fn start(callback: &Function, after: Duration) -> Timer {
        Timer {
            id: set_timeout(callback, after.as_secs_f64() * 1000.0),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        clear_timeout(&self.id);
    }
}

/// Waits; dropped, it leaves no timer behind.
pub(crate) async fn sleep(time: Duration) {
    let mut timer = None;
    let rung = Promise::new(&mut |ring, _| timer = Some(Timer::start(&ring, time)));
    // setTimeout's promise is never rejected.
    let _ = JsFuture::from(rung).await;
    drop(timer);
}

/// An event listener that is removed when dropped.
pub(crate) struct Listener {
    target: EventTarget,
    event: &'static str,
    callback: Closure<dyn FnMut(Event)>,
}

impl Listener {
    /// `None` where the target takes no listeners.
    pub(crate) fn new(
        target: &JsValue,
        event: &'static str,
        callback: impl FnMut(Event) + 'static,
    ) -> Option<Listener> {
        let add = js_sys::Reflect::has(target, &"addEventListener".into());
        if !add.unwrap_or(false) {
            return None;
        }
        let target: EventTarget = target.clone().unchecked_into();
        let callback = Closure::new(callback);
        target
            .add_event_listener_with_callback(event, callback.as_ref().unchecked_ref())
            .ok()?;
        Some(Listener {
            target,
            event,
            callback,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let callback = self.callback.as_ref().unchecked_ref();
        // A target that is gone has no listeners.
        let _ = self
            .target
            .remove_event_listener_with_callback(self.event, callback);
    }
}

/// A member of the global scope, or of an object: undefined where it is absent.
pub(crate) fn member(of: &JsValue, name: &str) -> JsValue {
    js_sys::Reflect::get(of, &name.into()).unwrap_or(JsValue::UNDEFINED)
}

/// Sets members of an object that was just made, which cannot fail.
pub(crate) fn set(of: &JsValue, name: &str, value: impl Into<JsValue>) {
    let _ = js_sys::Reflect::set(of, &name.into(), &value.into());
}
