//! `ssh console` on a terminal: the real binary in tmux, beside the same programs without it.

use std::{fs, process::Command, thread, time::Duration};

use tests::{
    clock::{self, wait_for},
    command::{Output, run},
    system::{System, binary},
};

const LIMIT: Duration = Duration::from_secs(20);

/// A tmux server of its own with one window, ended with the test.
struct Tmux<'a> {
    socket: String,
    system: &'a System,
}

impl Tmux<'_> {
    /// A shell in a window of 100 by 30.
    fn new<'a>(name: &str, system: &'a System) -> Tmux<'a> {
        let socket = format!("underpass-{name}-{}", std::process::id());
        let tmux = Tmux { socket, system };
        tmux.run(&["new-session", "-d", "-x", "100", "-y", "30", "sh"])
            .ok();
        // Nothing of tmux' own on the screen.
        tmux.run(&["set", "status", "off"]).ok();
        tmux.resize("100", "30");
        tmux
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket, "-f", "/dev/null"]);
        command.args(arguments);
        command.env("UNDERPASS_DATA_DIR", self.system.data_dir());
        run(command, b"", LIMIT)
    }

    fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat()).ok();
    }

    fn resize(&self, columns: &str, rows: &str) {
        self.run(&["resize-window", "-x", columns, "-y", rows]).ok();
    }

    /// The text, and where the cursor is.
    fn screen(&self) -> String {
        let cursor = "#{cursor_x},#{cursor_y}";
        let at = self.run(&["display-message", "-p", cursor]).ok().text();
        let text = self.run(&["capture-pane", "-p"]).ok().text();
        format!("{text}\n[cursor at {at}]")
    }

    /// The same with colours and attributes.
    fn painted(&self) -> String {
        let text = self.run(&["capture-pane", "-p", "-e"]).ok().text();
        format!("{text}\n{}", self.screen())
    }

    fn shows(&self, what: &str) {
        let says = || self.screen().contains(what).then_some(());
        wait_for(&format!("{what:?} on the screen"), LIMIT, says);
    }

    /// Types until the screen shows it: what reads the keys may not be there yet.
    fn answers(&self, keys: &[&str], what: &str) {
        let says = || {
            self.keys(keys);
            thread::sleep(Duration::from_millis(100));
            self.screen().contains(what).then_some(())
        };
        wait_for(&format!("{what:?} on the screen"), LIMIT, says);
    }

    fn console(&self) -> String {
        format!(
            "'{}' ssh console -a web; echo ended with $?",
            binary().display()
        )
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket, "kill-server"]);
        // One that is gone already is what is wanted.
        let _ = command.output();
    }
}

/// Prompt, resize, Ctrl-C, the exit status, a terminal that is as it was, and the way out of a
/// session that hangs.
#[test]
fn a_terminal_is_a_terminal() {
    let system = System::start();
    let tmux = Tmux::new("keys", &system);
    tmux.keys(&[&tmux.console(), "Enter"]);
    tmux.shows("connected to web.internal over UDP");
    tmux.keys(&["PS1='there> '; unset PROMPT_COMMAND; clear", "Enter"]);
    tmux.shows("there>");
    tmux.keys(&["stty size", "Enter"]);
    tmux.shows("30 100");
    tmux.resize("90", "20");
    tmux.answers(&["stty size", "Enter"], "20 90");
    tmux.keys(&["clear; echo begun; sleep 1000", "Enter"]);
    tmux.shows("begun\n");
    tmux.keys(&["C-c"]);
    tmux.keys(&["echo status $?", "Enter"]);
    tmux.shows("status 130");
    tmux.keys(&["exit 5", "Enter"]);
    tmux.shows("ended with 5");
    tmux.keys(&["stty -a", "Enter"]);
    tmux.shows(" icanon");
    tmux.keys(&["clear", "Enter", &tmux.console(), "Enter"]);
    tmux.shows("connected to");
    tmux.keys(&["Enter", "~."]);
    tmux.shows("ended with 255");
}

/// Where several are meant a person is asked, again until it is one of them; off a terminal that is
/// an error.
#[test]
fn a_choice_is_offered() {
    let system = System::start();
    let tmux = Tmux::new("choice", &system);
    let program = binary().display().to_string();
    tmux.keys(&[
        &format!("'{program}' ssh console -C 'echo $UNDERPASS_APP'"),
        "Enter",
    ]);
    tmux.shows("  1  web\n  2  worker\nWhich app? [1-2]");
    tmux.keys(&["3", "Enter"]);
    tmux.shows("Which app? [1-2] 3\nWhich app? [1-2]");
    tmux.keys(&["worker", "Enter", "2", "Enter"]);
    tmux.shows("connected to worker.internal over UDP\nworker\n");

    tmux.keys(&["clear", "Enter"]);
    let select =
        format!("'{program}' ssh console -a web -s -r lhr -q -C 'echo in $UNDERPASS_REGION'");
    tmux.keys(&[&select, "Enter"]);
    // There is one in that region.
    tmux.shows("in lhr\n");
    tmux.keys(&["clear", "Enter"]);
    let select = format!("'{program}' ssh console -a web -s -C 'echo in $UNDERPASS_INSTANCE'");
    tmux.keys(&[&select, "Enter"]);
    tmux.shows("Which instance? [1-2]");
    let screen = tmux.screen();
    let second = screen
        .lines()
        .find_map(|line| line.trim().strip_prefix("2  "));
    let second = second.and_then(|line| line.split('.').next());
    let second = second.unwrap_or_else(|| panic!("no second instance in {screen}"));
    tmux.keys(&["2", "Enter"]);
    tmux.shows(&format!("in {second}\n"));

    tmux.keys(&["clear", "Enter"]);
    let piped = format!("'{program}' ssh console -C true </dev/null; echo ended with $?");
    tmux.keys(&[&piped, "Enter"]);
    tmux.shows("which app?\nhint: -a with one of web, worker\nended with 255");
    // Nobody chooses.
    tmux.keys(&["clear", "Enter", &select, "Enter"]);
    tmux.shows("Which instance? [1-2]");
    tmux.keys(&["C-d"]);
    tmux.shows("no instance was chosen");
}

/// A pager and an editor look as they do without a network in between: after each key, in a window
/// that becomes smaller and larger, and when they give the screen back.
#[test]
fn full_screen_programs_look_as_they_do_here() {
    let system = System::start();
    let files = tempfile::tempdir().expect("a directory");
    let lines: String = (1..=500)
        .map(|n| format!("{n}\tgrün ✓ 漢字 {}\n", "wide ".repeat(n % 30)))
        .collect();
    let (here, there) = (Tmux::new("here", &system), Tmux::new("there", &system));
    there.keys(&[&there.console(), "Enter"]);
    there.shows("connected to web.internal");
    for (tmux, name) in [(&here, "here"), (&there, "there")] {
        let directory = files.path().join(name);
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("text"), &lines).expect("a file");
        let go = format!(
            "cd {}; exec env -i TERM=$TERM PATH=$PATH LC_ALL=C.UTF-8 LESSHISTFILE=- PS1='$ ' sh",
            directory.display()
        );
        tmux.keys(&[&go, "Enter"]);
        tmux.keys(&["clear; echo begun", "Enter"]);
        tmux.shows("begun\n$");
    }
    let step = |keys: &[&str]| {
        here.keys(keys);
        there.keys(keys);
        alike(&here, &there, &format!("{keys:?}"))
    };
    step(&["clear", "Enter"]);

    let first = step(&["vi -u NONE -N -n text", "Enter"]);
    assert!(first.contains("1       grün ✓ 漢字"), "{first}");
    step(&[":set number hlsearch", "Enter", "/37", "Enter"]);
    let edited = step(&["o", "a line that was written here", "Escape"]);
    assert!(edited.contains("a line that was written here"), "{edited}");
    for (columns, rows) in [("61", "17"), ("140", "45")] {
        here.resize(columns, rows);
        there.resize(columns, rows);
        alike(&here, &there, &format!("{columns} by {rows}"));
        step(&["C-f"]);
    }
    step(&["G", "gg"]);
    step(&[":wq", "Enter"]);
    step(&["clear", "Enter"]);

    let first = step(&["less text", "Enter"]);
    assert!(first.contains("1       grün ✓ 漢字"), "{first}");
    step(&["Space", "/30", "Enter"]);
    let last = step(&["G"]);
    assert!(last.contains("500     grün"), "{last}");
    let back = step(&["q"]);
    assert!(!back.contains("漢字"), "the screen is given back: {back}");
    let written = |name| fs::read_to_string(files.path().join(name)).expect("a file");
    assert_eq!(written("here/text"), written("there/text"));
    assert!(written("there/text").contains("\na line that was written here\n"));
}

/// Waits until both show the same, text, colours and cursor, and go on to; the text.
fn alike(here: &Tmux<'_>, there: &Tmux<'_>, step: &str) -> String {
    let deadline = clock::now() + LIMIT;
    let mut last = None;
    loop {
        let (a, b) = (here.painted(), there.painted());
        if a == b && last.as_ref() == Some(&a) {
            return here.screen();
        }
        assert!(
            clock::now() < deadline,
            "after {step}\nhere:\n{a}\nthere:\n{b}"
        );
        last = Some(a);
        thread::sleep(Duration::from_millis(50));
    }
}
