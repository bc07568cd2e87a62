//! The terminal modes that a client sends along, onto the terminal.

use std::os::fd::AsFd;

use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Char,
    Termios, tcgetattr, tcsetattr,
};
use russh::Pty;

/// Sets the modes that Linux knows; others have no meaning here.
pub(crate) fn apply(terminal: impl AsFd, modes: &[(Pty, u32)]) -> nix::Result<()> {
    let mut termios = tcgetattr(&terminal)?;
    termios.input_flags.insert(InputFlags::IUTF8);
    for &(mode, value) in modes {
        set(&mut termios, mode, value);
    }
    tcsetattr(&terminal, SetArg::TCSANOW, &termios)
}

fn set(termios: &mut Termios, mode: Pty, value: u32) {
    if let Some(index) = character(mode) {
        // 255 disables a character, which is 0 on Linux.
        let value = u8::try_from(value).unwrap_or(u8::MAX);
        termios.control_chars[index as usize] = if value == u8::MAX { 0 } else { value };
        return;
    }
    let on = value != 0;
    if let Some(flag) = input(mode) {
        termios.input_flags.set(flag, on);
    } else if let Some(flag) = local(mode) {
        termios.local_flags.set(flag, on);
    } else if let Some(flag) = output(mode) {
        termios.output_flags.set(flag, on);
    } else if matches!(mode, Pty::CS7 | Pty::CS8) && on {
        termios.control_flags.remove(ControlFlags::CSIZE);
        let bits = if matches!(mode, Pty::CS7) {
            ControlFlags::CS7
        } else {
            ControlFlags::CS8
        };
        termios.control_flags.insert(bits);
    }
}

fn character(mode: Pty) -> Option<Char> {
    Some(match mode {
        Pty::VINTR => Char::VINTR,
        Pty::VQUIT => Char::VQUIT,
        Pty::VERASE => Char::VERASE,
        Pty::VKILL => Char::VKILL,
        Pty::VEOF => Char::VEOF,
        Pty::VEOL => Char::VEOL,
        Pty::VEOL2 => Char::VEOL2,
        Pty::VSTART => Char::VSTART,
        Pty::VSTOP => Char::VSTOP,
        Pty::VSUSP => Char::VSUSP,
        Pty::VREPRINT => Char::VREPRINT,
        Pty::VWERASE => Char::VWERASE,
        Pty::VLNEXT => Char::VLNEXT,
        Pty::VDISCARD => Char::VDISCARD,
        _ => return None,
    })
}

fn input(mode: Pty) -> Option<InputFlags> {
    Some(match mode {
        Pty::IGNPAR => InputFlags::IGNPAR,
        Pty::PARMRK => InputFlags::PARMRK,
        Pty::INPCK => InputFlags::INPCK,
        Pty::ISTRIP => InputFlags::ISTRIP,
        Pty::INLCR => InputFlags::INLCR,
        Pty::IGNCR => InputFlags::IGNCR,
        Pty::ICRNL => InputFlags::ICRNL,
        Pty::IXON => InputFlags::IXON,
        Pty::IXANY => InputFlags::IXANY,
        Pty::IXOFF => InputFlags::IXOFF,
        Pty::IMAXBEL => InputFlags::IMAXBEL,
        Pty::IUTF8 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local(mode: Pty) -> Option<LocalFlags> {
    Some(match mode {
        Pty::ISIG => LocalFlags::ISIG,
        Pty::ICANON => LocalFlags::ICANON,
        Pty::ECHO => LocalFlags::ECHO,
        Pty::ECHOE => LocalFlags::ECHOE,
        Pty::ECHOK => LocalFlags::ECHOK,
        Pty::ECHONL => LocalFlags::ECHONL,
        Pty::NOFLSH => LocalFlags::NOFLSH,
        Pty::TOSTOP => LocalFlags::TOSTOP,
        Pty::IEXTEN => LocalFlags::IEXTEN,
        Pty::ECHOCTL => LocalFlags::ECHOCTL,
        Pty::ECHOKE => LocalFlags::ECHOKE,
        Pty::PENDIN => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output(mode: Pty) -> Option<OutputFlags> {
    Some(match mode {
        Pty::OPOST => OutputFlags::OPOST,
        Pty::OLCUC => OutputFlags::OLCUC,
        Pty::ONLCR => OutputFlags::ONLCR,
        Pty::OCRNL => OutputFlags::OCRNL,
        Pty::ONOCR => OutputFlags::ONOCR,
        Pty::ONLRET => OutputFlags::ONLRET,
        _ => return None,
    })
}
