//! `backhaul`, the console.

fn main() -> std::process::ExitCode {
    backhaul::commands::main()
}
