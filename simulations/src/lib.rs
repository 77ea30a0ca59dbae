//! Thousands of protocol nodes in virtual time, from one seed. Read the modules in this order.

pub mod network;

pub mod devices;

pub mod liar;

pub mod reference;

pub mod world;

pub mod checks;

pub mod scenario;

pub mod home;

pub mod workload;

pub mod faults;

pub mod play;

pub mod report;

pub mod samples;

pub mod html;

pub mod shrink;

pub mod compare;

pub mod calibrating;

pub mod mutants;
