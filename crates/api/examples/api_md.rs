//! Writes `docs/api.md` from the table of methods, so that the page cannot drift from the program.

use std::fmt::Write as _;

fn main() -> std::io::Result<()> {
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md"), page())
}

fn page() -> String {
    let mut page = String::from(
        "# API of `backhauld`\n\n\
         Written by `cargo xtask docs` from `crates/api/src/method.rs`; the types of parameters and answers are documented there.\n\n\
         JSON-RPC 2.0 over HTTPS: `POST /api/v1`, cookie `authenticationToken=<token>`, one request object a body, parameters by name.\n\
         A *stream* answers `{\"result\":{\"$responseType\":\"ndjson\"}}` and then one JSON object a line; spaces between lines keep the\n\
         connection alive. `GET /healthz` answers `ok` without a token, `GET /metrics` OpenMetrics with one.\n\n\
         | method | answers | changes something | |\n| --- | --- | --- | --- |\n",
    );
    for method in api::METHODS {
        let kind = if method.stream { "stream" } else { "one" };
        let writes = if method.writes { "yes" } else { "no" };
        let _ = writeln!(page, "| `{}` | {kind} | {writes} | {} |", method.name, method.doc.trim());
    }
    page
}
