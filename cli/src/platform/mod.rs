//! What operating systems do differently. No other file of the client names one.
//!
//! ```text
//! files      what is private to one user, and where programs keep their settings
//! terminal   raw mode, size, resizes
//! process    signals
//! ```

#[cfg(unix)]
mod unix;

#[cfg(unix)]
pub(crate) use unix::*;
