//! The open channels of one connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::Socket;
use crate::channel::{self, Inbox, Inlet, Outbox};
use crate::intake::Intake;
use crate::program::Event;
use crate::start::Terminal;

/// The open channels of one connection, by number.
#[derive(Clone, Default)]
pub(crate) struct Channels(Arc<Mutex<HashMap<ChannelId, State>>>);

/// What is known of one open channel. Dropping it hangs up.
pub(crate) struct State {
    pub(crate) inlet: Inlet,
    /// What a program is given when it starts.
    pub(crate) parts: Option<Parts>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) terminal: Option<Terminal>,
    /// Why there is no terminal, for whoever asked for one.
    pub(crate) no_terminal: Option<String>,
    /// Where the program will find the client's agent.
    pub(crate) agent: Option<Socket>,
    pub(crate) events: mpsc::Sender<Event>,
    _closed: DropGuard,
}

pub(crate) struct Parts {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl State {
    /// The receiving half of the library's channel is dropped: what arrives comes through the
    /// handler's own callbacks, because the library blocks the whole session on a full half.
    pub(crate) fn new(
        channel: Channel<Msg>,
        intake: &Arc<Intake>,
        handle: Handle,
    ) -> (ChannelId, State) {
        let id = channel.id();
        let (_, write) = channel.split();
        let (inlet, inbox) = channel::queue(id, Arc::clone(intake));
        let (events, event_queue) = mpsc::channel(EVENTS);
        let closed = CancellationToken::new();
        let outbox = Outbox {
            id,
            write: Arc::new(write),
            handle,
            closed: closed.clone(),
        };
        let state = State {
            inlet,
            parts: Some(Parts {
                inbox,
                outbox,
                events: event_queue,
            }),
            environment: Vec::new(),
            terminal: None,
            no_terminal: None,
            agent: None,
            events,
            _closed: closed.drop_guard(),
        };
        (id, state)
    }
}

impl Channels {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remove(&self, id: ChannelId) {
        self.lock().remove(&id);
    }

    /// Adds a channel that this side opened, and hands out its ends.
    pub(crate) fn insert_open(
        &self,
        channel: Channel<Msg>,
        intake: &Arc<Intake>,
        handle: Handle,
    ) -> Option<(ChannelId, Parts)> {
        let (id, mut state) = State::new(channel, intake, handle);
        let parts = state.parts.take()?;
        self.lock().insert(id, state);
        Some((id, parts))
    }
}

/// Resizes and signals that wait for a program.
const EVENTS: usize = 16;
