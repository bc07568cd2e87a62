//! A shell or a command on an instance, and the pump between it and a terminal.
//!
//! Output goes to the terminal as the bytes they are, with credit: what the terminal has not yet
//! acknowledged is bounded, and a terminal that does not get on closes the SSH window, and that
//! the TCP window. Input goes out in order, in pieces, as the server makes room.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    task::Poll,
};

use js_sys::{JsString, Uint8Array};
use ssh::client::{self as protocol, Channel, ExitStatus, Output, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Notify, oneshot, watch};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;

use crate::{
    failure::Failure,
    page,
    surface::{Disposable, TerminalLike},
};

/// Bytes that a terminal may have taken and not yet acknowledged.
const CREDIT: usize = 256 * 1024;

/// Bytes of input that may wait for the server. A paste that does not fit is refused whole.
const MAX_INPUT: usize = 16 * 1024 * 1024;

/// Input is sent in pieces, between which the page gets its turn.
const PIECE: usize = 16 * 1024;

/// A shell or a command on an instance.
#[wasm_bindgen]
pub struct Session(Rc<Inner>);

struct Inner {
    /// Ended when the session is over.
    connection: RefCell<Option<protocol::Session>>,
    write: WriteHalf,
    read: Mutex<ReadHalf>,
    attached: Cell<bool>,
    input: RefCell<Input>,
    size: Cell<Option<(u32, u32)>>,
    /// There is input, or a size, or an end.
    work: Notify,
    resized: Notify,
    over: watch::Sender<Option<Ending>>,
}

#[derive(Default)]
struct Input {
    pieces: VecDeque<Piece>,
    bytes: usize,
    refused: u32,
}

struct Piece {
    data: Vec<u8>,
    sent: Option<oneshot::Sender<()>>,
}

#[derive(Clone)]
enum Ending {
    Exit(Option<ExitStatus>),
    Failed(Failure),
}

#[wasm_bindgen]
impl Session {
    /// Pumps between the session and a terminal that the page made, until the session is over.
    pub fn attach(&self, terminal: TerminalLike) -> Result<(), JsValue> {
        if self.0.attached.replace(true) {
            return Err(Failure::new(
                "already_attached",
                "This session has a terminal already.",
                "Open another session for another terminal.",
            )
            .into());
        }
        let listeners = Listeners::new(&self.0, &terminal)?;
        self.0.resize(terminal.cols(), terminal.rows());
        let inner = Rc::clone(&self.0);
        spawn_local(async move {
            inner.show(&terminal).await;
            drop(listeners);
        });
        Ok(())
    }

    /// The next output, standard error included; `undefined` at the end. For a session without a
    /// terminal attached. What is not read stays with the server.
    #[wasm_bindgen(unchecked_return_type = "Uint8Array | undefined")]
    pub async fn read(&self) -> Result<JsValue, JsValue> {
        let inner = Rc::clone(&self.0);
        let mut over = inner.over.subscribe();
        let next = async { inner.next(&mut *inner.read.lock().await).await };
        let ended = over.wait_for(Option::is_some);
        let bytes = first(next, async {
            drop(ended.await);
            None
        })
        .await;
        Ok(bytes.map_or(JsValue::UNDEFINED, |bytes| Uint8Array::from(&*bytes).into()))
    }

    /// Sends input; resolves when the server has made room for all of it.
    pub async fn write(&self, data: Vec<u8>) -> Result<(), JsValue> {
        let (sent, told) = oneshot::channel();
        self.0.push(data, Some(sent))?;
        told.await.map_err(|_| self.0.lost())?;
        Ok(())
    }

    /// Says that no more input follows, once all of it is sent.
    pub async fn end(&self) -> Result<(), JsValue> {
        self.write(Vec::new()).await?;
        Ok(self.0.write.eof().await.map_err(Failure::from)?)
    }

    /// Tells the size of the terminal. An attached terminal tells its own.
    pub fn resize(&self, cols: f64, rows: f64) {
        self.0.resize(cols, rows);
    }

    /// How it ended; rejects when the connection was lost before.
    #[wasm_bindgen(unchecked_return_type = "ExitStatus")]
    pub async fn exited(&self) -> Result<JsValue, JsValue> {
        let mut over = self.0.over.subscribe();
        let ending = over
            .wait_for(Option::is_some)
            .await
            .map(|ending| ending.clone());
        let told = js_sys::Object::new();
        match ending {
            Ok(Some(Ending::Exit(Some(ExitStatus::Code(code))))) => page::set(&told, "code", code),
            Ok(Some(Ending::Exit(Some(ExitStatus::Signal { name, .. })))) => {
                page::set(&told, "signal", name);
            }
            Ok(Some(Ending::Failed(failure))) => return Err(failure.into()),
            Ok(Some(Ending::Exit(None)) | None) | Err(_) => {}
        }
        Ok(told.into())
    }

    /// Pastes that were refused because too much input waits already.
    #[wasm_bindgen(getter, js_name = refusedInput)]
    pub fn refused_input(&self) -> u32 {
        self.0.input.borrow().refused
    }

    /// Hangs up.
    pub fn close(&self) {
        self.0.finish(Ending::Failed(Failure::new(
            "closed",
            "The session was closed by this page.",
            "Open another.",
        )));
    }
}

impl Session {
    pub(crate) fn new(connection: protocol::Session, channel: Channel) -> Session {
        let (read, write) = channel.split();
        let inner = Rc::new(Inner {
            connection: RefCell::new(Some(connection)),
            write,
            read: Mutex::new(read),
            attached: Cell::new(false),
            input: RefCell::default(),
            size: Cell::new(None),
            work: Notify::new(),
            resized: Notify::new(),
            over: watch::Sender::new(None),
        });
        let (sends, resizes) = (Rc::clone(&inner), Rc::clone(&inner));
        spawn_local(async move { first(sends.send(), sends.ended()).await });
        spawn_local(async move { first(resizes.tell_sizes(), resizes.ended()).await });
        Session(inner)
    }
}

/// A session that nobody holds any more is hung up, unless a terminal does.
impl Drop for Session {
    fn drop(&mut self) {
        if !self.0.attached.get() {
            self.close();
        }
    }
}

impl Inner {
    /// Writes output to the terminal until there is none any more.
    async fn show(&self, terminal: &TerminalLike) {
        let credit = Rc::new(Credit::default());
        let acknowledge = {
            let credit = Rc::clone(&credit);
            Closure::<dyn FnMut()>::new(move || credit.give_back())
        };
        // The page's to collect: a terminal may call back after the session is over.
        let acknowledge = acknowledge.into_js_value().unchecked_into();
        let mut read = self.read.lock().await;
        let pump = async {
            loop {
                while credit.in_flight.get() >= CREDIT {
                    credit.freed.notified().await;
                }
                let Some(bytes) = self.next(&mut read).await else {
                    return;
                };
                credit.take(bytes.len());
                if terminal
                    .write(&Uint8Array::from(&*bytes), &acknowledge)
                    .is_err()
                {
                    self.finish(Ending::Failed(Failure::new(
                        "terminal_failed",
                        "The terminal of this page does not take output any more.",
                        "Open another session.",
                    )));
                    return;
                }
            }
        };
        first(pump, self.ended()).await;
    }

    /// The next bytes of output. Where none follow the session is over.
    async fn next(
        &self,
        read: &mut ReadHalf,
    ) -> Option<impl std::ops::Deref<Target = [u8]> + use<>> {
        loop {
            match read.next().await {
                Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => return Some(bytes),
                Some(Output::Eof | Output::Exit(_)) => {}
                None => break,
            }
        }
        let ending = match read.exit() {
            Some(exit) => Ending::Exit(Some(exit.clone())),
            // A connection that was lost says so to whoever sends.
            None => match self.write.eof().await {
                Ok(()) => Ending::Exit(None),
                Err(error) => Ending::Failed(error.into()),
            },
        };
        self.finish(ending);
        None
    }

    /// Sends the pieces of input in order.
    async fn send(&self) {
        loop {
            let piece = self.input.borrow_mut().pieces.pop_front();
            let Some(Piece { data, sent }) = piece else {
                self.work.notified().await;
                continue;
            };
            for part in data.chunks(PIECE) {
                if self.write.write(part.to_vec()).await.is_err() {
                    // The reader learns why.
                    return;
                }
                self.input.borrow_mut().bytes -= part.len();
            }
            if let Some(sent) = sent {
                let _ = sent.send(());
            }
        }
    }

    /// Tells sizes, the newest alone: a window that is dragged has many.
    async fn tell_sizes(&self) {
        loop {
            while let Some((cols, rows)) = self.size.take() {
                if self.write.resize(cols, rows).await.is_err() {
                    return;
                }
            }
            self.resized.notified().await;
        }
    }

    fn push(&self, data: Vec<u8>, sent: Option<oneshot::Sender<()>>) -> Result<(), Failure> {
        if self.over.borrow().is_some() {
            return Err(self.lost());
        }
        let mut input = self.input.borrow_mut();
        if input.bytes + data.len() > MAX_INPUT {
            input.refused += 1;
            return Err(Failure::new(
                "input_full",
                "More input waits for the server than this page keeps.",
                "Paste less at a time, or write in pieces and await each.",
            ));
        }
        input.bytes += data.len();
        input.pieces.push_back(Piece { data, sent });
        self.work.notify_one();
        Ok(())
    }

    fn resize(&self, cols: f64, rows: f64) {
        // A terminal that is not laid out yet has no size.
        if (1.0..=10_000.0).contains(&cols) && (1.0..=10_000.0).contains(&rows) {
            self.size.set(Some((cols as u32, rows as u32)));
            self.resized.notify_one();
        }
    }

    fn finish(&self, ending: Ending) {
        let first = self.over.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert(ending);
            first
        });
        if first {
            self.input.borrow_mut().pieces.clear();
            if let Some(connection) = self.connection.take() {
                spawn_local(connection.close());
            }
        }
    }

    async fn ended(&self) {
        let mut over = self.over.subscribe();
        // It is told before the sender is gone.
        let _ = over.wait_for(Option::is_some).await;
    }

    fn lost(&self) -> Failure {
        match &*self.over.borrow() {
            Some(Ending::Failed(failure)) => failure.clone(),
            _ => Failure::new("session_over", "The session is over.", "Open another."),
        }
    }
}

/// What the terminal has taken and not yet acknowledged.
#[derive(Default)]
struct Credit {
    in_flight: Cell<usize>,
    sizes: RefCell<VecDeque<usize>>,
    freed: Notify,
}

impl Credit {
    fn take(&self, bytes: usize) {
        self.in_flight.set(self.in_flight.get() + bytes);
        self.sizes.borrow_mut().push_back(bytes);
    }

    /// A terminal acknowledges in the order it was written to.
    fn give_back(&self) {
        let bytes = self.sizes.borrow_mut().pop_front().unwrap_or(0);
        self.in_flight.set(self.in_flight.get() - bytes);
        self.freed.notify_one();
    }
}

/// What a terminal tells; it is told no more once this is dropped.
struct Listeners {
    registered: Vec<Disposable>,
    _callbacks: [Closure<dyn FnMut(JsValue)>; 3],
}

impl Listeners {
    fn new(session: &Rc<Inner>, terminal: &TerminalLike) -> Result<Listeners, JsValue> {
        let on = |act: fn(&Inner, &JsValue)| {
            let session: Weak<Inner> = Rc::downgrade(session);
            Closure::new(move |told: JsValue| {
                if let Some(session) = session.upgrade() {
                    act(&session, &told);
                }
            })
        };
        let callbacks = [on(typed), on(typed_bytes), on(resized)];
        let [data, binary, resize] = &callbacks;
        let registered = vec![
            terminal.on_data(data.as_ref().unchecked_ref())?,
            terminal.on_binary(binary.as_ref().unchecked_ref())?,
            terminal.on_resize(resize.as_ref().unchecked_ref())?,
        ];
        Ok(Listeners {
            registered,
            _callbacks: callbacks,
        })
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for registered in &self.registered {
            // A terminal that is disposed of already tells nothing.
            let _ = registered.dispose();
        }
    }
}

/// Keys and pastes: text. What does not fit is counted.
fn typed(session: &Inner, told: &JsValue) {
    if let Some(text) = told.dyn_ref::<JsString>() {
        let _ = session.push(String::from(text).into_bytes(), None);
    }
}

/// Mouse reports of old protocols: a byte in each letter.
fn typed_bytes(session: &Inner, told: &JsValue) {
    if let Some(text) = told.dyn_ref::<JsString>() {
        let _ = session.push(text.iter().map(|unit| unit as u8).collect(), None);
    }
}

fn resized(session: &Inner, told: &JsValue) {
    let size = |name| page::member(told, name).as_f64().unwrap_or(0.0);
    session.resize(size("cols"), size("rows"));
}

/// Whichever is ready first; the other is dropped.
async fn first<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(value),
        Poll::Pending => other.as_mut().poll(context),
    })
    .await
}
