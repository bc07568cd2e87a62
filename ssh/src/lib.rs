//! Certificate rules both ways and the SSH client session over any byte stream
