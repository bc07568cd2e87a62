//! `ssh console` on a terminal: the real binary in tmux.

use std::{process::Command, thread, time::Duration};

use tests::{
    command::run,
    system::{System, binary},
};

/// A terminal in tmux: prompt, resize, Ctrl-C, a full-screen program, and the way out.
#[test]
fn a_terminal_is_a_terminal() {
    let system = System::start();
    let socket = format!("underpass-test-{}", std::process::id());
    let _server = TmuxServer(socket.clone());
    let tmux = |arguments: &[&str]| {
        let mut command = Command::new("tmux");
        command
            .args(["-L", &socket, "-f", "/dev/null"])
            .args(arguments);
        command.env("UNDERPASS_DATA_DIR", system.data_dir());
        run(command, b"", Duration::from_secs(20))
    };
    let screen = || tmux(&["capture-pane", "-p"]).text();
    let shows = |what: &str| {
        let says = || screen().contains(what).then_some(());
        tests::clock::wait_for(
            &format!("{what:?} on the screen"),
            Duration::from_secs(20),
            says,
        );
    };
    let keys = |keys: &[&str]| {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        tmux(&arguments).ok();
    };
    let console = format!(
        "'{}' ssh console -a web; echo ended with $?",
        binary().display()
    );
    tmux(&["new-session", "-d", "-x", "100", "-y", "30", "sh"]).ok();
    keys(&[&console, "Enter"]);
    shows("connected to web.internal over UDP");
    keys(&["PS1='there> '; unset PROMPT_COMMAND; clear", "Enter"]);
    shows("there>");
    keys(&["stty size", "Enter"]);
    shows("30 100");
    tmux(&["resize-window", "-x", "90", "-y", "20"]).ok();
    thread::sleep(Duration::from_millis(300));
    keys(&["stty size", "Enter"]);
    shows("20 90");
    keys(&["sleep 1000", "Enter"]);
    thread::sleep(Duration::from_millis(300));
    keys(&["C-c"]);
    keys(&["echo status $?", "Enter"]);
    shows("status 130");
    // Takes the whole screen, and gives it back.
    keys(&["seq 1000 | less", "Enter"]);
    shows("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n19\n");
    keys(&["G"]);
    shows("1000");
    keys(&["q"]);
    shows("status 130");
    keys(&["exit 5", "Enter"]);
    shows("ended with 5");
    keys(&["stty -a", "Enter"]);
    // The terminal is as it was.
    shows(" icanon");
    keys(&["clear", "Enter", &console, "Enter"]);
    shows("connected to");
    keys(&["Enter", "~."]);
    shows("ended with 255");
}

/// A tmux server of its own name, ended with the test.
struct TmuxServer(String);

impl Drop for TmuxServer {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.0, "kill-server"]);
        // One that is gone already is what is wanted.
        let _ = command.output();
    }
}
