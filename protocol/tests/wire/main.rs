//! The bytes: what is signed, said and written down keeps its form, and nothing else passes for it.

mod confusion;
mod enums;
mod kinds;
mod messages;
mod samples;
mod values;
mod vectors;
