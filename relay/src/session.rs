//! One session: a WebSocket, a connected UDP socket, and what waits between them; how it begins
//! and how its client is told of the end. What passes in between is `pump`'s.

mod pump;

use std::{io, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;
use wire::{CloseCode, Control, record};

use self::pump::Pump;
use crate::{
    admission::Gateway,
    config::Limits,
    counters::{Counter, Counters},
};

/// What a session is opened with.
pub(crate) struct Opening {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) token: bool,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: CancellationToken,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed the WebSocket.
    Left,
    /// The connection broke.
    Lost,
    /// The relay closes it.
    Close(CloseCode),
}

impl End {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            End::Left => "left",
            End::Lost => "lost",
            End::Close(code) => code.reason(),
        }
    }
}

/// Runs a session to its end; the client has been told when it returns.
pub(crate) async fn run<S>(socket: S, opening: Opening) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let counters = opening.counters.clone();
    counters.count(Counter::SessionsOpened);
    // Counted when this future is dropped too.
    let _ended = Ended(counters.clone());
    let websocket = WebSocketStream::from_raw_socket(socket, Role::Server, Some(framing())).await;
    let mut pump = Box::new(Pump::new(websocket, opening));
    let end = std::future::poll_fn(|context| pump.poll(context)).await;
    let mut websocket = pump.into_websocket();
    match end {
        End::Left | End::Lost => counters.count(Counter::SessionsLeft),
        End::Close(code) => counters.closed(code),
    }
    match end {
        // Reading on answers the client's close frame.
        End::Left => {
            let _ = timeout(GOODBYE, async {
                while let Some(Ok(_)) = websocket.next().await {}
            })
            .await;
        }
        End::Lost => {}
        End::Close(code) => goodbye(websocket, code).await,
    }
    end
}

/// Tells a client whose session is refused why, and closes.
pub(crate) async fn refuse<S>(socket: S, code: CloseCode)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    goodbye(
        WebSocketStream::from_raw_socket(socket, Role::Server, Some(framing())).await,
        code,
    )
    .await;
}

/// The last words take at most this long to leave, and the client's answer as long again.
const GOODBYE: Duration = Duration::from_secs(2);

/// Sends `closing` and the close frame, then reads until the client hangs up: closing a socket
/// with unread bytes would reset it, and the client would never see the reason.
async fn goodbye<S>(mut websocket: WebSocketStream<S>, code: CloseCode)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let words = async {
        if code == CloseCode::Restarting {
            let draining = Control::Draining {
                retry_after_ms: retry_after_ms(),
            };
            websocket.feed(text(&draining)).await?;
        }
        websocket.feed(text(&Control::closing(code))).await?;
        let frame = CloseFrame {
            code: (code as u16).into(),
            reason: code.reason().into(),
        };
        websocket.send(Message::Close(Some(frame))).await
    };
    if !matches!(timeout(GOODBYE, words).await, Ok(Ok(()))) {
        return;
    }
    let _ = timeout(GOODBYE, async {
        let socket = websocket.get_mut();
        socket.shutdown().await?;
        let mut sink = [0; 1024];
        while socket.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// Clients that are sent away at once return over a second and a half.
fn retry_after_ms() -> u64 {
    let random = getrandom::u32().unwrap_or_default();
    500 + u64::from(random % 1500)
}

fn framing() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * record::MAX_MESSAGE)
        .max_message_size(Some(record::MAX_MESSAGE))
        .max_frame_size(Some(record::MAX_MESSAGE))
}

fn text(control: &Control) -> Message {
    Message::text(control.to_text())
}

struct Ended(Arc<Counters>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.count(Counter::SessionsEnded);
    }
}
