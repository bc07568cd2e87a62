//! How far a copy is, on a terminal.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use super::printable;

/// A line that is written over: bytes, share, rate, and when it is done. Nothing where standard
/// error is no terminal.
pub(super) struct Progress {
    name: String,
    begun: Instant,
    from: u64,
    at: u64,
    size: u64,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new(name: &str, at: u64, size: u64) -> Progress {
        let begun = now();
        let shown = io::stderr().is_terminal().then_some(begun);
        Progress {
            name: printable(name),
            begun,
            from: at,
            at,
            size,
            shown,
        }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.at += bytes as u64;
        if self.shown.is_some_and(|shown| shown.elapsed() >= EVERY) {
            self.shown = Some(now());
            self.show("");
        }
    }

    pub(super) fn end(mut self) {
        if self.shown.take().is_some() {
            self.show("\n");
        }
    }

    fn show(&self, end: &str) {
        let (columns, _) = crate::client::terminal::size();
        let line = self.line(self.begun.elapsed(), columns as usize);
        // Over what was there, whatever its length.
        crate::output::to_stderr(format_args!("\r{line}\u{1b}[K{end}"));
    }

    fn line(&self, elapsed: Duration, columns: usize) -> String {
        let copied = self.at - self.from;
        let rate = copied as f64 / elapsed.as_secs_f64().max(0.001);
        let percent = (self.at.min(self.size) * 100)
            .checked_div(self.size)
            .unwrap_or(100);
        let left = self.size.saturating_sub(self.at);
        let eta = if left == 0 {
            clock(elapsed.as_secs())
        } else if copied == 0 {
            "--:--".to_owned()
        } else {
            // A guess of more than 100 hours is no guess.
            clock(((left as f64 / rate) as u64).min(359_999)) + " left"
        };
        let figures = format!(
            "{percent:>3} %  {:>9}  {:>9}/s  {eta}",
            bytes(self.at as f64),
            bytes(rate)
        );
        let room = columns.saturating_sub(figures.chars().count() + 3).max(8);
        let name: String = if self.name.chars().count() > room {
            let skip = self.name.chars().count() - room + 1;
            std::iter::once('\u{2026}')
                .chain(self.name.chars().skip(skip))
                .collect()
        } else {
            format!("{:room$}", self.name)
        };
        format!("{name}  {figures}")
    }
}

/// A copy that broke off leaves its line to be read, and what is said of it has its own.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            crate::output::to_stderr(format_args!("\n"));
        }
    }
}

const EVERY: Duration = Duration::from_millis(200);

fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "kB", "MB", "GB"] {
        if count < 1000.0 {
            let digits = usize::from(unit != "B");
            return format!("{count:.digits$} {unit}");
        }
        count /= 1000.0;
    }
    format!("{count:.1} TB")
}

fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how fast a copy is, for who watches it"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_it_takes() {
        let mut progress = Progress::new("site.tar", 10_000_000, 50_000_000);
        progress.at = 20_000_000;
        let line = progress.line(Duration::from_secs(2), 70);
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "site.tar 40 % 20.0 MB 5.0 MB/s 0:06 left"
        );
        assert!(line.chars().count() <= 70, "{line}");
        progress.at = 50_000_000;
        assert!(
            progress
                .line(Duration::from_secs(8), 70)
                .ends_with("5.0 MB/s  0:08")
        );
        let mut long = Progress::new(&"x/".repeat(100), 0, 0);
        assert!(long.line(Duration::ZERO, 60).starts_with('\u{2026}'));
        long.size = 1 << 50;
        assert!(long.line(Duration::from_secs(1), 60).ends_with("--:--"));
        long.at = 1;
        assert!(
            long.line(Duration::from_secs(1), 60)
                .ends_with("99:59:59 left")
        );
    }
}
