//! Faults put in on purpose, to see that tests find them.

#[cfg(mutants)]
extern crate std;

/// Says whether a fault is put in: never, but in a crate compiled with `--cfg mutants`, where the environment names one.
/// No build of the product is.
#[cfg(not(mutants))]
pub(crate) const fn is_in(_fault: &str) -> bool {
    false
}

/// Says whether a fault is put in: the one that the environment names.
#[cfg(mutants)]
pub(crate) fn is_in(fault: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<std::string::String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("SHAREMESH_MUTANT").ok()).as_deref() == Some(fault)
}
