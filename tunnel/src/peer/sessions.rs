//! Which session is the newest, and how far its counter has come.

/// As many as the engine keeps.
const SESSIONS: usize = 8;

/// The counters of a peer's sessions. It sees only messages that decrypted.
#[derive(Default)]
pub(super) struct Sessions {
    slots: [Option<Slot>; SESSIONS],
    /// The receiver index of the session that came to stand last.
    newest: Option<u32>,
}

#[derive(Clone, Copy)]
struct Slot {
    index: u32,
    highest: Option<u64>,
}

pub(super) struct Seen {
    /// The first message of a session that the other side began: it is confirmed now.
    pub(super) first: bool,
    /// The highest counter of the newest session.
    pub(super) highest: bool,
}

impl Sessions {
    /// A session that we began stands.
    pub(super) fn opened(&mut self, index: u32) {
        self.slots[index as usize % SESSIONS] = Some(Slot {
            index,
            highest: None,
        });
        self.newest = Some(index);
    }

    /// A transport message of session `index` decrypted.
    pub(super) fn received(&mut self, index: u32, counter: u64) -> Seen {
        let slot = &mut self.slots[index as usize % SESSIONS];
        match slot {
            Some(slot) if slot.index == index => {
                let ahead = slot.highest.is_none_or(|highest| counter > highest);
                if ahead {
                    slot.highest = Some(counter);
                }
                Seen {
                    first: false,
                    highest: ahead && self.newest == Some(index),
                }
            }
            _ => {
                *slot = Some(Slot {
                    index,
                    highest: Some(counter),
                });
                self.newest = Some(index);
                Seen {
                    first: true,
                    highest: true,
                }
            }
        }
    }
}
