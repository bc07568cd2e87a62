//! End to end: the real binary, real peers, real clients
