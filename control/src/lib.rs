//! Organisations, networks, apps, instances, peers, tokens, SSH CAs: the store and its HTTP API
