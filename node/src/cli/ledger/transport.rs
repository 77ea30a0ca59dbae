//! `sharemesh ledger export` and `import`: the ledger moves, the node does not run meanwhile.

use std::path::Path;

use crate::cli::Global;
use crate::cli::terminal::{Terminal, facts};
use crate::transport::{self, Moved};

pub(super) const EXPORT_EXAMPLES: &str = "\
Example:
  sharemesh down && sharemesh ledger export home.ledger

The file is append-only and hash-chained: exporting to it again adds what is new. It holds no keys. The node must be
stopped, and must stay stopped once the file is imported elsewhere: two wallets of one account would sign different steps
for the same position, and the account would fork.

Exit codes:
  0 written; 1 a node runs, there is no ledger, or the file holds something else";

pub(super) const IMPORT_EXAMPLES: &str = "\
Example:
  sharemesh ledger import home.ledger --data /new/folder    (with the node's key files in it, and nothing else)

Every record, signature and sum is checked before anything is written; what does not hold is refused whole. Compare the
head with the one that the export printed: a file that was cut at the end of a record is an older ledger.

Exit codes:
  0 rebuilt; 1 the file does not hold, is another node's, or the folder is not empty";

pub(super) fn export(file: &Path, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let moved = transport::export(&global.data()?, file)?;
    terminal.show(&moved, describe)?;
    terminal.message(
        "Keep this node stopped if the file is imported elsewhere: two wallets of one account would fork it.",
    );
    Ok(())
}

pub(super) fn import(file: &Path, global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let moved = transport::import(&global.data()?, file)?;
    terminal.show(&moved, describe)?;
    terminal.message("Start it with `sharemesh up`. The node that it came from must not run any more.");
    Ok(())
}

fn describe(moved: &Moved) -> String {
    facts(&[
        ("node", moved.node.clone()),
        ("account", moved.account.clone()),
        ("records", format!("{}, {} of them new", moved.records, moved.new)),
        ("head", moved.head.clone()),
    ])
}
