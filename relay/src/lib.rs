//! WebSocket to UDP: admission, queues, limits
