//! The WebSocket: opened, heard, lost, opened again.

use std::{rc::Weak, time::Duration};

use js_sys::{Array, ArrayBuffer, Function, JsString, Uint8Array};
use tunnel::Instant;
use wasm_bindgen::prelude::*;
use web_sys::{BinaryType, CloseEvent, MessageEvent, WebSocket};
use wire::{CloseCode, Control, control, record};

use super::{Shared, State};
use crate::failure::Failure;

/// The way to the relay.
pub(super) enum Link {
    /// None, and none is wanted.
    Closed,
    /// A WebSocket that is being opened.
    Connecting { socket: Socket, since: Instant },
    /// A WebSocket that stands.
    Open(Open),
    /// None; another is opened at `until`, once the tunnel has stood.
    Lost { failure: Failure, until: Instant },
}

pub(super) struct Open {
    pub(super) socket: Socket,
    /// Nothing has been sent yet: a fresh handshake goes first.
    pub(super) fresh: bool,
    /// The relay said hello: it takes this client.
    greeted: bool,
    /// What the relay said before it closes.
    told: Option<Control>,
    pub(super) heard: Instant,
    pub(super) ping: Ping,
    /// The relay goes away: a new WebSocket is opened then.
    pub(super) drained_at: Option<Instant>,
}

/// The question to the relay whether it is there, and how far away.
pub(super) struct Ping {
    pub(super) number: u64,
    /// When it was asked; `None` once it is answered.
    pub(super) asked: Option<Instant>,
    pub(super) next: Instant,
}

impl Link {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Link::Open(_))
    }

    /// A relay that refuses a client accepts its WebSocket, because a browser tells a page why one
    /// was closed and not why one did not open. A hello is the yes.
    pub(super) fn is_greeted(&self) -> bool {
        matches!(self, Link::Open(open) if open.greeted)
    }

    pub(super) fn name(&self, stood: bool) -> &'static str {
        match self {
            Link::Open(_) if stood => "connected",
            Link::Closed => "closed",
            _ => "reconnecting",
        }
    }
}

/// A WebSocket whose events end with it.
pub(super) struct Socket(WebSocket);

impl Socket {
    /// Bytes that the browser holds.
    pub(super) fn buffered(&self) -> usize {
        self.0.buffered_amount() as usize
    }

    /// What cannot be sent is lost with the WebSocket, whose `close` event follows.
    pub(super) fn send(&self, message: &[u8]) {
        let _ = self.0.send_with_u8_array(message);
    }

    pub(super) fn tell(&self, control: &Control) {
        let _ = self.0.send_with_str(&control.to_text());
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.set_onopen(None);
        self.0.set_onmessage(None);
        self.0.set_onclose(None);
        let _ = self.0.close();
    }
}

/// The callbacks that every WebSocket and every timer of a driver share.
pub(super) struct Handlers {
    open: Closure<dyn FnMut()>,
    message: Closure<dyn FnMut(MessageEvent)>,
    close: Closure<dyn FnMut(CloseEvent)>,
    tick: Closure<dyn FnMut()>,
    turn: Closure<dyn FnMut()>,
}

impl Handlers {
    pub(super) fn new(driver: &Weak<Shared>) -> Handlers {
        let on = |act: fn(&Shared)| {
            let driver = driver.clone();
            Closure::new(move || {
                if let Some(driver) = driver.upgrade() {
                    act(&driver);
                }
            })
        };
        let (hears, parts) = (driver.clone(), driver.clone());
        Handlers {
            open: on(|driver| driver.enter(State::opened)),
            message: Closure::new(move |event: MessageEvent| {
                if let Some(driver) = hears.upgrade() {
                    driver.enter(|state, now| state.hear(&event.data(), now));
                }
            }),
            close: Closure::new(move |event: CloseEvent| {
                if let Some(driver) = parts.upgrade() {
                    driver.enter(|state, now| state.parted(&event, now));
                }
            }),
            tick: on(|driver| {
                driver.enter(|state, _| state.timer = None);
            }),
            turn: on(|driver| {
                driver.turn_queued.set(false);
                driver.enter(|_, _| ());
            }),
        }
    }

    /// What a timer calls.
    pub(super) fn tick(&self) -> &Function {
        self.tick.as_ref().unchecked_ref()
    }

    /// What follows a verb.
    pub(super) fn turn(&self) -> &Function {
        self.turn.as_ref().unchecked_ref()
    }
}

impl State {
    pub(super) fn open(&mut self, handlers: &Handlers, now: Instant) {
        let offer = wire::subprotocol::offer(self.token.as_deref(), self.resume.take().as_deref());
        let offer: Array = offer.iter().map(|name| JsValue::from_str(name)).collect();
        let Ok(socket) = WebSocket::new_with_str_sequence(&self.url, &offer) else {
            // The browser has looked at no more than the address.
            self.lose(
                now,
                Failure::new(
                    "relay_url_refused",
                    "This browser opens no WebSocket to the relay's address.",
                    "The address begins with wss://; a page loaded by https opens no other.",
                ),
            );
            return;
        };
        socket.set_binary_type(BinaryType::Arraybuffer);
        socket.set_onopen(Some(handlers.open.as_ref().unchecked_ref()));
        socket.set_onmessage(Some(handlers.message.as_ref().unchecked_ref()));
        socket.set_onclose(Some(handlers.close.as_ref().unchecked_ref()));
        self.link = Link::Connecting {
            socket: Socket(socket),
            since: now,
        };
    }

    fn opened(&mut self, now: Instant) {
        let Link::Connecting { socket, .. } = std::mem::replace(&mut self.link, Link::Closed)
        else {
            return;
        };
        self.link = Link::Open(Open {
            socket,
            fresh: true,
            greeted: false,
            told: None,
            heard: now,
            ping: Ping {
                number: 0,
                asked: None,
                next: now,
            },
            drained_at: None,
        });
        self.clock.go_on(now);
        if self.stood {
            self.reconnects += 1;
        }
        // It goes out with the first message, without waiting for the relay's hello.
        let now = self.clock.tunnel(now);
        self.tunnel.initiate(now);
    }

    fn hear(&mut self, data: &JsValue, now: Instant) {
        let Link::Open(open) = &mut self.link else {
            return;
        };
        open.heard = now;
        if let Some(text) = data.dyn_ref::<JsString>() {
            let long = text.length() as usize > control::MAX_CONTROL;
            let text = if long {
                String::new()
            } else {
                String::from(text)
            };
            return self.hear_control(&text, now);
        }
        let Some(buffer) = data.dyn_ref::<ArrayBuffer>() else {
            return;
        };
        if buffer.byte_length() as usize > record::MAX_MESSAGE {
            return self.refuse(now, CloseCode::MessageTooLarge);
        }
        let message = Uint8Array::new(buffer).to_vec();
        let Ok(records) = record::records(&message) else {
            return self.refuse(now, CloseCode::RecordMalformed);
        };
        let now = self.clock.tunnel(now);
        for datagram in records {
            self.tunnel.handle_datagram(now, datagram);
        }
    }

    fn hear_control(&mut self, text: &str, now: Instant) {
        let Link::Open(open) = &mut self.link else {
            return;
        };
        match Control::parse(text) {
            Ok(Control::Hello { resume, .. }) => {
                open.greeted = true;
                self.resume = resume;
                if let Some(opened) = self.opened.take() {
                    let _ = opened.send(Ok(()));
                }
            }
            Ok(Control::Ping { n }) => open.socket.tell(&Control::Pong { n }),
            Ok(Control::Pong { n }) if n == open.ping.number => {
                if let Some(asked) = open.ping.asked.take() {
                    self.rtt = Some(now.since(asked));
                }
            }
            Ok(Control::Draining { retry_after_ms }) => {
                open.drained_at = Some(now + Duration::from_millis(retry_after_ms.min(60_000)));
            }
            Ok(closing @ Control::Closing { .. }) => open.told = Some(closing),
            // The tunnel notices by itself what does not pass; newer messages are passed over.
            Ok(Control::Pong { .. } | Control::Limited { .. })
            | Err(control::ControlError::UnknownType) => {}
            Err(_) => self.refuse(now, CloseCode::ControlMalformed),
        }
    }

    /// The relay breaks the protocol.
    fn refuse(&mut self, now: Instant, code: CloseCode) {
        if let Link::Open(open) = &self.link {
            let _ = open
                .socket
                .0
                .close_with_code_and_reason(code as u16, code.reason());
        }
        self.lose(
            now,
            Failure::new(code.reason(), code.sentence(), code.hint()),
        );
    }

    fn parted(&mut self, event: &CloseEvent, now: Instant) {
        let failure = match &self.link {
            Link::Open(open) => {
                Failure::websocket_closed(event.code(), &event.reason(), open.told.as_ref())
            }
            _ => Failure::websocket_refused(),
        };
        self.lose(now, failure);
    }

    /// There is no way to the relay any more.
    pub(super) fn lose(&mut self, now: Instant, failure: Failure) {
        self.clock.stop(now);
        self.rtt = None;
        let pause = RETRY[RETRY.len().min(self.failures as usize + 1) - 1];
        // A relay that restarts is not to see all its clients in one moment.
        let pause = pause.mul_f64(0.75 + js_sys::Math::random() / 2.0);
        self.failures += 1;
        self.link = Link::Lost {
            failure: failure.clone(),
            until: now + pause,
        };
        if self.stood {
            self.tell_lost(failure);
            return;
        }
        for waiting in [self.opened.take(), self.established.take()]
            .into_iter()
            .flatten()
        {
            let _ = waiting.send(Err(failure.clone()));
        }
    }

    pub(super) fn tell_lost(&mut self, failure: Failure) {
        self.told_stands = false;
        self.news.push(("reconnecting", Some(failure)));
    }

    /// What was held true about the way may be so no longer.
    pub(super) fn wake(&mut self, handlers: &Handlers, now: Instant) {
        match &mut self.link {
            Link::Lost { .. } if self.stood => self.open(handlers, now),
            Link::Open(open) => {
                // One question, and less patience than usual.
                open.ping.asked = None;
                open.ping.next = now;
                let now = self.clock.tunnel(now);
                self.tunnel.initiate(now);
            }
            _ => {}
        }
    }

    /// The page wants no more of it.
    pub(super) fn close(&mut self, now: Instant) {
        if matches!(self.link, Link::Closed) {
            return;
        }
        self.link = Link::Closed;
        self.clock.stop(now);
        self.timer = None;
        self.opened = None;
        self.established = None;
        self.queries.clear();
        for (_, waiting) in &mut self.streams {
            waiting.connect = None;
            waiting.wake();
        }
        self.news.push(("closed", None));
    }
}

/// Pauses before a WebSocket is opened again.
const RETRY: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
