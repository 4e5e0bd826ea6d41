//! backhauld: HTTPS and JSON-RPC, state store, scheduler, workers.
