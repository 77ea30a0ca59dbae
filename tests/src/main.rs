//! The program under test: `sharemesh` as it is, under a name of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::main()
}
