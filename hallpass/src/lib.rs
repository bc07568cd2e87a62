//! The certificate-only SSH server of an instance
