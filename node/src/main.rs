//! The `sharemesh` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::main()
}
