//! An asynchronous NBD client: TLS, pipelined reads, several connections, reconnect.
