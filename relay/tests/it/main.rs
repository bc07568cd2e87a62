//! The relay over real loopback TLS: real clients, a fake gateway, WireGuard messages of boringtun.

#[cfg(test)]
mod acme;
#[cfg(test)]
mod admission;
#[cfg(test)]
mod carry;
#[cfg(test)]
mod flyctl;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod life;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod rfc6455;
#[cfg(test)]
mod seen;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod support;
